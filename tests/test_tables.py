"""The study's tables on frames with numbers worked out by hand, and the paper's numbers beside them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from handmade import by_hand, effects, in_pairs, made

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.tables import Failure, failed_table
from qrnca_lens.editing.statistics import probability_change_ratio
from qrnca_lens.localization import overlap_rates
from qrnca_lens.study import paper
from qrnca_lens.study.prediction import COLUMNS as PREDICTION_COLUMNS
from qrnca_lens.study.prediction_table import table7, table7_sentence
from qrnca_lens.study.reproduction import Results
from qrnca_lens.study.tables import (
    as_json,
    figure2a,
    letter_line,
    pcr_of,
    table3,
    table4,
    table6,
    table_unseen,
)

NOTHING = pd.DataFrame()
PAPER_3 = """biology 13.1, physics 13.3, chemistry 12.8, mathematics 11.1, computer science 14.3, geography 12.7,
arabic 12.4, english 14.4, french 12.7, japanese 16.6, russian 15.8, chinese 15.0"""
PAPER_4 = """random 1.0 0.55 2.0 1.0
activation 1.0 1.0 1.1 1.1
knowledge-neuron 1.0 1.0 6.7 1.8
without-ica 2.5 1.1 6.5 2.2
with-common 2.8 1.8 10.4 8.5
qrnca 4.4 5.6 41.2 36.0"""
PAPER_6 = """random 0.0 0.3 0.2 0.3
activation 0.0 0.1 0.0 0.3
knowledge-neuron 1.4 3.8 14.3 16.0
qrnca 12.6 18.2 16.6 24.8"""
NAMES = {
    "random": "Random",
    "activation": "Activation",
    "knowledge-neuron": "Knowledge Neuron*",
    "without-ica": "QRNCA without ICA",
    "with-common": "QRNCA with common neurons",
    "qrnca": "QRNCA",
}
"""How the tables call the methods of the paper's table 4."""


def results(
    effects_: pd.DataFrame = NOTHING, extended: pd.DataFrame = NOTHING, located: QRNeurons | None = None, **frames: Any
) -> Results:
    """A Results of hand-made frames."""
    rest = {name: frames.get(name, NOTHING) for name in ("others", "loss", "tokens", "prediction")}
    rest |= {name: frames[name] for name in ("pairs", "unseen", "kinds", "tests") if name in frames}
    return Results(located or by_hand(), effects_, extended, **rest)


def both_ways(method: str = "qrnca") -> pd.DataFrame:
    """Boosting: the own P rises from 0.5 to 0.6 and 0.7, the same letter's to 0.525 and falls to 0.475, the other letter's
    stays; suppressing: the own P falls to 0.3 and 0.2, the same letter's to 0.45 and the other letter's to 0.475 twice."""
    boost = effects(method, 2.0, [0.6, 0.7], [0.525, 0.475], turned=[(1, 0), (0, 0)])
    suppress = effects(method, 0.0, [0.3, 0.2], [0.45, 0.45], other=[0.475, 0.475], turned=[(0, 2), (1, 1)])
    return pd.concat([boost, suppress], ignore_index=True)


def of_all_methods() -> pd.DataFrame:
    return pd.concat([both_ways(method) for method in NAMES], ignore_index=True)


def of_the_paper() -> dict[str, QRNeurons]:
    """Results whose groups are those of the paper's data sets, as the authors' files and this package name them."""
    groups = {"domains": ("biology", "computer_science", "geography"), "languages": ("ar", "en", "japanese")}
    return {name: by_hand(of_set) for name, of_set in groups.items()}


def in_the_paper(text: str) -> dict[tuple[str, str, str], float]:
    """By (method, data set, direction) the rows of a table that has columns for domains and languages, boost first."""
    found = {}
    for line in text.splitlines():
        method, *values = line.split()
        columns = [(name, way) for name in ("domains", "languages") for way in ("boost", "suppress")]
        found |= {(NAMES[method], *column): float(value) for column, value in zip(columns, values, strict=True)}
    return found


def test_table3_counts_qr_neurons_a_query_with_a_normal_interval() -> None:
    """2, 3 and 4 neurons: mean 3, standard deviation 1, so 3 ± 1.96 / sqrt(3) = 3 ± 1.1316. One query has no spread."""
    rows = [(f"q{size}", 0, 10 * size + i, 1.0) for size in (2, 3, 4) for i in range(size)] + [("alone", 1, 1, 1.0)]
    group_of = {"q2": "biology", "q3": "biology", "q4": "biology", "alone": "ours", "none": "empty"}
    found = table3({"a": results(located=made(rows, group_of, d_mlp=60))})
    assert list(found.columns) == ["data set", "group", "queries", "QR neurons", "low", "high", "paper"]
    wanted = [
        ("a", "biology", 3, 3.0, pytest.approx(1.8684, abs=1e-4), pytest.approx(4.1316, abs=1e-4), 13.1),
        ("a", "ours", 1, 1.0, 1.0, 1.0, None),
        ("a", "empty", 1, 0.0, 0.0, 0.0, None),
    ]
    assert list(found.astype(object).where(found.notna(), None).itertuples(index=False, name=None)) == wanted


def test_table3_has_the_paper_s_numbers() -> None:
    known = {name: float(value) for name, value in (part.strip().rsplit(" ", 1) for part in PAPER_3.split(","))}
    group_of = {f"q{i}": group for i, group in enumerate(known)}
    found = table3({"all": results(located=made([("q0", 0, 0, 1.0)], group_of))}).set_index("group")
    assert found["paper"].to_dict() == known


def test_table4_by_hand() -> None:
    """Boost: own +20 and +40 %, same letter +5 and -5 %, so 30 over 0; with two queries a bootstrap mean is one of the two
    values in half of the draws, and the interval reaches from one to the other. The largest change of the partner is 5: a
    ratio of at least 6. In points: 10 - 2.5 and 20 + 2.5. Suppress: own -40 and -60 %, same letter -10 % each, so 50 / 10,
    from 40 / 10 to 60 / 10; other letter -5 %. Of -25 points -5 are the same letter's and -2.5 the other's: the letter has
    2.5 of 25, and of the two queries 2.5 of 20 and of 30."""
    boost, suppress = table4({"a": results(both_ways())}).to_dict("records")
    same = {"method": "QRNCA", "data set": "a", "neurons": 5.0, "queries": 2, "paper": None}
    assert boost == same | {
        "direction": "boost",
        "own %": "30.0 [20.0, 40.0]",
        "same letter %": "0.0 [-5.0, 5.0]",
        "other letter %": "0.0 [0.0, 0.0]",
        "PCR (same letter)": "not told from 0 (ratio at least 6.0)",
        "PCR (other letter)": "not told from 0",
        "specific, points": "15.0 [7.5, 22.5]",
        "letter's share, %": "0.0 [-12.5, 25.0]",
    }
    assert suppress == same | {
        "direction": "suppress",
        "own %": "-50.0 [-60.0, -40.0]",
        "same letter %": "-10.0 [-10.0, -10.0]",
        "other letter %": "-5.0 [-5.0, -5.0]",
        "PCR (same letter)": "5.0 [4.0, 6.0]",
        "PCR (other letter)": "10.0 [8.0, 12.0]",
        "specific, points": "-20.0 [-25.0, -15.0]",
        "letter's share, %": "10.0 [8.3, 12.5]",
    }
    alone = table4({"a": results(both_ways().assign(same_prompts=0))}).iloc[1]
    assert (alone["PCR (same letter)"], alone["letter's share, %"]) == ("no partner", "")


def test_the_letter_s_share_in_words() -> None:
    found = pcr_of({"a": results(both_ways())})
    assert letter_line(found["qrnca", "a", "suppress"]) == (
        "Of the change on the own question (-25.0 points), 20 % is also seen on unrelated questions with the same right "
        "letter and 10 % on those with another: 10.0 [8.3, 12.5] % is specific to the letter, 80 % to the question."
    )
    nothing = effects("qrnca", 0.0, [0.4, 0.6], [0.5, 0.5])
    assert letter_line(probability_change_ratio(nothing)) == (
        "The change on the own question (0.0 points) cannot be told from 0, so no share of it is the letter's."
    )
    assert letter_line(probability_change_ratio(nothing.assign(other_prompts=2))).startswith("No question has unrelated")


def test_table4_has_the_paper_s_numbers() -> None:
    located = of_the_paper()
    found = table4({name: results(of_all_methods(), located=located[name]) for name in located})
    assert found.set_index(["method", "data set", "direction"])["paper"].to_dict() == in_the_paper(PAPER_4)


def test_table6_by_hand() -> None:
    """Two queries of three prompts, two right each. Boost: 1 of the 2 wrong ones; suppress: 3 of the 4 right ones.
    Wilson with z = 1.96, (p + z²/2n ± z sqrt(pq/n + z²/4n²)) / (1 + z²/n): 9.45 to 90.55 %, and 30.06 to 95.44 %: with one
    wrong prompt a query they are independent; the right ones (2 of 2, 1 of 2) have var 2/1 * 1/2 / 16, so n = 3."""
    boost, suppress = table6({"a": results(both_ways())}).to_dict("records")
    same = {"method": "QRNCA", "data set": "a", "neurons": 5.0, "paper, %": None}
    assert boost == same | {
        "direction": "wrong to right (boost)",
        "flipped": "1 / 2",
        "%": 50.0,
        "low": pytest.approx(9.45, abs=0.01),
        "high": pytest.approx(90.55, abs=0.01),
    }
    z2 = 1.959964**2 / 3
    half = (z2 * 0.75 * 0.25 + z2**2 / 4) ** 0.5
    assert suppress == same | {
        "direction": "right to wrong (suppress)",
        "flipped": "3 / 4",
        "%": 75.0,
        "low": pytest.approx(100 * (0.75 + z2 / 2 - half) / (1 + z2), abs=0.01),
        "high": pytest.approx(100 * (0.75 + z2 / 2 + half) / (1 + z2), abs=0.01),
    }


def test_edits_on_unseen_prompts_by_hand() -> None:
    parts = [both_ways().assign(prompts_of="detection"), both_ways().assign(prompts_of="fresh", p_after=0.5)]
    found = table_unseen({"a": results(unseen=pd.concat(parts, ignore_index=True)), "b": results()})
    assert found["prompts"].tolist() == 2 * ["detection"] + 2 * ["fresh"]
    assert found["direction"].tolist() == 2 * ["boost", "suppress"]
    assert found.iloc[1][["method", "data set", "queries", "own, points", "specific, points", "flipped", "%"]].tolist() == [
        "QRNCA", "a", 2, "-25.0 [-30.0, -20.0]", "-20.0 [-25.0, -15.0]", "3 / 4", 75.0
    ]  # fmt: skip
    assert found.iloc[3][["own, points", "specific, points"]].tolist() == ["0.0 [0.0, 0.0]", "5.0 [5.0, 5.0]"]
    low, high = table6({"a": results(both_ways())}).iloc[1][["low", "high"]]
    assert found.iloc[1][["low", "high"]].tolist() == [low, high]


def test_table6_has_the_paper_s_numbers() -> None:
    located = of_the_paper()
    found = table6({name: results(of_all_methods(), located=located[name]) for name in located})
    ways = {"wrong to right (boost)": "boost", "right to wrong (suppress)": "suppress"}
    found = found.assign(direction=found["direction"].map(ways)).set_index(["method", "data set", "direction"])["paper, %"]
    assert found.dropna().to_dict() == in_the_paper(PAPER_6)
    assert len(found) == 24  # the ablations have no number there


def test_other_sizes_and_methods_beyond_the_paper_stand_in_tables_of_their_own() -> None:
    pairs = in_pairs(pd.concat([both_ways(method) for method in ("qrnca", "random", "without-ica")]))
    all_three = {"a": results(both_ways(), both_ways("random-layers"), pairs=pairs)}
    for table in (table4, table6):
        assert set(table(all_three)["method"]) == {"QRNCA"}
        assert set(table(all_three, "extended")["method"]) == {"Random, same layers"}
        assert "against" not in table(all_three)
        assert list(zip(*(table(all_three, "pairs")[name] for name in ("against", "method")), strict=True))[::2] == [
            ("Random", "QRNCA"), ("Random", "Random"),
            ("QRNCA without ICA", "QRNCA"), ("QRNCA without ICA", "QRNCA without ICA"),
        ]  # fmt: skip


def predicted(
    group: str, neurons: str, reading: str, layers: str = "all", draws: int = 200, p: float = 0.01
) -> tuple[Any, ...]:
    random = (0.5, 0.25, 0.625) if draws else (float("nan"),) * 3
    return (group, neurons, reading, layers, 7, 3, 4, 0.75, 0.3, 0.95, draws, *random, p, p)


def test_table7_has_chance_and_the_paper_beside_what_was_measured() -> None:
    prompted, qr = ("the prompted model", "", ""), "QR neurons"
    kinds = [prompted, (qr, "probe", "all"), (qr, "direct", "all"), (qr, "direct", "3")]
    groups = ("biology", "chemistry", "geography", "x")
    rows = [predicted(group, *kind) for group in groups for kind in kinds]
    found = table7({"a": results(prediction=pd.DataFrame(rows, columns=PREDICTION_COLUMNS))})
    measured = found[PREDICTION_COLUMNS].itertuples(index=False, name=None)
    assert list(measured) == rows
    assert set(found["data set"]) == {"a"} and set(found["chance"]) == {0.25}
    paper = found["paper"].astype(object).where(found["paper"].notna(), None).tolist()
    assert paper == [0.96, 0.96, 0.96, None, 0.71, 0.67, 0.67, None, 0.89, 0.89, 0.89, None, *[None] * 4]


def test_the_sentence_of_table7_says_what_was_told_and_what_was_not() -> None:
    """x is told from random neurons directly and y is not, for which p is just 0.05; z has no draws. In layer 10, the last
    of them, both are. Twenty draws of the probe can tell no two groups: the smallest corrected p is 2 / 21."""
    qr, nan = "QR neurons", float("nan")
    rows = [
        predicted("x", "the prompted model", "", "", 0, nan),
        predicted("x", qr, "probe", "all", 20, 0.096),
        predicted("x", qr, "direct"),
        predicted("x", qr, "direct", "2", p=0.7),
        predicted("x", qr, "direct", "10"),
        predicted("y", qr, "probe", "all", 20, 0.5),
        predicted("y", qr, "direct", p=0.05),
        predicted("y", qr, "direct", "10"),
        predicted("z", qr, "probe", "all", 0, nan),
        predicted("z", qr, "direct", "all", 0, nan),
        predicted("z", qr, "direct", "10", 0, nan),
    ]
    numbers = "0.75 against 0.50 (95 % of {} draws: 0.25 to 0.62), corrected p "
    probe, direct = numbers.format(20), numbers.format(200)
    without = "(no random neurons for z: too few others in a layer)"
    more = "the QR neurons are more accurate than random neurons of the same layers for"
    assert table7_sentence({"a": results(prediction=pd.DataFrame(rows, columns=PREDICTION_COLUMNS))}).split("\n") == [
        f"a, probe: {more} 0 of 2 groups {without}; 20 draws cannot tell any of 2 groups, it takes 40. "
        f"Not told apart: x {probe}0.096; y {probe}0.500.",
        f"a, direct: {more} 1 of 2 groups {without}. Told apart: x {direct}0.010. Not told apart: y {direct}0.050.",
        "a, direct, a layer alone (corrected for the groups, not for the layers): more accurate than random neurons of "
        f"layer 2 for 0 of 1 groups; of layer 10 for 2 of 2 groups {without}.",
    ]


def test_figure2a_by_hand() -> None:
    """The sets of three groups of two queries each: x {1, 2}, y {2, 3}, z {2, 4, 5}: |A and B| / mean is 1 / 2 for x and y,
    1 / 2.5 where z is one of the two."""
    neurons = {"a": [1], "b": [2], "c": [2], "d": [3], "e": [2], "f": [4, 5]}
    rows = [(query, 0, neuron, 1.0) for query, of_query in neurons.items() for neuron in of_query]
    located = made(rows, dict(zip("abcdef", "xxyyzz", strict=True)), common_share=0.9)
    found = figure2a({"ours": results(located=located), "by hand": results()})
    assert list(found.columns) == ["data set", "queries", "lowest", "mean", "highest", "permuted mean"]
    assert found.iloc[0, :5].tolist() == ["ours", 2, pytest.approx(0.4), pytest.approx(1.3 / 3), pytest.approx(0.5)]
    assert found["permuted mean"][0] == overlap_rates(located).permuted_mean
    assert found.iloc[1, 1:5].tolist() == [2, *[pytest.approx(0.4)] * 3]  # z has no neurons: x and y alone make a pair


def test_the_paper_s_column_is_chosen_by_groups_and_not_by_the_name_of_the_set() -> None:
    """A file of any name with the paper's groups stands beside its numbers; a set called "domains" with others does not."""
    located = {"subject_qa": of_the_paper()["domains"], "language_qa": of_the_paper()["languages"], "domains": by_hand()}
    for table, column in ((table4, "paper"), (table6, "paper, %")):
        found = table({name: results(both_ways(), located=located[name]) for name in located})
        known = found.groupby("data set")[column].apply(lambda values: values.notna().all())
        assert known.to_dict() == {"subject_qa": True, "language_qa": True, "domains": False}
    rows = [predicted(name, "QR neurons", "probe") for name in ("high_school_geography", "Biology", "zoology")]
    found = table7({"a": results(prediction=pd.DataFrame(rows, columns=PREDICTION_COLUMNS))})["paper"]
    assert found.fillna(-1).tolist() == [0.89, 0.96, -1]
    threes = table3({name: results(located=of_set) for name, of_set in located.items()})["paper"]
    assert threes.fillna(-1).tolist() == [13.1, 14.3, 12.7, 12.4, 14.4, 16.6, -1, -1, -1]


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        (("biology", "physics"), "domains"),
        (("high_school_computer_science", "High School Physics"), "domains"),
        (("ar", "en", "fr", "ja", "ru", "zh"), "languages"),
        (("Arabic", "zh"), "languages"),
        (("biology", "ar"), None),
        (("biology", "zoology"), None),
        (("german",), None),
        ((), None),
    ],
)
def test_the_paper_s_data_sets_are_told_by_their_groups(groups: tuple[str, ...], kind: str | None) -> None:
    assert paper.data_set(groups) == kind


def test_every_group_of_the_paper_has_a_number() -> None:
    assert {name for names in paper.GROUPS.values() for name in names} == set(paper.TABLE3)
    for kind, names in paper.GROUPS.items():
        assert paper.data_set(names) == kind and [paper.group(name) for name in names] == list(names)


def test_the_record_holds_every_table() -> None:
    """The paper's tables rest on all queries: QRNCA on the sample of the other methods does not take their place."""
    methods = ("qrnca", "random-layers")
    few = pd.concat([effects(m, f, [0.25], [0.25], turned=[(1, 1)]) for m in methods for f in (0.0, 2.0)], ignore_index=True)
    failures = failed_table([Failure("lost", "x", 1, "too long")])
    hand = by_hand(("biology", "physics", "chemistry"))
    result = results(
        both_ways(),
        few,
        QRNeurons(hand.clusters, hand.queries, hand.config, hand.model, failed=failures),
        others=pd.DataFrame({"query": ["q0"], "p_after": [0.1]}),
        loss=pd.DataFrame({"query": ["q0"], "loss_after": [2.5]}),
        tokens=pd.DataFrame({"promoted": ["▁B"], "rank": [1]}),
        prediction=pd.DataFrame([predicted("biology", "QR neurons", "probe")], columns=PREDICTION_COLUMNS),
        pairs=in_pairs(pd.concat([both_ways(), both_ways("without-ica")])),
        unseen=both_ways().assign(prompts_of="fresh"),
        tests=pd.DataFrame({"test": ["overlap", "layers"], "p": [0.1, 0.2]}),
        kinds=pd.DataFrame({"kind": ["stop words"], "found": [2]}),
    )
    record = as_json({"domains": result}, {"seed": 3}, pd.DataFrame({"statement": ["ICA helps"]}))
    assert record["statements"] == [{"statement": "ICA helps"}]
    assert record["kinds"] == [{"kind": "stop words", "found": 2, "data set": "domains"}]
    assert [row["group"] for row in record["given away"]] == ["all groups"]
    assert record["about"] == {"seed": 3}
    ratios = {method: record["table4"][method]["domains"] for method in methods}
    assert set(record["table4"]) == set(methods)
    assert ratios["random-layers"]["boost"]["own"]["mean"] == -50.0
    suppress = ratios["qrnca"]["suppress"]
    assert (suppress["queries"], suppress["units"]) == (2, 2)
    assert suppress["own"] == {"mean": pytest.approx(-50), "ci": pytest.approx([-60, -40]), "queries": 2}
    assert suppress["ratio_same"] == {"value": pytest.approx(5), "ci": pytest.approx([4, 6]), "at_least": pytest.approx(5)}
    parts = ("points", "specific", "question", "letter", "general", "letter_share")
    assert [suppress[part]["mean"] for part in parts] == pytest.approx([-25, -20, -20, -2.5, -2.5, 10])
    assert ratios["qrnca"]["boost"]["ratio_same"]["value"] is ratios["qrnca"]["boost"]["ratio_same"]["ci"] is None
    assert {rival: set(of) for rival, of in record["table4_pairs"].items()} == {"without-ica": {"qrnca", "without-ica"}}
    assert record["table4_pairs"]["without-ica"]["qrnca"]["domains"] == ratios["qrnca"]
    assert {(row["against"], row["method"]) for row in record["table6_pairs"]} == {
        ("QRNCA without ICA", "QRNCA"), ("QRNCA without ICA", "QRNCA without ICA"),
    }  # fmt: skip
    assert [(row["prompts"], row["own, points"]) for row in record["unseen"]] == [
        ("fresh", "15.0 [10.0, 20.0]"),
        ("fresh", "-25.0 [-30.0, -20.0]"),
    ]
    flips = {(row["method"], row["direction"][:5]): row["flipped"] for row in record["table6"]}
    assert flips == {
        ("QRNCA", "wrong"): "1 / 2",
        ("QRNCA", "right"): "3 / 4",
        ("Random, same layers", "wrong"): "1 / 1",
        ("Random, same layers", "right"): "1 / 2",
    }
    assert [(row["group"], row["queries"], row["QR neurons"]) for row in record["table3"]] == [
        ("biology", 2, 1.5),
        ("physics", 2, 1.5),
        ("chemistry", 2, 0.0),
    ]
    assert record["table5"] == [{"promoted": "▁B", "rank": 1, "data set": "domains"}]
    assert [(row["accuracy"], row["paper"]) for row in record["table7"]] == [(0.75, 0.96)]
    assert [(row["queries"], row["lowest"], row["highest"]) for row in record["figure2a"]] == [
        (2, *[pytest.approx(0.4)] * 2)
    ]
    assert record["collateral"] == [
        {"query": "q0", "p_after": 0.1, "data set": "domains", "loss_after": None},
        {"query": "q0", "p_after": None, "data set": "domains", "loss_after": 2.5},
    ]
    assert record["failed"] == [{"query": "lost", "group": "x", "prompt": 1, "reason": "too long", "data set": "domains"}]
    assert record["significance"] == {
        "domains": {key: [{"test": key, "p": p}] for key, p in (("overlap", 0.1), ("layers", 0.2))}
    }
