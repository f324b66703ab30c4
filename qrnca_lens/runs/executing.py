"""Which executor a call works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Literal, TypeAlias

from qrnca_lens.core.values import told
from qrnca_lens.engine.executors import Executor, LocalExecutor
from qrnca_lens.models import HookedModel

Engine: TypeAlias = Literal["local", "ray"] | Executor
"""What does the work: the model in this process, workers of Ray, or an executor that stands ready."""


def check_engine(engine: Engine) -> None:
    """ValueError for an unknown engine."""
    named = isinstance(engine, str) and engine in ("local", "ray")
    if not named and (isinstance(engine, type) or not isinstance(engine, Executor)):
        raise ValueError(f"engine must be 'local', 'ray' or an executor such as RayExecutor(model), not {told(engine)}")


@contextmanager
def executor_for(model: HookedModel, engine: Engine) -> Iterator[Executor]:
    """The executor for a call; one that is made here ends with the block. Raises what `RayExecutor` raises."""
    if isinstance(engine, Executor):
        yield engine
    elif engine == "local":
        yield LocalExecutor(model)
    else:
        with import_module("qrnca_lens.runs.ray_executor").RayExecutor(model) as executor:  # ray is an extra
            yield executor
