"""The plain path: one full forward pass a layer, all steps as a batch. Slow, literal, the oracle of the tests.

Used by `attribute` only for models that the shared-prefix engine cannot run.
"""

from __future__ import annotations

import torch

from qrnca_lens.engine.hooks import with_hooks
from qrnca_lens.engine.path import PathIntegral, PathTask, drift_of, gradients_for_leaves_only
from qrnca_lens.models import site_hook


def integrate_plainly(task: PathTask) -> PathIntegral:
    """The paper's equation as it stands, for every layer."""
    model, weights = task.model, task.quadrature.weights.to(task.tokens.device)
    names = [site_hook(model, layer, task.site) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        logits, cache = model.run_with_cache(
            task.tokens[None],
            attention_mask=torch.ones_like(task.tokens[None]),
            names_filter=lambda name: name in names,
        )
    untouched = logits[0, -1]
    scores, at_zero, drift = [], [], []
    for name in names:
        value = cache[name][0, -1]
        scaled = (task.quadrature.nodes.to(value)[:, None] * value).requires_grad_(True)

        def put(tensor: torch.Tensor, hook: object, scaled: torch.Tensor = scaled) -> torch.Tensor:
            return torch.cat([tensor[:, :-1], scaled[:, None]], dim=1)

        with gradients_for_leaves_only(model), with_hooks(model, [(name, put)]):
            batch = task.tokens.expand(len(scaled), -1)
            scaled_logits = model(batch, attention_mask=torch.ones_like(batch))[:, -1]
            found = task.objective(scaled_logits)
            (gradient,) = torch.autograd.grad(found.sum(), scaled)
        scores.append(value.float() * (weights[:, None] * gradient.float()).sum(0))
        at_zero.append(found[0].detach().float())
        drift.append(drift_of(scaled_logits[-1], untouched))
    return PathIntegral(
        torch.stack(scores).cpu(),
        torch.stack(at_zero).cpu(),
        torch.stack(drift).cpu(),
        task.objective(untouched).item(),
    )
