"""Runs that are killed, that meet others in their folder, and disks that are full: nothing is lost, doubled or half written.

Every run is a process of its own, forked from this one, so that hundreds of them take minutes. They are slow all the same:
`make test-crash`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from runs import CONFIG, FILES, same

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.store import RunError
from qrnca_lens.data import QuerySet
from qrnca_lens.runs import folder, pipeline
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study import Subject
from qrnca_lens.study.reproduction import Sample, reproduce

pytestmark = [pytest.mark.crash, pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")]
_FORK = multiprocessing.get_context("fork") if sys.platform != "win32" else None
_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.unlink", "os.replace", "shutil.rmtree")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """A forked process cannot use the threads of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for every two queries, so that there are many moments."""
    monkeypatch.setattr(pipeline, "QUERIES_TOGETHER", 2)
    monkeypatch.setattr(folder, "_FLUSH_SECONDS", -1.0)


@pytest.fixture(scope="module")
def model(model_of: Callable[[str], Any]) -> Any:
    return model_of("llama")


def quietly(model: Any, queries: QuerySet, out: Path | None) -> QRNeurons:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return locate(model, queries, CONFIG, out=out, progress=False)


def started(call: Callable[[], object]) -> Any:
    """The call in a process of its own, which ends with 0, 3 (RunError, whose message it writes) or 4 (another error)."""
    receiver, sender = _FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            call()
        except RunError as error:
            sender.send(str(error))
            os._exit(3)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            sender.send(repr(error))
            os._exit(4)
        os._exit(0)

    process = _FORK.Process(target=run)
    process.start()
    process.told = receiver
    return process


def ended(process: Any) -> tuple[int, str]:
    """Its exit code, and what it said."""
    process.join(120)
    assert process.exitcode is not None
    try:
        return process.exitcode, process.told.recv()
    except EOFError:
        return process.exitcode, ""


def killed_at(moment: int, out: Path, call: Callable[[], object]) -> Callable[[], object]:
    """The call, killed before its change number `moment` of what is on disk under `out`."""

    def run() -> None:
        seen, place = 0, str(out)

        def watch(event: str, given: tuple[Any, ...]) -> None:
            nonlocal seen
            named = [str(part) for part in given if isinstance(part, str | Path)]
            if event not in _CHANGES or not any(name.startswith(place) for name in named):
                return
            if event == "open" and isinstance(given[2], int) and not given[2] & (os.O_WRONLY | os.O_RDWR):
                return
            seen += 1
            if seen > moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        call()

    return run


def test_a_run_killed_before_any_change_on_disk_goes_on(
    model: Any, short_queries: QuerySet, tmp_path: Path, small_parts: None
) -> None:
    queries = QuerySet(short_queries.queries[:6])
    wanted, moment, code = quietly(model, queries, None), 0, -9
    while code != 0:
        out = tmp_path / f"run{moment}"
        code, told = ended(started(killed_at(moment, out, lambda out=out: quietly(model, queries, out))))
        assert code in (0, -signal.SIGKILL), told
        found = quietly(model, queries, out)
        same(found, wanted)
        pd.testing.assert_frame_equal(QRNeurons.load(out).table, found.table)
        left = sorted(path.name for path in out.iterdir())
        assert left == FILES, left
        moment += 1
    assert moment > 60, "hardly any change was met"


def test_twenty_runs_killed_at_random_end_equal(
    model: Any, short_queries: QuerySet, tmp_path: Path, small_parts: None
) -> None:
    wanted = quietly(model, short_queries, None)
    began = time.monotonic()
    assert ended(started(lambda: quietly(model, short_queries, tmp_path / "whole"))) == (0, "")
    whole, draw, killed = time.monotonic() - began, random.Random(0), 0
    for turn in range(20):
        out = tmp_path / f"run{turn}"
        for _ in range(2):
            process = started(lambda out=out: quietly(model, short_queries, out))
            time.sleep(draw.random() * whole)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            ended(process)
        found = quietly(model, short_queries, out)
        same(found, wanted)
        assert not found.queries["query"].duplicated().any()
    assert killed >= 10


def test_two_writers(model: Any, short_queries: QuerySet, tmp_path: Path, small_parts: None) -> None:
    """One is refused and told of the other; stopped at any moment and called again, the result is whole and not doubled."""
    wanted, draw, refused = quietly(model, short_queries, None), random.Random(1), []
    for turn in range(20):
        out = tmp_path / f"run{turn}"
        both = [started(lambda out=out: quietly(model, short_queries, out)) for _ in range(2)]
        time.sleep(draw.random())
        if turn % 2:
            for process in both:
                os.kill(process.pid, signal.SIGKILL)
        for process in both:
            code, told = ended(process)
            assert code in (0, 3, -signal.SIGKILL), told
            if code == 3:
                refused.append(told)
        found = quietly(model, short_queries, out)
        same(found, wanted)
        assert len(found.clusters) == len(wanted.clusters)
    assert refused, "the two never met"
    assert all("another call works in this folder (process " in told for told in refused), refused
    assert any(" on " in told and "since 20" in told for told in refused), refused


@pytest.mark.parametrize("size", [0, 200, 1000, 3000, 6000, 8000, 10_000, 12_000, 14_000])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    size: int, model: Any, short_queries: QuerySet, tmp_path: Path, small_parts: None
) -> None:
    """A limit on the size of a file stands for a disk that is full."""
    out = tmp_path / "run"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        quietly(model, short_queries, out)

    code, told = ended(started(limited))
    assert code in (0, 3), told
    if code == 3:
        assert "File too large" in told and "make room there and make the same call again" in told, told
        assert str(out) in told
    left = [str(path) for path in out.rglob("*.part")]
    assert not left, left
    same(quietly(model, short_queries, out), quietly(model, short_queries, None))


def test_five_reproductions_killed_at_random_end_equal(model: Any, short_queries: QuerySet, tmp_path: Path) -> None:
    """And leave no process behind."""
    subjects, sample = [Subject("short", short_queries, (short_queries,))], Sample(1, 1, 20, 3, 2)

    def study(out: Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reproduce(model, subjects, out, config=CONFIG, sample=sample, progress=False)

    began = time.monotonic()
    assert ended(started(lambda: study(tmp_path / "whole"))) == (0, "")
    whole, draw, killed = time.monotonic() - began, random.Random(2), 0
    wanted = study(tmp_path / "whole").results["short"]
    for turn in range(5):
        out = tmp_path / f"run{turn}"
        process = started(lambda out=out: study(out))
        time.sleep((turn + draw.random()) / 5 * whole)
        if process.is_alive():
            children = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
            assert not psutil.wait_procs(children, timeout=2)[1], "a killed study leaves processes"
        ended(process)
        found = study(out).results["short"]
        for name in ("effects", "pairs", "extended", "others", "loss", "prediction", "tests", "kinds"):
            pd.testing.assert_frame_equal(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-6)
        steps = json.loads((out / "short" / "tables.json").read_text())["tables"]
        assert {"effects", "unseen", "tests"} <= steps.keys()
    assert killed >= 3
