"""The verdicts on the paper's statements, each on a hand-made result that decides it one way, the other way, or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from handmade import Row, effects, in_pairs, made

from qrnca_lens.core.intervals import paired_difference
from qrnca_lens.localization.significance import TEST_COLUMNS
from qrnca_lens.readout.token_kinds import KIND_COLUMNS
from qrnca_lens.study.reproduction import Results
from qrnca_lens.study.verdicts import statements

NOTHING = pd.DataFrame()
N = 12
"""Queries: with all differences on one side the sign-flip p is 2 / 2 ** 12."""
OURS = effects("qrnca", 0.0, [0.2] * N, [0.45] * N, turned=[(0, 2), (0, 1)] * (N // 2))
"""A specific effect of (0.2 - 0.5) - (0.45 - 0.5), -25 points, on every query; 18 of 24 right answers turned."""
RIVALS = {
    "random": "QRNCA is ahead of random neurons",
    "activation": "QRNCA is ahead of the highest activations",
    "activation-absolute": "QRNCA is ahead of the largest absolute activations",
    "knowledge-neuron": "QRNCA is ahead of Knowledge Neuron*",
    "knowledge-neuron-without-common": "QRNCA is ahead of Knowledge Neuron* without common neurons",
    "without-ica": "ICA helps",
    "with-common": "removing common neurons helps",
}


def common_in(*layers: int) -> Any:
    """Two queries in two groups that share a neuron of each of these layers of four; what both have is common."""
    rows = [(query, layer, i, 1.0) for i, layer in enumerate(layers) for query in "ab"]
    return made(rows, {"a": "x", "b": "y"}, n_layers=4)


def results(
    found: pd.DataFrame = OURS, located: Any = None, kinds: pd.DataFrame | None = None, tests: pd.DataFrame | None = None
) -> Results:
    plain = Results(located or common_in(3), found, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, in_pairs(found))
    object.__setattr__(plain, "kinds", plain.kinds if kinds is None else kinds)
    object.__setattr__(plain, "tests", plain.tests if tests is None else tests)
    return plain


def row_of(statement: str, *of: Results) -> pd.Series:
    found = statements({f"set {i}": result for i, result in enumerate(of)})
    (row,) = (row for _, row in found.iterrows() if row["statement"] == statement)
    return row


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(
    ("after", "turned", "wanted", "measured"),
    [
        ([0.45] * N, [(0, 0), (0, 1)], "yes",
         "against 0.0 points, difference -25.0 [-25.0, -25.0]; flips 18 against 6 of 24"),
        ([0.1] * N, [(0, 2), (0, 2)], "no",
         "against -35.0 points, difference 10.0 [10.0, 10.0]; flips 18 against 24 of 24"),
        ([0.1, 0.3] * (N // 2), [(9, 0), (9, 0)], "not told apart",
         "against -25.0 points, difference 0.0 [-5.0, 5.0]; flips 18 against 0 of 24"),
    ],
)  # fmt: skip
def test_qrnca_against_a_rival(
    rival: str, after: list[float], turned: list[tuple[int, int]], wanted: str, measured: str
) -> None:
    """The rival's specific effects are 0, or -35, or -35 and -15 in turn. Its bootstrap: the mean of twelve ±10."""
    theirs = effects(rival, 0.0, after, [0.45] * N, turned=turned * (N // 2))
    row = row_of(f"{RIVALS[rival]}, suppressing", results(pd.concat([OURS, theirs], ignore_index=True)))
    assert row["holds here"] == wanted
    said, counts = row["measured"].rsplit("; ", 1)
    if wanted == "not told apart":  # the bounds come from the bootstrap
        assert said.startswith("specific change of P -25.0 against -25.0 points, difference 0.0 [-")
    else:
        assert said == f"specific change of P -25.0 {measured}"
    assert counts == "5.0 neurons of each a question, 12 of 12 questions"
    assert row["p"] == (1.0 if wanted == "not told apart" else 2 / 2**N)


@pytest.mark.parametrize(("after", "wanted"), [(0.8, "yes"), (0.95, "no"), (0.9, "not told apart")])
def test_boosting_is_tested_the_other_way_round(after: float, wanted: str) -> None:
    """Ours raises P by 0.4, the rival by 0.3, 0.45 or 0.4; what turns is wrong to right, of the one wrong prompt of each."""
    ours = effects("qrnca", 2.0, [0.9] * N, [0.5] * N, turned=[(1, 0)] * N)
    theirs = effects("random", 2.0, [after] * N, [0.5] * N, turned=[(0, 2)] * N)
    row = row_of("QRNCA is ahead of random neurons, boosting", results(pd.concat([ours, theirs], ignore_index=True)))
    assert row["holds here"] == wanted
    assert "flips 12 against 0 of 12" in row["measured"]


def test_methods_are_compared_query_by_query_and_by_facts() -> None:
    """QRNCA is 10 points ahead on every query although queries differ by 40; the rows stand in another order. Of two facts
    the difference can be reversed in four ways, two of which are as large."""
    ours = effects("qrnca", 0.0, [0.4, 0.0] * (N // 2), [0.5] * N)
    theirs = effects("random", 0.0, [0.5, 0.1] * (N // 2), [0.5] * N)[::-1]
    row = row_of("QRNCA is ahead of random neurons, suppressing", results(pd.concat([ours, theirs], ignore_index=True)))
    assert row["holds here"] == "yes" and "difference -10.0 [-10.0, -10.0]" in row["measured"]
    both = pd.concat([ours, theirs], ignore_index=True).assign(unit=lambda rows: rows["group"])
    assert row_of("QRNCA is ahead of random neurons, suppressing", results(both))["p"] == 0.5


def test_the_same_letter_counts_against_a_method() -> None:
    """The rival takes 10 points more from the own query and 20 more from its partner: QRNCA is 10 ahead."""
    theirs = effects("random", 0.0, [0.1] * N, [0.25] * N)
    row = row_of("QRNCA is ahead of random neurons, suppressing", results(pd.concat([OURS, theirs], ignore_index=True)))
    assert row["holds here"] == "yes" and "against -15.0 points, difference -10.0 [-10.0, -10.0]" in row["measured"]


@pytest.mark.parametrize(("same", "wanted"), [(0.4, "yes"), (0.2, "not told apart"), (0.1, "no")])
def test_an_effect_on_the_letter_is_not_one_on_the_question(same: float, wanted: str) -> None:
    """P falls by 30 points, that of the same letter by 10, 30 or 40, that of another letter by 5."""
    ours = effects("qrnca", 0.0, [0.2] * N, [same] * N, other=[0.45] * N)
    row = row_of("the effect of suppressing is the question's, not the letter's", results(ours))
    assert row["holds here"] == wanted
    if wanted == "yes":
        assert row["measured"] == (
            "P -30.0 points: question -20.0, letter -5.0, any question -5.0; own less same letter -20.0 [-20.0, -20.0]; "
            "the letter's share 16.7 [16.7, 16.7] %"
        )
    boosted = effects("qrnca", 2.0, [0.8] * N, [1 - same] * N, other=[0.55] * N)
    assert row_of("the effect of boosting is the question's, not the letter's", results(boosted))["holds here"] == wanted


def test_a_method_that_was_not_measured_has_no_statement() -> None:
    found = statements({"a": results()})
    assert found["statement"].tolist() == [
        "the effect of suppressing is the question's, not the letter's",
        "common neurons sit in the top layers",
    ]


def test_a_difference_that_is_no_number_is_no_verdict() -> None:
    theirs = effects("random", 0.0, [0.1] * N, [0.25] * N).assign(same_prompts=0, p_same_before=float("nan"))
    row = row_of("QRNCA is ahead of random neurons, suppressing", results(pd.concat([OURS, theirs], ignore_index=True)))
    assert row["holds here"] == "no data"


@pytest.mark.parametrize(
    ("layers", "wanted", "measured"),
    [
        ((3,) * 6, "yes", "6 common neurons, by layer of 0 to 3: {3: 6}; mean depth 1.00 against 0.50 of all neurons"),
        ((0,) * 6, "no", "6 common neurons, by layer of 0 to 3: {0: 6}; mean depth 0.00 against 0.50 of all neurons"),
        ((0, 3), "not told apart", "2 common neurons, by layer of 0 to 3: {0: 1, 3: 1}; mean depth 0.50"),
        ((), "no data", "0 common neurons, by layer of 0 to 3: {}; mean depth nan"),
    ],
)
def test_common_neurons_in_the_top_layers(layers: tuple[int, ...], wanted: str, measured: str) -> None:
    """Six of the forty neurons fall into one layer of ten by chance in 1 of 18,000 draws; 0 and 3 are as deep as all."""
    row = row_of("common neurons sit in the top layers", results(NO_EDITS, located=common_in(*layers)))
    assert row["holds here"] == wanted and row["measured"].startswith(measured)


NO_EDITS = OURS.head(0)
KINDS = pd.DataFrame(
    [
        ("option letters", 4, 6, 12, 0.5, 0.1, 0.001, 0.001, 0.003),
        ("stop words", 4, 2, 12, 1 / 6, 0.15, 0.02, 0.4, 0.8),
        ("punctuation", 0, 0, 0, float("nan"), float("nan"), 0.03, float("nan"), float("nan")),
    ],
    columns=KIND_COLUMNS,
)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("option letters", "yes"), ("stop words", "not told apart"), ("punctuation", "no data")]
)
def test_kinds_of_promoted_tokens(kind: str, wanted: str) -> None:
    row = row_of(f"common neurons promote {kind}", results(NO_EDITS, kinds=KINDS))
    assert row["holds here"] == wanted
    if wanted == "yes":
        assert row["measured"] == (
            "6 of the 12 most promoted tokens of 4 common neurons, 50.0%; 10.0% of those of random neurons of the same "
            "layers, 0.10% of the vocabulary"
        )


def test_p_is_corrected_for_all_rows() -> None:
    """0.03 and 0.04 would each pass; of two tests the smaller counts double."""
    two = KINDS.head(2).assign(p=[0.03, 0.04])
    found = statements({"a": results(NO_EDITS, located=common_in(), kinds=two)}).set_index("statement")
    assert found["p_corrected"].dropna().tolist() == pytest.approx([0.06, 0.06])
    assert set(found["holds here"]) == {"not told apart", "no data"}


def grouped(test: str, corrected: Sequence[float], groups: str = "xyz") -> pd.DataFrame:
    rows = [(g, "a share", 5, 0.25, 0.125, 0.1, 0.2, p, p) for g, p in zip(groups, corrected, strict=True)]
    return pd.DataFrame(rows, columns=TEST_COLUMNS).assign(test=test)


def test_groups_that_are_told_from_shuffled_labels_are_counted() -> None:
    tests = pd.concat([grouped("overlap", [0.01, 0.2, 0.04]), grouped("concentration", [float("nan")] * 3)])
    row = row_of("a group shares fewer neurons with the others than chance", results(NO_EDITS, tests=tests))
    assert row["holds here"] == "2 of 3 groups"
    assert row["measured"].startswith("x 0.25 (shuffled 0.125, p 0.01); y 0.25 (shuffled 0.125, p 0.2)")
    assert row_of("a group's neurons crowd into regions", results(NO_EDITS, tests=tests))["holds here"] == "no data"


DOMAINS, LANGUAGES = ("biology", "computer_science"), ("ar", "english")


def groups_with(x: Sequence[int], y: Sequence[int], names: tuple[str, str], each: int = 8) -> Any:
    """Two groups of `each` queries; every query of a group has the neurons of the group."""
    group_of = {f"{name}{i}": name for name in names for i in range(each)}
    rows: list[Row] = [(query, 0, i, 1.0) for query, name in group_of.items() for i in (x if name == names[0] else y)]
    return made(rows, group_of, common_share=1.0)


@pytest.mark.parametrize(
    ("domains", "languages", "wanted"), [([1, 2], [3, 4], "yes"), ([3, 4], [1, 2], "no"), ([1, 2], [1, 2], "not told apart")]
)
def test_domains_against_languages(domains: list[int], languages: list[int], wanted: str) -> None:
    """The other group's neurons are 1 and 2: a rate of 1 with the same ones, of 0 with others. The order does not matter."""
    both = {"b": groups_with(languages, [1, 2], LANGUAGES), "a": groups_with(domains, [1, 2], DOMAINS)}
    found = statements({name: results(NO_EDITS, located=of_set) for name, of_set in both.items()}).iloc[-1]
    assert found["statement"] == "domains overlap more than languages" and found["data set"] == "a, b"
    assert found["holds here"] == wanted
    rates = [1 if one == [1, 2] else 0 for one in (domains, languages)]
    assert f"mean rate {rates[0]}.000" in found["measured"] and f"against {rates[1]}.000" in found["measured"]


def test_sets_too_small_to_be_drawn_from_are_no_verdict() -> None:
    both = {"a": groups_with([1], [1], DOMAINS, each=1), "b": groups_with([1], [2], LANGUAGES, each=1)}
    found = statements({name: results(NO_EDITS, located=of_set) for name, of_set in both.items()}).iloc[-1]
    assert found["holds here"] == "no data"


@pytest.mark.parametrize(
    ("domains", "languages", "wanted"),
    [([0.01, 0.01], [0.01, 0.9], "yes"), ([0.9, 0.01], [0.01, 0.01], "no"), ([0.9, 0.9], [0.9, 0.9], "not told apart")],
)
def test_regions_of_domains_beside_those_of_languages(domains: list[float], languages: list[float], wanted: str) -> None:
    one = results(NO_EDITS, groups_with([1], [1], DOMAINS), tests=grouped("concentration", domains, "ab"))
    two = results(NO_EDITS, groups_with([1], [1], LANGUAGES), tests=grouped("concentration", languages, "ab"))
    row = row_of("domains have regions, languages are dispersed", one, two)
    assert row["holds here"] == f"by counts, {wanted}"
    counts = [sum(p < 0.05 for p in ps) for ps in (domains, languages)]
    assert f"{counts[0]} of 2 domains, {counts[1]} of 2 languages" in row["measured"]


def test_sets_of_other_groups_are_not_compared_whatever_they_are_called() -> None:
    other = groups_with([1], [1], ("x", "y"))
    for domains, languages in ((other, groups_with([1], [1], LANGUAGES)), (groups_with([1], [1], DOMAINS), other)):
        found = statements({"domains": results(located=domains), "languages": results(located=languages)})
        assert not found["statement"].str.startswith("domains").any()


def test_where_the_facts_of_atlas_lie() -> None:
    """Of three layers facts are in 1 and 2: all of a's neurons, half of b's, none of c's; the mean is over questions."""
    rows = [("a", 1, 1, 1.0), ("a", 2, 1, 1.0), ("a", 2, 2, 1.0), ("b", 1, 3, 1.0), ("b", 0, 4, 1.0), ("c", 0, 5, 1.0)]
    located = made(rows, {"a": "x", "b": "x", "c": "y"}, common_share=0.9)
    found = statements({"a": results(NO_EDITS, located=located)}, "atlas").set_index("statement")
    row = found.loc["QR neurons lie in the layers that the facts were trained into"]
    assert row["holds here"] == "not told apart"
    assert row["measured"].startswith("50% [0%, 100%] of a question's neurons in layers 1 and 2, 67% of all neurons")
    assert "{0: '33%', 1: '33%', 2: '33%'}" in row["measured"]
    assert not statements({"a": results(NO_EDITS, located=located)}, "other")["statement"].str.contains("trained").any()


def test_a_paired_difference_is_what_decides() -> None:
    """The p of the table is that of `paired_difference` over units."""
    theirs = effects("random", 0.0, [0.2 + 0.05 * (i % 3) for i in range(N)], [0.45] * N)
    row = row_of("QRNCA is ahead of random neurons, suppressing", results(pd.concat([OURS, theirs], ignore_index=True)))
    other = -25 + 5.0 * pd.Series(range(N)).mod(3).to_numpy()
    assert row["p"] == pytest.approx(paired_difference(other * 0 - 25, other, [f"q{i}" for i in range(N)]).p)


def test_pairs_without_a_common_count_decide_nothing() -> None:
    both = pd.concat([OURS, effects("knowledge-neuron", 0.0, [0.5] * N, [0.5] * N)], ignore_index=True)
    empty = results(both)
    object.__setattr__(empty, "pairs", empty.pairs.iloc[:0])
    row = row_of("QRNCA is ahead of Knowledge Neuron*, suppressing", empty)
    assert row["holds here"] == "no data" and row["measured"] == "none of 12 questions has a neuron of both"
    few = results(both)
    object.__setattr__(few, "pairs", few.pairs[few.pairs["query"].isin([f"q{i}" for i in range(8)])])
    row = row_of("QRNCA is ahead of Knowledge Neuron*, suppressing", few)
    assert row["measured"].endswith("5.0 neurons of each a question, 8 of 12 questions") and row["p"] == 2 / 2**8
