"""The integrals of many prompts, every layer and step of theirs in one growing batch of rows (see rows.py).

A row is one (layer, step) of one prompt. It joins the batch at its layer, where a hook puts the scaled activations in. The
end of the model is run a prompt at a time, so that logits are held for one prompt only; one backward pass gives the
gradients of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Quadrature
from qrnca_lens.core.shapes import LayerValues, Scores
from qrnca_lens.engine.agreement import drift_of, gradients_for_leaves_only
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.bridge import BridgeTexts
from qrnca_lens.engine.hooks import Hook
from qrnca_lens.engine.rows import groups, run_rows, texts_of
from qrnca_lens.engine.texts import Texts
from qrnca_lens.models import HookedModel, site_hook

_LOGITS = 2**25  # numbers held at once as logits of one prompt's rows


@dataclass(frozen=True)
class PathIntegral:
    """The scores, and the objective with each layer's site at 0 and with nothing scaled; its unit, on the CPU.

    `drift[layer]`: how far the logits with the layer scaled by 1 are from the untouched ones, as `drift_of` says.
    """

    scores: Scores
    at_zero: LayerValues
    drift: LayerValues
    untouched: float


@dataclass(frozen=True)
class PathTask:
    """Integrate d objective / d site for every layer of one model, the site at the asks' positions scaled from 0 to 1.

    `quadrature` holds the nodes 0 and 1 (`Quadrature.with_ends`).
    """

    model: HookedModel
    site: Site
    quadrature: Quadrature


def integrate_by_rows(task: PathTask, asks: Sequence[Ask], *, layers_at_once: int | None = None) -> list[PathIntegral]:
    """The same integrals as `plain.integrate_plainly`, for many asks. Look at their `drift` before using them.

    With `layers_at_once` the layers run in groups, which takes less memory and does the same.
    """
    return [path for part in groups(task.model, asks) for path in _together(task, part, layers_at_once)]


def _together(task: PathTask, asks: Sequence[Ask], layers_at_once: int | None) -> list[PathIntegral]:
    texts = texts_of(task.model, asks, task.site)
    layers = list(texts.layers)
    size = layers_at_once or len(layers)
    parts = [_layers(task, texts, layers[start : start + size]) for start in range(0, len(layers), size)]
    scores, at_zero, drift = (torch.cat(part, dim=1).cpu() for part in zip(*parts, strict=True))
    with torch.no_grad():
        untouched = [ask.objective(logits).item() for ask, logits in zip(asks, texts.logits, strict=True)]
    return [PathIntegral(*found) for found in zip(scores, at_zero, drift, untouched, strict=True)]


def _layers(
    task: PathTask, texts: Texts | BridgeTexts, layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores [ask, layer, neuron], the objective at 0 and the drift at 1 [ask, layer] of some layers."""
    nodes, asks = task.quadrature.nodes, len(texts.asks)
    chosen = texts.scaled()
    values = [texts.value(layer) for layer in layers]
    leaves = [_scaled(value, nodes, chosen).requires_grad_(True) for value in values]
    hooks = [_join(site_hook(task.model, layer, task.site), leaf) for layer, leaf in zip(layers, leaves, strict=True)]
    with gradients_for_leaves_only(task.model):
        final = run_rows(texts, dict.fromkeys(layers, len(nodes)), hooks)
        found, slopes, drift = _ends(texts, final.detach(), len(nodes))
        gradients = torch.autograd.grad(final, leaves, slopes)
    weights = task.quadrature.weights.to(final.device)
    scores = torch.empty(asks, len(layers), values[0].shape[-1], dtype=torch.float32, device=final.device)
    for i, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        summed = torch.einsum("k,kasn->asn", weights, gradient.float())
        scores[:, i] = (value.float() * summed * chosen[..., None]).sum(1)
    return scores, found.unflatten(1, (len(layers), -1))[..., 0], drift


def _scaled(value: torch.Tensor, nodes: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The activations [step, ask, suffix, neuron] with those of the chosen positions scaled by each node."""
    scaled = nodes.to(value)[:, None, None, None] * value
    return scaled if bool(chosen.all()) else torch.where(chosen[..., None], scaled, value)


def _join(name: str, leaf: torch.Tensor) -> Hook:
    """A hook that gives the rows which join at this layer, the last ones, the scaled activations of `leaf`."""
    joining = leaf.flatten(0, 1)

    def hook(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([tensor[: -len(joining)], joining])

    return name, hook


def _ends(texts: Texts | BridgeTexts, final: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From what `run_rows` gives, [row, ask, suffix, end]: the objective [ask, row], its slope there, and the drift
    [ask, layer] of the rows that are scaled by 1, the last one of every layer."""
    rows = len(final)
    found = torch.empty(len(texts.asks), rows, dtype=torch.float32, device=final.device)
    slopes = torch.zeros_like(final)
    drift = torch.empty(len(texts.asks), rows // steps, dtype=torch.float32, device=final.device)
    for i, (ask, untouched) in enumerate(zip(texts.asks, texts.logits, strict=True)):
        reads = texts.reads(i)
        together = max(1, _LOGITS // (untouched.numel() * steps)) * steps
        for start in range(0, rows, together):
            part = slice(start, start + together)
            end = final[part, i, reads].requires_grad_(True)
            logits = texts.finish(end)
            objective = ask.objective(logits)
            (slopes[part, i, reads],) = torch.autograd.grad(objective.sum(), end)
            found[i, part] = objective.detach()
            drift[i, start // steps : (start + together) // steps] = drift_of(logits[steps - 1 :: steps], untouched)
    return found, slopes, drift
