"""One run of a model whose logits are needed at the last positions only: the others are not made."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int

from qrnca_lens.models.hooked import HookedModel, exclusive
from qrnca_lens.models.sites import UNEMBED


def last_logits(
    model: HookedModel,
    tokens: Int[torch.Tensor, "row position"],
    mask: Int[torch.Tensor, "row position"],
    names: Collection[str] = (),
    *,
    reads: int = 1,
) -> tuple[Float[torch.Tensor, "row read token"], dict[str, torch.Tensor]]:
    """The logits at the last `reads` positions of `tokens`, and by hook name the whole tensors at `names`.

    Hook points that the model lacks are left out. Gradients flow if they are on.
    """
    with exclusive(model), _unembedding_the_last(model, reads):
        if not names:
            return model(tokens, attention_mask=mask)[:, -reads:], {}
        logits, cache = model.run_with_cache(
            tokens, attention_mask=mask, names_filter=lambda name: name in names, return_cache_object=False
        )
    return logits[:, -reads:], {name: cache[name] for name in names if name in cache}


@contextmanager
def _unembedding_the_last(model: HookedModel, reads: int) -> Iterator[None]:
    """The unembedding gets the last positions alone; all of them where a hook waits there, which may count on that."""
    if any(point.fwd_hooks for name, point in model.hook_dict.items() if name.startswith(UNEMBED)):
        yield
        return
    owner = threading.get_ident()

    def cut(module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != owner:  # a run past this package, which wants all of its logits
            return None
        return given[0][:, -reads:], *given[1:]

    handle = getattr(model, UNEMBED).register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()
