"""Activation: the highest activations at the last position (paper, table 4), signed and by absolute value."""

from __future__ import annotations

import torch

from qrnca_lens.core.shapes import Scores, Tokens
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.methods.scoring import Asked, mean_over_parts
from qrnca_lens.models import HookedModel, site_hook


def activation_scores(asked: Asked) -> Scores:
    """What W_out multiplies, at the last position; of an answer the mean over the positions its tokens are read at."""
    return mean_over_parts([asked], lambda model, parts: [_at_the_end(model, part.tokens) for part in parts])[0]


def absolute_activation_scores(asked: Asked) -> Scores:
    """The size of the activation, whatever its sign: a neuron that is strongly negative writes as much as a positive one."""
    return activation_scores(asked).abs()


def _at_the_end(model: HookedModel, tokens: Tokens) -> Scores:
    names = [site_hook(model, layer, "post") for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = last_logits(model, tokens[None], torch.ones_like(tokens[None]), names)
    return torch.stack([cache[name][0, -1].float().cpu() for name in names])
