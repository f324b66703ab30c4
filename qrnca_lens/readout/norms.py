"""A model's norm taken apart: weight, bias, whether it subtracts the mean, and its epsilon, measured on the norm itself.

Architectures write the same two norms in many ways (a weight or an offset from 1, a bias or none), so what a norm does to
a few known vectors says more than the names of its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from qrnca_lens.models.hooked import HookedModel, exclusive

Vectors = Float[torch.Tensor, "row d_model"]
_LARGE, _SMALL = 2.0**10, 2.0**-13  # an epsilon is nothing beside the one and is seen beside the other


@dataclass(frozen=True)
class Norm:
    """weight * (v - mean v, if `centred`) / scale(v) + bias, in float32."""

    weight: Float[torch.Tensor, " d_model"]
    bias: Float[torch.Tensor, " d_model"]
    centred: bool
    eps: float

    def __call__(self, vectors: Vectors) -> Vectors:
        """The norm of each row."""
        return self.linear(vectors) / self.scale(vectors) + self.bias

    def scale(self, vectors: Vectors) -> Float[torch.Tensor, "row 1"]:
        """What each row is divided by."""
        return (self._middle(vectors).pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def linear(self, vectors: Vectors) -> Vectors:
        """What is divided by the scale."""
        return self.weight * self._middle(vectors)

    def held_at(self, whole: Vectors) -> Callable[[Vectors], Vectors]:
        """The norm without its bias, its scale held at that of `whole`: linear. One row of `whole`, or one for each row."""
        scale = self.scale(whole)
        return lambda vectors: self.linear(vectors) / scale

    def _middle(self, vectors: Vectors) -> Vectors:
        vectors = vectors.float()
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors


@torch.no_grad()
def norm_parts(model: HookedModel, module: Any, like: torch.Tensor) -> Norm:
    """The parts of one of the model's norms, for vectors [..., d_model] with the dtype and on the device of `like`."""
    ones = torch.ones(1, like.shape[-1], dtype=like.dtype, device=like.device)
    signs = ones.clone()
    signs[:, 1::2] = -1
    probes = torch.cat([_LARGE * signs, -_LARGE * signs, _SMALL * signs, _LARGE * ones, 0 * ones])
    with exclusive(model):  # a norm has hook points, at which another thread may be reading
        up, down, small, flat, bias = module(probes[:, None])[:, 0].float()
    centred = torch.allclose(flat, bias)
    unit = signs[0].float()
    unit = unit - unit.mean() if centred else unit
    size = unit.pow(2).mean()
    weight = (up - down) / 2 * size.sqrt() / unit
    at = int(weight.abs().argmax())
    divided = weight[at] * unit[at] * _SMALL / (small[at] - bias[at])
    return Norm(weight, bias, centred, max(0.0, (divided**2 - size * _SMALL**2).item()))
