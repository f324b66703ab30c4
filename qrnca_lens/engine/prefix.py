"""One prompt's cached prefix, shared by many copies of its last token.

Only the last position is ever changed and attention is causal, so the keys and values of all earlier positions stand
still: they are cached once. A row is one token, a copy of the last position's residual stream that joins the batch at
some layer and goes on through the model's own blocks; hooks change its activations on the way. Its attention is computed
against the shared prefix, which is never copied to the rows, and against itself. docs/attribution.md shows the picture.

Everything passes through the HookedTransformer's cached activations and hook points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float

from qrnca_lens.core.neurons import Site
from qrnca_lens.core.shapes import Activations, Tokens
from qrnca_lens.engine.hooks import Hook, with_hooks
from qrnca_lens.models import HookedModel, exclusive, site_hook
from qrnca_lens.models.sites import MIXED, RESID_PRE, VALUES, in_block, key_hook, query_hook


class SharedPrefix:
    """The prefix of one prompt in a HookedTransformer, and the logits that the untouched model gives after it."""

    def __init__(self, model: HookedModel, tokens: Tokens, site: Site) -> None:
        self.model, self.tokens = model, tokens
        self.site: Site = site
        layers = range(model.cfg.n_layers)
        names = {in_block(layer, name) for layer in layers for name in (RESID_PRE, key_hook(model), VALUES)}
        names |= {site_hook(model, layer, site) for layer in layers}
        with exclusive(model), torch.no_grad():
            logits, self._cache = model.run_with_cache(
                tokens[None], attention_mask=torch.ones_like(tokens[None]), names_filter=lambda name: name in names
            )
        self.logits: Float[torch.Tensor, " token"] = logits[0, -1]

    def value(self, layer: int) -> Activations:
        """The site's activations at the last position."""
        return self._cache[site_hook(self.model, layer, self.site)][0, -1]

    def forward(self, joining: Mapping[int, int], hooks: Sequence[Hook]) -> Float[torch.Tensor, "row token"]:
        """The logits of all rows, `joining[layer]` of which join at each layer, in rising order of their layers.

        `hooks` see tensors [row, 1, ...] of the rows that have joined so far. Gradients flow if they are on.
        """
        model, n_layers = self.model, self.model.cfg.n_layers
        first = min(joining)
        attending = [hook for layer in range(first, n_layers) for hook in self._attention_hooks(layer)]
        with with_hooks(model, [*attending, *hooks]):
            rows = self._cache[in_block(first, RESID_PRE)][0, -1].new_empty(0, 1, model.cfg.d_model)
            for layer in range(first, n_layers):
                if layer in joining:
                    new = self._cache[in_block(layer, RESID_PRE)][0, -1:].expand(joining[layer], -1, -1)
                    rows = torch.cat([rows, new])
                rows = model.blocks[layer](rows)
            return model(rows, start_at_layer=n_layers)[:, -1]

    def _attention_hooks(self, layer: int) -> list[Hook]:
        """The hooks by which the rows of one block attend to the cached prefix."""
        attention, row = self.model.blocks[layer].attn, _Row()
        keys = self._cache[in_block(layer, key_hook(self.model))][0, :-1]
        values = self._cache[in_block(layer, VALUES)][0, :-1]
        position = len(self.tokens) - 1
        if attention.attn_type == "local":
            first = max(0, position - attention.cfg.window_size + 1)
            keys, values = keys[first:], values[first:]

        def attend(mixed: torch.Tensor, hook: Any) -> torch.Tensor:
            return _attention(attention, row.seen, keys, values, position)

        return [
            (in_block(layer, query_hook(self.model)), row.keep("query")),
            (in_block(layer, key_hook(self.model)), row.keep("key")),
            (in_block(layer, VALUES), row.keep("value")),
            (in_block(layer, MIXED), attend),
        ]


@dataclass
class _Row:
    """The queries, keys and values of the rows in one block, as its hooks see them: [row, 1, head, d_head]."""

    seen: dict[str, torch.Tensor] = field(default_factory=dict)

    def keep(self, key: str) -> Callable[[torch.Tensor, Any], None]:
        """A hook that remembers its tensor."""

        def hook(tensor: torch.Tensor, hook: Any) -> None:
            self.seen[key] = tensor

        return hook


def _attention(
    attention: Any, seen: dict[str, torch.Tensor], keys: torch.Tensor, values: torch.Tensor, position: int
) -> torch.Tensor:
    """The mixed values [row, 1, head, d_head] of single tokens at `position` over the prefix (shared) and themselves."""
    query, own_key, own_value = seen["query"], seen["key"], seen["value"]
    rows, _, heads, d_head = query.shape
    groups = keys.shape[1]
    # the block has rotated these one-token rows as position 0, where a rotation only scales (YaRN) or does nothing;
    # own scores do not depend on the position, scores over the prefix need the true one
    turned = query
    if hasattr(attention, "rotary_cos"):
        turned = attention.apply_rotary(query, position) / attention.rotary_cos[0, 0]
    split = (rows, groups, heads // groups, d_head)
    over_prefix = torch.einsum("rgqd,sgd->rgqs", turned.reshape(split), keys)
    over_self = (query.reshape(split) * own_key.reshape(rows, groups, 1, d_head)).sum(-1, keepdim=True)
    scores = torch.cat([over_prefix, over_self], dim=-1) / attention.attn_scale
    cap = attention.cfg.attn_scores_soft_cap
    if cap > 0:
        scores = cap * torch.tanh(scores / cap)
    pattern = scores.softmax(-1)
    mixed = torch.einsum("rgqs,sgd->rgqd", pattern[..., :-1], values)
    mixed = mixed + pattern[..., -1:] * own_value.reshape(rows, groups, 1, d_head)
    return mixed.reshape(rows, 1, heads, d_head)
