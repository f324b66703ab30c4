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
    """Whether any forward hook is on a hook point of the model, permanent ones and torch's own included."""
    return any(point._forward_hooks or point._forward_pre_hooks for point in model.hook_dict.values())


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
def with_hooks(model: HookedModel, hooks: Sequence[Hook], *, first: Sequence[Hook] = ()) -> Iterator[None]:
    """`exclusive`, with forward hooks that go away when the block ends, however it ends.

    At their points the hooks `first`, one a point, run before those of others, the others after them.

    Another thread that runs the model all the same, past this package, meets a BusyModelError at the first of the hooks.
    """
    ours, before = ([(name, _of_this_thread(model, hook)) for name, hook in some] for some in (hooks, first))
    with exclusive(model), model.hooks(fwd_hooks=before):
        for name, _ in before:
            point = model.hook_dict[name]
            point._forward_hooks.move_to_end(point.fwd_hooks[-1].hook.id, last=False)
        with model.hooks(fwd_hooks=ours):
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
