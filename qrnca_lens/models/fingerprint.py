"""A short hash that tells one set of weights from another."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import torch

from qrnca_lens.models.hooked import HookedModel

Written: TypeAlias = tuple[tuple[int, int, float], ...]
_SAMPLE = 4096
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


def written(model: HookedModel) -> Written:
    """What tells cheaply whether weights have changed: where each lies, how often it was written to, a sum of some values.

    Writing through `weight.data` is not counted by PyTorch, so up to `_SAMPLE` values of each are summed as well; an edit of
    a few values of a large weight through `.data` stays unseen. Write under `torch.no_grad()` instead.
    """
    return tuple((weight.data_ptr(), weight._version, _sampled(weight)) for weight in model.parameters())


def _sampled(weight: torch.Tensor) -> float:
    values = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach().flatten(0, -2)[:, 0]
    return values[:: max(1, len(values) // _SAMPLE)].float().sum().item() if len(values) else 0.0
