"""A short hash that tells one set of weights from another."""

from __future__ import annotations

import hashlib
import math
from typing import TypeAlias

import torch

from qrnca_lens.models.hooked import HookedModel

Written: TypeAlias = tuple[tuple[int, int, float], ...]
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALL = 1 << 16  # values of a weight that are all summed
_SAMPLE = 4096  # of a larger one
_PART = 1 << 24  # values hashed at a time


def model_fingerprint(model: HookedModel) -> str:
    """SHA-256 (16 hex digits) over the names, shapes and values of all parameters.

    Equal weights in another dtype or on another device have another fingerprint if their values differ.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        for part in weight.detach().reshape(-1).split(_PART):
            digest.update(part.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()[:16]


def weights_sum(model: HookedModel) -> str:
    """What tells fast that weights are the same, bit by bit: a hash of the sums of all their bits, by row and by column.

    A change of any value changes it, but for changes that cancel out in a row and a column. Reads the weights once, at the
    speed of the memory; equal values in another dtype have another sum.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        values = weight.detach().reshape(-1, weight.shape[-1]) if weight.dim() else weight.detach().reshape(1, 1)
        bits = values.contiguous().view(_BITS[weight.element_size()])
        for axis in (0, 1):
            digest.update(bits.sum(axis, dtype=torch.int64).cpu().numpy().data)
    return digest.hexdigest()[:16]


def written(model: HookedModel) -> Written:
    """What tells cheaply whether weights have changed: where each lies, how often it was written to, a sum of some values.

    Writing through `weight.data` is not counted by PyTorch, so all values of small weights and some of large ones are summed
    as well (NaN, which equals nothing, counts as infinite); an edit of a few values of a large weight through `.data` stays
    unseen. Write under `torch.no_grad()` instead.
    """
    return tuple((weight.data_ptr(), weight._version, _sampled(weight)) for weight in model.parameters())


def _sampled(weight: torch.Tensor) -> float:
    order = sorted(range(weight.dim()), key=weight.stride, reverse=True)  # as it lies in memory, so nothing is copied
    values = weight.detach().permute(order).reshape(-1)
    every = 1 if len(values) <= _SMALL else len(values) // _SAMPLE
    total = values[::every].float().sum().item()
    return math.inf if math.isnan(total) else total
