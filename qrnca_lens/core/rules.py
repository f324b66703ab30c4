"""Rules that turn the integral of integrated gradients over a in [0, 1] into weighted sums; no gradients here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from qrnca_lens.core.shapes import Nodes
from qrnca_lens.core.values import known, whole_number

Rule = Literal["right", "endpoints", "gauss-legendre", "auto"]
_TOLERANCE, _FLOOR = 0.01, 1e-5
_MOST = 256


@dataclass(frozen=True)
class Quadrature:
    """Rising nodes in [0, 1] and their weights, which sum to 1, put into each of `panels` equal parts of [0, 1].

    Panels may be halved, worst first, while a layer has not taken more than `most` nodes; with a `most` of 0 none is.
    """

    nodes: Nodes
    weights: Nodes
    panels: int = 1
    most: int = 0

    @property
    def to_begin_with(self) -> int:
        """How many nodes a layer takes at first, which is also the most it takes at once."""
        return self.panels * len(self.nodes)

    def room(self, taken: int) -> int:
        """How many panels may be halved once `taken` nodes are."""
        return max(0, (self.most - taken) // (2 * len(self.nodes)))

    def with_ends(self) -> Quadrature:
        """The same sum with the nodes 0 and 1 present (at weight 0 where they are new), for the checks that need them."""
        nodes, weights = self.nodes, self.weights
        if nodes[0] > 0:
            nodes, weights = torch.cat([nodes.new_zeros(1), nodes]), torch.cat([nodes.new_zeros(1), weights])
        if nodes[-1] < 1:
            nodes, weights = torch.cat([nodes, nodes.new_ones(1)]), torch.cat([weights, nodes.new_zeros(1)])
        return replace(self, nodes=nodes, weights=weights)


MOST_STEPS = 4096
"""The most nodes of a rule: far more than any integral needs, and few enough to be made at once."""


def tolerated_gap(value: float) -> float:
    """The largest completeness gap that rule "auto" leaves: 1 % of what is attributed, such as P(target), but never less
    than 1e-5, where rounding begins."""
    return max(_TOLERANCE * abs(value), _FLOOR)


def quadrature(rule: Rule, steps: int) -> Quadrature:
    """The nodes and weights of a rule with `steps` nodes ("auto": to begin with). ValueError for an unknown rule or fewer
    than one step or more than `MOST_STEPS`, TypeError for steps that are no whole number."""
    steps = whole_number("steps", steps, at_most=MOST_STEPS)
    known("rule", rule, _RULES)
    if steps < 1 or (rule == "endpoints" and steps < 2):
        raise ValueError(f"rule {rule!r} needs at least {2 if rule == 'endpoints' else 1} steps, not {steps}")
    return _RULES[rule](steps)


def _right(steps: int) -> Quadrature:
    """Right Riemann sum, k / m for k = 1..m (the paper's text, its equation of NA)."""
    return Quadrature(torch.arange(1, steps + 1, dtype=torch.float32) / steps, _equal(steps))


def _endpoints(steps: int) -> Quadrature:
    """linspace(0, 1, m) with weights 1 / m (the authors' code); slightly biased, since its spacing is 1 / (m - 1)."""
    return Quadrature(torch.linspace(0, 1, steps, dtype=torch.float32), _equal(steps))


def _equal(steps: int) -> torch.Tensor:
    return torch.full((steps,), 1 / steps, dtype=torch.float32)


def _gauss_legendre(steps: int) -> Quadrature:
    """Gauss-Legendre nodes mapped to [0, 1]: exact for polynomials of degree 2 m - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return Quadrature(torch.tensor((nodes + 1) / 2, dtype=torch.float32), torch.tensor(weights / 2, dtype=torch.float32))


def _auto(steps: int) -> Quadrature:
    """Panels of five Gauss-Lobatto nodes (exact for polynomials of degree 7), which hold the ends of the panel, so that each
    has a completeness gap of its own; about `steps` nodes to begin with."""
    nodes = [0, (1 - math.sqrt(3 / 7)) / 2, 1 / 2, (1 + math.sqrt(3 / 7)) / 2, 1]
    weights = [1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20]
    return Quadrature(torch.tensor(nodes), torch.tensor(weights), max(1, steps // len(nodes)), _MOST)


_RULES: dict[str, Callable[[int], Quadrature]] = {
    "right": _right,
    "endpoints": _endpoints,
    "gauss-legendre": _gauss_legendre,
    "auto": _auto,
}
