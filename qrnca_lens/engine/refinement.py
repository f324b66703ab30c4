"""The path integral of every layer, put together from panels of [0, 1]; those that do not add up are halved.

On a panel the scores must sum to the change of the objective between its ends. Where they do not, the objective bends there.
Whoever runs the model (rows or whole prompts) is given panels and gives back their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float

from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Quadrature, tolerated_gap
from qrnca_lens.core.shapes import LayerCounts, LayerValues, Scores
from qrnca_lens.engine.asks import Ask
from qrnca_lens.models import HookedModel

Panel: TypeAlias = tuple[float, float]
Bounds: TypeAlias = Float[torch.Tensor, "panel ask 2"]
"""Where the panels of one layer start and stop, for every ask."""


@dataclass(frozen=True)
class PathIntegral:
    """The scores, and the objective with each layer's site at 0 and with nothing scaled; its unit, on the CPU.

    `drift[layer]`: how far the logits with the layer scaled by 1 are from the untouched ones, as `drift_of` says.
    `nodes[layer]`: at how many nodes the layer was run, those of halved panels included.
    """

    scores: Scores
    at_zero: LayerValues
    drift: LayerValues
    untouched: float
    nodes: LayerCounts


@dataclass(frozen=True)
class PathTask:
    """Integrate d objective / d site for every layer of one model, the site at the asks' positions scaled from 0 to 1.

    `quadrature` holds the nodes 0 and 1 (`Quadrature.with_ends`).
    """

    model: HookedModel
    site: Site
    quadrature: Quadrature

    def nodes(self, bounds: Bounds) -> Float[torch.Tensor, "row ask"]:
        """The nodes of all panels, those of one panel after the other."""
        inner = self.quadrature.nodes.to(bounds)[:, None]
        starts, stops = bounds[:, None, :, 0], bounds[:, None, :, 1]
        return (starts + (stops - starts) * inner).flatten(0, 1)


@dataclass(frozen=True)
class PanelSums:
    """What one layer gives on its panels: the scores, the objective at both ends, and the drift at the last node of all."""

    scores: Float[torch.Tensor, "panel ask neuron"]
    ends: Float[torch.Tensor, "panel ask 2"]
    drift: Float[torch.Tensor, " ask"]

    def gaps(self) -> list[list[float]]:
        """The size of each panel's completeness gap, [panel][ask]."""
        return (self.scores.sum(-1) - (self.ends[..., 1] - self.ends[..., 0])).abs().tolist()


Run = Callable[[Sequence[Ask], Mapping[int, Bounds]], tuple[list[float], dict[int, PanelSums]]]
"""From some asks and the panels of some layers to the untouched objectives and the layers' sums."""


def integrate_panels(task: PathTask, asks: Sequence[Ask], run: Run) -> list[PathIntegral]:
    """The integrals of `task` for some asks; only layers and asks that do not add up yet are run again."""
    progress = _Progress(task, [ask.size for ask in asks])
    todo = progress.first()
    while todo:
        who = sorted({ask for of_layer in todo.values() for ask in of_layer})
        bounds = {layer: _bounds(of_layer, who) for layer, of_layer in todo.items()}
        untouched, measured = run([asks[ask] for ask in who], bounds)
        if not progress.untouched:
            progress.begin(untouched, measured)
        halved = {layer: progress.take(layer, who, todo[layer], sums) for layer, sums in measured.items()}
        todo = {layer: panels for layer, panels in halved.items() if panels}
    return progress.integrals()


def _bounds(panels: Mapping[int, list[Panel]], who: Sequence[int]) -> Bounds:
    """The panels of all asks as one tensor; asks with fewer ones, or none, get empty panels at 1."""
    most = max(map(len, panels.values()))
    rows = [panels.get(ask, []) + [(1.0, 1.0)] * (most - len(panels.get(ask, []))) for ask in who]
    return torch.tensor(rows, dtype=torch.float64).transpose(0, 1)


class _Progress:
    """The panels that are settled, summed up for every ask and layer."""

    def __init__(self, task: PathTask, sizes: Sequence[float | None]) -> None:
        self._rule, self._layers, self._asks, self._sizes = task.quadrature, task.model.cfg.n_layers, len(sizes), sizes
        self._scores: dict[int, torch.Tensor] = {}
        self._gaps = torch.zeros(self._asks, self._layers, dtype=torch.float64)
        self._nodes = torch.zeros(self._asks, self._layers, dtype=torch.long)
        self.untouched: list[float] = []

    def first(self) -> dict[int, dict[int, list[Panel]]]:
        """The panels to begin with, of every layer and ask."""
        count = self._rule.panels
        panels = [(i / count, (i + 1) / count) for i in range(count)]
        return {layer: dict.fromkeys(range(self._asks), panels) for layer in range(self._layers)}

    def begin(self, untouched: list[float], measured: Mapping[int, PanelSums]) -> None:
        """Keep what the first panels alone tell: the objective at 0 and untouched, and the drift at 1."""
        sums = [measured[layer] for layer in range(self._layers)]
        self.untouched = untouched
        self._at_zero = torch.stack([of_layer.ends[0, :, 0] for of_layer in sums], 1).cpu()
        self._drift = torch.stack([of_layer.drift for of_layer in sums], 1).cpu()

    def take(
        self, layer: int, who: Sequence[int], panels: dict[int, list[Panel]], sums: PanelSums
    ) -> dict[int, list[Panel]]:
        """Add up the panels that are settled, and give the halves of the others."""
        gaps, settled = sums.gaps(), torch.zeros(sums.scores.shape[:2], dtype=torch.bool)
        halves: dict[int, list[Panel]] = {}
        for column, ask in enumerate(who):
            mine = panels.get(ask, [])
            self._nodes[ask, layer] += len(mine) * len(self._rule.nodes)
            sizes = [row[column] for row in gaps[: len(mine)]]
            split = self._split(ask, layer, mine, sizes)
            for at, (panel, size) in enumerate(zip(mine, sizes, strict=True)):
                if at in split:
                    middle = sum(panel) / 2
                    halves.setdefault(ask, []).extend([(panel[0], middle), (middle, panel[1])])
                else:
                    settled[at, column] = True
                    self._gaps[ask, layer] += size
        new = sums.scores.where(settled.to(sums.scores.device)[..., None], 0).sum(0)
        total = self._scores.setdefault(layer, new.new_zeros(self._asks, new.shape[-1]))
        total[torch.tensor(who, device=total.device)] += new
        return halves

    def _split(self, ask: int, layer: int, panels: Sequence[Panel], sizes: Sequence[float]) -> set[int]:
        """Which panels are halved: while all gaps together are too large, those with more than their share, if there is
        room. Numbers that are none are settled, and found in the scores."""
        size = self._sizes[ask]
        limit = tolerated_gap(self.untouched[ask] if size is None else size)
        if not self._gaps[ask, layer].item() + sum(sizes) > limit:
            return set()
        over = [at for at, (start, stop) in enumerate(panels) if sizes[at] > limit * (stop - start)]
        room = self._rule.room(int(self._nodes[ask, layer]))
        return set(sorted(over, key=lambda at: -sizes[at])[:room])

    def integrals(self) -> list[PathIntegral]:
        """The result for every ask."""
        scores = torch.stack([self._scores[layer] for layer in range(self._layers)], 1).cpu()
        parts = (scores, self._at_zero, self._drift, self.untouched, self._nodes)
        return [PathIntegral(*found) for found in zip(*parts, strict=True)]
