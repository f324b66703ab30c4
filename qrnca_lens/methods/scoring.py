"""Scoring functions: one signature for every way of scoring all neurons of a model for one prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from qrnca_lens.attribution.integrated import AttributionError
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.core.shapes import Scores
from qrnca_lens.data import Prompt, QuerySet
from qrnca_lens.methods.ranking import Ranking
from qrnca_lens.models import HookedModel, OptionTokens, check_hooked, mlp_width


@dataclass(frozen=True)
class Asked:
    """One prompt put to one model: what a scoring function gets."""

    model: HookedModel
    prompt: Prompt
    letters: OptionTokens

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


def prompt_scores(key: str, function: ScoreFunction, model: HookedModel, prompt: Prompt) -> Scores:
    """The function's scores for one prompt. AttributionError, with the key, for a wrong shape or what is no number."""
    check_hooked(model)
    with torch.inference_mode(False):  # so that a function can take gradients wherever it is called
        found = function(Asked(model, prompt, option_tokens(model, prompt.text)))
    if tuple(found.shape) != (model.cfg.n_layers, mlp_width(model)):
        raise AttributionError(f"{key}: scores of shape {tuple(found.shape)}, expected (layer, neuron)")
    if not torch.isfinite(found).all():
        raise AttributionError(f"{key}: NaN or infinite scores for the prompt {prompt.text[-80:]!r}")
    return found


def rank_by_scores(
    key: str, function: ScoreFunction, model: HookedModel, queries: QuerySet
) -> Iterator[tuple[str, Ranking]]:
    """Every query's id with all neurons of the model by their scores, summed over the query's prompts."""
    for query in queries:
        total = torch.stack([prompt_scores(key, function, model, prompt) for prompt in query.prompts]).sum(0)
        yield query.id, Ranking.of_scores(total)
