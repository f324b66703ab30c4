"""The attention of a bridge's rows: the model's own code, over one copy of the prefix for many rows.

Around each attention the rows [row, 1, d_model] are folded into a few sequences [sequence, length, d_model], and unfolded
behind it. Rotation, norms of queries, scales, caps and sinks are the model's own, and the positions that it computes for its
one token broadcast over the rows. The mask lets a row see the prefix as far as the model's own mask does (sliding windows)
and, of the rows, only itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers import DynamicCache

from qrnca_lens.models import HookedModel

_LENGTH = 64  # the most rows a sequence; more: fewer copies of the prefix, but more rows that a row is masked from
KeysValues = tuple[torch.Tensor, torch.Tensor]
"""[text, head, position, d_head] each."""


class Recorder(DynamicCache):
    """A cache that keeps the keys and values of all positions in `seen`, also those out of a sliding window."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, KeysValues] = {}

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """As `DynamicCache.update`."""
        self.seen[layer_idx] = (keys, values)
        return super().update(keys, values, layer_idx, *args, **kwargs)


class SharedPrefix(DynamicCache):
    """A cache that puts the prefix before the keys and values of each sequence of rows, and does not grow."""

    def __init__(self, prefix: Mapping[int, KeysValues]) -> None:
        super().__init__()
        for layer in sorted(prefix):
            super().update(*prefix[layer], layer)  # the model asks for the length, for its positions and masks
        self._prefix, self.length = prefix, prefix[0][0].shape[2]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """The prefix with these keys and values behind it."""
        return tuple(
            torch.cat([prefix.expand(len(own), -1, -1, -1), own], dim=2)
            for prefix, own in zip(self._prefix[layer_idx], (keys, values), strict=True)
        )


@contextmanager
def reading(model: HookedModel, cache: Recorder | SharedPrefix) -> Iterator[None]:
    """Every attention reads `cache` while the block runs; from a `SharedPrefix` all rows read together."""
    with ExitStack() as stack:
        for block in model.blocks:
            around = _Around(cache, native=type(block.attn).forward is AttentionBridge.forward)
            stack.callback(block.attn.register_forward_pre_hook(around.before, with_kwargs=True).remove)
            # first of all: Granite's block reads there what its hook_attn_out shows
            stack.callback(block.attn.register_forward_hook(around.after, prepend=True).remove)
        yield


class _Around:
    """What lies around one attention. `native`: transformers' own attention runs, with its own name for the cache.

    The last sequence is filled up with copies of the first row.
    """

    def __init__(self, cache: Recorder | SharedPrefix, *, native: bool) -> None:
        self._cache, self._native = cache, native
        self._rows = self._length = 1

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A pre-hook of the attention: rows become sequences."""
        if not self._native:  # bridges look for it under this name, whatever transformers calls it
            kwargs = {**kwargs, "past_key_values": self._cache}
        if not isinstance(self._cache, SharedPrefix):
            return args, kwargs
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self._rows = len(hidden)
        if self._rows == 1:
            return args, kwargs
        self._length = -(-self._rows // -(-self._rows // _LENGTH))

        def folded(value: Any) -> Any:
            of_rows = isinstance(value, torch.Tensor) and value.shape == hidden.shape
            return self._fold(value) if of_rows else value

        prefix, given = self._cache.length, kwargs
        kwargs = {key: folded(value) for key, value in given.items()}
        kwargs["attention_mask"] = _mask(given.get("attention_mask"), prefix, self._length, hidden)
        if "position_bias" in given:  # MPT
            kwargs["position_bias"] = _bias(given["position_bias"], prefix, self._length)
        return tuple(folded(value) for value in args), kwargs

    def after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        """A hook of the attention: sequences become rows."""
        if self._rows == 1:
            return output
        return (self._unfold(output[0]), *output[1:]) if isinstance(output, tuple) else self._unfold(output)

    def _fold(self, rows: torch.Tensor) -> torch.Tensor:
        lacking = -len(rows) % self._length
        return torch.cat([rows, rows[:1].expand(lacking, -1, -1)]).reshape(-1, self._length, rows.shape[-1])

    def _unfold(self, sequences: torch.Tensor) -> torch.Tensor:
        return sequences.reshape(-1, 1, sequences.shape[-1])[: self._rows]


def _mask(own: torch.Tensor | None, prefix: int, length: int, like: torch.Tensor) -> torch.Tensor:
    """[1, 1, length, prefix + length]: the prefix as the model's own mask of its one token shows it, and each row itself.

    `own`: [1, 1, 1, prefix + 1], added to the scores or boolean, of whatever sense: its last entry is the token itself,
    which it sees. None where the model lets its token see everything.
    """
    if own is None:
        own = like.new_zeros(1, 1, 1, prefix + 1)
    own = own[:, :, -1:].expand(-1, -1, length, -1)
    itself = own[..., -1:]
    others = ~itself if own.dtype == torch.bool else torch.full_like(itself, torch.finfo(own.dtype).min)
    each = torch.eye(length, dtype=torch.bool, device=own.device)
    return torch.cat([own[..., -1 - prefix : -1], torch.where(each, itself, others)], dim=-1)


def _bias(own: torch.Tensor, prefix: int, length: int) -> torch.Tensor:
    """What ALiBi adds to the scores of each key, [..., prefix + length]; `own` ends in that of the token itself."""
    return torch.cat([own[..., -1 - prefix : -1], own[..., -1:].expand(*own.shape[:-1], length)], dim=-1)
