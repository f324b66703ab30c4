"""The integrals of many prompts, every layer and node of theirs in one growing batch of rows (see rows.py).

A row is one (layer, node) of one prompt. It joins the batch at its layer, where a hook puts the scaled activations in. The
end of the model is run a prompt at a time, so that logits are held for one prompt only; one backward pass gives the
gradients of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from qrnca_lens.engine.agreement import drift_of, gradients_for_leaves_only, gradients_of
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.bridge import BridgeTexts
from qrnca_lens.engine.budget import LOGITS
from qrnca_lens.engine.hooks import Hook
from qrnca_lens.engine.refinement import Bounds, PanelSums, PathIntegral, PathTask, integrate_panels
from qrnca_lens.engine.rows import groups, run_rows, texts_of
from qrnca_lens.engine.texts import Texts
from qrnca_lens.models import site_hook


def integrate_by_rows(task: PathTask, asks: Sequence[Ask], *, layers_at_once: int | None = None) -> list[PathIntegral]:
    """The same integrals as `plain.integrate_plainly`, for many asks. Look at their `drift` before using them.

    With `layers_at_once` the layers run in groups, which takes less memory and does the same.
    """

    def measure(some: Sequence[Ask], bounds: Mapping[int, Bounds]) -> tuple[list[float], dict[int, PanelSums]]:
        return _measure(task, some, bounds, layers_at_once or len(bounds))

    return [path for part in groups(task.model, asks) for path in integrate_panels(task, part, measure)]


def _measure(
    task: PathTask, asks: Sequence[Ask], bounds: Mapping[int, Bounds], layers_at_once: int
) -> tuple[list[float], dict[int, PanelSums]]:
    """The sums of all panels; no run takes more of a layer than the rule begins with, so that it fits as the first does."""
    texts, size = texts_of(task.model, asks, task.site), task.quadrature.panels
    parts: dict[int, list[PanelSums]] = {layer: [] for layer in sorted(bounds)}
    for start in range(0, max(map(len, bounds.values())), size):
        layers = [layer for layer in parts if len(bounds[layer]) > start]
        for first in range(0, len(layers), layers_at_once):
            group = {layer: bounds[layer][start : start + size] for layer in layers[first : first + layers_at_once]}
            for layer, sums in _layers(task, texts, group).items():
                parts[layer].append(sums)
    with torch.no_grad():
        untouched = [ask.objective(logits).item() for ask, logits in zip(asks, texts.logits, strict=True)]
    return untouched, {
        layer: PanelSums(torch.cat([p.scores for p in found]), torch.cat([p.ends for p in found]), found[-1].drift)
        for layer, found in parts.items()
    }


def _layers(task: PathTask, texts: Texts | BridgeTexts, bounds: Mapping[int, Bounds]) -> dict[int, PanelSums]:
    """The sums of some panels of some layers, all in one run."""
    chosen, layers = texts.scaled(), list(bounds)
    values = [texts.value(layer) for layer in layers]
    nodes = [task.nodes(bounds[layer]) for layer in layers]
    leaves = [_scaled(value, at, chosen).requires_grad_(True) for value, at in zip(values, nodes, strict=True)]
    hooks = [_join(site_hook(task.model, layer, task.site), leaf) for layer, leaf in zip(layers, leaves, strict=True)]
    sizes = list(map(len, nodes))
    with gradients_for_leaves_only(task.model):
        final = run_rows(texts, dict(zip(layers, sizes, strict=True)), hooks)
        found, slopes, drift = _ends(texts, final.detach(), [end - 1 for end in accumulate(sizes)])
        gradients = gradients_of(final, leaves, slopes)
    sums = {}
    for i, (layer, value, gradient, at) in enumerate(zip(layers, values, gradients, found.split(sizes, 1), strict=True)):
        panels, weights = len(bounds[layer]), task.quadrature.weights.to(gradient.device)
        summed = torch.einsum("k,pkasn->pasn", weights, gradient.float().unflatten(0, (panels, -1)))
        scores = (value.float() * summed * chosen.to(value.device)[..., None]).sum(2).to(final.device)
        widths = (bounds[layer][..., 1] - bounds[layer][..., 0]).to(scores)
        ends = at.unflatten(1, (panels, -1))[..., [0, -1]].transpose(0, 1)
        sums[layer] = PanelSums(widths[..., None] * scores, ends, drift[:, i])
    return sums


def _scaled(value: torch.Tensor, nodes: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The activations [row, ask, suffix, neuron] with those of the chosen positions scaled by each node [row, ask]."""
    scaled = nodes.to(value)[..., None, None] * value
    return scaled if bool(chosen.all()) else torch.where(chosen.to(value.device)[..., None], scaled, value)


def _join(name: str, leaf: torch.Tensor) -> Hook:
    """A hook that gives the rows which join at this layer, the last ones, the scaled activations of `leaf`."""
    joining = leaf.flatten(0, 1)

    def hook(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([tensor[: -len(joining)], joining])

    return name, hook


def _ends(
    texts: Texts | BridgeTexts, final: torch.Tensor, whole: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From what `run_rows` gives, [row, ask, suffix, end]: the objective [ask, row], its slope there, and the
    drift [ask, layer] of the rows `whole`, the last one of every layer."""
    rows = len(final)
    found = torch.empty(len(texts.asks), rows, dtype=torch.float32, device=final.device)
    slopes = torch.zeros_like(final)
    drift = torch.empty(len(texts.asks), len(whole), dtype=torch.float32, device=final.device)
    for i, (ask, untouched) in enumerate(zip(texts.asks, texts.logits, strict=True)):
        reads = texts.reads(i)
        together = max(1, LOGITS // untouched.numel())
        for start in range(0, rows, together):
            part = slice(start, start + together)
            end = final[part, i, reads].requires_grad_(True)
            logits = texts.finish(end)
            objective = ask.objective(logits)
            (slopes[part, i, reads],) = gradients_of(objective.sum(), [end])
            found[i, part] = objective.detach()
            inside = [layer for layer, row in enumerate(whole) if start <= row < start + together]
            if inside:
                drift[i, inside] = drift_of(logits[[whole[layer] - start for layer in inside]], untouched)
    return found, slopes, drift
