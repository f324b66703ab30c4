"""The steps of a study on a model whose neurons are known, and the files that its report writes."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from handmade import WRITER, by_hand, effects, in_pairs, planted_queries, writers

from qrnca_lens.data import QuerySet
from qrnca_lens.editing.collateral import neutral_loss, neutral_text, other_queries
from qrnca_lens.localization import concentration_test, layer_test, overlap_test
from qrnca_lens.readout.token_kinds import KIND_COLUMNS
from qrnca_lens.study import Reproduction, Subject, reproduce
from qrnca_lens.study.prediction import COLUMNS as PREDICTION_COLUMNS
from qrnca_lens.study.prediction_table import table7
from qrnca_lens.study.report import write_report
from qrnca_lens.study.reproduction import Results, Sample, permutation_tests
from qrnca_lens.study.tables import pcr_of, table3, table6

SAMPLE = Sample(extended=1, collateral=1, permutations=9, draws=3, probe_draws=1)


@pytest.fixture(scope="module")
def queries() -> QuerySet:
    """Sixteen queries of two prompts; in both groups two queries of each letter, so that no neuron is common."""
    return planted_queries([2 * letter for letter in "ABCDABCDBADCBADC"], ["x", "y"])


@pytest.fixture(scope="module")
def study(planted: Any, queries: QuerySet, tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    subjects, out = [Subject("domains", queries, (queries,))], tmp_path_factory.mktemp("study") / "run"
    return reproduce(planted, subjects, out, sample=SAMPLE, progress=False)


def test_the_tables_of_a_model_whose_neurons_are_known(study: Reproduction) -> None:
    """Every query has the one neuron that writes its letter. All 32 prompts are right; without the neuron all but the 8 of D
    are answered D, and with twice the neuron all stay right. Other queries have other letters or the same neuron."""
    assert table3(study.results)["QR neurons"].tolist() == [1.0, 1.0]
    flips = table6(study.results).set_index(["method", "direction"])["flipped"]
    ways = ["wrong to right (boost)", "right to wrong (suppress)"]
    assert flips["QRNCA"][ways].tolist() == ["0 / 0", "24 / 32"]
    assert flips["Random"][ways].tolist() == ["0 / 0", "0 / 32"]
    assert flips["Knowledge Neuron*"][ways].tolist() == ["0 / 0", "24 / 32"]
    beyond = table6(study.results, "extended").set_index(["method", "direction"])["flipped"]
    assert beyond["Random, same layers"][ways].tolist() == ["0 / 0", "0 / 4"]  # a query of each group
    changes = {key: found.points.mean for key, found in pcr_of(study.results).items()}
    assert changes["qrnca", "domains", "suppress"] < -50 < 0 < changes["qrnca", "domains", "boost"]
    # one neuron serves all queries with the letter, and no other
    found = pcr_of(study.results)["qrnca", "domains", "suppress"]
    assert (found.specific.mean, found.general.mean) == pytest.approx((0, 0), abs=1e-3)
    assert found.letter_share is not None and found.letter_share.mean == pytest.approx(100, abs=1e-3)
    tokens = study.results["domains"].tokens
    assert set(tokens["kind"]) == {"QR"} and len(tokens) == 4 * 8
    promoted = tokens.groupby(["layer", "neuron"])["promoted"].agg(set).to_dict()
    assert set(promoted) == set(WRITER.values()) and all(f"▁{k}" in promoted[at] for k, at in WRITER.items())


def test_prediction_rests_on_the_detection_half(study: Reproduction, queries: QuerySet) -> None:
    """A letter with three of the eight queries of that half has a common neuron, which is no QR neuron; the letters of the
    others are read, however the former's turn out."""
    detection, evaluation = queries.split(0.5, 0)
    counts = Counter(query.prompts[0].letter for query in detection)
    read = table7(study.results).set_index(["group", "neurons", "reading", "layers"])
    for group in ("x", "y"):
        known = {q.prompts[0].letter for q in detection.for_group(group) if counts[q.prompts[0].letter] < 3}
        read_at_least = 2 * sum(q.prompts[0].letter in known for q in evaluation.for_group(group))
        found = read.loc[(group, "QR neurons", "direct", "all")]
        assert (found["count"], found["of"]) == (len(known), 8) and found["right"] >= read_at_least > 0
        assert read.loc[(group, "the prompted model", "", ""), "right"] == 8


def test_collateral_is_measured_at_both_factors(study: Reproduction, planted: Any, queries: QuerySet) -> None:
    result, edited = study.results["domains"], {}
    for query in queries.sample(SAMPLE.collateral, 0):
        edited[query.id] = writers(query.prompts[0].letter)
    for found, measure in (
        (result.others, lambda factor: other_queries(planted, queries, edited, factor)),
        (result.loss, lambda factor: neutral_loss(planted, edited, factor, neutral_text(planted))),
    ):
        wanted = pd.concat([measure(factor).assign(factor=factor) for factor in (0.0, 2.0)], ignore_index=True)
        pd.testing.assert_frame_equal(found, wanted)
    before_and_after = result.others.groupby("factor")[["p_before", "p_after"]].mean()
    assert (before_and_after["p_after"] < before_and_after["p_before"]).tolist() == [True, False]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reproduction, str, dict[str, Any]]:
    """A report on hand-made frames: the study, its page and its record."""
    found = pd.concat(
        [
            effects("qrnca", 0.0, [0.3, 0.2], [0.45, 0.4]),
            effects("qrnca", 2.0, [0.6, 0.8], [0.5, 0.5]),
            effects("random", 0.0, [0.5, 0.5], [0.5, 0.5]),
            effects("random", 2.0, [0.5, 0.5], [0.5, 0.5]),
        ],
        ignore_index=True,
    )
    p, factors = [0.25, 0.25, 1.0, 0.125, 0.125, 0.5], [0.0] * 3 + [2.0] * 3
    others = pd.DataFrame({"query": [*"abc"] * 2, "p_after": p, "factor": factors})
    loss = others.rename(columns={"p_after": "loss_after"}).assign(loss_after=[1.0, 1.0, 2.5, 3.0, 3.0, 6.0])
    tokens = pd.DataFrame({"kind": ["common"], "rank": [1], "promoted": ["▁A"]})
    numbers = (3, 5, 8, 0.625, 0.3, 0.9, 20, 0.5, 0.4, 0.6, 0.05, 0.05)
    prediction = pd.DataFrame([("x", "QR neurons", "probe", "all", *numbers)], columns=PREDICTION_COLUMNS)
    beyond = found.replace("random", "random-layers")
    pairs = pd.concat([in_pairs(found), in_pairs(found.replace("random", "without-ica"))], ignore_index=True)
    unseen = found.assign(prompts_of="held-out")
    located = {"domains": by_hand(), "languages": by_hand("uvw")}
    kinds = pd.DataFrame([("option letters", 1, 1, 3, 1 / 3, 0.1, 0.01, 0.25, 0.75)], columns=KIND_COLUMNS)
    frames = (found, beyond, others, loss, tokens, prediction, pairs, unseen, kinds)
    tables = {name: Results(of_set, *frames, permutation_tests(of_set, 9, 0)) for name, of_set in located.items()}
    tables["languages"] = replace(tables["languages"], tokens=tokens.assign(promoted="▁B"))
    folder, about = tmp_path_factory.mktemp("report"), {"sample": {"permutations": 9}, "seed": 0}
    made = Reproduction(folder, "a model", tables, about)
    text = write_report(made).read_text("utf-8")
    return made, text, json.loads((folder / "results.json").read_text("utf-8"))


def test_a_report_has_every_figure_as_a_page_and_as_json(report: tuple[Reproduction, str, dict[str, Any]]) -> None:
    study, text, record = report
    keys = {f"{n}-{key}" for n in study.results for key in ("figure2a", "figure2b", "figure3-4", "figure5", "significance")}
    assert {key.removeprefix("figures/") for key in record if key.startswith("figures/")} == keys
    longest = max((key.split("-", 1)[1] for key in keys), key=len)
    assert longest == "significance"  # a subject's name leaves room for it
    for key in keys:
        assert (study.folder / record[f"figures/{key}"]).is_file() and f"<h2>{key}</h2>" in text
        page = (study.folder / "figures" / f"{key}.html").read_text("utf-8")
        shown = json.loads((study.folder / "figures" / f"{key}.json").read_text("utf-8"))
        kinds = {"figure2a": "heatmap", "figure2b": "scatter", "figure3-4": "bar", "figure5": "heatmap"}
        assert shown["data"][0]["type"] == kinds.get(key.split("-", 1)[1], "scatter")
        assert f"<h2>{key}</h2>" in page and shown["layout"]["title"]["text"].split("<")[0] in page
    changes = json.loads((study.folder / "figures" / "domains-figure3-4.json").read_text("utf-8"))
    bars = [np.round(values(bar["y"]), 6).tolist() for bar in changes["data"]]
    assert bars == [[-40, -60], [-10, -20], [0, 0], [20, 60], [0, 0], [0, 0]]
    heatmap = json.loads((study.folder / "figures" / "languages-figure5.json").read_text("utf-8"))
    assert [panel["name"] for panel in heatmap["data"]] == ["u", "v", "w"]


def values(of: Any) -> Any:
    """A list in plotly's JSON, which may be plain or encoded."""
    return np.frombuffer(base64.b64decode(of["bdata"]), of["dtype"]) if isinstance(of, dict) else np.asarray(of)


def test_a_report_tells_the_permutation_tests_apart(report: tuple[Reproduction, str, dict[str, Any]]) -> None:
    study, text, record = report
    for name, result in study.results.items():
        for key, test in (("overlap", overlap_test), ("concentration", concentration_test), ("layers", layer_test)):
            wanted = test(result.located, permutations=9)
            found = pd.DataFrame(record["significance"][name][key])
            pd.testing.assert_frame_equal(found[["group", "statistic"]], wanted[["group", "statistic"]])
            for column in wanted.columns.drop(["group", "statistic"]):
                assert found[column].astype(float).tolist() == pytest.approx(wanted[column].tolist(), nan_ok=True)
            assert len(wanted["statistic"].unique()) == 1
            part = text.split(f"<h2>Is a region real? {name}: {key}</h2>")[1].split("</section>")[0]
            assert wanted["statistic"][0].replace("'", "&#x27;") in part
    figure = json.loads((study.folder / "figures" / "domains-significance.json").read_text("utf-8"))
    assert "Herfindahl" in figure["layout"]["xaxis"]["title"]["text"]


def test_a_report_has_the_means_of_the_collateral(report: tuple[Reproduction, str, dict[str, Any]]) -> None:
    """Over the three edited queries: P 0.5 at factor 0 and 0.25 at 2, a loss of 1.5 and 4."""
    for title, means in (("on other queries", ("0.5", "0.25")), ("on a neutral text", ("1.5", "4"))):
        part = report[1].split(f"<h2>Collateral {title}, languages</h2>")[1].split("</section>")[0]
        assert f"<td>0</td><td>{means[0]}</td></tr><tr><td>2</td><td>{means[1]}</td>" in part


def test_a_report_has_every_table(report: tuple[Reproduction, str, dict[str, Any]]) -> None:
    """A cell of each: x has 3 QR neurons over two queries; the own P falls by 50 % and the same letter's by 15 %."""
    for title, cell in {
        "Which statements of the paper hold here": "specific change of P -17.5 against 0.0 points",
        "Table 3: QR neurons a query": "<td>domains</td><td>x</td><td>2</td><td>1.5</td>",
        "Table 4: probability change ratio": "<td>3.3 [3.0, 4.0]</td>",
        "Table 4, pairs at equal counts": "<td>QRNCA without ICA</td><td>QRNCA</td><td>domains</td>",
        "Edits on prompts that had no part in detection": "<td>suppress</td><td>held-out</td><td>2</td>",
        "Table 6, pairs at equal counts": "<td>QRNCA without ICA</td><td>QRNCA without ICA</td>",
        "Table 4, methods beyond the paper": "<td>Random, same layers</td><td>domains</td>",
        "Table 5: promoted tokens, domains": "<td>▁A</td>",
        "Table 5: promoted tokens, languages": "<td>▁B</td>",
        "Table 6: edit success": "<td>0 / 4</td>",
        "Table 6, methods beyond the paper": "<td>Random, same layers</td>",
        "Table 7: neuron-based prediction": "<td>0.625</td>",
        "Kinds of tokens that common neurons promote, domains": "<td>option letters</td><td>1</td><td>1</td><td>3</td>",
        "Right options that their form gives away": "<td>all groups</td>",
        "Figure 2a: overlap between groups": "<td>languages</td><td>2</td><td>0.4</td><td>0.4</td><td>0.4</td>",
    }.items():
        assert cell in report[1].split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    for name in ("domains", "languages"):
        sentence = f"QRNCA, {name}, suppressed: Of the change on the own question (-25.0 points), 30 % is also seen"
        assert sentence in report[1].split("<h2>Table 4: probability change ratio</h2>")[1].split("</section>")[0]
    assert "Queries that failed" not in report[1]
