from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qrnca_lens import pipeline
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.data import Prompt, Query, QuerySet, save_queries
from qrnca_lens.models import ModelError, option_tokens
from qrnca_lens.pipeline import locate
from qrnca_lens.store import RunError

CONFIG = QRNCAConfig(steps=3)


def test_a_run_folder_holds_the_result(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path) -> None:
    short_queries = short_queries.sample(4, seed=7)
    found = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path / "run", progress=False)
    plain = locate(model_of("llama"), short_queries, CONFIG, progress=False)
    again = QRNeurons.load(tmp_path / "run")
    assert found.table.equals(plain.table)
    assert again.table.equals(plain.table)
    assert again.clusters.equals(plain.clusters)
    assert again.queries.equals(plain.queries)
    assert again.about["queries"]["sha256"] == short_queries.fingerprint
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["made"] == ["sample per_group=4 seed=7"]
    (letters,) = manifest["letters"]
    assert (letters["letters"], letters["leading_space"], letters["prompts"]) == (list("ABCD"), True, 36)
    assert letters["ids"] == list(option_tokens(model_of("llama").tokenizer, "Answer:").ids)
    assert manifest["versions"]["torch"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "asked.json",
        "clusters.parquet",
        "common_neurons.parquet",
        "header.json",
        "manifest.json",
        "qr_neurons.parquet",
        "queries.parquet",
    ]


def test_a_finished_run_is_not_computed_again(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    monkeypatch.setattr(pipeline, "attribute", None)
    assert locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False).table.equals(found.table)


def test_an_interrupted_run_goes_on_where_it_was(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = pipeline.attribute, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if len(calls) == 16:
            raise KeyboardInterrupt
        calls.append(args[1])
        return real(*args, **kwargs)

    monkeypatch.setattr(pipeline, "attribute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    assert not (tmp_path / "header.json").exists()
    with pytest.raises(RunError, match="not a finished run folder"):
        QRNeurons.load(tmp_path)
    first = list(calls)
    calls.clear()
    monkeypatch.setattr(pipeline, "attribute", lambda *a, **k: (calls.append(a[1]), real(*a, **k))[1])
    resumed = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    assert len(calls) == 36 - 15  # 15 = the prompts of five whole queries; the sixth was cut short
    assert set(first[:15]).isdisjoint(calls)
    assert resumed.table.equals(locate(model_of("llama"), short_queries, CONFIG, progress=False).table)


def test_a_killed_run_goes_on_where_it_was(
    model_of: Callable[[str], Any], folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path
) -> None:
    save_queries(short_queries, tmp_path / "short.jsonl")
    code = (
        "import sys, time, qrnca_lens as ql, qrnca_lens.pipeline as p, qrnca_lens.run_folder as f\n"
        "f._FLUSH_SECONDS = 0.0\n"
        "real = p.attribute\n"
        "p.attribute = lambda *a, **k: (time.sleep(0.1), real(*a, **k))[1]\n"
        "model, queries = ql.load_model(sys.argv[1], device='cpu'), ql.load_queries(sys.argv[2])\n"
        "ql.locate(model, queries, ql.QRNCAConfig(steps=3), out=sys.argv[3], progress=False)\n"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-c", code, str(folder_of("llama")), str(tmp_path / "short.jsonl"), str(out)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/queries-*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "header.json").exists()
    assert len(list(out.glob("parts/queries-*.parquet"))) >= 3
    resumed = locate(model_of("llama"), replace(short_queries, name="short"), CONFIG, out=out, progress=False)
    # another process may use another number of threads, which changes the last digit of a sum
    pd.testing.assert_frame_equal(resumed.table, locate(model_of("llama"), short_queries, CONFIG, progress=False).table)


def test_another_run_is_refused_with_the_difference(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(RunError, match=r"holds another run.*\n  config\.steps: 4 here, 3 in the folder"):
        locate(model_of("llama"), short_queries, QRNCAConfig(steps=4), out=tmp_path, progress=False)
    with pytest.raises(RunError, match=r"model\.fingerprint"):
        locate(model_of("mistral"), short_queries, CONFIG, out=tmp_path, progress=False)
    with pytest.raises(RunError, match=r"queries\.count: 11 here, 12 in the folder"):
        locate(model_of("llama"), QuerySet(short_queries.queries[1:], "short"), CONFIG, out=tmp_path, progress=False)
    assert (tmp_path / "manifest.json").read_text() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        locate(model_of("llama"), short_queries, CONFIG, out=tmp_path / "other", progress=False)


def test_wrong_input_is_refused_before_computing(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "attribute", None)
    model = model_of("llama")
    with pytest.raises(ValueError, match="give at least 4 queries"):
        locate(model, QuerySet(short_queries.queries[:3]), out=tmp_path / "a", progress=False)
    long = Query("long", "g", (Prompt("word " * 200, "A"),))
    with pytest.raises(ModelError, match="the model's context holds 128"):
        locate(model, QuerySet((*short_queries.queries, long)), out=tmp_path / "a", progress=False)
    with pytest.raises(ModelError, match="no site 'pre'"):
        locate(model, short_queries, QRNCAConfig(site="pre"), out=tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()
