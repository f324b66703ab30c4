"""The plain path: full forward passes for every layer, the nodes as a batch. Slow, literal, the oracle of the tests.

Used only where the rows do not give the model's own logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qrnca_lens.engine.agreement import drift_of, gradients_for_leaves_only, gradients_of
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.hooks import with_hooks
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.engine.refinement import Bounds, PanelSums, PathIntegral, PathTask, integrate_panels
from qrnca_lens.models import site_hook


def integrate_plainly(task: PathTask, ask: Ask) -> PathIntegral:
    """The paper's equation as it stands, for every layer."""
    return integrate_panels(task, [ask], lambda _asks, bounds: _measure(task, ask, bounds))[0]


def _measure(task: PathTask, ask: Ask, bounds: Mapping[int, Bounds]) -> tuple[list[float], dict[int, PanelSums]]:
    """The sums of the panels of some layers, as many panels at once as the rule begins with."""
    model, tokens = task.model, ask.tokens
    names = {layer: site_hook(model, layer, task.site) for layer in bounds}
    with torch.no_grad():
        logits, cache = last_logits(model, tokens[None], torch.ones_like(tokens[None]), names.values(), reads=ask.reads)
    untouched, where = logits[0], torch.tensor(ask.scaled, device=tokens.device)
    found = {}
    for layer, name in names.items():
        parts = [
            _panels(task, ask, name, cache[name][0, where], untouched, part)
            for part in bounds[layer].split(task.quadrature.panels)
        ]
        scores, ends = (torch.cat([getattr(part, what) for part in parts]) for what in ("scores", "ends"))
        found[layer] = PanelSums(scores, ends, parts[-1].drift)
    return [ask.objective(untouched).item()], found


def _panels(task: PathTask, ask: Ask, name: str, value: torch.Tensor, untouched: torch.Tensor, bounds: Bounds) -> PanelSums:
    """The sums of some panels of one layer, whose activations [scaled, neuron] are `value`."""
    model, tokens = task.model, ask.tokens
    scaled = (task.nodes(bounds).to(value)[..., None] * value).requires_grad_(True)
    where = torch.tensor(ask.scaled, device=tokens.device)

    def put(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor.index_copy(1, where, scaled)

    with gradients_for_leaves_only(model), with_hooks(model, [(name, put)]):
        batch = tokens.expand(len(scaled), -1)
        logits, _ = last_logits(model, batch, torch.ones_like(batch), reads=ask.reads)
        found = ask.objective(logits)
        (gradient,) = gradients_of(found.sum(), [scaled])
    weights = task.quadrature.weights.to(tokens.device)
    slopes = (weights[:, None, None] * gradient.float().unflatten(0, (len(bounds), -1))).sum(1)
    widths = (bounds[..., 1] - bounds[..., 0]).to(slopes)
    ends = found.detach().float().unflatten(0, (len(bounds), 1, -1))[..., [0, -1]]
    return PanelSums(widths[..., None] * (value.float() * slopes).sum(1)[:, None], ends, drift_of(logits[-1:], untouched))
