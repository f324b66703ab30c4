"""The result of an attribution."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from qrnca_lens.core.neurons import NeuronSet, Site, top_neurons
from qrnca_lens.core.rules import Rule, tolerated_gap
from qrnca_lens.core.shapes import LayerCounts, LayerValues, Scores
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import whole_number
from qrnca_lens.engine.asks import Positions


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of P(target) for every MLP neuron, one layer scaled at a time.

    `positions` were scaled, "last" being the prompt's last one; the scores of a neuron are summed over them.

    `scores[layer, neuron]` and `completeness_gap[layer]` are in probability units. The gap is the sum of the layer's
    scores minus P(target) with the layer intact plus P(target) with the layer's site at 0: what the quadrature missed.
    `nodes[layer]` says at how many nodes the layer was run: those that the rule needs for its checks are among them, and
    with rule "auto" those of parts of [0, 1] that were then looked at more closely.
    """

    scores: Scores
    probability: float
    completeness_gap: LayerValues
    prompt: str
    target: str
    target_ids: tuple[int, ...]
    site: Site
    rule: Rule
    steps: int
    nodes: LayerCounts
    positions: Positions = "last"

    @property
    def change(self) -> LayerValues:
        """P(target) with each layer intact minus P(target) with its site at 0: the sum of its scores, were there no gap."""
        return self.scores.sum(1) - self.completeness_gap

    @property
    def rough_layers(self) -> tuple[int, ...]:
        """The layers whose gap is above 1 % of P(target) and 1e-5: with rule "auto" those where 256 nodes were too few."""
        above = self.completeness_gap.abs() > tolerated_gap(self.probability)
        return tuple(above.nonzero().flatten().tolist())

    @property
    def target_id(self) -> int:
        """The id of the target, the first one of a continuation."""
        return self.target_ids[0]

    def top(self, k: int = 20) -> pd.DataFrame:
        """The `k` highest scores (all, where there are fewer): layer, neuron, score. ValueError for a `k` below 1."""
        return top_neurons(self.scores, whole_number("k", k, at_least=1))

    def neurons(self, k: int = 20) -> NeuronSet:
        """The `k` highest-scoring neurons, best first."""
        return NeuronSet.from_frame(self.top(k))

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron: layer, neuron, score."""
        layers, neurons = self.scores.shape
        index = pd.MultiIndex.from_product([range(layers), range(neurons)], names=["layer", "neuron"])
        return pd.DataFrame({"score": self.scores.flatten().numpy()}, index=index).reset_index()

    def __repr__(self) -> str:
        layers, neurons = self.scores.shape
        gap = self.completeness_gap.abs().max().item()
        fewest, most = self.nodes.min().item(), self.nodes.max().item()
        took = f"{fewest} to {most}" if most > fewest else f"{most}"
        at = "" if self.positions == "last" else f"positions={self.positions!r}, "
        rough = f" (above 1 % of P in {len(self.rough_layers)} layers)" if self.rough_layers else ""
        return (
            f"Attribution(target={self.target!r}, probability={self.probability:.4f}, {layers} layers x {neurons} neurons, "
            f"site={self.site!r}, {at}rule={self.rule!r}, steps={self.steps}, {took} nodes a layer, "
            f"largest completeness gap={gap:.2e}{rough})"
        )

    def _repr_html_(self) -> str:
        return notebook(repr(self), self.top(10))
