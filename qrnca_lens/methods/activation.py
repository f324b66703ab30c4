"""Activation: the highest activations at the last position (paper, table 4), signed and by absolute value."""

from __future__ import annotations

import torch

from qrnca_lens.core.shapes import Scores
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.methods.scoring import Asked
from qrnca_lens.models import site_hook, to_tokens


def activation_scores(asked: Asked) -> Scores:
    """What W_out multiplies, at the last position."""
    names = [site_hook(asked.model, layer, "post") for layer in range(asked.model.cfg.n_layers)]
    tokens = to_tokens(asked.model, asked.prompt.text)[None]
    with torch.no_grad():
        _, cache = last_logits(asked.model, tokens, torch.ones_like(tokens), names)
    return torch.stack([cache[name][0, -1] for name in names]).float().cpu()


def absolute_activation_scores(asked: Asked) -> Scores:
    """The size of the activation, whatever its sign: a neuron that is strongly negative writes as much as a positive one."""
    return activation_scores(asked).abs()
