"""The same run on workers of Ray: two processes on this machine, one of which may die (`make test-crash`)."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from runs import CONFIG, LONG

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.store import RunError
from qrnca_lens.data import QuerySet
from qrnca_lens.engine.executors import Executor
from qrnca_lens.models import ModelError, load_model
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.runs.work import Compute
from qrnca_lens.study import Subject
from qrnca_lens.study.reproduction import Sample, reproduce

ray = pytest.importorskip("ray")
from qrnca_lens.runs.ray_executor import RayExecutor, WorkerWarning  # noqa: E402

pytestmark = pytest.mark.crash


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, with places for all workers."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(folder_of: Callable[[str], Path]) -> Any:
    return load_model(folder_of("llama"), device="cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as a worker has, so that sums are made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def executor(model: Any, cluster: None) -> Iterator[RayExecutor]:
    with RayExecutor(model, workers=2) as found:
        yield found


class Killing:
    """Kills a worker once the first piece is done."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.others, self.killed = executor, workers(), 0

    def run(self, work: Any, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for found in self.executor.run(work, items):
            yield found
            if isinstance(work, Compute) and not self.killed:
                self.killed = min(workers(loaded=True) - self.others)
                os.kill(self.killed, signal.SIGKILL)


def workers(loaded: bool = False) -> set[int]:
    """The processes of Ray that are workers; with `loaded` without those that load their model."""
    named = {process.pid: " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])}
    return {pid for pid, name in named.items() if "ray::_Worker" in name and not (loaded and "_Worker.ready" in name)}


def quietly(*args: Any, **named: Any) -> QRNeurons:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", WorkerWarning)
        return locate(*args, progress=False, **named)


def equal(one: QRNeurons, other: QRNeurons) -> None:
    """To the last bit: the same chunks are computed, wherever."""
    for name in ("clusters", "queries", "gaps", "table", "common", "failed"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    assert one.asked == other.asked


def test_a_worker_that_is_killed_is_replaced(model: Any, short_queries: QuerySet) -> None:
    """First of all: later the workers of the other tests could be meant."""
    many = QuerySet(tuple(replace(q, id=f"{q.id}-{turn}") for turn in range(5) for q in short_queries), "many")
    wanted = quietly(model, many, CONFIG)
    with RayExecutor(model, workers=2) as executor:
        killing = Killing(executor)
        with pytest.warns(WorkerWarning, match=r"a worker of Ray died .*; another does its work"):
            found = quietly(model, many, CONFIG, engine=killing)
    assert killing.killed
    equal(found, wanted)


def test_two_workers_find_what_one_process_does(
    model: Any, executor: RayExecutor, short_queries: QuerySet, tmp_path: Path
) -> None:
    queries = QuerySet((*short_queries, LONG), "short")
    here, there = tmp_path / "here", tmp_path / "there"
    wanted = quietly(model, queries, CONFIG, out=here)
    found = quietly(model, queries, CONFIG, out=there, engine=executor)
    equal(found, wanted)
    equal(QRNeurons.load(there), QRNeurons.load(here))
    assert [*found.failed["query"]] == ["long"]
    for name in ("clusters.parquet", "queries.parquet", "gaps.parquet", "asked.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def test_a_query_that_fails_ends_the_call_only_if_asked(model: Any, executor: RayExecutor, short_queries: QuerySet) -> None:
    queries = QuerySet((*short_queries, LONG), "short")
    for engine in ("local", executor):
        with pytest.raises(ModelError, match=r"the prompt has 801 tokens, the model's context holds 128") as told:
            quietly(model, queries, CONFIG, engine=engine, fail_fast=True)
        assert "at query 'long', prompt 1" in getattr(told.value, "__notes__", ["at query 'long', prompt 1"])


def test_a_study_on_workers(model: Any, executor: RayExecutor, short_queries: QuerySet, tmp_path: Path) -> None:
    subjects, sample = [Subject("short", short_queries, (short_queries,))], Sample(1, 1, 20, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, there = (
            reproduce(model, subjects, tmp_path / name, config=CONFIG, sample=sample, engine=engine, progress=False)
            for name, engine in (("here", "local"), ("there", executor))
        )
    for name in ("effects", "pairs", "extended"):
        one, other = getattr(here.results["short"], name), getattr(there.results["short"], name)
        pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-6)


def test_models_that_workers_cannot_have_are_refused(model: Any, model_of: Callable[[str], Any], folder_of: Any) -> None:
    import copy

    other = copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"did not come from load_model.*work in this process \(engine='local'\)"):
        RayExecutor(other)
    changed = load_model(folder_of("llama"), device="cpu")
    with torch.no_grad():
        changed.blocks[0].mlp.W_out[0, 0] += 1.0
    with RayExecutor(changed, workers=1) as executor, pytest.raises(ModelError, match="finds other weights there"):
        next(executor.run(nothing, [1]))


def nothing(model: Any, item: Any) -> None:
    """Work that is none."""


def test_a_piece_that_kills_its_workers_is_told(model: Any) -> None:
    def die(model: Any, item: Any) -> None:  # in here, so that it goes to the worker whole, which cannot import the tests
        os.kill(os.getpid(), signal.SIGKILL)

    with RayExecutor(model, workers=1) as executor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RunError, match="3 workers of Ray died over the same piece of work"):
            next(executor.run(die, [1]))


def test_a_cluster_that_is_not_there(model: Any) -> None:
    """The last test: it ends the cluster of the others."""
    ray.shutdown()
    with pytest.raises(RunError, match=r"Ray's cluster at '127.0.0.1:1' cannot be reached: .*; start it"):
        RayExecutor(model, address="127.0.0.1:1")
