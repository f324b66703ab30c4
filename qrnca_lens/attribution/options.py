"""P of a prompt's options, whatever they are read from: the letters of a multi-choice prompt, or the options' own texts.

What comes after attribution (edits, tables, views) asks here, and what it gets has a column for every option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.attribution.answers import answer_probabilities, edited_answers, option_answers
from qrnca_lens.attribution.letters import (
    edited_letters,
    letter_probabilities,
    letters_and_activations,
    option_tokens,
    options_of,
)
from qrnca_lens.attribution.targets import Answer, Choice, OneToken, is_right, likeliest
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Prompt, QuerySet, Read
from qrnca_lens.data.query import check_query_set, texts_of
from qrnca_lens.data.texts import space_before
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.engine.asks import Positions
from qrnca_lens.engine.edits import Edit
from qrnca_lens.models import HookedModel, OptionTokens, check_hooked, reader_of


def target_of(model: HookedModel, asked: Prompt | str | SupportsIndex) -> OneToken | Choice | Answer:
    """The target that something stands for: the options' choice of a prompt, the right answer of an open one, the one token
    of a text or a token id.

    Which tokens the letters are is decided by `letters.options_of`. Raises ModelError where letters or text are no single
    tokens or an id is outside the vocabulary, and what `options_of` and `Reader.answer` raise.
    """
    if isinstance(asked, Prompt):
        if asked.read == "answer":
            return option_answers(model, asked)[asked.right]
        return Choice(option_tokens(model, asked), asked.right)
    reader = reader_of(model)
    token = reader.token(asked)
    return OneToken(token, asked if isinstance(asked, str) else reader.pieces(torch.tensor([token]))[0])


def next_tokens(model: HookedModel, prompts: Sequence[Prompt]) -> list[OptionTokens]:
    """The tokens that stand for the options right after each prompt: their letters' or, of open prompts, the first of each
    option's text, where two options can have the same. Errors as in `target_of` and `option_probabilities`."""
    if _read_of(prompts) == "letter":
        return options_of(model, prompts)
    found = []
    for prompt in prompts:
        ids = tuple(answer.ids[0] for answer in option_answers(model, prompt))
        found.append(OptionTokens(prompt.names, ids, bool(space_before(prompt.text, prompt.options[0]))))
    return found


def option_probabilities(
    model: HookedModel, prompts: Sequence[Prompt], *, batch: int = 64
) -> Float[torch.Tensor, "prompt option"]:
    """P of each option after each prompt: of its letter, or of its text the geometric mean over its tokens.

    ValueError for open prompts among others, and for letters of different names.
    """
    if _read_of(prompts) == "answer":
        check_hooked(model)
        return answer_probabilities(model, prompts)
    return letter_probabilities(model, prompts, batch=batch)


def options_and_activations(
    model: HookedModel, prompts: Sequence[Prompt], neurons: NeuronSet, *, batch: int = 64
) -> tuple[Float[torch.Tensor, "prompt option"], Float[torch.Tensor, "prompt neuron"]]:
    """`option_probabilities`, and what neurons hold at the last position of each prompt (`activity.last_activations`)."""
    if _read_of(prompts) == "letter":
        return letters_and_activations(model, prompts, neurons, batch=batch)
    p = option_probabilities(model, prompts)
    return p, last_activations(model, texts_of(prompts), neurons, batch=batch)


def edited_options(
    model: HookedModel, prompts: Sequence[Prompt], edits: Sequence[Sequence[Edit]], *, positions: Positions = "last"
) -> list[Float[torch.Tensor, "row option"]]:
    """P of each option after each prompt: row 0 untouched, then a row for each of the prompt's edits at `positions`.

    In open prompts "last" is each answer token's own last position (`answers.edited_answers`).
    """
    if _read_of(prompts) == "answer":
        return edited_answers(model, prompts, edits, positions=positions)
    return edited_letters(model, prompts, edits, positions=positions)


def answers(model: HookedModel, queries: QuerySet, *, batch: int = 64) -> pd.DataFrame:
    """One row a prompt: query, group, template, letter, answer (the likeliest option), right, probability (of letter), mass.

    `mass` is the probability of the four letters together: where it is small, the likeliest of them says little. In open
    prompts a letter stands for its option, probabilities are those of `option_probabilities`, and mass is NaN: texts of
    several tokens share no probability.
    """
    check_query_set(queries)
    asked = [(query, prompt) for query in queries for prompt in query.prompts]
    found = option_probabilities(model, [prompt for _, prompt in asked], batch=batch)
    rows = []
    for (query, prompt), p in zip(asked, found, strict=True):
        chosen, right = prompt.names[int(likeliest(p))], bool(is_right(p, prompt.right))
        mine = p[prompt.right].item()
        rows.append((query.id, query.group, prompt.template, prompt.letter, chosen, right, mine, _mass(prompt, p)))
    columns = ["query", "group", "template", "letter", "answer", "right", "probability", "mass"]
    return pd.DataFrame(rows, columns=columns)


def _mass(prompt: Prompt, p: Float[torch.Tensor, " option"]) -> float:
    return p.sum().item() if prompt.read == "letter" else math.nan


def _read_of(prompts: Sequence[Prompt]) -> Read:
    """What the prompts are read from. ValueError for open prompts among others."""
    texts_of(prompts)
    reads: list[Read] = list(dict.fromkeys(prompt.read for prompt in prompts)) or ["letter"]
    if len(reads) > 1:
        raise ValueError("some of the prompts are open and some ask for a letter; ask for those of one kind together")
    return reads[0]
