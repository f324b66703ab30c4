"""The attention of rows: suffixes of many prompts over the cached keys and values of what precedes them, and themselves.

Shapes: `ask` counts prompts, `row` the rows of one prompt, `suffix` the positions of a row, `prefix` cached positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int

Rotation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries [row, ask, suffix, head, d_head] turned further by as many positions as the starts [ask] say."""


@dataclass(frozen=True)
class Geometry:
    """How one layer attends: scores are divided by `scale` and capped, keys further back than `window` are not seen."""

    scale: float
    cap: float = 0.0
    window: int | None = None
    turn: Rotation | None = None


@dataclass(frozen=True)
class Cached:
    """What the rows of one layer attend to: keys [ask, group, d_head, prefix] and values [ask, group, prefix, d_head].

    `hidden` tells the prefix positions that a position of the suffix does not see (those of padding and of longer prompts,
    those beyond a sliding window); None where all are seen.
    """

    keys: Float[torch.Tensor, "ask group d_head prefix"]
    values: Float[torch.Tensor, "ask group prefix d_head"]
    hidden: Bool[torch.Tensor, "ask suffix prefix"] | None


def cached(
    keys: Float[torch.Tensor, "ask position group d_head"],
    values: Float[torch.Tensor, "ask position group d_head"],
    starts: Int[torch.Tensor, " ask"],
    width: int,
    window: int | None,
) -> Cached:
    """The part of the keys and values that the suffixes of `width` positions, which begin at `starts`, can see."""
    first = 0 if window is None else max(0, int(starts.min()) - window + 1)
    last = int(starts.max())
    seen = torch.arange(first, last, device=starts.device)
    at = starts[:, None] + torch.arange(width, device=starts.device)
    hidden = seen >= starts[:, None, None]
    hidden = hidden.expand(-1, width, -1)
    if window is not None:
        hidden = hidden | (seen <= at[:, :, None] - window)
    keys, values = keys[:, first:last], values[:, first:last]
    return Cached(
        keys.permute(0, 2, 3, 1).contiguous(),
        values.permute(0, 2, 1, 3).contiguous(),
        hidden if bool(hidden.any()) else None,
    )


def mixed_values(
    query: Float[torch.Tensor, "rows suffix head d_head"],
    key: Float[torch.Tensor, "rows suffix group d_head"],
    value: Float[torch.Tensor, "rows suffix group d_head"],
    prefix: Cached,
    starts: Int[torch.Tensor, " ask"],
    geometry: Geometry,
) -> Float[torch.Tensor, "rows suffix head d_head"]:
    """What attention mixes for every row; `rows` run through the prompts fastest: row 0 of every prompt, then row 1.

    Queries, keys and values are rotated as positions 0, 1, ... of their suffix: a rotation depends on distances alone, so
    only the queries that meet the prefix are turned by where their suffix starts.
    """
    asks, groups = prefix.keys.shape[:2]
    count, width, heads, d_head = query.shape
    rows, share = count // asks, heads // groups
    own_query = query.reshape(rows, asks, width, heads, d_head) / geometry.scale
    turned = geometry.turn(own_query, starts) if geometry.turn else own_query
    # the matrix product of a prompt takes all its rows at once: [ask, group, row * suffix * head, d_head] x [d_head, prefix]
    turned = turned.reshape(rows, asks, width, groups, share, d_head).permute(1, 3, 0, 2, 4, 5)
    stacked, length = rows * width * share, prefix.keys.shape[-1]
    over_prefix = turned.reshape(asks, groups, stacked, d_head) @ prefix.keys
    over_prefix = over_prefix.reshape(asks, groups, rows, width, share, length)
    own_query = own_query.reshape(rows, asks, width, groups, share, d_head)
    key, value = (own.reshape(rows, asks, width, groups, d_head) for own in (key, value))
    if width == 1:  # a sum of products: as many matrix products of one row would take far longer
        over_self = (own_query * key[..., None, :]).sum(-1).permute(1, 3, 0, 2, 4)[..., None]
    else:
        over_self = torch.einsum("rbsghd,rbtgd->bgrsht", own_query, key)
    scores = torch.cat([over_prefix, over_self], dim=-1)
    if geometry.cap > 0:
        scores = geometry.cap * torch.tanh(scores / geometry.cap)
    hidden = _hidden(prefix, width, geometry.window, query.device)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    pattern = scores.softmax(-1)
    over = pattern[..., :length].reshape(asks, groups, stacked, length) @ prefix.values
    mixed = over.reshape(asks, groups, rows, width, share, d_head).permute(2, 0, 3, 1, 4, 5)
    own = pattern[..., length:]
    if width == 1:
        mixed = mixed + own.permute(2, 0, 3, 1, 4, 5) * value[..., None, :]
    else:
        mixed = mixed + torch.einsum("bgrsht,rbtgd->rbsghd", own, value)
    return mixed.reshape(count, width, heads, d_head)


def _hidden(prefix: Cached, width: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which scores [ask, 1, 1, suffix, 1, prefix and suffix] do not count; None where all do."""
    if prefix.hidden is None and width == 1:
        return None
    asks, length = prefix.keys.shape[0], prefix.keys.shape[-1]
    at = torch.arange(width, device=device)
    distance = at[:, None] - at
    own = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    before = torch.zeros(asks, width, length, dtype=torch.bool, device=device) if prefix.hidden is None else prefix.hidden
    return torch.cat([before, own.expand(asks, -1, -1)], dim=-1)[:, None, None, :, None]
