"""The hyper-parameters of the method, with the paper's names beside ours."""

from __future__ import annotations

from dataclasses import dataclass

from qrnca_lens.attribution import Rule, quadrature
from qrnca_lens.models import Site


@dataclass(frozen=True)
class QRNCAConfig:
    """Every hyper-parameter of QRNCA; the defaults are the paper's. ValueError for a value out of range."""

    steps: int = 16
    """m: nodes of the integral."""
    rule: Rule = "right"
    """The quadrature rule; "right" is the paper's."""
    site: Site | None = None
    """The scaled tensor; None is the up projection in gated MLPs, the post-activation in plain ones."""
    threshold: float = 0.2
    """t: a neuron joins a template's cluster if its score exceeds this share of the template's highest score."""
    top: int = 20
    """v: the neurons with the highest naica that are candidates for a query's QR neurons."""
    common_share: float = 0.3
    """u: a neuron in more than this share of all clusters is common."""

    def __post_init__(self) -> None:
        quadrature(self.rule, self.steps)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), not {self.threshold}")
        if self.top < 1:
            raise ValueError(f"top must be at least 1, not {self.top}")
        if not 0 < self.common_share <= 1:
            raise ValueError(f"common_share must lie in (0, 1], not {self.common_share}")
