"""P(letter): how a model answers multi-choice prompts, and which tokens stand for the letters after each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float

from qrnca_lens.attribution.targets import token_probabilities
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import LETTERS, Prompt
from qrnca_lens.data.query import texts_of
from qrnca_lens.engine.activity import last_positions
from qrnca_lens.engine.asks import Positions
from qrnca_lens.engine.edits import Edit, read_edited
from qrnca_lens.engine.hooks import is_edited, without_edits
from qrnca_lens.models.checks import check_hooked
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.fingerprint import Written, written
from qrnca_lens.models.hooked import HookedModel, exclusive
from qrnca_lens.models.reader import reader_of
from qrnca_lens.models.single_tokens import OptionTokens

ALMOST_NONE = 0.05  # four letters that hold less than this say little about the answer
Asked: TypeAlias = tuple[str, tuple[int, ...], tuple[str, ...]]
"""A prompt's text, the tokens that the model makes of it, and what its options are called."""
_DECIDED: WeakKeyDictionary[HookedModel, tuple[Written, dict[Asked, OptionTokens]]] = WeakKeyDictionary()


class LetterWarning(UserWarning):
    """The model hardly expects an option letter after a prompt, in whatever form."""


def option_tokens(model: HookedModel, prompt: str | Prompt) -> OptionTokens:
    """The tokens that stand for the option letters after one prompt; see `options_of`."""
    return options_of(model, [prompt])[0]


def options_of(model: HookedModel, prompts: Sequence[str | Prompt], *, batch: int = 64) -> list[OptionTokens]:
    """For each prompt the form of the letters, " A" or "A", to which the untouched model gives more probability.

    The letters are the names of a Prompt's options, and A to D for a text.

    Scaled neurons and other hooks that are not permanent have no part in the choice, so it does not change under an edit. It
    is made once for a prompt, and anew when weights were written to. A LetterWarning tells of prompts after which the four
    letters hold less than `ALMOST_NONE` in both forms. Raises ModelError where the letters are no single tokens, and what
    `Reader.tokens` raises.
    """
    check_hooked(model)
    known, asked = _known(model), _asked(model, prompts)
    new = [one for one in dict.fromkeys(asked) if one not in known]
    for prompt, _, names in new:
        reader_of(model).options(prompt, names)
    if new:
        with exclusive(model), without_edits(model):
            for rows, logits, _ in last_positions(model, [prompt for prompt, *_ in new], NeuronSet(), batch=batch):
                _decide(model, [new[i] for i in rows], token_probabilities(logits).cpu())
    return [known[one] for one in asked]


def decisions(options: Sequence[OptionTokens]) -> list[dict[str, Any]]:
    """What was decided for many prompts, as plain values for a record: each form with its number of prompts and its mass."""
    alike: dict[OptionTokens, list[float]] = {}
    for found in options:
        alike.setdefault(found, []).append(found.mass)
    return [
        {
            "letters": list(form.letters),
            "ids": list(form.ids),
            "leading_space": form.leading_space,
            "prompts": len(masses),
            "mean_mass": sum(masses) / len(masses),
            "lowest_mass": min(masses),
        }
        for form, masses in alike.items()
    ]


def letter_shares(model: HookedModel, texts: Sequence[str], *, batch: int = 64) -> Float[torch.Tensor, " text"]:
    """How much of the next token's probability the letters A to D hold after each text, in all their forms; 0 where they are
    no single tokens there."""
    check_hooked(model)
    shares = torch.zeros(len(texts))
    for rows, logits, _ in last_positions(model, texts, NeuronSet(), batch=batch):
        for row, p in zip(rows, token_probabilities(logits).cpu(), strict=True):
            shares[row] = p[_letter_ids(model, texts[row])].sum()
    return shares


def _letter_ids(model: HookedModel, text: str) -> list[int]:
    try:
        return sorted({token for form in reader_of(model).options(text, LETTERS) for token in form.ids})
    except ModelError:
        return []


def letter_probabilities(
    model: HookedModel, prompts: Sequence[Prompt], *, batch: int = 64
) -> Float[torch.Tensor, "prompt letter"]:
    """P of each option letter (A, B, C, D) as the next token of each prompt, from a softmax over the whole vocabulary.

    The letters are the tokens that `options_of` gives. ValueError for prompts with options of different names.
    """
    return letters_and_activations(model, prompts, NeuronSet(), batch=batch)[0]


def letters_and_activations(
    model: HookedModel, prompts: Sequence[Prompt], neurons: NeuronSet, *, batch: int = 64
) -> tuple[Float[torch.Tensor, "prompt letter"], Float[torch.Tensor, "prompt neuron"]]:
    """`letter_probabilities` and `activity.last_activations` from one reading of each prompt."""
    check_hooked(model)
    texts = texts_of(prompts)
    edited = is_edited(model)
    if edited:
        options_of(model, prompts, batch=batch)
    known, asked = _known(model), _asked(model, prompts)
    p = torch.empty(len(prompts), len(_names(prompts)), dtype=torch.float32)
    activations = torch.empty(len(prompts), len(neurons), dtype=torch.float32)
    for rows, logits, posts in last_positions(model, texts, neurons, batch=batch):
        everything = token_probabilities(logits).cpu()
        if not edited:
            _decide(model, [asked[i] for i in rows], everything)
        p[rows] = everything.gather(1, torch.tensor([known[asked[i]].ids for i in rows]))
        activations[rows] = posts.float().cpu()
    return p, activations


def edited_letters(
    model: HookedModel, prompts: Sequence[str | Prompt], edits: Sequence[Sequence[Edit]], *, positions: Positions = "last"
) -> list[Float[torch.Tensor, "row letter"]]:
    """P of each option letter after each prompt: row 0 untouched, then a row for each of the prompt's edits at `positions`.

    All prompts run together, each once for all its edits.
    """
    readings = [_letters_read(options.ids) for options in options_of(model, prompts)]
    return read_edited(model, [_text(prompt) for prompt in prompts], edits, readings, positions=positions)


def _letters_read(ids: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    chosen = list(ids)
    return lambda logits: token_probabilities(logits)[:, -1, chosen].cpu()


def _asked(model: HookedModel, prompts: Sequence[str | Prompt]) -> list[Asked]:
    if any(isinstance(prompt, Prompt) and prompt.read == "answer" for prompt in prompts):
        raise ValueError("an open prompt has no letter after it; ask for its options (option_probabilities)")
    names = [prompt.names if isinstance(prompt, Prompt) else LETTERS for prompt in prompts]
    texts = [_text(prompt) for prompt in prompts]
    return [(text, tuple(reader_of(model).tokens(text).tolist()), of) for text, of in zip(texts, names, strict=True)]


def _text(prompt: str | Prompt) -> str:
    return prompt.text if isinstance(prompt, Prompt) else prompt


def _names(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """What the options of all the prompts are called, the columns of their table."""
    different = list(dict.fromkeys(prompt.names for prompt in prompts)) or [LETTERS]
    if len(different) > 1:
        told = " and ".join(", ".join(names) for names in different[:2])
        raise ValueError(f"the prompts have options {told}; ask for those with the same options together")
    return different[0]


def _known(model: HookedModel) -> dict[Asked, OptionTokens]:
    """What is decided for this model with its present weights."""
    now = written(model)
    before, known = _DECIDED.get(model, (None, {}))
    if before != now:
        known = {}
        _DECIDED[model] = (now, known)
    return known


def _decide(model: HookedModel, asked: Sequence[Asked], p: Float[torch.Tensor, "prompt token"]) -> None:
    """Choose the form of the letters for prompts that are new, from the untouched model's probabilities after them."""
    known = _known(model)
    weak = 0
    for one, row in zip(asked, p, strict=True):
        if one in known:
            continue
        forms = reader_of(model).options(one[0], one[2])
        masses = [row[list(form.ids)].sum().item() for form in forms]
        best = max(range(len(forms)), key=masses.__getitem__)  # the first, which the text suggests, where they are equal
        chances = tuple(row[list(forms[best].ids)].tolist())
        known[one] = replace(forms[best], mass=masses[best], other_mass=sum(masses) - masses[best], probabilities=chances)
        weak += masses[best] < ALMOST_NONE
    if weak:
        warnings.warn(
            f"{model.cfg.model_name}: after some prompts the four option letters hold less than {ALMOST_NONE:.0%} of the "
            "probability, with and without a space before them, so that P(letter) says little about the answer; look at "
            "option_tokens(model, prompt).mass, and end the prompt so that the model expects a letter",
            LetterWarning,
            stacklevel=4,
        )
