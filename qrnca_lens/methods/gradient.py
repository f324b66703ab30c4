"""Gradient x activation: integrated gradients with one step, at the activations themselves (Shrikumar et al. 2016)."""

from __future__ import annotations

from qrnca_lens.attribution.integrated import integrate
from qrnca_lens.core.shapes import Scores
from qrnca_lens.engine.asks import probability_of
from qrnca_lens.methods.scoring import Asked


def gradient_scores(asked: Asked) -> Scores:
    """f * dP(right letter) / df."""
    return integrate(asked.model, [asked.prompt.text], [probability_of(asked.right)], steps=1)[0].scores
