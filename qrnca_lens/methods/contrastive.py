"""Contrastive integrated gradients: for the right letter against the best wrong one."""

from __future__ import annotations

import torch

from qrnca_lens.attribution.integrated import integrate
from qrnca_lens.core.shapes import Scores
from qrnca_lens.methods.scoring import Asked


def contrastive_scores(asked: Asked) -> Scores:
    """A neuron that raises every letter gets no score. In log units; the wrong letter is the likeliest one of each row."""
    right, wrong = asked.right, torch.tensor(asked.wrong)

    def objective(logits: torch.Tensor) -> torch.Tensor:
        logs = logits[..., -1, :].float().log_softmax(-1)
        return logs[..., right] - logs[..., wrong].max(-1).values

    return integrate(asked.model, [asked.prompt.text], [objective])[0].scores
