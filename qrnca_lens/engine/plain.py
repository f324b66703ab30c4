"""The plain path: one full forward pass a layer, all steps as a batch. Slow, literal, the oracle of the tests.

Used only where the rows do not give the model's own logits.
"""

from __future__ import annotations

import torch

from qrnca_lens.engine.agreement import drift_of, gradients_for_leaves_only
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.hooks import with_hooks
from qrnca_lens.engine.integral import PathIntegral, PathTask
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.models import site_hook


def integrate_plainly(task: PathTask, ask: Ask) -> PathIntegral:
    """The paper's equation as it stands, for every layer."""
    model, tokens, weights = task.model, ask.tokens, task.quadrature.weights.to(ask.tokens.device)
    names = [site_hook(model, layer, task.site) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        logits, cache = last_logits(model, tokens[None], torch.ones_like(tokens[None]), names, reads=ask.reads)
    untouched, where = logits[0], torch.tensor(ask.scaled, device=tokens.device)
    scores, at_zero, drift = [], [], []
    for name in names:
        value = cache[name][0, where]
        scaled = (task.quadrature.nodes.to(value)[:, None, None] * value).requires_grad_(True)

        def put(tensor: torch.Tensor, hook: object, scaled: torch.Tensor = scaled) -> torch.Tensor:
            return tensor.index_copy(1, where, scaled)

        with gradients_for_leaves_only(model), with_hooks(model, [(name, put)]):
            batch = tokens.expand(len(scaled), -1)
            scaled_logits, _ = last_logits(model, batch, torch.ones_like(batch), reads=ask.reads)
            found = ask.objective(scaled_logits)
            (gradient,) = torch.autograd.grad(found.sum(), scaled)
        scores.append((value.float() * (weights[:, None, None] * gradient.float()).sum(0)).sum(0))
        at_zero.append(found[0].detach().float())
        drift.append(drift_of(scaled_logits[-1], untouched))
    return PathIntegral(
        torch.stack(scores).cpu(),
        torch.stack(at_zero).cpu(),
        torch.stack(drift).cpu(),
        ask.objective(untouched).item(),
    )
