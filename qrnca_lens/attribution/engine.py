"""The shared-prefix engine: every layer and step of one prompt in one growing batch of single tokens.

Only the last position is scaled and attention is causal, so the keys and values of all earlier positions stand still:
they are cached once and shared by all rows. A row is one (layer, step): a copy of the last position's residual stream
that joins the batch at its layer, where hooks put the scaled activations in, and goes on through the model's own blocks.
Its attention is computed against the shared prefix and itself. One backward pass gives the gradients of all rows.

Everything passes through the model's cached activations and hook points; docs/attribution.md shows the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformer_lens import ActivationCache

from qrnca_lens.attribution.path import PathIntegral, PathTask, gradients_for_leaves_only, target_probability
from qrnca_lens.models import HookedModel, site_hook
from qrnca_lens.models.sites import MIXED, RESID_PRE, VALUES, in_block, key_hook, query_hook

Hook = tuple[str, Callable[..., torch.Tensor | None]]


def integrate_by_shared_prefix(task: PathTask) -> PathIntegral:
    """The same integral as `reference.integrate_plainly`, for HookedTransformers. Check `at_one` against `probability`."""
    model, quadrature = task.model, task.quadrature
    n_layers, steps = model.cfg.n_layers, len(quadrature.nodes)
    kept = (RESID_PRE, key_hook(model), VALUES)
    names = {in_block(layer, name) for layer in range(n_layers) for name in kept}
    names |= {site_hook(model, layer, task.site) for layer in range(n_layers)}
    with torch.no_grad():
        logits, cache = model.run_with_cache(task.tokens[None], names_filter=lambda name: name in names)
    values = [cache[site_hook(model, layer, task.site)][0, -1] for layer in range(n_layers)]
    leaves = [(quadrature.nodes.to(value)[:, None] * value).requires_grad_(True) for value in values]
    hooks = [hook for layer in range(n_layers) for hook in _block_hooks(task, layer, leaves[layer], cache)]
    with gradients_for_leaves_only(model), model.hooks(fwd_hooks=hooks):
        rows = cache[in_block(0, RESID_PRE)][0, -1].new_empty(0, 1, model.cfg.d_model)
        for layer, block in enumerate(model.blocks):
            joining = cache[in_block(layer, RESID_PRE)][0, -1:].expand(steps, -1, -1)
            rows = block(torch.cat([rows, joining]))
        probability = target_probability(model(rows, start_at_layer=n_layers)[:, -1], task.target)
        gradients = torch.autograd.grad(probability.sum(), leaves)
    weights = quadrature.weights.to(rows.device)
    scores = [v.float() * (weights[:, None] * g.float()).sum(0) for v, g in zip(values, gradients, strict=True)]
    by_layer = probability.detach().unflatten(0, (n_layers, steps)).cpu()
    return PathIntegral(
        torch.stack(scores).cpu(), by_layer[:, 0], by_layer[:, -1], target_probability(logits[0, -1], task.target).item()
    )


@dataclass
class _Row:
    """The queries, keys and values of the rows in one block, as its hooks see them: [row, 1, head, d_head]."""

    seen: dict[str, torch.Tensor] = field(default_factory=dict)

    def keep(self, key: str) -> Callable[[torch.Tensor, Any], None]:
        """A hook that remembers its tensor."""

        def hook(tensor: torch.Tensor, hook: Any) -> None:
            self.seen[key] = tensor

        return hook


def _block_hooks(task: PathTask, layer: int, leaf: torch.Tensor, cache: ActivationCache) -> list[Hook]:
    """The hooks of one block: its rows attend to the cached prefix, and the new rows get their scaled activations."""
    model, row = task.model, _Row()
    keys = cache[in_block(layer, key_hook(model))][0, :-1]
    values = cache[in_block(layer, VALUES)][0, :-1]
    position = len(task.tokens) - 1

    def attend(mixed: torch.Tensor, hook: Any) -> torch.Tensor:
        attention = model.blocks[layer].attn
        if attention.attn_type == "local":
            first = max(0, position - attention.cfg.window_size + 1)
            return _attention(attention, row.seen, keys[first:], values[first:], position)
        return _attention(attention, row.seen, keys, values, position)

    def join(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([tensor[: -len(leaf)], leaf[:, None]])

    return [
        (in_block(layer, query_hook(model)), row.keep("query")),
        (in_block(layer, key_hook(model)), row.keep("key")),
        (in_block(layer, VALUES), row.keep("value")),
        (in_block(layer, MIXED), attend),
        (site_hook(model, layer, task.site), join),
    ]


def _attention(
    attention: HookedModel, seen: dict[str, torch.Tensor], keys: torch.Tensor, values: torch.Tensor, position: int
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
