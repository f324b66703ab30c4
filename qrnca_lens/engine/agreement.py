"""Whether a rerun is the model's own: how far its logits are from the untouched ones, and how far they may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from qrnca_lens.models import HookedModel, ModelError
from qrnca_lens.models.hooked import dtype_of

_TOLERANCE = {torch.float64: 5e-5, torch.float32: 5e-5, torch.bfloat16: 5e-2}


def tolerance_of(model: HookedModel) -> float:
    """The largest `drift_of` with which a rerun counts as the model's own. ModelError for a dtype too coarse for gradients.

    Logits are compared, not probabilities: in bfloat16 one rounding step of a logit of 18 is 0.125, which is 13 % of P.
    """
    dtype = dtype_of(model)
    if dtype not in _TOLERANCE:
        raise ModelError(f"the model is in {dtype}; load it in float32 or bfloat16, gradients underflow in float16")
    return _TOLERANCE[dtype]


def drift_of(rerun: torch.Tensor, untouched: torch.Tensor) -> torch.Tensor:
    """How far logits [..., read, token] are from the untouched model's [read, token]: the largest difference at any of the
    positions over the largest logit there."""
    untouched, rerun = untouched.detach().float(), rerun.detach().float()
    differences = (rerun - untouched).abs().where(rerun != untouched, 0)  # a masked token's -inf stays -inf
    largest = untouched.abs().where(untouched.isfinite(), 0).amax(-1)
    return (differences.amax(-1) / largest.clamp_min(torch.finfo(torch.float32).tiny)).amax(-1)


def gradients_of(
    found: torch.Tensor, leaves: Sequence[torch.Tensor], slopes: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """The gradients of `found` (or of its sum with weights `slopes`); 0 for leaves on which it does not depend, as behind a
    hook that puts constants in."""
    if not found.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(found, leaves, slopes, allow_unused=True, materialize_grads=True)


@contextmanager
def gradients_for_leaves_only(model: HookedModel) -> Iterator[None]:
    """Gradients on, but not for the model's parameters; as before afterwards, also after an exception."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
