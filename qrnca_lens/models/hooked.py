"""The two hooked model classes, and the only place that knows that one of them can be missing.

TransformerLens 4 has no HookedTransformer: there `HOOKED_CLASSES` holds the bridge alone, and `load_model` returns bridges.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import transformer_lens
from transformer_lens.model_bridge import TransformerBridge

HookedTransformer: type[Any] | None = getattr(transformer_lens, "HookedTransformer", None)
HOOKED_CLASSES: tuple[type[Any], ...] = tuple(c for c in (HookedTransformer, TransformerBridge) if c is not None)
HookedModel: TypeAlias = Any
"""A HookedTransformer or a TransformerBridge; `check_hooked` refuses everything else."""


def check_hooked(model: HookedModel) -> None:
    """TypeError for anything but a hooked model with a tokenizer."""
    if not isinstance(model, HOOKED_CLASSES):
        names = " or ".join(c.__name__ for c in HOOKED_CLASSES)
        raise TypeError(f"expected a {names}, found {type(model).__name__}; load it with qrnca_lens.load_model")
    if model.tokenizer is None:
        raise TypeError("this model has no tokenizer; load it with qrnca_lens.load_model")


def is_hooked_transformer(model: HookedModel) -> bool:
    """Whether the model is a HookedTransformer rather than a bridge."""
    return HookedTransformer is not None and isinstance(model, HookedTransformer)
