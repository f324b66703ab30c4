"""Logits that are no numbers are refused where they are made, and the first place where numbers cease is named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float

from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel, exclusive
from qrnca_lens.models.sites import RESID_POST, RESID_PRE, in_block
from qrnca_lens.shapes import Tokens

_SHOWN = 80


def check_logits(model: HookedModel, text: str, tokens: Tokens, logits: Float[torch.Tensor, "*row token"]) -> None:
    """ModelError for logits after `text` (its `tokens`) that have no softmax: the prompt, the place and what to do."""
    if not logits.float().logsumexp(-1).isfinite().all():
        place = where_numbers_cease(model, tokens) or (
            "the model's own logits are numbers; scaling its neurons leaves the range, so use factors nearer to 1"
        )
        raise ModelError(f"NaN or infinite logits after the prompt {text[-_SHOWN:]!r}: {place}")


def where_numbers_cease(model: HookedModel, tokens: Tokens) -> str | None:
    """The first part of the model that makes NaN or infinite values of `tokens`, and what to do; None if there is none."""
    n_layers = model.cfg.n_layers
    names = [in_block(0, RESID_PRE), *(in_block(layer, RESID_POST) for layer in range(n_layers))]
    with exclusive(model), torch.no_grad():
        logits, cache = model.run_with_cache(
            tokens[None], attention_mask=torch.ones_like(tokens[None]), names_filter=lambda name: name in names
        )
    parts = [
        ("the embedding", ("embed", "pos_embed"), cache[names[0]]),
        *((f"layer {layer}", (f"blocks.{layer}",), cache[names[layer + 1]]) for layer in range(n_layers)),
        ("the final norm or the unembedding", ("ln_final", "unembed"), logits.logsumexp(-1)),
    ]
    for part, modules, values in parts:
        if not values.isfinite().all():
            bad = _not_finite(model, modules)
            if bad:
                return f"{part}: the weight {bad[0]!r} holds NaN or infinite values; load the model again from intact files"
            return f"they begin in {part}, whose weights are numbers; take off hooks and edits, or load the model in float32"
    return None


def _not_finite(model: HookedModel, modules: Sequence[str]) -> list[str]:
    """The names of the parameters of these modules (as far as the model has them) that are not all numbers."""
    there = dict(model.named_modules())
    named = [
        (f"{name}.{parameter}".replace("_original_component.", ""), weight)
        for name in modules
        if name in there
        for parameter, weight in there[name].named_parameters()
    ]
    return [name for name, weight in named if not weight.isfinite().all()]
