"""Log-probability increase: a static score of what each neuron's value vector adds (Yu and Ananiadou, EMNLP 2024)."""

from __future__ import annotations

import torch

from qrnca_lens.attribution.baselines.registry import Asked, register
from qrnca_lens.models import site_hook, to_tokens
from qrnca_lens.models.sites import MLP_OUT, RESID_POST, in_block
from qrnca_lens.shapes import Scores

_ROWS = 1024


@register("log-probability", "Log-probability increase", "Yu and Ananiadou 2024, arXiv 2312.12141")
def log_probability(asked: Asked) -> Scores:
    """log p(right | x + m v) - log p(right | x): x is the residual stream before the MLP adds to it, m v the neuron's share.

    p reads the residual stream through the final norm and the unembedding, as at the end of the model; in log units.
    """
    model, layers = asked.model, range(asked.model.cfg.n_layers)
    names = {in_block(layer, name) for layer in layers for name in (RESID_POST, MLP_OUT)}
    names |= {site_hook(model, layer, "post") for layer in layers}
    with torch.no_grad():
        _, cache = model.run_with_cache(to_tokens(model, asked.prompt.text)[None], names_filter=lambda name: name in names)
        scores = []
        for layer in layers:
            before = cache[in_block(layer, RESID_POST)][0, -1] - cache[in_block(layer, MLP_OUT)][0, -1]
            post, rows = cache[site_hook(model, layer, "post")][0, -1], model.blocks[layer].mlp.W_out
            base = _log_p(asked, before[None])
            added = [
                _log_p(asked, before + post[start : start + _ROWS, None] * rows[start : start + _ROWS]) - base
                for start in range(0, len(post), _ROWS)
            ]
            scores.append(torch.cat(added))
    return torch.stack(scores).cpu()


def _log_p(asked: Asked, resid: torch.Tensor) -> torch.Tensor:
    """log P(right letter) of residual streams [row, d_model], read as at the end of the model."""
    logits = asked.model.unembed(asked.model.ln_final(resid[:, None]))[:, 0]
    return logits.float().log_softmax(-1)[:, asked.right]
