"""The work of a run on many GPUs and machines: workers of Ray, each with the same model in its own process."""

from __future__ import annotations

import os
import platform
import socket
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

import torch

from qrnca_lens.core.store import RunError
from qrnca_lens.core.values import given_text, whole_number
from qrnca_lens.engine.executors import Found, Work
from qrnca_lens.models import HookedModel, ModelError, check_hooked, load_model
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.models.origin import loaded_from

try:
    ray: Any = import_module("ray")  # an extra
except ImportError:
    raise ModelError("engine 'ray' needs the package ray, which is not installed: pip install 'qrnca_lens[ray]'") from None

_PATIENCE, _REACHED = 60.0, 10.0  # seconds for a worker to start, for a cluster to answer
_TRIES = 3  # so many workers may die over one piece before it is taken to be the piece


class WorkerWarning(UserWarning):
    """A worker that died; what it was at is done by another."""


class RayExecutor:
    """Workers of a Ray cluster, which load the model from where it was loaded here. Use it in a `with` block, or close it.

    `address`: of a cluster ("auto": the one that this machine is part of; None: RAY_ADDRESS, else one is started here).
    `workers`: how many, by default one for each GPU of the cluster (as many GPUs as the model is spread over here) or,
    where it has none, for each CPU. `threads`: of each
    worker's torch, and CPUs that it asks Ray for.

    Raises ModelError for a model that workers cannot load (one that did not come from `load_model`) or that has other
    weights there; RunError for a cluster that cannot be reached, and where workers die over one piece of work again and
    again. A WorkerWarning tells of one that died.
    """

    def __init__(
        self, model: HookedModel, *, address: str | None = None, workers: int | None = None, threads: int = 1
    ) -> None:
        check_hooked(model)
        place, dtype = loaded_from(model)
        self._threads = whole_number("threads", threads, at_least=1)
        workers = None if workers is None else whole_number("workers", workers, at_least=1)
        address = None if address is None else given_text("address", address)
        self._started = _connect(address)
        gpus = _resource("GPU")
        spread = int(getattr(model.cfg, "n_devices", 1))
        self._gpu = spread if gpus else 0
        most = int(gpus // spread if gpus else _resource("CPU") // self._threads)
        self._count = max(1, most if workers is None else workers)
        device = ",".join(f"cuda:{i}" for i in range(self._gpu)) or "cpu"
        self._made = (place, dtype, device, model_fingerprint(model), self._threads)
        self._workers: list[Any] = []
        self._idle: deque[Any] = deque()
        self._starting: dict[Any, Any] = {}
        self._calls = 0

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here."""
        self._dismiss()
        if self._started:
            ray.shutdown()
            self._started = False

    def run(self, work: Work[Any, Found], items: Sequence[Any]) -> Iterator[tuple[int, Found]]:
        """See `Executor`; each piece as soon as a worker is done with it. A worker gets pieces once its model is loaded."""
        self._calls += 1
        waiting, tries = deque(range(len(items))), [0] * len(items)
        busy: dict[Any, tuple[int, Any]] = {}
        while len(self._workers) < min(self._count, len(items)):
            self._hire()
        try:
            while waiting or busy:
                while waiting and self._idle:
                    place, worker = waiting.popleft(), self._idle.popleft()
                    busy[worker.run.remote(self._calls, work, items[place])] = (place, worker)
                ref = self._next([*busy, *self._starting])
                place, worker = busy.pop(ref) if ref in busy else (None, self._starting.pop(ref))
                try:
                    found = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayActorError as error:
                    if place is not None:
                        waiting.appendleft(place)
                        tries[place] += 1
                    self._mourn(worker, 0 if place is None else tries[place], error)
                    self._hire()
                    continue
                self._idle.append(worker)
                if place is not None:
                    yield place, found
        except BaseException:
            self._dismiss()
            raise

    def _hire(self) -> None:
        worker = ray.remote(num_cpus=self._threads, num_gpus=self._gpu)(_Worker).remote(*self._made)
        self._workers.append(worker)
        self._starting[worker.ready.remote()] = worker

    def _next(self, refs: list[Any]) -> Any:
        """The first that is done. A WorkerWarning where the cluster has no place for a worker for long."""
        while not (done := ray.wait(refs, num_returns=1, timeout=_PATIENCE)[0]):
            if len(refs) == len(self._starting):
                told = f"no worker of Ray has started in {_PATIENCE} seconds: the cluster is full, or the model large"
                warnings.warn(told, WorkerWarning, stacklevel=3)
        return done[0]

    def _mourn(self, worker: Any, tries: int, error: Exception) -> None:
        """Forget a worker that died. RunError where it was not the first over the same piece."""
        self._workers.remove(worker)
        if tries >= _TRIES:
            raise RunError(
                f"{tries} workers of Ray died over the same piece of work ({error}); the log of Ray says why. Give each "
                "more memory (fewer workers), and make the same call again: what is done is kept"
            ) from None
        told = f"a worker of Ray died ({type(error).__name__}); another does its work"
        warnings.warn(told, WorkerWarning, stacklevel=3)

    def _dismiss(self) -> None:
        """Stop all workers; those of a Ray that was shut down are gone already."""
        for worker in self._workers if ray.is_initialized() else ():
            ray.kill(worker)
        self._workers, self._idle, self._starting = [], deque(), {}


class _Worker:
    """A process with the model."""

    def __init__(self, place: str, dtype: torch.dtype, device: str, fingerprint: str, threads: int) -> None:
        self._made = (place, dtype, device, fingerprint)
        self._work: tuple[int, Any] = (0, None)
        torch.set_num_threads(threads)

    def ready(self) -> None:
        """Load the model. ModelError for other weights than those of the one that was to be loaded."""
        place, dtype, device, fingerprint = self._made
        self._model = load_model(place, device=device, dtype=dtype)
        theirs = model_fingerprint(self._model)
        if theirs != fingerprint:
            raise ModelError(
                f"{place}: a worker on {platform.node()} finds other weights there (fingerprint {theirs}, here "
                f"{fingerprint}); give every machine the same files"
            )

    def run(self, call: int, work: Work[Any, Found], item: Any) -> Found:
        """The work on one piece, by the object that came first in this call."""
        if self._work[0] != call:
            self._work = (call, work)
        return self._work[1](self._model, item)


def _connect(address: str | None) -> bool:
    """Join a cluster, or start one; whether it was started here. RunError for one that cannot be reached."""
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    started = address is None
    _check_reachable(address)
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"Ray's cluster at {address!r} cannot be reached: {error}; start it, or give its address") from None
    return started


def _check_reachable(address: str | None) -> None:
    """RunError for a HOST:PORT where nobody answers; Ray would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACHED).close()
    except OSError as error:
        raise RunError(
            f"Ray's cluster at {address!r} cannot be reached: {error}; start it (ray start --head), or give its address"
        ) from None


def _resource(name: str) -> float:
    return float(ray.cluster_resources().get(name, 0.0))
