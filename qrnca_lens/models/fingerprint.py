"""A short hash that tells one set of weights from another."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import torch

from qrnca_lens.models.hooked import HookedModel

Written: TypeAlias = tuple[tuple[int, int], ...]
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
    """Where the parameters lie and how often each was written to in place: cheap, equal as long as nothing has changed."""
    return tuple((weight.data_ptr(), weight._version) for weight in model.parameters())
