"""From text to tokens, as the model's own `to_tokens` does it, and the tokens that targets and option letters stand for."""

from __future__ import annotations

import operator
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from qrnca_lens.core.shapes import Tokens
from qrnca_lens.data import LETTERS
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_AFTER = ("", "\n", "\n\n", "(", "a")  # contexts in which a target is tokenized until one leaves it a token of its own


def to_tokens(model: HookedModel, prompt: str | Tokens) -> Tokens:
    """The ids of `prompt` as `model.to_tokens` makes them, on the model's device; ids are taken as they are.

    So a BOS is added exactly where the model's own settings add one (`cfg.default_prepend_bos`). Where the text begins with
    the BOS already, a second one is dropped with a warning; an EOS that the tokenizer appends is dropped, because the answer
    is to follow. Raises ModelError for an empty prompt, one longer than the model's context (nothing is cut) and ids outside
    the vocabulary; TypeError for anything but a text or a tensor of whole numbers, [position] or [1, position].
    """
    ids = _text_tokens(model, prompt) if isinstance(prompt, str) else _checked_ids(model, prompt)
    if len(ids) > model.cfg.n_ctx:
        shown = _short(prompt) if isinstance(prompt, str) else "given as tokens"
        raise ModelError(f"the prompt has {len(ids)} tokens, the model's context holds {model.cfg.n_ctx}: {shown}")
    return ids.to(device_of(model))


def _text_tokens(model: HookedModel, prompt: str) -> Tokens:
    if not prompt:
        raise ModelError("the prompt is empty")
    _check_whole(prompt, "prompt")
    tokenizer = model.tokenizer
    ids = _as_the_model(model, prompt)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and prompt.startswith(str(tokenizer.bos_token)) and ids[:2].tolist() == [bos, bos]:
        warnings.warn(
            f"the prompt begins with {tokenizer.bos_token!r}, which the model adds by itself; one of the two is kept",
            UserWarning,
            stacklevel=4,
        )
        ids = ids[1:]
    plain = tokenizer.encode(prompt, add_special_tokens=False)
    if eos is not None and ids[-1].item() == eos and plain[-1:] != [eos]:
        ids = ids[:-1]
    if not len(ids):
        raise ModelError(f"the tokenizer makes no token of the prompt {_short(prompt)}")
    return ids


def _check_whole(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ModelError(f"the {what} holds half a character ({half!r} at {error.start}); give whole characters") from None


def _as_the_model(model: HookedModel, prompt: str) -> Tokens:
    """`model.to_tokens` of one text, also where the tokenizer has no padding token, which that method asks for."""
    tokenizer = model.tokenizer
    if tokenizer.pad_token_id is not None:
        return model.to_tokens(prompt, truncate=False, move_to_device=False)[0].long()
    ids, bos = tokenizer.encode(prompt), tokenizer.bos_token_id
    begins = bos is not None and tokenizer.encode("A")[0] == bos
    if model.cfg.default_prepend_bos and not begins and bos is not None:
        ids = [bos, *ids]
    return torch.tensor(ids[1:] if begins and not model.cfg.default_prepend_bos else ids, dtype=torch.long)


def _checked_ids(model: HookedModel, ids: object) -> Tokens:
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(
            f"a prompt is a text or a tensor of token ids, not {type(ids).__name__}; "
            "make tokens with model.to_tokens(text), or give the text itself"
        )
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise TypeError(f"the tokens of one prompt are a tensor [position], not one of shape {tuple(ids.shape)}")
    if not len(ids):
        raise ModelError("the prompt is empty")
    if int(ids.min()) < 0 or int(ids.max()) >= model.cfg.d_vocab:
        raise ModelError(f"the prompt has token ids outside the vocabulary (0 to {model.cfg.d_vocab - 1})")
    return ids.long()


def device_of(model: HookedModel) -> torch.device:
    """Where the model's parameters lie."""
    return next(iter(model.parameters())).device


def dtype_of(model: HookedModel) -> torch.dtype:
    """The dtype of the model's parameters."""
    return next(iter(model.parameters())).dtype


def target_id(model: HookedModel, target: str | SupportsIndex) -> int:
    """The token id of a target: an id (an int, numpy's, or a tensor of one, such as `logits.argmax()`), or a text.

    A text is taken literally (" B" and "B" differ): the one token that the tokenizer makes of it. ModelError if it is not
    one token or an id outside the vocabulary, TypeError for anything else.
    """
    if isinstance(target, str):
        return _token_of(model.tokenizer, target)
    value: Any = target.detach().cpu().numpy() if isinstance(target, torch.Tensor) else target
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, (bool, np.bool_, np.ndarray)) or not hasattr(value, "__index__"):
        shown = f"values of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        raise TypeError(f"a target is a token as a text (' B') or a token id, not {shown}")
    found = operator.index(value)
    if not 0 <= found < model.cfg.d_vocab:
        raise ModelError(f"token id {found} is outside the vocabulary (0 to {model.cfg.d_vocab - 1})")
    return found


def _token_of(tokenizer: PreTrainedTokenizerBase, target: str) -> int:
    """The one token that a text stands for, in whatever way the tokenizer spells it. ModelError if there is none."""
    _check_whole(target, "target")
    for context in _AFTER:
        added = _added(tokenizer, context, target)
        if added is None or len(added) != 1 or added[0] == tokenizer.unk_token_id:
            continue
        if _says(tokenizer, added[0], target, first=not context):
            return added[0]
    # tokenizers in the manner of sentencepiece spell a token as its text with "▁" for the space; with one of a few pieces
    # (a test's) no context leaves the target alone
    piece = target.replace(" ", "▁")
    found = tokenizer.convert_tokens_to_ids(piece) if _marks_spaces(tokenizer) and not _BYTE_PIECE.fullmatch(piece) else None
    if isinstance(found, int) and found != tokenizer.unk_token_id:
        return found
    count = len(tokenizer.encode(target, add_special_tokens=False))
    raise ModelError(f"the target {target!r} is not one token of this model ({count} tokens); give a token id")


def _added(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int] | None:
    """The tokens that writing `text` after `before` adds; None where it changes those of `before`."""
    start = tokenizer.encode(before, add_special_tokens=False) if before else []
    whole = tokenizer.encode(before + text, add_special_tokens=False)
    return whole[len(start) :] if whole[: len(start)] == start else None


def _says(tokenizer: PreTrainedTokenizerBase, token: int, target: str, *, first: bool) -> bool:
    """Whether a token stands for the text `target`, its leading space included.

    Decoding the `first` token of a text can drop the space that the tokenizer has put before it.
    """
    spelled = str(tokenizer.convert_ids_to_tokens(token))
    if first and spelled.startswith("▁") and not target.startswith((" ", "▁")):
        return False
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    wanted = {unicodedata.normalize("NFC", target)}
    if spelled.startswith("▁"):
        wanted.add(unicodedata.normalize("NFC", target[1:]))
    return unicodedata.normalize("NFC", text) in wanted


def _marks_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the vocabulary spells a space as "▁" (sentencepiece) rather than as bytes."""
    return any(str(piece).startswith("▁") for piece in tokenizer.get_vocab())


@dataclass(frozen=True)
class OptionTokens:
    """Which tokens stand for the option letters after a given prompt; `leading_space` tells " A" from "A".

    `mass` is the probability that the untouched model gives them together after the prompt, `other_mass` that of the other
    form (0 where the tokenizer has none); both are NaN as long as no model was asked. They do not count in comparisons.
    """

    letters: tuple[str, ...]
    ids: tuple[int, ...]
    leading_space: bool
    mass: float = field(default=float("nan"), compare=False)
    other_mass: float = field(default=float("nan"), compare=False)

    def id_of(self, letter: str) -> int:
        """The token id of one letter."""
        return self.ids[self.letters.index(letter)]


def option_forms(
    tokenizer: PreTrainedTokenizerBase, prompt: str, letters: Sequence[str] = LETTERS
) -> tuple[OptionTokens, ...]:
    """The forms in which each letter can follow `prompt` as one distinct token: after a space, or at once.

    Each is what the tokenizer adds for the letter written after the prompt, or, where writing it there changes the prompt's
    own tokens, the letter's token alone. The form that the prompt's ending suggests comes first. Raises ModelError where
    there is none.
    """
    forms = []
    for space in (True, False):
        ids = tuple(_letter_token(tokenizer, prompt, f"{' ' * space}{letter}") for letter in letters)
        known = tuple(token for token in ids if token is not None and token != tokenizer.unk_token_id)
        if len(set(known)) == len(letters):
            forms.append(OptionTokens(tuple(letters), known, space))
    if not forms:
        raise ModelError(
            f"the option letters {', '.join(letters)} are not single tokens after the prompt {_short(prompt)}; "
            "QRNCA reads the answer from one token, so this tokenizer needs a prompt that ends differently"
        )
    if len(forms) == 2 and forms[0].ids == forms[1].ids:  # a tokenizer that knows no space
        forms.pop(0)
    return tuple(sorted(forms, key=lambda form: form.leading_space != _suggests_space(prompt)))


def _letter_token(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> int | None:
    added = _added(tokenizer, prompt, text)
    if added is not None and len(added) == 1:
        return added[0]
    try:
        return _token_of(tokenizer, text)
    except ModelError:
        return None


def _suggests_space(prompt: str) -> bool:
    """Whether a writer puts a space after such an ending: a Latin word or a closing ASCII mark, but not "(" or "："."""
    return prompt[-1:] in ":.,;!?)]}" or (prompt[-1:].isalnum() and prompt[-1:].isascii())


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"…{prompt[-60:]}")
