"""The reader of a model: the one place where prompts become token ids, as the model's own `to_tokens` makes them."""

from __future__ import annotations

import hashlib
import operator
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, SupportsIndex, TypeAlias
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from qrnca_lens.core.shapes import Tokens
from qrnca_lens.core.values import WrongKindError
from qrnca_lens.data.texts import space_before
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel, device_of
from qrnca_lens.models.single_tokens import OptionTokens, check_whole, letters_after, plain_ids, token_of, tokens_after

Rendering: TypeAlias = Literal["raw"]
"""How a prompt's text is put to the model: "raw", as it stands."""
_KEPT = 8192  # texts whose ids are kept
_SAMPLE = "Question: what is 1+1,  naïve?\n\n(A) two; 答え:"
_READERS: WeakKeyDictionary[HookedModel, Reader] = WeakKeyDictionary()


def reader_of(model: HookedModel) -> Reader:
    """The model's reader, the same for every caller; it goes with the model."""
    reader = _READERS.get(model)
    if reader is None:
        reader = _READERS[model] = Reader(model)
    return reader


def to_tokens(model: HookedModel, prompt: str | Tokens) -> Tokens:
    """`Reader.tokens` of the model's reader."""
    return reader_of(model).tokens(prompt)


def text_of(model: HookedModel, prompt: str | Tokens) -> str:
    """A prompt as a text: itself, or its tokens decoded."""
    return prompt if isinstance(prompt, str) else str(model.tokenizer.decode(to_tokens(model, prompt)))


def target_id(model: HookedModel, target: str | SupportsIndex) -> int:
    """`Reader.token` of the model's reader."""
    return reader_of(model).token(target)


class Reader:
    """Reads texts as a model does. What was read is kept, and read anew once tokenizer or BOS setting are others.

    It refers to its model weakly: keep the model, and ask `reader_of` for the reader.
    """

    rendering: Rendering = "raw"

    def __init__(self, model: HookedModel) -> None:
        self._model = ref(model)
        self._state: tuple[Any, ...] = ()

    def tokens(self, prompt: str | Tokens) -> Tokens:
        """The ids of `prompt` as `model.to_tokens` makes them, on the model's device; ids are taken as they are.

        So a BOS is added exactly where the model's own settings add one (`cfg.default_prepend_bos`). Where the text begins
        with the BOS already, a second one is dropped with a warning; an EOS that the tokenizer appends is dropped, because
        the answer is to follow. Raises ModelError for an empty prompt, one longer than the model's context (nothing is cut)
        and ids outside the vocabulary; TypeError for anything but a text or a tensor of whole numbers, [position] or
        [1, position]. Also ModelError for a model that is wrong about whether its tokenizer adds a BOS by itself
        (`cfg.tokenizer_prepends_bos`), as one is whose `tokenizer` was replaced without `set_tokenizer`.
        """
        model = self._fresh()
        if isinstance(prompt, str):
            (ids, doubled), shown = self._ids(prompt), _short(prompt)
            if doubled:
                warnings.warn(
                    f"the prompt begins with {model.tokenizer.bos_token!r}, which the model adds by itself; one of the two "
                    "is kept",
                    UserWarning,
                    stacklevel=4,
                )
        else:
            ids, shown = _checked_ids(model, prompt), "given as tokens"
        if len(ids) > model.cfg.n_ctx:
            raise ModelError(f"the prompt has {len(ids)} tokens, the model's context holds {model.cfg.n_ctx}: {shown}")
        return ids.to(device_of(model), torch.long)

    def offsets(self, text: str) -> list[tuple[int, int]] | None:
        """Where each token of `tokens(text)` stands in the text, (0, 0) for a BOS that the model adds.

        None for a tokenizer that keeps no offsets.
        """
        tokenizer, ids = self._fresh().tokenizer, self._ids(text)[0]
        if not tokenizer.is_fast:
            return None
        read = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        offsets = [(int(start), int(end)) for start, end in read["offset_mapping"]]
        missing = len(ids) - len(offsets)
        return [(0, 0)] * missing + offsets if missing >= 0 else offsets[-missing:]

    def pieces(self, tokens: Tokens) -> list[str]:
        """Each token decoded on its own; the vocabulary's spelling for one that is only part of a character."""
        tokenizer, ids = self._fresh().tokenizer, tokens.tolist()
        texts = [str(tokenizer.decode([token])) for token in ids]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        return [str(piece) if "\ufffd" in text else text for text, piece in zip(texts, pieces, strict=True)]

    def token(self, target: str | SupportsIndex) -> int:
        """The token id of a target: an id (an int, numpy's, or a tensor of one, such as `logits.argmax()`), or a text.

        A text is taken literally (" B" and "B" differ): the one token that the tokenizer makes of it. ModelError if it is
        not one token or an id outside the vocabulary, TypeError for anything else.
        """
        model = self._fresh()
        return self._single(target) if isinstance(target, str) else _checked_id(model, target)

    def options(self, prompt: str, letters: Sequence[str]) -> tuple[OptionTokens, ...]:
        """The forms in which each letter can follow `prompt` as one distinct token: after a space, or at once.

        Each is what the tokenizer adds for the letter written after the prompt, or, where writing it there changes the
        prompt's own tokens, the letter's token alone. The form that the prompt's ending suggests comes first. Raises
        ModelError where there is none.
        """
        self._fresh()
        _, forms = self._after(self._deciding(prompt, tuple(letters)), tuple(letters))
        if not forms:
            raise ModelError(
                f"the option letters {', '.join(letters)} are not single tokens after the prompt {_short(prompt)}; "
                "QRNCA reads the answer from one token, so this tokenizer needs a prompt that ends differently"
            )
        return forms

    def answer(self, prompt: str | Tokens, text: str) -> tuple[int, ...]:
        """The tokens of an answer that follows a prompt, as they are written there.

        A space goes before the answer where a writer puts one (`data.texts.space_before`). Where writing it there changes
        the prompt's own tokens, the answer's are those of the answer alone. Raises ModelError for an empty answer, one that
        the tokenizer has no tokens for, and one that does not fit the model's context together with the prompt.
        """
        model = self._fresh()
        length = len(self.tokens(prompt))
        if not isinstance(prompt, str):
            prompt = str(model.tokenizer.decode(self.tokens(prompt), skip_special_tokens=True))
        if not text.strip():
            raise ModelError(f"the answer to {_short(prompt)} is empty; give a text")
        check_whole(text, "answer")
        ids = self._answer(prompt, space_before(prompt, text) + text)
        length += len(ids) - 1
        if length > model.cfg.n_ctx:
            raise ModelError(
                f"the prompt and all tokens of the answer but the last are {length} tokens, the model's context holds "
                f"{model.cfg.n_ctx}: {_short(prompt)} and {_short(text)}"
            )
        return ids

    def record(self) -> dict[str, Any]:
        """What decides the ids of a text, as plain values.

        The tokenizer's class, the rendering, whether the model puts a BOS before every text, size and hash of the
        vocabulary, and the ids of a fixed text, which also tell how the tokenizer cuts and normalises.
        """
        model = self._fresh()
        return {
            "tokenizer": type(model.tokenizer).__name__,
            "rendering": self.rendering,
            "prepends_bos": bool(model.cfg.default_prepend_bos),
            "vocabulary": len(model.tokenizer),
            "sha256": self._vocabulary(),
            "sample": self._ids(_SAMPLE)[0].tolist(),
        }

    def _fresh(self) -> HookedModel:
        """The model; what was read before is dropped if it would be read otherwise now."""
        model = self._there()
        state = _state_of(model)
        if state != self._state:
            _check_bos(model)
            self._state, tokenizer = state, model.tokenizer
            self._ids = lru_cache(_KEPT)(self._read)
            self._after = lru_cache(_KEPT)(self._read_letters)
            self._answer = lru_cache(_KEPT)(lambda prompt, text: tokens_after(tokenizer, prompt, text))
            self._single = lru_cache(_KEPT)(lambda target: token_of(tokenizer, target))
            self._vocabulary = lru_cache(1)(lambda: _hash_of(tokenizer))
            self._merges = _merges(tokenizer)
        return model

    def _there(self) -> HookedModel:
        model = self._model()
        if model is None:
            raise ReferenceError("this reader's model is gone; keep the model, and ask reader_of(model) for its reader")
        return model

    def _read(self, prompt: str) -> tuple[Tokens, bool]:
        """The ids of a text, and whether a second BOS was dropped from them."""
        if not prompt:
            raise ModelError("the prompt is empty")
        check_whole(prompt, "prompt")
        model = self._there()
        tokenizer, ids = model.tokenizer, _as_the_model(model, prompt)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        doubled = bos is not None and prompt.startswith(str(tokenizer.bos_token)) and ids[:2] == [bos, bos]
        if doubled:
            ids = ids[1:]
        if eos is not None and ids[-1:] == [eos] and plain_ids(tokenizer, prompt)[-1:] != (eos,):
            ids = ids[:-1]
        if not ids:
            raise ModelError(f"the tokenizer makes no token of the prompt {_short(prompt)}")
        return torch.tensor(ids, dtype=torch.int32), doubled

    def _read_letters(self, text: str, letters: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[OptionTokens, ...]]:
        """The ids of a text alone, and the forms in which letters can follow it."""
        tokenizer = self._there().tokenizer
        start = plain_ids(tokenizer, text)
        return start, letters_after(tokenizer, text, start, letters)

    def _deciding(self, prompt: str, letters: tuple[str, ...]) -> str:
        """The part of a prompt that decides which tokens a letter after it becomes: its last line, else all of it.

        A tokenizer that merges pairs leaves the boundaries between its tokens alone: whether a letter joins the last of
        them is the same after every text that ends in the same tokens. So the last line, with the line break before it,
        stands for the prompt where all its tokens but the first (a space put before the text, the line break itself) are
        the prompt's last. Other tokenizers weigh the whole text.
        """
        line = prompt[max(prompt.rfind("\n", 0, len(prompt.rstrip())), 0) :]
        if not self._merges or line == prompt:
            return prompt
        last = list(self._after(line, letters)[0][1:])
        return line if last and self._ids(prompt)[0][-len(last) :].tolist() == last else prompt


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer by itself puts a BOS before a text."""
    return tokenizer.bos_token_id is not None and tokenizer.encode("A")[0] == tokenizer.bos_token_id


def _check_bos(model: HookedModel) -> None:
    """Refuse a model that is wrong about its tokenizer: its `to_tokens` loses a token, or gives a BOS too many or few."""
    tokenizer, said = model.tokenizer, getattr(model.cfg, "tokenizer_prepends_bos", None)
    if said is None or tokenizer.bos_token_id is None or tokenizer.pad_token_id is None:
        return  # without a padding token the reader does without that setting
    adds = adds_bos(tokenizer)
    if bool(said) is not adds:
        raise ModelError(
            f"{model.cfg.model_name}: cfg.tokenizer_prepends_bos is {said}, but the tokenizer puts {'a' if adds else 'no'} "
            f"{tokenizer.bos_token!r} before a text, so that the model would read other tokens than the text's; set "
            f"model.cfg.tokenizer_prepends_bos = {adds}, or give the tokenizer with model.set_tokenizer(tokenizer)"
        )


def _state_of(model: HookedModel) -> tuple[Any, ...]:
    """All that a model's reading of a text depends on, as far as it can be set on a loaded model."""
    tokenizer, cfg = model.tokenizer, model.cfg
    post = getattr(getattr(tokenizer, "backend_tokenizer", None), "post_processor", None)
    return (
        tokenizer,
        len(tokenizer),
        (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id),
        post and post.__getstate__(),
        *(getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")),
        *(getattr(cfg, f"{name}_bos", None) for name in ("default_prepend", "tokenizer_prepends")),
        getattr(cfg, "tokenizer_appends_eos", None),
    )


def _as_the_model(model: HookedModel, prompt: str) -> list[int]:
    """`model.to_tokens` of one text, also where the tokenizer has no padding token, which that method asks for."""
    tokenizer = model.tokenizer
    if tokenizer.pad_token_id is not None:
        return model.to_tokens(prompt, truncate=False, move_to_device=False)[0].tolist()
    ids, bos = tokenizer.encode(prompt), tokenizer.bos_token_id
    begins = adds_bos(tokenizer)
    if model.cfg.default_prepend_bos and not begins and bos is not None:
        ids = [bos, *ids]
    return ids[1:] if begins and not model.cfg.default_prepend_bos else ids


def _checked_ids(model: HookedModel, ids: object) -> Tokens:
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise WrongKindError(
            f"a prompt is a text or a tensor of token ids, not {type(ids).__name__}; "
            "make tokens with model.to_tokens(text), or give the text itself"
        )
    if ids.dim() == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.dim() != 1:
        raise WrongKindError(f"the tokens of one prompt are a tensor [position], not one of shape {tuple(ids.shape)}")
    if not len(ids):
        raise ModelError("the prompt is empty")
    if int(ids.min()) < 0 or int(ids.max()) >= model.cfg.d_vocab:
        raise ModelError(f"the prompt has token ids outside the vocabulary (0 to {model.cfg.d_vocab - 1})")
    return ids


def _checked_id(model: HookedModel, target: object) -> int:
    value: Any = target.detach().cpu().numpy() if isinstance(target, torch.Tensor) else target
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, (bool, np.bool_, np.ndarray, type)) or not hasattr(value, "__index__"):
        shown = f"values of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
        raise WrongKindError(f"a target is a token as a text (' B') or a token id, not {shown}")
    found = operator.index(value)
    if not 0 <= found < model.cfg.d_vocab:
        raise ModelError(f"token id {found} is outside the vocabulary (0 to {model.cfg.d_vocab - 1})")
    return found


def _merges(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer makes its tokens by merging pairs (byte-pair encoding)."""
    return isinstance(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), BPE)


def _hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (16 hex digits) over every piece of the vocabulary and its id."""
    digest = hashlib.sha256()
    for piece, token in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], str(item[0]))):
        digest.update(f"{token} {piece}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"…{prompt[-60:]}")
