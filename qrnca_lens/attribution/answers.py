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
from qrnca_lens.data import Prompt
from qrnca_lens.engine.asks import Objective, Positions, Scaled, log_probability_of
from qrnca_lens.engine.edits import Edit, Reading, read_edited
from qrnca_lens.engine.hooks import is_edited
from qrnca_lens.engine.refinement import PathIntegral
from qrnca_lens.models import HookedModel, reader_of, text_of, to_tokens

Pair = tuple[TextOrTokens, Answer]
"""A prompt and an answer to it."""


def answer_of(model: HookedModel, prompt: TextOrTokens, text: str, reduce: Reduce = "mean") -> Answer:
    """A text as the answer to a prompt; ModelError as `Reader.answer`, TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"an answer is a text, not {type(text).__name__}")
    return Answer(reader_of(model).answer(text_of(model, prompt), text), text, reduce)


def option_answers(model: HookedModel, prompt: Prompt) -> list[Answer]:
    """The options of an open prompt as answers to it, in their order. ModelError as `Reader.answer`."""
    return [answer_of(model, prompt.text, option) for option in prompt.options]


def answer_probabilities(model: HookedModel, prompts: Sequence[Prompt]) -> Float[torch.Tensor, "prompt option"]:
    """P of each option's text after each open prompt, the geometric mean over its tokens.

    Under hooks of others, such as a block of `editing`, every token is read at the end of a text of its own, where such
    hooks expect the last position; else all tokens of an answer are read in one pass.
    """
    asked = [option_answers(model, prompt) for prompt in prompts]
    pairs: list[Pair] = [(p.text, answer) for p, answers in zip(prompts, asked, strict=True) for answer in answers]
    logs = _one_by_one(model, pairs) if is_edited(model) else _untouched(model, pairs)
    return torch.tensor(logs, dtype=torch.float32).reshape(len(prompts), -1).exp()


def edited_answers(
    model: HookedModel, prompts: Sequence[Prompt], edits: Sequence[Sequence[Edit]], *, positions: Positions = "last"
) -> list[Float[torch.Tensor, "row option"]]:
    """P of each option's text after each open prompt: row 0 untouched, then a row for each of the prompt's edits.

    With positions "last" neurons are scaled wherever a token of the answer is read: at the prompt's last position and at all
    of the answer but the last. Others count in the prompt with all tokens of the answer but the last.
    """
    asked = [option_answers(model, prompt) for prompt in prompts]
    pairs: list[Pair] = [(p.text, answer) for p, answers in zip(prompts, asked, strict=True) for answer in answers]
    of_pairs = [of_prompt for of_prompt, answers in zip(edits, asked, strict=True) for _ in answers]
    found = iter(_read(model, pairs, of_pairs, positions))
    return [torch.stack([next(found) for _ in answers], -1).exp() for answers in asked]


def _read(
    model: HookedModel, pairs: Sequence[Pair], edits: Sequence[Sequence[Edit]], positions: Positions = "last"
) -> list[Float[torch.Tensor, " row"]]:
    """The mean log P over the tokens of each answer: row 0 untouched, then a row for each edit."""
    texts = [before_token(model, prompt, answer, answer.reads - 1) for prompt, answer in pairs]
    reads, readings = [answer.reads for _, answer in pairs], [_kept(answer.objective) for _, answer in pairs]
    scaled: Scaled = "read" if positions == "last" else positions
    return read_edited(model, texts, edits, readings, positions=scaled, reads=reads)


def _untouched(model: HookedModel, pairs: Sequence[Pair]) -> list[float]:
    return [row.item() for row in _read(model, pairs, [[]] * len(pairs))]


def _one_by_one(model: HookedModel, pairs: Sequence[Pair]) -> list[float]:
    """The mean log P over the tokens of each answer, every token at the end of a text of its own."""
    places = [(i, place) for i, (_, answer) in enumerate(pairs) for place in range(answer.reads)]
    texts = [before_token(model, *pairs[i], place) for i, place in places]
    readings = [_kept(log_probability_of(pairs[i][1].ids[place])) for i, place in places]
    sums = [0.0] * len(pairs)
    for (i, _), found in zip(places, read_edited(model, texts, [[]] * len(texts), readings), strict=True):
        sums[i] += found.item()
    return [total / answer.reads for total, (_, answer) in zip(sums, pairs, strict=True)]


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
