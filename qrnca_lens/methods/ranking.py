"""What a method says about one query: neurons, best first. How many of them are taken is a budget's business."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from qrnca_lens.core.neurons import NeuronSet, best_first
from qrnca_lens.core.shapes import Scores
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import WrongKindError, told, whole_number


@dataclass(frozen=True, eq=False)
class Ranking:
    """Distinct neurons with their scores, best first.

    `layer[place]`, `neuron[place]`, `score[place]`; the unit of the scores is the method's own. `own`: how many of the first
    neurons the method's own rule takes, None where it names no number. The arrays are copies that cannot be written into.
    ValueError for arrays of different lengths and, with the place (counted from 0), for a layer or neuron below 0, a score
    that is no number or higher than the one before, a neuron that stands there twice; TypeError for layers or neurons that
    are no whole numbers.
    """

    layer: Int[np.ndarray, " place"]
    neuron: Int[np.ndarray, " place"]
    score: Float[np.ndarray, " place"]
    own: int | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("layer", None), ("neuron", None), ("score", float)):
            copied = _copied(name, getattr(self, name), dtype)
            copied.setflags(write=False)
            object.__setattr__(self, name, copied)
        _check_shapes(self)
        _check_places(self)
        if self.own is not None:
            object.__setattr__(self, "own", whole_number("a ranking's own", self.own, at_least=0, at_most=len(self)))

    @classmethod
    def of_scores(cls, scores: Scores) -> Ranking:
        """All neurons of a model by their scores. Ties go to the lower layer, then to the lower neuron.

        TypeError for what is no tensor [layer, neuron].
        """
        if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
            raise WrongKindError(f"scores must be a tensor [layer, neuron], not {told(scores)}")
        return cls(*best_first(scores))

    def __len__(self) -> int:
        return len(self.layer)

    def top(self, k: int) -> NeuronSet:
        """The `k` best neurons (all, where there are fewer), best first. ValueError for a `k` below 0."""
        k = whole_number("k", k, at_least=0)
        return NeuronSet.of(*zip(self.layer[:k].tolist(), self.neuron[:k].tolist(), strict=True))

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron, best first: layer, neuron, score."""
        return pd.DataFrame({"layer": self.layer, "neuron": self.neuron, "score": self.score})

    def __repr__(self) -> str:
        best = f", the best is L{self.layer[0]}.N{self.neuron[0]} with {self.score[0]:.3g}" if len(self) else ""
        return f"Ranking({len(self)} neurons{best})"

    def _repr_html_(self) -> str:
        return notebook(repr(self), self.to_frame().head(10))


def _copied(name: str, values: object, dtype: type | None) -> np.ndarray:
    try:
        copied = np.array(values, dtype)
    except (TypeError, ValueError, OverflowError):
        raise WrongKindError(f"a ranking's {name} must be a list or array of numbers, not {told(values)}") from None
    if copied.dtype.kind in "OSU":
        raise WrongKindError(f"a ranking's {name} must be a list or array of numbers, not {told(values)}")
    return copied


def _check_shapes(ranking: Ranking) -> None:
    shapes = [found.shape for found in (ranking.layer, ranking.neuron, ranking.score)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"a ranking needs as many layers as neurons and scores, not arrays of the shapes {shapes}")
    for name in ("layer", "neuron"):
        dtype = getattr(ranking, name).dtype
        if dtype.kind not in "iu":
            raise WrongKindError(f"a ranking's {name} must be whole numbers, not {dtype}")


def _check_places(ranking: Ranking) -> None:
    frame, score = ranking.to_frame(), ranking.score
    rules = {
        "layers and neurons start at 0": (ranking.layer < 0) | (ranking.neuron < 0),
        "scores are finite numbers": ~np.isfinite(score),
        "the best score comes first and none is higher than the one before": np.append(False, score[1:] > score[:-1])[
            : len(score)
        ],
        "no neuron stands twice": frame.duplicated(["layer", "neuron"]).to_numpy(),
    }
    for rule, broken in rules.items():
        if broken.any():
            place = int(broken.argmax())
            found = f"layer {ranking.layer[place]}, neuron {ranking.neuron[place]}, score {score[place]}"
            raise ValueError(f"in a ranking {rule}; place {place} holds {found}")
