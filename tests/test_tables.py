"""The study's tables on frames with numbers worked out by hand, and the paper's numbers beside them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from handmade import by_hand, effects, made

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import Failure, failed_table
from qrnca_lens.study.prediction import COLUMNS as PREDICTION_COLUMNS
from qrnca_lens.study.reproduction import Results
from qrnca_lens.study.tables import as_json, figure2a, table3, table4, table6, table7, table7_sentence

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
    return Results(located or by_hand(), effects_, extended, **rest)


def both_ways(method: str = "qrnca") -> pd.DataFrame:
    """Boosting: the own P rises from 0.5 to 0.6 and 0.7, the unrelated one to 0.525 and falls to 0.475; suppressing: the
    own P falls to 0.3 and 0.2, the unrelated one to 0.45 twice."""
    boost = effects(method, 2.0, [0.6, 0.7], [0.525, 0.475], turned=[(1, 0), (0, 0)])
    return pd.concat([boost, effects(method, 0.0, [0.3, 0.2], [0.45, 0.45], turned=[(0, 2), (1, 1)])], ignore_index=True)


def of_all_methods() -> pd.DataFrame:
    return pd.concat([both_ways(method) for method in NAMES], ignore_index=True)


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
    """Boost: own +20 and +40 %, unrelated +5 and -5 %, so 30 over 0; with two queries a bootstrap mean is one of the two
    values in half of the draws, and the interval reaches from one to the other. The largest unrelated change is 5: a ratio
    of at least 6. Suppress: own -40 and -60 %, unrelated -10 % each, so 50 / 10, from 40 / 10 to 60 / 10."""
    boost, suppress = table4({"a": results(both_ways())}).to_dict("records")
    same = {"method": "QRNCA", "data set": "a", "queries": 2, "paper": None}
    assert boost == same | {
        "direction": "boost",
        "PCR": "unrelated change not told from 0 (ratio at least 6.0)",
        "own query, %": "30.0 [20.0, 40.0]",
        "unrelated, %": "0.0 [-5.0, 5.0]",
        "own query, points": "15.0",
    }
    assert suppress == same | {
        "direction": "suppress",
        "PCR": "5.0 [4.0, 6.0]",
        "own query, %": "-50.0 [-60.0, -40.0]",
        "unrelated, %": "-10.0 [-10.0, -10.0]",
        "own query, points": "-25.0",
    }


def test_table4_has_the_paper_s_numbers() -> None:
    found = table4({name: results(of_all_methods()) for name in ("domains", "languages")})
    assert found.set_index(["method", "data set", "direction"])["paper"].to_dict() == in_the_paper(PAPER_4)


def test_table6_by_hand() -> None:
    """Two queries of three prompts, two right each. Boost: 1 of the 2 wrong ones; suppress: 3 of the 4 right ones.
    Wilson with z = 1.96, (p + z²/2n ± z sqrt(pq/n + z²/4n²)) / (1 + z²/n): 9.45 to 90.55 %, and 30.06 to 95.44 %."""
    boost, suppress = table6({"a": results(both_ways())}).to_dict("records")
    same = {"method": "QRNCA", "data set": "a", "paper, %": None}
    assert boost == same | {
        "direction": "wrong to right (boost)",
        "flipped": "1 / 2",
        "%": 50.0,
        "low": pytest.approx(9.45, abs=0.01),
        "high": pytest.approx(90.55, abs=0.01),
    }
    assert suppress == same | {
        "direction": "right to wrong (suppress)",
        "flipped": "3 / 4",
        "%": 75.0,
        "low": pytest.approx(30.06, abs=0.01),
        "high": pytest.approx(95.44, abs=0.01),
    }


def test_table6_has_the_paper_s_numbers() -> None:
    found = table6({name: results(of_all_methods()) for name in ("domains", "languages")})
    ways = {"wrong to right (boost)": "boost", "right to wrong (suppress)": "suppress"}
    found = found.assign(direction=found["direction"].map(ways)).set_index(["method", "data set", "direction"])["paper, %"]
    assert found.dropna().to_dict() == in_the_paper(PAPER_6)
    assert len(found) == 24  # the ablations have no number there


def test_methods_beyond_the_paper_stand_in_tables_of_their_own() -> None:
    both = {"a": results(both_ways(), both_ways("random-layers"))}
    for table in (table4, table6):
        assert set(table(both)["method"]) == {"QRNCA"}
        assert set(table(both, extended=True)["method"]) == {"Random, same layers"}


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
    """Of x's three neurons one is in y, of y's two one is in x; z has none, so its row does not count and nothing is in it:
    the rates are 1/3, 0, 1/2, 0."""
    found = figure2a({name: results() for name in ("domains", "languages", "ours")})
    assert list(found.columns) == ["data set", "lowest", "mean", "highest", "paper lowest", "paper highest"]
    ours = (0.0, pytest.approx((1 / 3 + 1 / 2) / 4), 0.5)
    rows = [tuple(row) for row in found.astype(object).where(found.notna(), None).itertuples(index=False, name=None)]
    assert rows == [("domains", *ours, 0.35, 0.49), ("languages", *ours, 0.02, 0.13), ("ours", *ours, None, None)]


def test_the_record_holds_every_table() -> None:
    """The paper's tables rest on all queries: QRNCA on the sample of the other methods does not take their place."""
    methods = ("qrnca", "random-layers")
    few = pd.concat([effects(m, f, [0.25], [0.25], turned=[(1, 1)]) for m in methods for f in (0.0, 2.0)], ignore_index=True)
    failures = failed_table([Failure("lost", "x", 1, "too long")])
    hand = by_hand()
    result = results(
        both_ways(),
        few,
        QRNeurons(hand.clusters, hand.queries, hand.config, hand.model, failed=failures),
        others=pd.DataFrame({"query": ["q0"], "p_after": [0.1]}),
        loss=pd.DataFrame({"query": ["q0"], "loss_after": [2.5]}),
        tokens=pd.DataFrame({"promoted": ["▁B"], "rank": [1]}),
        prediction=pd.DataFrame([predicted("biology", "QR neurons", "probe")], columns=PREDICTION_COLUMNS),
    )
    tests = {"domains": (pd.DataFrame({"p": [0.1]}), pd.DataFrame({"p": [0.2]}))}
    record = as_json({"domains": result}, {"seed": 3}, tests)
    assert record["about"] == {"seed": 3}
    ratios = {method: record["table4"][method]["domains"] for method in methods}
    assert set(record["table4"]) == set(methods)
    assert ratios["random-layers"]["boost"]["related"] == -50.0
    suppress = {key: [round(v, 6) for v in value] if isinstance(value, list) else round(value, 6)
                for key, value in ratios["qrnca"]["suppress"].items()}  # fmt: skip
    assert suppress == {
        "queries": 2,
        "related": -50.0,
        "related_ci": [-60.0, -40.0],
        "unrelated": -10.0,
        "unrelated_ci": [-10.0, -10.0],
        "pcr": 5.0,
        "ci": [4.0, 6.0],
        "at_least": 5.0,
        "points": -25.0,
    }
    assert ratios["qrnca"]["boost"]["pcr"] is ratios["qrnca"]["boost"]["ci"] is None
    flips = {(row["method"], row["direction"][:5]): row["flipped"] for row in record["table6"]}
    assert flips == {
        ("QRNCA", "wrong"): "1 / 2",
        ("QRNCA", "right"): "3 / 4",
        ("Random, same layers", "wrong"): "1 / 1",
        ("Random, same layers", "right"): "1 / 2",
    }
    assert [(row["group"], row["queries"], row["QR neurons"]) for row in record["table3"]] == [
        ("x", 2, 1.5),
        ("y", 2, 1.5),
        ("z", 2, 0.0),
    ]
    assert record["table5"] == [{"promoted": "▁B", "rank": 1, "data set": "domains"}]
    assert [(row["accuracy"], row["paper"]) for row in record["table7"]] == [(0.75, 0.96)]
    assert [(row["lowest"], row["highest"], row["paper highest"]) for row in record["figure2a"]] == [(0.0, 0.5, 0.49)]
    assert record["collateral"] == [
        {"query": "q0", "p_after": 0.1, "data set": "domains", "loss_after": None},
        {"query": "q0", "p_after": None, "data set": "domains", "loss_after": 2.5},
    ]
    assert record["failed"] == [{"query": "lost", "group": "x", "prompt": 1, "reason": "too long", "data set": "domains"}]
    assert record["significance"] == {"domains": {"overlap": [{"p": 0.1}], "concentration": [{"p": 0.2}]}}
