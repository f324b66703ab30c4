"""The hyper-parameters of the method, with the paper's names beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from qrnca_lens.clustering.cluster import threshold_share
from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Rule, quadrature
from qrnca_lens.core.values import check_kind, number, told, whole_number
from qrnca_lens.data.query import Read, check_read


@dataclass(frozen=True)
class QRNCAConfig:
    """Every hyper-parameter of QRNCA; the defaults are the paper's.

    Numbers become Python's own ints and floats. TypeError for what is no (whole) number, ValueError for one out of range or
    a rule or site that is none.
    """

    steps: int = 16
    """m: nodes of the integral; with rule "auto" about those that it begins with."""
    rule: Rule = "right"
    """The quadrature rule; "right" is the paper's, "auto" takes more nodes in layers where the completeness gap is large."""
    site: Site | None = None
    """The scaled tensor; None is the up projection in gated MLPs, the post-activation in plain ones."""
    threshold: float = 0.2
    """t: a neuron joins a template's cluster if its score exceeds this share of the template's highest score."""
    top: int = 20
    """v: the neurons with the highest naica that are candidates for a query's QR neurons."""
    common_share: float = 0.3
    """u: a neuron in more than this share of all clusters is common."""
    read: Read = "letter"
    """What is attributed: P of the right letter (the paper), or the mean log P of the right answer's own tokens."""

    def __post_init__(self) -> None:
        plain = {
            "steps": whole_number("steps", self.steps),
            "threshold": threshold_share(self.threshold),
            "top": whole_number("top", self.top, at_least=1),
            "common_share": number("common_share", self.common_share),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        quadrature(self.rule, self.steps)
        if self.site is not None and (not isinstance(self.site, str) or self.site not in get_args(Site)):
            raise ValueError(f"site must be None or one of {', '.join(get_args(Site))}, not {told(self.site)}")
        check_read(self.read)
        if not 0 < self.common_share <= 1:
            raise ValueError(f"common_share must lie in (0, 1], not {self.common_share}")


def config_of(config: QRNCAConfig | None) -> QRNCAConfig:
    """The configuration given, or the paper's for None. TypeError for anything else."""
    if config is None:
        return QRNCAConfig()
    check_kind("config", config, QRNCAConfig, "a QRNCAConfig, such as QRNCAConfig(steps=32)")
    return config
