"""Log-probability increase: a static score of what each neuron's value vector adds (Yu and Ananiadou, EMNLP 2024)."""

from __future__ import annotations

import torch

from qrnca_lens.core.shapes import Scores
from qrnca_lens.methods.scoring import Asked, Part, mean_over_parts
from qrnca_lens.models import HookedModel
from qrnca_lens.readout.residual import Readout, logits_of

_ROWS = 1024


def log_probability_scores(asked: Asked) -> Scores:
    """log p(right | x + m v) - log p(right | x), of an answer the mean over its tokens: x is the residual stream before the
    MLP adds to it, m v the neuron's share.

    m is the activation and v the row of W_out, which becomes what it adds to the residual stream: where a norm follows the
    MLP (Gemma 2, OLMo 2), m v goes through that norm with its scale held at its value on this prompt. p reads the residual
    stream through the final norm and the unembedding, as at the end of the model; in log units. Raises ModelError for an
    architecture whose blocks or logits this does not describe.
    """
    return mean_over_parts([asked], lambda model, parts: [_scores(model, part) for part in parts])[0]


def _scores(model: HookedModel, part: Part) -> Scores:
    layers = range(model.cfg.n_layers)
    read = Readout(model, part.tokens[None], layers)
    scores = []
    for layer in layers:
        before, post, rows = read.before(layer), read.post(layer)[0], model.blocks[layer].mlp.W_out
        base = _log_p(model, part, before)
        added = [
            _log_p(model, part, before + read.added(layer, some[:, None] * values.to(some))) - base
            for some, values in zip(post.split(_ROWS), rows.split(_ROWS), strict=True)
        ]
        scores.append(torch.cat(added))
    return torch.stack(scores).cpu()


def _log_p(model: HookedModel, part: Part, resid: torch.Tensor) -> torch.Tensor:
    """log P of the token, of residual streams [row, d_model]."""
    return logits_of(model, resid).log_softmax(-1)[:, part.token]
