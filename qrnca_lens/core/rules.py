"""Rules that turn the integral of integrated gradients over a in [0, 1] into a weighted sum; no gradients here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from qrnca_lens.core.shapes import Nodes
from qrnca_lens.core.values import whole_number

Rule = Literal["right", "endpoints", "gauss-legendre"]


@dataclass(frozen=True)
class Quadrature:
    """Rising nodes in [0, 1] and their weights, which sum to 1."""

    nodes: Nodes
    weights: Nodes

    def with_ends(self) -> Quadrature:
        """The same sum with the nodes 0 and 1 present (at weight 0 where they are new), for the checks that need them."""
        nodes, weights = self.nodes, self.weights
        if nodes[0] > 0:
            nodes, weights = torch.cat([nodes.new_zeros(1), nodes]), torch.cat([nodes.new_zeros(1), weights])
        if nodes[-1] < 1:
            nodes, weights = torch.cat([nodes, nodes.new_ones(1)]), torch.cat([weights, nodes.new_zeros(1)])
        return Quadrature(nodes, weights)


def quadrature(rule: Rule, steps: int) -> Quadrature:
    """The nodes and weights of a rule with `steps` nodes. ValueError for an unknown rule or fewer than one step, TypeError
    for steps that are no whole number."""
    steps = whole_number("steps", steps)
    if rule not in _RULES:
        raise ValueError(f"unknown rule {rule!r}; there are {', '.join(_RULES)}")
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


_RULES: dict[str, Callable[[int], Quadrature]] = {
    "right": _right,
    "endpoints": _endpoints,
    "gauss-legendre": _gauss_legendre,
}
