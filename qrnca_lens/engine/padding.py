"""Where each row of a batch begins and ends. Hooks see activations alone, so tokens and mask of every pass are watched."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from jaxtyping import Int

from qrnca_lens.engine.asks import chosen_positions
from qrnca_lens.models.hooked import HookedModel, as_bridge, is_hooked_transformer

_REMEDY = "pass attention_mask with the call, or scale at all positions"


class _Suffixes(threading.local):
    """What the engine passes in this thread: rows that are suffixes of prompts, (start, length of the prompt) of each."""

    def __init__(self) -> None:
        self.model: HookedModel | None = None
        self.parts: Sequence[tuple[int, int]] = ()


_SUFFIXES = _Suffixes()


@contextmanager
def passing_suffixes(model: HookedModel, parts: Sequence[tuple[int, int]]) -> Iterator[None]:
    """While the block runs, every row of the model's passes is a suffix of a prompt: row r that of number r modulo their
    number, from its start to the length of the prompt; what lies behind that is padding."""
    before = _SUFFIXES.model, _SUFFIXES.parts
    _SUFFIXES.model, _SUFFIXES.parts = model, parts
    try:
        yield
    finally:
        _SUFFIXES.model, _SUFFIXES.parts = before


class RowEnds(threading.local):
    """Where the rows begin and end of the pass that runs in this thread; made by `row_ends`."""

    def __init__(self, model: HookedModel) -> None:
        self._model, self._tokenizer = model, model.tokenizer
        self.tokens: torch.Tensor | None = None
        self.mask: Any = None
        self.cached = False
        self.watched = False
        self.generating = False

    def of(self, values: torch.Tensor) -> Int[torch.Tensor, " row"]:
        """The last position of each row of `values` [row, position, ...], which a hook of this pass sees.

        By the attention mask where there is one, else by the padding that a row of tokens ends in. It is the last one of
        all where there is nothing to tell rows apart (single tokens, embeddings without a mask) and in `generate`, which
        samples from there. Raises ValueError where a row may end in padding or in text, and for several rows of a pass
        that is not watched.
        """
        rows, length = values.shape[:2]
        suffixes = self._suffixes(rows)
        if suffixes:
            return torch.tensor([size - 1 - start for start, size in suffixes], device=values.device)
        if length > 1 and not self.generating:
            if rows > 1 and not self.watched:
                raise ValueError(
                    f"{rows} rows pass a part of the model, or a `forward` that was taken before the block, so where each "
                    "row ends cannot be known; call the model itself, take `forward` inside the block, pass one row at a "
                    "time, or scale at all positions"
                )
            if self.mask is not None:
                return _by_mask(self.mask, rows, length).to(values.device)
            if self.tokens is not None:
                return _by_padding(self.tokens, self._tokenizer, rows, length).to(values.device)
        return torch.full((rows,), length - 1, device=values.device)

    def chosen(
        self, values: torch.Tensor, positions: int | Sequence[tuple[int, int]]
    ) -> tuple[Int[torch.Tensor, " place"], Int[torch.Tensor, " place"]]:
        """The rows and places in `values` [row, position, ...] of a position or spans, counted in each row from its first
        token; negative ones from its last one.

        Rows begin where the attention mask says, without one at the first place. Raises ValueError for positions outside a
        row, where `of` does, and where a row's first token cannot be known: in `generate`, with a KV cache, in a pass that
        is not watched, and without a mask where a row may begin with padding.
        """
        rows, length = values.shape[:2]
        suffixes = self._suffixes(rows)
        if suffixes:
            return _places(
                (
                    (row, place - start)
                    for row, (start, size) in enumerate(suffixes)
                    for place in chosen_positions(positions, size)
                    if place >= start
                ),
                values.device,
            )
        if self.generating or self.cached or not self.watched:
            raise ValueError(
                "positions cannot be counted in `generate`, with a KV cache or in a part of the model; scale at 'last' or "
                "'all' positions, or call the model itself with whole texts"
            )
        lasts, firsts = self.of(values).tolist(), self._firsts(rows, length)
        found = (
            (row, first + place)
            for row, (first, last) in enumerate(zip(firsts, lasts, strict=True))
            for place in chosen_positions(positions, last - first + 1)
        )
        return _places(found, values.device)

    def _suffixes(self, rows: int) -> list[tuple[int, int]]:
        """(start, length of the prompt) of each row, where the engine passes suffixes; else none."""
        parts = _SUFFIXES.parts if _SUFFIXES.model is self._model else ()
        return [*parts] * (rows // len(parts)) if parts else []

    def _firsts(self, rows: int, length: int) -> list[int]:
        """Where each row begins."""
        if self.mask is not None:
            return (self.mask[:, -length:] != 0).int().argmax(1).tolist()
        if self.tokens is not None:
            _check_no_padding_before(self.tokens, self._tokenizer)
        return [0] * rows


@contextmanager
def row_ends(model: HookedModel) -> Iterator[RowEnds]:
    """Watch the model's passes while the block runs, also those inside run_with_cache, run_with_hooks and generate."""
    ends = RowEnds(model)
    with ExitStack() as stack:
        if is_hooked_transformer(model):
            stack.enter_context(_replaced(model, "forward", lambda forward: _watched(forward, ends, model)))
        else:
            stack.enter_context(
                _replaced(as_bridge(model).original_model, "forward", lambda forward: _watched(forward, ends, None))
            )
        for name in ("generate", "hf_generate"):
            if hasattr(model, name):
                stack.enter_context(_replaced(model, name, lambda generate: _generating(generate, ends)))
        yield ends


@contextmanager
def _replaced(owner: Any, name: str, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A method of one object replaced while the block runs. Blocks may nest."""
    before = vars(owner).get(name)
    setattr(owner, name, by(getattr(owner, name)))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _watched(forward: Callable[..., Any], ends: RowEnds, hooked: HookedModel | None) -> Callable[..., Any]:
    """`forward` of a HookedTransformer (`hooked`) or of a bridge's Hugging Face model (None), its input noted in `ends`."""
    signature = inspect.signature(forward)

    @wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        ends.tokens = given.get("input_ids") if hooked is None else _tokens_of(hooked, given)
        ends.mask = given.get("attention_mask")
        caches = (
            "past_kv_cache",
            "past_key_values",
            "cache",
        )  # some models of transformers take the old name beside the new
        ends.cached = any((given | kwargs).get(name) is not None for name in caches)
        ends.watched = True
        try:
            return forward(*args, **kwargs)
        finally:
            ends.tokens = ends.mask = None
            ends.watched = ends.cached = False

    return watched


def _tokens_of(model: HookedModel, given: dict[str, Any]) -> torch.Tensor | None:
    """The tokens [row, position] of a HookedTransformer's pass; None for residual streams without them."""
    if given.get("start_at_layer") is not None:
        return given.get("tokens")
    tokens = given["input"]
    if isinstance(tokens, str | list):
        chosen = {name: given[name] for name in ("prepend_bos", "padding_side") if name in given}
        tokens = model.to_tokens(tokens, **chosen)
    return tokens if tokens.dim() > 1 else tokens[None]


def _generating(generate: Callable[..., Any], ends: RowEnds) -> Callable[..., Any]:
    @wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        before, ends.generating = ends.generating, True
        try:
            return generate(*args, **kwargs)
        finally:
            ends.generating = before

    return watched


def _places(found: Iterable[tuple[int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    row, place = torch.tensor([*found], dtype=torch.long, device=device).reshape(-1, 2).T
    return row, place


def _by_mask(mask: Any, rows: int, length: int) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or len(mask) != rows or mask.shape[1] < length:
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"the attention mask ({shape}) does not say where {rows} rows of {length} tokens end; give it as [row, position]"
        )
    real = mask[:, -length:] != 0  # with a KV cache the mask covers the cached tokens too
    if not real.any(1).all():
        raise ValueError(f"row {int(real.any(1).int().argmin())} is all padding: it has no last token to scale at")
    return (torch.arange(length, device=mask.device) * real).amax(1)


def _by_padding(tokens: torch.Tensor, tokenizer: Any, rows: int, length: int) -> torch.Tensor:
    if tokens.shape != (rows, length):
        raise ValueError(f"activations of {rows} rows of {length} tokens do not belong to tokens {tuple(tokens.shape)}")
    pad, others = tokenizer.pad_token_id, (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if pad is not None and pad not in others:
        after = _trailing(tokens, (pad,))
        if (after == length).any():
            raise ValueError(f"row {int(after.argmax())} is all padding: it has no last token to scale at")
        if after.any():
            return length - 1 - after
        after = _trailing(tokens, others)
        allowed = int((after > 0).all())  # where every row ends in one, the texts end so
    else:
        after = _trailing(tokens, (pad, *others))
        allowed = int(rows == 1)
    if (after > allowed).any():
        row = int(after.argmax())
        raise ValueError(
            f"row {row} ends in {tokenizer.decode(tokens[row, -1:])!r}, which may be padding or text, so where the row ends "
            f"cannot be known; {_REMEDY}"
        )
    return torch.full_like(after, length - 1)


def _check_no_padding_before(tokens: torch.Tensor, tokenizer: Any) -> None:
    """ValueError where a row may begin with padding: with a padding token of its own, or with more BOS or EOS tokens than
    the one that begins every row."""
    pad, others = tokenizer.pad_token_id, (tokenizer.bos_token_id, tokenizer.eos_token_id)
    before = _trailing(tokens.flip(1), (pad, *others))
    begun = before > min(1, int(before.min()))
    if pad is not None and pad not in others:
        begun |= tokens[:, 0] == pad
    if begun.any():
        row = int(begun.int().argmax())
        raise ValueError(
            f"row {row} begins with {tokenizer.decode(tokens[row, :1])!r}, which may be padding, so its positions cannot be "
            f"counted; {_REMEDY}"
        )


def _trailing(tokens: torch.Tensor, ids: Sequence[int | None]) -> torch.Tensor:
    """With how many of these tokens each row ends."""
    known = torch.tensor([token for token in ids if token is not None], dtype=torch.long, device=tokens.device)
    return torch.isin(tokens, known).flip(1).long().cumprod(1).sum(1)
