"""Gradient x activation: integrated gradients with one step, at the activations themselves (Shrikumar et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from qrnca_lens.attribution.integrals import integrate
from qrnca_lens.core.shapes import Scores
from qrnca_lens.methods.scoring import Asked, Part, mean_over_parts
from qrnca_lens.models import HookedModel


def gradient_scores(asked: Sequence[Asked]) -> list[Scores]:
    """f * dP(right letter) / df; of an answer f * d log P / df, the mean over its tokens."""
    return mean_over_parts(asked, _scores)


def _scores(model: HookedModel, parts: list[Part]) -> list[Scores]:
    texts, objectives = [part.tokens for part in parts], [part.objective for part in parts]
    return [path.scores for path in integrate(model, texts, objectives, steps=1)]
