"""Forward hooks that never outlive their block, and meet the thread that set them alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from qrnca_lens.models.errors import BusyModelError
from qrnca_lens.models.hooked import HookedModel, exclusive

HookFunction = Callable[..., torch.Tensor | None]
"""What is called at a hook point with the tensor there and `hook=`, the point itself."""
Hook = tuple[str, HookFunction]
"""The name of a hook point and the function to call there."""


def is_edited(model: HookedModel) -> bool:
    """Whether the model carries forward hooks that are not permanent, such as those of `editing`."""
    return any(not handle.is_permanent for point in model.hook_dict.values() for handle in point.fwd_hooks)


def carries_hooks(model: HookedModel) -> bool:
    """Whether any forward hook is on the model, permanent ones included."""
    return any(point.fwd_hooks for point in model.hook_dict.values())


@contextmanager
def without_edits(model: HookedModel) -> Iterator[None]:
    """The forward hooks that are not permanent rest while the block runs; afterwards all are as before, in their order."""
    kept = []
    for point in model.hook_dict.values():
        resting = [handle.hook.id for handle in point.fwd_hooks if not handle.is_permanent]
        if resting:
            kept.append((point._forward_hooks, dict(point._forward_hooks)))
            for key in resting:
                point._forward_hooks.pop(key, None)
    try:
        yield
    finally:
        for hooks, before in reversed(kept):  # a bridge names some points twice: the first copy is the whole one
            hooks.clear()
            hooks.update(before)


@contextmanager
def with_hooks(model: HookedModel, hooks: Sequence[Hook]) -> Iterator[None]:
    """`exclusive`, with forward hooks that go away when the block ends, however it ends.

    Another thread that runs the model all the same, past this package, meets a BusyModelError at the first of the hooks.
    """
    with exclusive(model), model.hooks(fwd_hooks=[(name, _of_this_thread(model, hook)) for name, hook in hooks]):
        yield


def _of_this_thread(model: HookedModel, function: HookFunction) -> HookFunction:
    owner = threading.get_ident()

    def checked(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
        if threading.get_ident() != owner:
            raise BusyModelError(
                f"another thread has hooks on {model.cfg.model_name}, which would change what this one reads; open the "
                "block in the thread that runs the model, leave a block whose thread has ended, or give each thread a model "
                "of its own"
            )
        return function(tensor, hook=hook)

    return checked
