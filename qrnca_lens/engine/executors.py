"""Who does the work of a long call, piece by piece: the model in this process, or others elsewhere (`runs.ray_executor`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from qrnca_lens.core.values import WrongKindError, told
from qrnca_lens.models import HookedModel

Item = TypeVar("Item")
Found = TypeVar("Found")
Work: TypeAlias = Callable[[HookedModel, Item], Found]
"""What is done with one piece. Other processes have it too: it is a function of a module, or an object that can be pickled,
of which each process keeps the one that it got first for the whole run, so that it may remember what it met."""


@runtime_checkable
class Executor(Protocol):
    """Does the pieces of a long call."""

    def run(self, work: Work[Any, Found], items: Sequence[Any]) -> Iterator[tuple[int, Found]]:
        """What `work` finds for every item, with its place among them, in any order, each as soon as it is done."""
        ...


class LocalExecutor:
    """The model in this process, one piece after the other."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model

    def run(self, work: Work[Any, Found], items: Sequence[Any]) -> Iterator[tuple[int, Found]]:
        """See `Executor`; in the order of the items."""
        for place, item in enumerate(items):
            yield place, work(self._model, item)


def in_order(executor: Executor, work: Work[Any, Found], items: Sequence[Any]) -> list[Found]:
    """What is found for all items, in their order."""
    found = dict(executor.run(work, items))
    return [found[place] for place in range(len(items))]


def check_executor(executor: Executor) -> None:
    """TypeError for anything but an executor."""
    if isinstance(executor, type) or not isinstance(executor, Executor):
        raise WrongKindError(f"executor must be an executor, such as RayExecutor(model), not {told(executor)}")
