"""Scoring functions: one signature for every way of scoring all neurons of a model for one prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from qrnca_lens.attribution.integrated import AttributionError
from qrnca_lens.attribution.letters import options_of
from qrnca_lens.attribution.targets import Choice
from qrnca_lens.core.shapes import Scores
from qrnca_lens.data import Prompt, QuerySet
from qrnca_lens.engine.batches import QUERIES_TOGETHER
from qrnca_lens.methods.ranking import Ranking
from qrnca_lens.models import HookedModel, OptionTokens, check_hooked, mlp_width


@dataclass(frozen=True)
class Asked:
    """One prompt put to one model: what a scoring function gets."""

    model: HookedModel
    prompt: Prompt
    letters: OptionTokens

    @property
    def target(self) -> Choice:
        """The right letter among the four, with its objective."""
        return Choice(self.letters, self.letters.letters.index(self.prompt.letter))

    @property
    def right(self) -> int:
        """The token id of the right letter."""
        return self.letters.id_of(self.prompt.letter)

    @property
    def wrong(self) -> list[int]:
        """The token ids of the wrong letters."""
        return [self.letters.id_of(letter) for letter in self.letters.letters if letter != self.prompt.letter]


ScoreFunction = Callable[[Asked], Scores]
"""A score for every MLP neuron of the model, higher = more important for the right letter."""
ScoresTogether = Callable[[Sequence[Asked]], list[Scores]]
"""The same for several prompts of one model, which may run as one batch."""


def one_by_one(function: ScoreFunction) -> ScoresTogether:
    """A scoring function for several prompts, each scored by itself."""
    return lambda asked: [function(one) for one in asked]


def scores_of_prompts(model: HookedModel, prompts: Sequence[Prompt], key: str, function: ScoresTogether) -> list[Scores]:
    """The function's scores for each prompt. AttributionError, with the key, for a wrong shape or what is no number."""
    check_hooked(model)
    letters = options_of(model, prompts)
    asked = [Asked(model, prompt, options) for prompt, options in zip(prompts, letters, strict=True)]
    with torch.inference_mode(False):  # so that a function can take gradients wherever it is called
        scores = function(asked)
    for found, prompt in zip(scores, prompts, strict=True):
        if tuple(found.shape) != (model.cfg.n_layers, mlp_width(model)):
            raise AttributionError(f"{key}: scores of shape {tuple(found.shape)}, expected (layer, neuron)")
        if not torch.isfinite(found).all():
            raise AttributionError(f"{key}: NaN or infinite scores for the prompt {prompt.text[-80:]!r}")
    return scores


def rank_by_scores(
    model: HookedModel, queries: QuerySet, key: str, function: ScoresTogether
) -> Iterator[tuple[str, Ranking]]:
    """Every query's id with all neurons of the model by their scores, summed over the query's prompts."""
    for start in range(0, len(queries), QUERIES_TOGETHER):
        part = queries.queries[start : start + QUERIES_TOGETHER]
        found = iter(scores_of_prompts(model, [prompt for query in part for prompt in query.prompts], key, function))
        for query in part:
            yield query.id, Ranking.of_scores(torch.stack([next(found) for _ in query.prompts]).sum(0))
