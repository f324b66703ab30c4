"""The two hooked model classes, and the only place that knows that one of them can be missing.

TransformerLens 4 has no HookedTransformer: there `HOOKED_CLASSES` holds the bridge alone, and `load_model` returns bridges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import transformer_lens
from transformer_lens.model_bridge import TransformerBridge

HookedTransformer: type[Any] | None = getattr(transformer_lens, "HookedTransformer", None)
HOOKED_CLASSES: tuple[type[Any], ...] = tuple(c for c in (HookedTransformer, TransformerBridge) if c is not None)
HookedModel: TypeAlias = Any
"""A HookedTransformer or a TransformerBridge; `checks.check_hooked` refuses everything else."""


def is_hooked_transformer(model: HookedModel) -> bool:
    """Whether the model is a HookedTransformer rather than a bridge."""
    return HookedTransformer is not None and isinstance(model, HookedTransformer)


def is_edited(model: HookedModel) -> bool:
    """Whether the model carries forward hooks that are not permanent, such as those of `editing`."""
    return any(not handle.is_permanent for point in model.hook_dict.values() for handle in point.fwd_hooks)


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
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)
