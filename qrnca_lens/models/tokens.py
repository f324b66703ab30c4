"""From text to tokens, exactly as the model's own Hugging Face tokenizer does it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from qrnca_lens.data import LETTERS
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel
from qrnca_lens.shapes import Tokens


def to_tokens(model: HookedModel, prompt: str) -> Tokens:
    """The ids of `prompt` with the special tokens its tokenizer adds, on the model's device.

    Raises ModelError for an empty prompt or one longer than the model's context.
    """
    ids = torch.tensor(model.tokenizer.encode(prompt), dtype=torch.long)
    if not prompt or not len(ids):
        raise ModelError("the prompt is empty")
    if len(ids) > model.cfg.n_ctx:
        raise ModelError(f"the prompt has {len(ids)} tokens, the model's context holds {model.cfg.n_ctx}: {_short(prompt)}")
    return ids.to(device_of(model))


def device_of(model: HookedModel) -> torch.device:
    """Where the model's parameters lie."""
    return next(iter(model.parameters())).device


def dtype_of(model: HookedModel) -> torch.dtype:
    """The dtype of the model's parameters."""
    return next(iter(model.parameters())).dtype


def target_id(model: HookedModel, target: str | int) -> int:
    """A token id from an id or a token string taken literally (" B" and "B" differ). ModelError if it is not one token."""
    tokenizer = model.tokenizer
    if isinstance(target, int):
        if not 0 <= target < model.cfg.d_vocab:
            raise ModelError(f"token id {target} is outside the vocabulary (0 to {model.cfg.d_vocab - 1})")
        return target
    # the vocabulary's own spelling comes first: sentencepiece-style tokenizers put a space before every text they encode,
    # so that there "B" and " B" both encode as "▁B"
    spellings = [f"{mark}{target[1:]}" for mark in "▁Ġ"] if target.startswith(" ") else [target]
    for spelling in spellings:
        found = tokenizer.convert_tokens_to_ids(spelling)
        if isinstance(found, int) and found != tokenizer.unk_token_id:
            return found
    ids = tokenizer.encode(target, add_special_tokens=False)
    if (
        len(ids) == 1
        and tokenizer.decode(ids) == target
        and not str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁")
    ):
        return ids[0]
    raise ModelError(f"the target {target!r} is not one token of this model ({len(ids)} tokens); give a token id")


@dataclass(frozen=True)
class OptionTokens:
    """Which tokens stand for the option letters after a given prompt; `leading_space` tells " A" from "A"."""

    letters: tuple[str, ...]
    ids: tuple[int, ...]
    leading_space: bool

    def id_of(self, letter: str) -> int:
        """The token id of one letter."""
        return self.ids[self.letters.index(letter)]


def option_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, letters: tuple[str, ...] = LETTERS) -> OptionTokens:
    """The token that the tokenizer itself makes of each letter when it is written after `prompt`.

    Written with a space before it unless the prompt ends in white space; without it where that gives no single token.
    Raises ModelError where neither gives one distinct token a letter.
    """
    before = tokenizer.encode(prompt)
    for space in (False,) if prompt[-1:].isspace() else (True, False):
        after = [tokenizer.encode(f"{prompt}{' ' * space}{letter}") for letter in letters]
        added = [ids[len(before) :] for ids in after if ids[: len(before)] == before]
        if len(added) == len(letters) and all(len(ids) == 1 for ids in added):
            ids = tuple(token for (token,) in added)
            if len(set(ids)) == len(letters) and tokenizer.unk_token_id not in ids:
                return OptionTokens(letters, ids, space)
    raise ModelError(
        f"the option letters {', '.join(letters)} are not single tokens after the prompt {_short(prompt)}; "
        "QRNCA reads the answer from one token, so this tokenizer needs a prompt that ends differently"
    )


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"…{prompt[-60:]}")
