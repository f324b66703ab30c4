"""Rows: copies of the suffixes of many prompts that join at a layer and go on through the model's own blocks.

The rows of all prompts share one batch. Hooks change their activations on the way; attention is computed against the cached
texts, which are never copied to the rows. docs/attribution.md shows the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float

from qrnca_lens.engine.attention import mixed_values
from qrnca_lens.engine.hooks import Hook, with_hooks
from qrnca_lens.engine.texts import Texts


def run_rows(
    texts: Texts, joining: Mapping[int, int], hooks: Sequence[Hook]
) -> Float[torch.Tensor, "row ask suffix d_model"]:
    """The residual stream after the last block of all rows, `joining[layer]` of which join for every ask at each layer.

    They stand in rising order of their layers. `hooks` see tensors [row * ask, suffix, ...] of the rows that have joined so
    far. Gradients flow if they are on.
    """
    first, blocks = min(joining), texts.blocks
    layers = [layer for layer in blocks.layers if layer >= first]
    attending = [hook for layer in layers for hook in _attending(texts, layer)]
    rows = texts.resid(first).new_empty(0, texts.width, texts.resid(first).shape[-1])
    with with_hooks(texts.model, [*attending, *hooks]):
        for layer in layers:
            if layer in joining:
                new = texts.resid(layer).expand(joining[layer], -1, -1, -1).flatten(0, 1)
                rows = torch.cat([rows, new])
            rows = blocks.run(layer, rows)
    return rows.unflatten(0, (-1, len(texts.asks)))


def _attending(texts: Texts, layer: int) -> list[Hook]:
    """The hooks by which the rows of one block attend to the cached texts."""
    seen: dict[str, torch.Tensor] = {}
    names = {texts.blocks.name(layer, what): what for what in ("query", "key", "value")}
    geometry, prefix = texts.blocks.geometry(layer), texts.prefix(layer)

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        seen[names[hook.name]] = tensor

    def attend(mixed: torch.Tensor, hook: Any) -> torch.Tensor:
        return mixed_values(seen.pop("query"), seen.pop("key"), seen.pop("value"), prefix, texts.starts, geometry)

    return [*[(name, keep) for name in names], (texts.blocks.name(layer, "mixed"), attend)]
