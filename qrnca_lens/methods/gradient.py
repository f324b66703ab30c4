"""Gradient x activation: integrated gradients with one step, at the activations themselves (Shrikumar et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from qrnca_lens.attribution.integrated import integrate
from qrnca_lens.core.shapes import Scores
from qrnca_lens.methods.scoring import Asked


def gradient_scores(asked: Sequence[Asked]) -> list[Scores]:
    """f * dP(right letter) / df."""
    prompts, objectives = [one.prompt.text for one in asked], [one.target.objective for one in asked]
    return [path.scores for path in integrate(asked[0].model, prompts, objectives, steps=1)]
