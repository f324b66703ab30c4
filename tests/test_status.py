"""What can be seen of a long call from another terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import CONFIG, LONG, failing
from typer.testing import CliRunner

from qrnca_lens.cli.app import app
from qrnca_lens.core.alone import alone_in
from qrnca_lens.core.store import RunError
from qrnca_lens.data import QuerySet
from qrnca_lens.runs import folder, pipeline
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.runs.status import RunStatus, duration, last_lines, status_of
from qrnca_lens.study import Subject
from qrnca_lens.study.reproduction import Sample, reproduce


def quietly(*args: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate(*args, progress=False, **named)


def test_the_status_of_a_run(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, queries, out = model_of("llama"), QuerySet((LONG, *short_queries), "short"), tmp_path / "run"
    monkeypatch.setattr(pipeline, "QUERIES_TOGETHER", 2)
    monkeypatch.setattr(folder, "_FLUSH_SECONDS", -1.0)
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q2"].prompts[0].text)
        failing(patched, short_queries["q5"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(model, queries, CONFIG, out=out)
    seen = status_of(out)
    assert isinstance(seen, RunStatus)
    assert (seen.state, seen.owner, seen.queries) == ("stopped", "", 13)
    assert seen.done == sum(len(json.loads(path.read_text())["queries"]) for path in out.glob("parts/*/part.json")) == 4
    assert seen.left == pytest.approx(seen.seconds / 4 * (13 - 4 - seen.failed)) or seen.seconds == 0
    assert "4 of 13 queries done" in str(seen) and "left" in str(seen)
    with alone_in(out):
        running = status_of(out)
        assert running.state == "running" and "process " in running.owner and "since 20" in str(running)
    quietly(model, queries, CONFIG, out=out)
    ended = status_of(out)
    assert isinstance(ended, RunStatus)
    assert (ended.state, ended.done, ended.failed, ended.left) == ("finished", 12, 1, 0.0)
    assert ended.seconds >= seen.seconds
    lines = last_lines(out, 100)
    assert lines[-1].endswith("finished: 12 queries located, 1 failed")
    assert sum("locating 13 queries" in line for line in lines) == 2
    shown = CliRunner().invoke(app, ["status", str(out)])
    assert shown.exit_code == 0 and "finished; 12 of 13 queries done, 1 failed" in " ".join(shown.output.split())
    assert "queries located, 1 failed" in shown.output


def test_the_status_of_a_study(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path) -> None:
    subjects, sample = [Subject("short", short_queries, (short_queries,))], Sample(1, 1, 20, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = reproduce(model_of("llama"), subjects, tmp_path / "s", config=CONFIG, sample=sample, progress=False)
    seen = status_of(tmp_path / "s")
    assert seen.state == "stopped", "no report yet"
    assert not isinstance(seen, RunStatus)
    assert [run.state for run in seen.runs] == ["finished"]
    assert {"short/effects", "short/tests"} <= seen.tables.keys()
    assert study.about["seconds"] == pytest.approx(sum(seen.tables.values()) + seen.runs[0].seconds, abs=1.0)
    assert "short/effects (" in str(seen) and "12 of 12 queries done" in str(seen)
    assert last_lines(tmp_path / "s")[-1].endswith("all tables are measured")


def test_other_folders_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no manifest\.json or study\.json there; give a folder that"):
        status_of(tmp_path)
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert shown.exit_code == 1 and "no manifest.json" in shown.output + shown.stderr
    assert [duration(s) for s in (0.2, 30.0, 150.0, 7300.0, 200_000.0)] == [
        "a second",
        "30 seconds",
        "2 minutes",
        "2 hours",
        "2 days",
    ]


def test_the_status_needs_no_model() -> None:
    code = "import sys, qrnca_lens.runs.status as s; print(sorted({'torch', 'transformer_lens'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_options_of_the_engine(tmp_path: Path) -> None:
    for given, words in (
        (["--engine", "dask"], "--engine must be local or ray, not 'dask'"),
        (["--workers", "2"], "--address and --workers are about Ray; give --engine ray too"),
    ):
        command = ["locate", "--out", str(tmp_path / "r"), "--queries", "atlas/domains", "--per-group", "1", *given]
        shown = CliRunner().invoke(app, command)
        assert shown.exit_code == 1 and words in " ".join((shown.output + shown.stderr).split())
        assert not (tmp_path / "r").exists()
