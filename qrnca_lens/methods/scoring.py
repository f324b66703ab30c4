"""Scoring functions: one signature for every way of scoring all neurons of a model for one prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from qrnca_lens.attribution.answers import before_token, option_answers
from qrnca_lens.attribution.integrals import AttributionError
from qrnca_lens.attribution.letters import options_of
from qrnca_lens.attribution.targets import Answer, Choice
from qrnca_lens.core.shapes import Scores, Tokens
from qrnca_lens.data import Prompt, QuerySet
from qrnca_lens.engine.asks import Objective, log_probability_of
from qrnca_lens.engine.batches import QUERIES_TOGETHER
from qrnca_lens.methods.ranking import Ranking
from qrnca_lens.models import HookedModel, OptionTokens, check_hooked, mlp_width, to_tokens


class Part(NamedTuple):
    """One token that is read at the last position of a text, and the objective: its P, or of an answer's token its log P."""

    tokens: Tokens
    token: int
    objective: Objective


@dataclass(frozen=True)
class Asked:
    """One prompt put to one model: what a scoring function gets.

    `options`: the letters' tokens or, of an open prompt, the options' texts as answers.
    """

    model: HookedModel
    prompt: Prompt
    options: OptionTokens | tuple[Answer, ...]

    @property
    def target(self) -> Choice | Answer:
        """The right option, with its objective."""
        options, right = self.options, self.prompt.right
        return Choice(options, right) if isinstance(options, OptionTokens) else options[right]

    @property
    def parts(self) -> list[Part]:
        """What is scored, each token at the last position of its own text: the right letter or, of an open prompt, every
        token of the right answer after those before it. Scores of a prompt are means over them."""
        target, tokens = self.target, to_tokens(self.model, self.prompt.text)
        if isinstance(target, Choice):
            return [Part(tokens, target.ids[0], target.objective)]
        texts = [before_token(self.model, tokens, target, place) for place in range(target.reads)]
        return [Part(text, token, log_probability_of(token)) for text, token in zip(texts, target.ids, strict=True)]


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
    asked = _asked(model, prompts)
    with torch.inference_mode(False):  # so that a function can take gradients wherever it is called
        scores = function(asked)
    for found, prompt in zip(scores, prompts, strict=True):
        if tuple(found.shape) != (model.cfg.n_layers, mlp_width(model)):
            raise AttributionError(f"{key}: scores of shape {tuple(found.shape)}, expected (layer, neuron)")
        if not torch.isfinite(found).all():
            raise AttributionError(f"{key}: NaN or infinite scores for the prompt {prompt.text[-80:]!r}")
    return scores


def _asked(model: HookedModel, prompts: Sequence[Prompt]) -> list[Asked]:
    asking = [prompt for prompt in prompts if prompt.read == "letter"]
    letters = iter(options_of(model, asking))
    return [
        Asked(model, prompt, next(letters) if prompt.read == "letter" else tuple(option_answers(model, prompt)))
        for prompt in prompts
    ]


def mean_over_parts(asked: Sequence[Asked], score: Callable[[HookedModel, list[Part]], list[Scores]]) -> list[Scores]:
    """The scores of each prompt, from a function that scores the parts of all of them together."""
    parts = [one.parts for one in asked]
    found = iter(score(asked[0].model, [part for of_one in parts for part in of_one]))
    return [torch.stack([next(found) for _ in of_one]).mean(0) for of_one in parts]


def rank_by_scores(
    model: HookedModel, queries: QuerySet, key: str, function: ScoresTogether
) -> Iterator[tuple[str, Ranking]]:
    """Every query's id with all neurons of the model by their scores, summed over the query's prompts."""
    for start in range(0, len(queries), QUERIES_TOGETHER):
        part = queries.queries[start : start + QUERIES_TOGETHER]
        found = iter(scores_of_prompts(model, [prompt for query in part for prompt in query.prompts], key, function))
        for query in part:
            yield query.id, Ranking.of_scores(torch.stack([next(found) for _ in query.prompts]).sum(0))
