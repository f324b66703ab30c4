"""Contrastive integrated gradients: for the right option against the best wrong one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qrnca_lens.attribution.answers import answer_probabilities
from qrnca_lens.attribution.integrals import integrate
from qrnca_lens.attribution.integrated import attribute
from qrnca_lens.attribution.targets import Choice
from qrnca_lens.core.shapes import Scores
from qrnca_lens.engine.asks import Objective
from qrnca_lens.methods.scoring import Asked


def contrastive_scores(asked: Sequence[Asked]) -> list[Scores]:
    """A neuron that raises every option gets no score. In log units; the wrong letter is the likeliest one of each row.

    Of open prompts the score is that of the right answer less that of the wrong one that is likeliest untouched, each the
    mean over its tokens.
    """
    return _of_answers(asked) if asked[0].prompt.read == "answer" else _of_letters(asked)


def _of_letters(asked: Sequence[Asked]) -> list[Scores]:
    choices = [one.target for one in asked]
    margins = [_margin(choice) for choice in choices if isinstance(choice, Choice)]
    return [path.scores for path in integrate(asked[0].model, [one.prompt.text for one in asked], margins)]


def _margin(choice: Choice) -> Objective:
    (right,) = choice.ids
    wrong = [token for token in choice.options.ids if token != right]

    def objective(logits: torch.Tensor) -> torch.Tensor:
        logs = logits[..., -1, :].float().log_softmax(-1)
        return logs[..., right] - logs[..., wrong].max(-1).values

    return objective


def _of_answers(asked: Sequence[Asked]) -> list[Scores]:
    model, prompts = asked[0].model, [one.prompt for one in asked]
    p = answer_probabilities(model, prompts)
    for row, prompt in zip(p, prompts, strict=True):
        row[prompt.right] = -1.0
    right = [prompt.marked for prompt in prompts]
    wrong = [prompt.options[int(row.argmax())] for row, prompt in zip(p, prompts, strict=True)]
    found = attribute(model, [prompt.text for prompt in prompts], answer=right, against=wrong)
    return [one.scores for one in found]
