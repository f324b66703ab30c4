"""The shared-prefix engine: every layer and step of one prompt in one growing batch of single tokens (see prefix.py).

A row is one (layer, step). It joins the batch at its layer, where a hook puts the scaled activations in. One backward pass
gives the gradients of all rows.
"""

from __future__ import annotations

from typing import Any

import torch

from qrnca_lens.engine.hooks import Hook
from qrnca_lens.engine.path import PathIntegral, PathTask, drift_of, gradients_for_leaves_only
from qrnca_lens.engine.prefix import SharedPrefix
from qrnca_lens.models import site_hook


def integrate_by_shared_prefix(task: PathTask) -> PathIntegral:
    """The same integral as `reference.integrate_plainly`, for HookedTransformers. Look at its `drift` before using it."""
    layers, steps = range(task.model.cfg.n_layers), len(task.quadrature.nodes)
    prefix = SharedPrefix(task.model, task.tokens, task.site)
    values = [prefix.value(layer) for layer in layers]
    leaves = [(task.quadrature.nodes.to(value)[:, None] * value).requires_grad_(True) for value in values]
    hooks = [_join(site_hook(task.model, layer, task.site), leaves[layer]) for layer in layers]
    with gradients_for_leaves_only(task.model):
        logits = prefix.forward(dict.fromkeys(layers, steps), hooks)
        found = task.objective(logits)
        gradients = torch.autograd.grad(found.sum(), leaves)
    weights = task.quadrature.weights.to(found.device)
    scores = [v.float() * (weights[:, None] * g.float()).sum(0) for v, g in zip(values, gradients, strict=True)]
    at_zero = found.detach()[::steps].float().cpu()
    drift = drift_of(logits[steps - 1 :: steps], prefix.logits).cpu()
    untouched = task.objective(prefix.logits).item()
    return PathIntegral(torch.stack(scores).cpu(), at_zero, drift, untouched)


def _join(name: str, leaf: torch.Tensor) -> Hook:
    """A hook that gives the rows which join at this layer, the last ones, the scaled activations of `leaf`."""

    def hook(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([tensor[: -len(leaf)], leaf[:, None]])

    return name, hook
