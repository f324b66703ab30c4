"""A HookedTransformer taken apart into its text pass, its blocks and its end, with the hook points by which rows attend.

Bridges do not come apart like this; bridge.py has their rows.
"""

from __future__ import annotations

from typing import Any

import torch

from qrnca_lens.engine.attention import Geometry
from qrnca_lens.models import HookedModel
from qrnca_lens.models.sites import MIXED, PATTERN, RESID_PRE, SCORES, VALUES, in_block, key_hook, query_hook


class CannotCarryError(RuntimeError):
    """Rows cannot stand for what is asked of a model; the message says why."""


class HookedBlocks:
    """The parts of a HookedTransformer."""

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.layers = range(model.cfg.n_layers)

    def check(self) -> None:
        """CannotCarryError for hooks of others that rows do not meet as the model does."""
        points = self.model.hook_dict
        for layer in self.layers:
            for name in (in_block(layer, what) for what in (SCORES, PATTERN)):
                if points[name].fwd_hooks or points[name].bwd_hooks:
                    raise CannotCarryError(f"there is a hook at {name}, and rows attend without it")
            if points[in_block(layer, MIXED)].bwd_hooks:  # its gradient passes by
                raise CannotCarryError(f"there is a backward hook at {in_block(layer, MIXED)}, and rows attend without it")
        known = set(map(id, points.values()))
        for name, module in self.model.named_modules():  # hooks on the model itself meet all its runs, those of rows too
            if name and (module._forward_hooks or module._forward_pre_hooks) and id(module) not in known:
                raise CannotCarryError(
                    f"there is a hook of torch's on {name}, of which rows know nothing; hooks at hook points can be carried"
                )

    def name(self, layer: int, what: str) -> str:
        """The hook point of "query", "key" (as attention uses them), "value", "mixed" or "resid" of one block."""
        names = {
            "query": query_hook(self.model),
            "key": key_hook(self.model),
            "value": VALUES,
            "mixed": MIXED,
            "resid": RESID_PRE,
        }
        return in_block(layer, names[what])

    def read(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The residual stream [text, position, d_model] after the last block."""
        return self.model(tokens, attention_mask=mask, stop_at_layer=len(self.layers))

    def run(self, layer: int, rows: torch.Tensor) -> torch.Tensor:
        """One block on rows [row, suffix, d_model], rotated as positions 0, 1, ..."""
        return self.model.blocks[layer](rows)

    def finish(self, resid: torch.Tensor) -> torch.Tensor:
        """The logits [row, position, token] of the residual stream after the last block."""
        return self.model(resid, start_at_layer=len(self.layers))

    def geometry(self, layer: int) -> Geometry:
        """How the layer attends."""
        attention = self.model.blocks[layer].attn
        return Geometry(
            float(attention.attn_scale),
            float(attention.cfg.attn_scores_soft_cap),
            attention.cfg.window_size if attention.attn_type == "local" else None,
            _Turn(attention) if hasattr(attention, "rotary_cos") else None,
        )


class _Turn:
    """Turns queries that are rotated already by further positions; rotations add up, and the scale of YaRN counts once."""

    def __init__(self, attention: Any) -> None:
        self._attention = attention

    def __call__(self, queries: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        attention = self._attention
        size, once = attention.cfg.rotary_dim, attention.rotary_cos[0, 0]
        cos, sin = (table[starts][:, None, None] / once for table in (attention.rotary_cos, attention.rotary_sin))
        part = queries[..., :size]
        turned = part * cos + attention.rotate_every_two(part) * sin
        return torch.cat([turned, queries[..., size:]], dim=-1) if size < queries.shape[-1] else turned
