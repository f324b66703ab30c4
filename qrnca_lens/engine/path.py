"""What both ways of integrating (engine.py and reference.py) take and give, and the state they leave behind: none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Quadrature
from qrnca_lens.core.shapes import LayerValues, Scores, Tokens
from qrnca_lens.models import HookedModel, ModelError
from qrnca_lens.models.hooked import dtype_of

Objective = Callable[[torch.Tensor], torch.Tensor]
"""From logits [..., token] at the last position to the number [...] that is attributed, such as P(target)."""


@dataclass(frozen=True)
class PathTask:
    """Integrate d objective / d site for every layer, the layer's site at the last position scaled from 0 to 1.

    `quadrature` holds the nodes 0 and 1 (`Quadrature.with_ends`).
    """

    model: HookedModel
    tokens: Tokens
    objective: Objective
    site: Site
    quadrature: Quadrature


@dataclass(frozen=True)
class PathIntegral:
    """The scores, and the objective with each layer's site at 0 and with nothing scaled; its unit, on the CPU.

    `drift[layer]`: how far the logits with the layer scaled by 1 are from the untouched ones, as `drift_of` says.
    """

    scores: Scores
    at_zero: LayerValues
    drift: LayerValues
    untouched: float


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
    """How far logits [..., token] are from the untouched model's [token]: the largest difference over the largest logit."""
    untouched, rerun = untouched.detach().float(), rerun.detach().float()
    differences = (rerun - untouched).abs().where(rerun != untouched, 0)  # a masked token's -inf stays -inf
    largest = untouched.abs().where(untouched.isfinite(), 0).max()
    return differences.amax(-1) / largest.clamp_min(torch.finfo(torch.float32).tiny)


def probability_of(target: int) -> Objective:
    """P(target), the softmax taken in float32 over the whole vocabulary."""
    return lambda logits: logits.float().softmax(-1)[..., target]
