"""The result of an attribution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from qrnca_lens.core.neurons import NeuronSet, Site, top_neurons
from qrnca_lens.core.rules import Rule, tolerated_gap
from qrnca_lens.core.shapes import LayerCounts, LayerValues, Scores
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import whole_number
from qrnca_lens.engine.asks import Positions


@dataclass(frozen=True)
class AnswerToken:
    """One token of an attributed answer: its id and text, log P after what stands before it, and how much it counts.

    `weight` is 1 over the number of tokens for a mean, 1 for a sum, and below 0 for a token of the answer that is held
    against. `completeness_gap[layer]` and `change[layer]` are its own, in nats, as `Attribution` has them.
    """

    id: int
    text: str
    log_probability: float
    weight: float
    completeness_gap: LayerValues
    change: LayerValues
    nodes: LayerCounts


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of P(target) for every MLP neuron, one layer scaled at a time.

    `positions` were scaled, "last" being the prompt's last one; the scores of a neuron are summed over them.

    Where `tokens` holds something the target is an answer of any length: scores, gaps and changes are those of log P, in
    nats, summed over its tokens with their weights, and `probability` is the geometric mean of P over its tokens. Else
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
    tokens: tuple[AnswerToken, ...] = field(default=(), repr=False)
    against: str = ""

    @property
    def log_probability(self) -> float:
        """What was attributed, in nats: log P(target), of an answer the weighted sum over its tokens."""
        if not self.tokens:
            return math.log(self.probability) if self.probability > 0 else -math.inf
        return sum(token.weight * token.log_probability for token in self.tokens)

    @property
    def change(self) -> LayerValues:
        """P(target) with each layer intact minus P(target) with its site at 0: the sum of its scores, were there no gap."""
        return self.scores.sum(1) - self.completeness_gap

    @property
    def rough_layers(self) -> tuple[int, ...]:
        """The layers whose gap is above 1 % of P(target) and 1e-5: with rule "auto" those where 256 nodes were too few.

        Of an answer those where the gap is above 0.01 nats for each token as it counts.
        """
        size = sum(abs(token.weight) for token in self.tokens) if self.tokens else self.probability
        above = self.completeness_gap.abs() > tolerated_gap(size)
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

    def tokens_frame(self) -> pd.DataFrame:
        """One row a token of an answer: token, log_probability, weight, largest_gap (of a layer; in nats), nodes (most of a
        layer). No row for another target."""
        rows = [
            (t.text, t.log_probability, t.weight, t.completeness_gap.abs().max().item(), t.nodes.max().item())
            for t in self.tokens
        ]
        return pd.DataFrame(rows, columns=["token", "log_probability", "weight", "largest_gap", "nodes"])

    def __repr__(self) -> str:
        layers, neurons = self.scores.shape
        gap = self.completeness_gap.abs().max().item()
        fewest, most = self.nodes.min().item(), self.nodes.max().item()
        took = f"{fewest} to {most}" if most > fewest else f"{most}"
        at = "" if self.positions == "last" else f"positions={self.positions!r}, "
        limit = "0.01 nats a token" if self.tokens else "1 % of P"
        rough = f" (above {limit} in {len(self.rough_layers)} layers)" if self.rough_layers else ""
        value = f"probability={self.probability:.4f}"
        if self.tokens:
            value += f" a token, log P={self.log_probability:.3f} nats over {len(self.tokens)} tokens"
            value += f" against {self.against!r}" if self.against else ""
        return (
            f"Attribution(target={self.target!r}, {value}, {layers} layers x {neurons} neurons, "
            f"site={self.site!r}, {at}rule={self.rule!r}, steps={self.steps}, {took} nodes a layer, "
            f"largest completeness gap={gap:.2e}{rough})"
        )

    def _repr_html_(self) -> str:
        return notebook(repr(self), self.top(10))
