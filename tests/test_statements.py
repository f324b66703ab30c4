"""The verdicts on the paper's statements, each on a hand-made result that decides it one way, the other way, or not."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from handmade import Row, effects, made

from qrnca_lens.study.reproduction import Results
from qrnca_lens.study.verdicts import statements

NOTHING = pd.DataFrame()
TOKENS = pd.DataFrame({"kind": ["common"], "rank": [1], "promoted": ["▁A"]})
OURS = effects("qrnca", 0.0, [0.2, 0.2], [0.45, 0.45], turned=[(0, 2), (0, 1)])
"""A specific effect of (0.2 - 0.5) - (0.45 - 0.5), -25 points, on both queries; three of four right answers turned."""
RIVALS = {
    "random": "QRNCA's suppression is ahead of random neurons",
    "activation": "QRNCA's suppression is ahead of the highest activations",
    "knowledge-neuron": "QRNCA's suppression is ahead of Knowledge Neuron*",
    "without-ica": "ICA helps",
    "with-common": "removing common neurons helps",
}


def common_in(*layers: int) -> Any:
    """Two queries in two groups that share a neuron of each of these layers of four; what both have is common."""
    rows = [(query, layer, i, 1.0) for i, layer in enumerate(layers) for query in "ab"]
    return made(rows, {"a": "x", "b": "y"}, n_layers=4)


def results(found: pd.DataFrame = OURS, tokens: pd.DataFrame = TOKENS, located: Any = None) -> Results:
    return Results(located or common_in(3), found, NOTHING, NOTHING, NOTHING, tokens, NOTHING)


def verdict(statement: str, result: Results) -> tuple[str, str]:
    """What is said of one statement: whether it holds, and the numbers."""
    rows = statements({"a": result}).set_index("statement")
    assert rows.loc[statement, "data set"] == "a"
    return str(rows.loc[statement, "holds here"]), str(rows.loc[statement, "measured"])


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize(
    ("after", "turned", "wanted", "measured"),
    [
        ([0.45, 0.45], [(0, 0), (0, 1)], "yes",
         "against 0.0 points, difference -25.0 [-25.0, -25.0]; flips 3 against 1 of 4"),
        ([0.1, 0.1], [(0, 2), (0, 2)], "no",
         "against -35.0 points, difference 10.0 [10.0, 10.0]; flips 3 against 4 of 4"),
        ([0.1, 0.3], [(9, 0), (9, 0)], "not told apart",
         "against -25.0 points, difference 0.0 [-10.0, 10.0]; flips 3 against 0 of 4"),
    ],
)  # fmt: skip
def test_qrnca_against_a_rival(
    rival: str, after: list[float], turned: list[tuple[int, int]], wanted: str, measured: str
) -> None:
    """The rival's specific effects are 0 twice, -35 twice, or -35 and -15. With two queries the mean of a bootstrap draw is
    one of the two values in half of the draws, so the interval of the last reaches from one to the other."""
    theirs = effects(rival, 0.0, after, [0.45, 0.45], turned=turned)
    boosted = pd.concat([OURS, theirs]).assign(factor=2.0, p_after=0.9, right_to_wrong=0)  # says nothing of suppression
    found = verdict(RIVALS[rival], results(pd.concat([OURS, theirs, boosted], ignore_index=True)))
    assert found == (wanted, f"specific change of P -25.0 {measured}")


def test_methods_are_compared_query_by_query() -> None:
    """QRNCA is 10 points ahead on each of two queries that differ by 40; the rows stand in another order."""
    ours = effects("qrnca", 0.0, [0.4, 0.0], [0.5, 0.5])
    theirs = effects("random", 0.0, [0.5, 0.1], [0.5, 0.5])[::-1]
    assert verdict(RIVALS["random"], results(pd.concat([ours, theirs], ignore_index=True))) == (
        "yes",
        "specific change of P -30.0 against -20.0 points, difference -10.0 [-10.0, -10.0]; flips 0 against 0 of 4",
    )


def test_the_unrelated_query_counts_against_a_method() -> None:
    """The rival takes 10 points more from the own query and 20 more from the unrelated one: QRNCA is 10 ahead."""
    theirs = effects("random", 0.0, [0.1, 0.1], [0.25, 0.25])
    found = verdict(RIVALS["random"], results(pd.concat([OURS, theirs], ignore_index=True)))
    assert found[0] == "yes" and "against -15.0 points, difference -10.0 [-10.0, -10.0]" in found[1]


def test_a_method_that_was_not_measured_has_no_statement() -> None:
    found = statements({"a": results()})
    assert found["statement"].tolist() == ["common neurons sit in the top layers", "common neurons promote option letters"]


@pytest.mark.parametrize(
    ("layers", "wanted", "measured"),
    [
        ((3, 3, 2), "yes", "67% of 3 in the top quarter; by layer {2: 1, 3: 2}"),
        ((3, 2), "no", "50% of 2 in the top quarter; by layer {2: 1, 3: 1}"),
        ((0, 1, 2), "no", "0% of 3 in the top quarter; by layer {0: 1, 1: 1, 2: 1}"),
        ((), "no", "nan% of 0 in the top quarter; by layer {}"),
    ],
)
def test_common_neurons_in_the_top_layers(layers: tuple[int, ...], wanted: str, measured: str) -> None:
    """The top quarter of four layers is layer 3; more than half of the common neurons have to be there."""
    assert verdict("common neurons sit in the top layers", results(located=common_in(*layers))) == (wanted, measured)


@pytest.mark.parametrize(
    ("promoted", "wanted", "count"),
    [(["▁A", "ĠB", "D"], "yes", 3), (["C", " A", "E"], "yes", 2), (["▁A", "B", "AB", "▁b"], "no", 2), (["x"], "no", 0)],
)
def test_common_neurons_and_option_letters(promoted: list[str], wanted: str, count: int) -> None:
    """Only the three most promoted tokens of common neurons count, with or without a space before them."""
    tokens = pd.DataFrame({"kind": "common", "rank": 1, "promoted": promoted})
    ignored = pd.DataFrame({"kind": ["common", "QR"] * 4, "rank": [4, 1] * 4, "promoted": "x" if wanted == "yes" else "A"})
    measured = f"{count} of the {len(promoted)} three most promoted tokens of the most common neurons are option letters"
    found = verdict("common neurons promote option letters", results(tokens=pd.concat([tokens, ignored])))
    assert found == (wanted, measured)


DOMAINS, LANGUAGES = ("biology", "computer_science"), ("ar", "english")


def groups_with(x: list[int], y: list[int], names: tuple[str, str]) -> Any:
    """Two groups of one query; the neurons of each."""
    rows: list[Row] = [("a", 0, i, 1.0) for i in x] + [("b", 0, i, 1.0) for i in y]
    return made(rows, dict(zip("ab", names, strict=True)), common_share=1.0)


SAME, APART, PARTLY = ([1, 2], [1, 2]), ([1, 2], [3]), ([1, 2], [2])
"""Overlap rates of 1 and 1, of 0 and 0, of 1/2 (of x's two neurons y has one) and 1."""


@pytest.mark.parametrize(
    ("domains", "languages", "wanted", "measured"),
    [
        (SAME, APART, "yes", "1.000 against 0.000, bootstrapped difference [1.000, 1.000]"),
        (PARTLY, SAME, "no", "0.750 against 1.000, bootstrapped difference [-0.250, -0.250]"),
        (PARTLY, PARTLY, "not told apart", "0.750 against 0.750, bootstrapped difference [0.000, 0.000]"),
    ],
)
def test_domains_against_languages(domains: Any, languages: Any, wanted: str, measured: str) -> None:
    """A group of one query is drawn as it is every time, so the interval is a point."""
    located = {"b": groups_with(*languages, names=LANGUAGES), "a": groups_with(*domains, names=DOMAINS)}
    found = statements({name: results(located=of_set) for name, of_set in located.items()}).iloc[-1]
    assert found.tolist() == ["domains overlap more than languages", "both", wanted, f"mean overlap {measured}"]


def test_sets_of_other_groups_are_not_compared_whatever_they_are_called() -> None:
    other = groups_with(*SAME, names=("x", "y"))
    for domains, languages in ((other, groups_with(*SAME, names=LANGUAGES)), (groups_with(*SAME, names=DOMAINS), other)):
        found = statements({"domains": results(located=domains), "languages": results(located=languages)})
        assert "domains overlap more than languages" not in found["statement"].tolist()


def test_overlap_is_bootstrapped_over_queries() -> None:
    """Of x's two queries one shares its neuron with y: a draw of x is {1, 2}, {1} or {2}, with an overlap of (1/2 + 1) / 2,
    1 or 0, each of them far more often than in 2.5 % of the draws."""
    rows: list[Row] = [("a", 0, 1, 1.0), ("b", 0, 2, 1.0), ("c", 0, 1, 1.0)]
    drawn = made(rows, {"a": "biology", "b": "biology", "c": "physics"}, common_share=1.0)
    apart = groups_with(*APART, names=LANGUAGES)
    found = statements({"domains": results(located=drawn), "languages": results(located=apart)}).iloc[-1]
    assert found["holds here"] == "not told apart"
    assert found["measured"] == "mean overlap 0.750 against 0.000, bootstrapped difference [0.000, 1.000]"
