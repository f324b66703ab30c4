"""Neuron-based prediction and the whole study, on a small sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qrnca_lens.cli import app
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.data import QuerySet, load_queries
from qrnca_lens.pipeline import locate
from qrnca_lens.prediction import COLUMNS, predict_from_neurons
from qrnca_lens.store import RunError
from qrnca_lens.study import reproduce, subject
from qrnca_lens.study.reproduce import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, atlas: Any) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    done = CliRunner().invoke(app, ["reproduce", "--out", str(out), "--per-group", "4", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert str(out / "report.html") in done.output.replace("\n", "")
    return out


def test_the_record_is_complete(folder: Path) -> None:
    record = json.loads((folder / "results.json").read_text())
    assert {"about", "table3", "table4", "table5", "table6", "table7", "figure2a", "collateral", "significance"} <= set(
        record
    )
    for method in (
        "random",
        "activation",
        "knowledge-neuron",
        "without-ica",
        "with-common",
        "qrnca",
        "ablation",
        "contrastive",
    ):
        for name in ("domains", "languages"):
            for direction in ("boost", "suppress"):
                cell = record["table4"][method][name][direction]
                assert {"pcr", "related", "unrelated", "ci", "queries"} <= set(cell), (method, name, direction)
    assert record["table4"]["qrnca"]["domains"]["suppress"]["queries"] == 24
    assert [row["paper"] for row in record["table3"]][:2] == [13.1, 13.3]
    flips = [row for row in record["table6"] if row["method"] == "QRNCA"]
    assert len(flips) == 4
    assert {row["paper, %"] for row in flips} == {12.6, 18.2, 16.6, 24.8}


def test_qrnca_beats_random_even_on_a_small_sample(folder: Path) -> None:
    table = json.loads((folder / "results.json").read_text())["table4"]
    for name in ("domains", "languages"):
        assert table["qrnca"][name]["suppress"]["related"] < -15
        assert table["qrnca"][name]["suppress"]["points"] < table["random"][name]["suppress"]["points"] - 10


def test_every_figure_is_a_page_and_a_json(folder: Path) -> None:
    names = {path.stem for path in (folder / "figures").glob("*.json")}
    assert names == {path.stem for path in (folder / "figures").glob("*.html")}
    for name in ("domains", "languages"):
        assert {f"{name}-{key}" for key in ("figure2a", "figure2b", "figure3-4", "figure5", "significance")} <= names
    text = (folder / "report.html").read_text("utf-8")
    assert "Which statements of the paper hold here" in text
    assert "Table 7" in text


def test_a_study_goes_on_and_refuses_another(folder: Path, atlas: Any) -> None:
    subjects = [subject(name, per_group=4) for name in ("domains", "languages")]
    effects = folder / "languages" / "effects.parquet"
    before = effects.read_bytes()
    effects.unlink()
    again = reproduce(atlas, subjects, folder, progress=False)
    assert effects.read_bytes() == before
    assert len(again.results["domains"].effects) == 24 * 6 * 2
    with pytest.raises(RunError, match=r"holds another study.*\n  seed: 1 here, 0 in the folder"):
        reproduce(atlas, subjects, folder, seed=1, progress=False)
    with pytest.raises(RunError, match="sample"):
        reproduce(atlas, subjects, folder, sample=Sample(extended=1), progress=False)


def test_prediction_knows_no_evaluated_question(atlas: Any) -> None:
    queries = load_queries("atlas/domains").for_group("biology", "physics").sample(12)
    detection, evaluation = queries.split(0.5)
    located = locate(atlas, detection, progress=False)
    found = predict_from_neurons(atlas, [detection], evaluation, located)
    assert list(found.columns) == COLUMNS
    for group in ("biology", "physics"):
        assert found.loc[found["group"] == group, "reading"].tolist() == ["", "probe", "direct", "probe", "direct"]
    assert (found["of"] == 18).all()
    assert found["accuracy"].between(found["low"], found["high"]).all()
    with pytest.raises(ValueError, match="is evaluated and in detection"):
        predict_from_neurons(atlas, [queries], evaluation, located)
    with pytest.raises(ValueError, match="is evaluated and in located"):
        predict_from_neurons(atlas, [detection], evaluation, locate(atlas, queries, progress=False))


def test_subjects(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    domains = subject("domains", per_group=3)
    assert (domains.name, len(domains.queries), len(domains.renderings)) == ("domains", 18, 4)
    assert {q.id for r in domains.renderings for q in r} == {q.id for q in domains.queries}
    assert domains.renderings[1].queries != domains.queries.queries
    assert QRNCAConfig() == QRNCAConfig(steps=16)
