"""Contrastive integrated gradients: for the right letter against the best wrong one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qrnca_lens.attribution.integrated import integrate
from qrnca_lens.core.shapes import Scores
from qrnca_lens.engine.asks import Objective
from qrnca_lens.methods.scoring import Asked


def contrastive_scores(asked: Sequence[Asked]) -> list[Scores]:
    """A neuron that raises every letter gets no score. In log units; the wrong letter is the likeliest one of each row."""
    prompts, margins = [one.prompt.text for one in asked], [_margin(one.right, one.wrong) for one in asked]
    return [path.scores for path in integrate(asked[0].model, prompts, margins)]


def _margin(right: int, wrong: list[int]) -> Objective:
    def objective(logits: torch.Tensor) -> torch.Tensor:
        logs = logits[..., -1, :].float().log_softmax(-1)
        return logs[..., right] - logs[..., wrong].max(-1).values

    return objective
