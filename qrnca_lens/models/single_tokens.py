"""Which tokens stand for a text: the one of a target or of an option letter after a prompt, those of an answer after it.

Functions of a tokenizer alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from qrnca_lens.data.texts import suggests_space
from qrnca_lens.models.errors import ModelError

_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_AFTER = ("", "\n", "\n\n", "(", "a")  # contexts in which a target is tokenized until one leaves it a token of its own


@dataclass(frozen=True)
class OptionTokens:
    """Which tokens stand for the option letters after a given prompt; `leading_space` tells " A" from "A".

    `mass` is the probability that the untouched model gives them together after the prompt, `other_mass` that of the other
    form (0 where the tokenizer has none); both are NaN as long as no model was asked. `probabilities` are those of each
    letter, () until then. The three do not count in comparisons.
    """

    letters: tuple[str, ...]
    ids: tuple[int, ...]
    leading_space: bool
    mass: float = field(default=float("nan"), compare=False)
    other_mass: float = field(default=float("nan"), compare=False)
    probabilities: tuple[float, ...] = field(default=(), compare=False)

    def id_of(self, letter: str) -> int:
        """The token id of one letter."""
        return self.ids[self.letters.index(letter)]


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The ids of a text without the tokens that the tokenizer adds by itself."""
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


def check_whole(text: str, what: str) -> None:
    """ModelError for a text with half a character, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ModelError(f"the {what} holds half a character ({half!r} at {error.start}); give whole characters") from None


def token_of(tokenizer: PreTrainedTokenizerBase, target: str) -> int:
    """The one token that a text stands for, in whatever way the tokenizer spells it. ModelError if there is none."""
    check_whole(target, "target")
    for context in _AFTER:
        added = _added(tokenizer, plain_ids(tokenizer, context), context + target)
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
    count = len(plain_ids(tokenizer, target))
    raise ModelError(f"the target {target!r} is not one token of this model ({count} tokens); give a token id")


def tokens_after(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> tuple[int, ...]:
    """The tokens that `text`, its leading space included, adds to a prompt; where it changes those of the prompt, what it
    adds to one of a few short contexts that it leaves alone. ModelError where there are none or an unknown one."""
    for context in (prompt, *_AFTER[1:]):
        added = _added(tokenizer, plain_ids(tokenizer, context), context + text)
        if added:
            break
    else:
        added = plain_ids(tokenizer, text)
    if not added or tokenizer.unk_token_id in added:
        raise ModelError(
            f"the tokenizer cannot write the answer {text.strip()!r}: "
            + ("it makes no token of it" if not added else f"a part of it is its unknown token {tokenizer.unk_token!r}")
        )
    special = [token for token in added if token in tokenizer.all_special_ids]
    if special:
        raise ModelError(
            f"the answer {text.strip()!r} holds the special token {tokenizer.convert_ids_to_tokens(special[0])!r}; give "
            "plain text"
        )
    return added


def letters_after(
    tokenizer: PreTrainedTokenizerBase, text: str, start: Sequence[int], letters: Sequence[str]
) -> tuple[OptionTokens, ...]:
    """The forms in which each letter can follow `text`, whose ids are `start`, as one distinct token; none, one or two.

    Each is what the tokenizer adds for the letter written after the text, with a space before it or without, or, where
    writing it there changes the text's own tokens, the letter's token alone. The form that the text's ending suggests comes
    first.
    """
    forms = []
    for space in (True, False):
        ids = tuple(_letter_token(tokenizer, text, start, f"{' ' * space}{letter}") for letter in letters)
        known = tuple(token for token in ids if token is not None and token != tokenizer.unk_token_id)
        if len(set(known)) == len(letters):
            forms.append(OptionTokens(tuple(letters), known, space))
    if len(forms) == 2 and forms[0].ids == forms[1].ids:  # a tokenizer that knows no space
        forms.pop(0)
    return tuple(sorted(forms, key=lambda form: form.leading_space != suggests_space(text)))


def _letter_token(tokenizer: PreTrainedTokenizerBase, text: str, start: Sequence[int], letter: str) -> int | None:
    added = _added(tokenizer, start, text + letter)
    if added is not None and len(added) == 1:
        return added[0]
    try:
        return token_of(tokenizer, letter)
    except ModelError:
        return None


def _added(tokenizer: PreTrainedTokenizerBase, start: Sequence[int], whole: str) -> tuple[int, ...] | None:
    """The tokens of `whole` after those of its beginning, `start`; None where going on changes them."""
    ids = plain_ids(tokenizer, whole)
    return ids[len(start) :] if ids[: len(start)] == tuple(start) else None


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
