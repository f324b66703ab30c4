"""Wrong numbers are refused where they are made, and the weight or the place where numbers cease is named.

NaN need not reach the logits: TransformerLens gives an attention pattern of NaN the value 0. So the weights are checked too.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float

from qrnca_lens.core.shapes import Tokens
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.fingerprint import Written, written
from qrnca_lens.models.hooked import HookedModel, exclusive
from qrnca_lens.models.sites import RESID_POST, RESID_PRE, in_block

_SHOWN = 80
_CHECKED: WeakKeyDictionary[HookedModel, tuple[Written, str | None]] = WeakKeyDictionary()


def check_weights(model: HookedModel, text: str) -> None:
    """ModelError for a weight that holds NaN or infinite values, which every number after `text` would suffer from."""
    fault = weight_fault(model)
    if fault:
        raise ModelError(f"no valid logits after the prompt {text[-_SHOWN:]!r}: {fault}")


def check_logits(model: HookedModel, text: str, tokens: Tokens, logits: Float[torch.Tensor, "*row token"]) -> None:
    """ModelError for logits after `text` (its `tokens`) that have no softmax: the prompt, the place and what to do."""
    if not logits.float().logsumexp(-1).isfinite().all():
        place = where_numbers_cease(model, tokens) or (
            "the model's own logits are numbers; scaling its neurons leaves the range, so use factors nearer to 1"
        )
        raise ModelError(f"NaN or infinite logits after the prompt {text[-_SHOWN:]!r}: {place}")


def weight_fault(model: HookedModel) -> str | None:
    """The first weight that holds NaN or infinite values, where it belongs and what to do; None if there is none.

    The weights are read once, and anew when they were written to (see `fingerprint.written`).
    """
    now = written(model)
    before, fault = _CHECKED.get(model, (None, None))
    if before != now:
        fault = _find_fault(model)
        _CHECKED[model] = (now, fault)
    return fault


def where_numbers_cease(model: HookedModel, tokens: Tokens) -> str | None:
    """The weight, else the first part of the model, that makes NaN or infinite values of `tokens`; None if there is none."""
    fault = _find_fault(model)  # anew, for what `written` does not see
    if fault:
        return fault
    n_layers = model.cfg.n_layers
    names = [in_block(0, RESID_PRE), *(in_block(layer, RESID_POST) for layer in range(n_layers))]
    with exclusive(model), torch.no_grad():
        logits, cache = model.run_with_cache(
            tokens[None], attention_mask=torch.ones_like(tokens[None]), names_filter=lambda name: name in names
        )
    values = [*(cache[name] for name in names), logits.logsumexp(-1)]
    for (part, _), made in zip(_parts(model), values, strict=True):
        if not made.isfinite().all():
            return f"they begin in {part}, whose weights are numbers; take off hooks and edits, or load the model in float32"
    return None


def _parts(model: HookedModel) -> list[tuple[str, tuple[str, ...]]]:
    """The parts of the model in their order, and the modules in each."""
    return [
        ("the embedding", ("embed", "pos_embed")),
        *((f"layer {layer}", (f"blocks.{layer}",)) for layer in range(model.cfg.n_layers)),
        ("the final norm or the unembedding", ("ln_final", "unembed")),
    ]


def _find_fault(model: HookedModel) -> str | None:
    if all(weight.isfinite().all() for weight in model.parameters()):
        return None
    remedy = "holds NaN or infinite values; load the model again from intact files"
    for part, modules in _parts(model):
        bad = _not_finite(model, modules)
        if bad:
            return f"{part}: the weight {bad[0]!r} {remedy}"
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    return f"the weight {bad[0]!r} {remedy}"


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
