"""Answers of any length: their tokens after a prompt, their probability, and the integrals of its logarithm.

The probability of an answer is the geometric mean of P over its tokens, each after those before it: it does not fall with
the answer's length, so that options of different lengths can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float

from qrnca_lens.attribution.integrals import Settings, TextOrTokens, integrate
from qrnca_lens.attribution.result import AnswerToken, Attribution
from qrnca_lens.attribution.targets import Answer, Reduce
from qrnca_lens.core.values import WrongKindError
from qrnca_lens.data import Prompt
from qrnca_lens.engine.asks import Objective, Positions, log_probability_of
from qrnca_lens.engine.edits import Edit, Reading, read_edited
from qrnca_lens.engine.refinement import PathIntegral
from qrnca_lens.models import HookedModel, reader_of, text_of, to_tokens


def answer_of(model: HookedModel, prompt: TextOrTokens, text: str, reduce: Reduce = "mean") -> Answer:
    """A text as the answer to a prompt; ModelError as `Reader.answer`, TypeError for what is no text."""
    if not isinstance(text, str):
        raise WrongKindError(f"an answer is a text, not {type(text).__name__}")
    return Answer(reader_of(model).answer(prompt, text), text, reduce)


def option_answers(model: HookedModel, prompt: Prompt) -> list[Answer]:
    """The options of an open prompt as answers to it, in their order. ModelError as `Reader.answer`."""
    return [answer_of(model, prompt.text, option) for option in prompt.options]


def answer_probabilities(model: HookedModel, prompts: Sequence[Prompt]) -> Float[torch.Tensor, "prompt option"]:
    """P of each option's text after each open prompt, the geometric mean over its tokens.

    Every token is read at the end of a text of its own, so that hooks of others on the last position, such as a block of
    `editing`, meet each of them.
    """
    found = edited_answers(model, prompts, [[]] * len(prompts))
    return torch.stack([rows[0] for rows in found]) if found else torch.empty(0, 0)


def edited_answers(
    model: HookedModel, prompts: Sequence[Prompt], edits: Sequence[Sequence[Edit]], *, positions: Positions = "last"
) -> list[Float[torch.Tensor, "row option"]]:
    """P of each option's text after each open prompt: row 0 untouched, then a row for each of the prompt's edits.

    Neurons are scaled as they are attributed: for each token by itself, at the last position of the prompt and the answer
    before it ("last"); other positions count in that text. The texts of one answer share what they have in common.
    """
    asked = [option_answers(model, prompt) for prompt in prompts]
    places = [(i, answer, place) for i, answers in enumerate(asked) for answer in answers for place in range(answer.reads)]
    found = iter(
        read_edited(
            model,
            [before_token(model, prompts[i].text, answer, place) for i, answer, place in places],
            [edits[i] for i, *_ in places],
            [_kept(log_probability_of(answer.ids[place])) for _, answer, place in places],
            positions=positions,
        )
    )
    means = [[torch.stack([next(found) for _ in answer.ids]).mean(0) for answer in answers] for answers in asked]
    return [torch.stack(of_prompt, -1).exp() for of_prompt in means]


def _kept(objective: Objective) -> Reading:
    return lambda logits: objective(logits).cpu()


def before_token(model: HookedModel, prompt: TextOrTokens, answer: Answer, place: int) -> torch.Tensor:
    """The prompt and the answer's tokens before its token number `place`."""
    tokens = to_tokens(model, prompt)
    return torch.cat([tokens, tokens.new_tensor(answer.ids[:place])])


def integrate_answers(
    model: HookedModel, asked: Sequence[tuple[TextOrTokens, Answer, Answer | None]], settings: Settings
) -> list[Attribution]:
    """The attribution of each answer to its prompt, less that of the answer that it is held against, if any.

    Every token is integrated at its own last position; those of one answer share the cached text of its longest part.
    """
    tokens = [
        (i, answer, place, sign * answer.weight)
        for i, (_, answer, other) in enumerate(asked)
        for sign, answer in ((1, answer), (-1, other))
        if answer
        for place in range(answer.reads)
    ]
    texts = [before_token(model, asked[i][0], answer, place) for i, answer, place, _ in tokens]
    objectives = [log_probability_of(answer.ids[place]) for _, answer, place, _ in tokens]
    paths = integrate(model, texts, objectives, sizes=[1.0] * len(texts), **vars(settings))
    parts: list[list[tuple[float, int, PathIntegral]]] = [[] for _ in asked]
    for (i, answer, place, weight), path in zip(tokens, paths, strict=True):
        parts[i].append((weight, answer.ids[place], path))
    return [_summed(model, *one, found, settings) for one, found in zip(asked, parts, strict=True)]


def _summed(
    model: HookedModel,
    prompt: TextOrTokens,
    answer: Answer,
    other: Answer | None,
    parts: Sequence[tuple[float, int, PathIntegral]],
    how: Settings,
) -> Attribution:
    pieces = reader_of(model).pieces(torch.tensor([token for _, token, _ in parts]))
    tokens = tuple(
        AnswerToken(token, piece, path.untouched, weight, *_gap_and_change(path), path.nodes)
        for (weight, token, path), piece in zip(parts, pieces, strict=True)
    )
    scores = torch.stack([weight * path.scores for weight, _, path in parts]).sum(0)
    gap = torch.stack([token.weight * token.completeness_gap for token in tokens]).sum(0)
    p = math.exp(sum(token.log_probability for token in tokens[: answer.reads]) / answer.reads)
    nodes = torch.stack([path.nodes for *_, path in parts]).sum(0)
    about = (text_of(model, prompt), answer.text, answer.ids, how.site, how.rule, how.steps, nodes, how.positions)
    return Attribution(scores, p, gap, *about, tokens, other.text if other else "")


def _gap_and_change(path: PathIntegral) -> tuple[torch.Tensor, torch.Tensor]:
    change = path.untouched - path.at_zero
    return path.scores.sum(1) - change, change
