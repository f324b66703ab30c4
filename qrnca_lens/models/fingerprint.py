"""A short hash that tells one set of weights from another."""

from __future__ import annotations

import hashlib

import torch

from qrnca_lens.models.hooked import HookedModel

_SAMPLE = 4096


def model_fingerprint(model: HookedModel) -> str:
    """SHA-256 (16 hex digits) over names, shapes and up to 4,096 evenly spaced values of every parameter.

    Equal weights in another dtype or on another device have another fingerprint if their values differ.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE]
        digest.update(sample.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
