"""Rows: copies of the suffixes of many prompts that join at a layer and go on through the model's own blocks.

The rows of all prompts share one batch. Hooks change their activations on the way; attention is computed against the cached
texts, which are never copied to the rows. docs/attribution.md shows the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float

from qrnca_lens.core.neurons import Site
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.attention import mixed_values
from qrnca_lens.engine.bridge import BridgeTexts
from qrnca_lens.engine.hooks import Hook, with_hooks
from qrnca_lens.engine.padding import passing_suffixes
from qrnca_lens.engine.texts import Texts
from qrnca_lens.models import HookedModel, is_hooked_transformer

Item = TypeVar("Item")


def texts_of(model: HookedModel, asks: Sequence[Ask], site: Site) -> Texts | BridgeTexts:
    """The cached texts of asks that run together (see `groups`)."""
    return Texts(model, asks, site) if is_hooked_transformer(model) else BridgeTexts(model, asks, site)


def groups(model: HookedModel, items: Sequence[Item]) -> list[Sequence[Item]]:
    """Which prompts run together: all in a HookedTransformer, each alone in a bridge, whose rows pass through one prompt."""
    return [items] if is_hooked_transformer(model) else [[item] for item in items]


def run_rows(
    texts: Texts | BridgeTexts, joining: Mapping[int, int], hooks: Sequence[Hook]
) -> Float[torch.Tensor, "row ask suffix end"]:
    """What `texts.finish` takes, of all rows, `joining[layer]` of which join for every ask at each layer.

    That is the residual stream after the last block, in a bridge the logits. Rows stand in rising order of their layers.
    `hooks` see tensors [row * ask, suffix, ...] of the rows that have joined so far. Gradients flow if they are on.
    """
    return texts.run_rows(joining, hooks) if isinstance(texts, BridgeTexts) else _through_blocks(texts, joining, hooks)


def _through_blocks(texts: Texts, joining: Mapping[int, int], hooks: Sequence[Hook]) -> torch.Tensor:
    first, blocks = min(joining), texts.blocks
    layers = [layer for layer in texts.layers if layer >= first]
    attention = [_attention(texts, layer) for layer in layers]
    seeing = [hook for kept, _ in attention for hook in kept]
    rows = texts.resid(first).new_empty(0, texts.width, texts.resid(first).shape[-1])
    parts = [(ask.start, len(ask.tokens)) for ask in texts.asks]
    with (
        passing_suffixes(texts.model, parts),
        with_hooks(texts.model, [*seeing, *hooks], first=[attend for _, attend in attention]),
    ):
        for layer in layers:
            rows = rows.to(texts.resid(layer).device)  # each layer may have a device of its own
            if layer in joining:
                new = texts.resid(layer).expand(joining[layer], -1, -1, -1).flatten(0, 1)
                rows = torch.cat([rows, new])
            rows = blocks.run(layer, rows)
    return rows.unflatten(0, (-1, len(texts.asks)))


def _attention(texts: Texts, layer: int) -> tuple[list[Hook], Hook]:
    """The hooks by which the rows of one block attend to the cached texts: those that see its queries, keys and values, and
    the one that puts in what they mix, before others' hooks there."""
    seen: dict[str, torch.Tensor] = {}
    names = {texts.blocks.name(layer, what): what for what in ("query", "key", "value")}
    geometry, prefix = texts.blocks.geometry(layer), texts.prefix(layer)

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        seen[names[hook.name]] = tensor

    def attend(mixed: torch.Tensor, hook: Any) -> torch.Tensor:
        query, starts = seen.pop("query"), texts.starts.to(prefix.keys.device)
        return mixed_values(query, seen.pop("key"), seen.pop("value"), prefix, starts, geometry)

    return [(name, keep) for name in names], (texts.blocks.name(layer, "mixed"), attend)
