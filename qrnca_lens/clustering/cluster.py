"""One query's cluster: the neurons that pass the threshold in any template, their scores summed (paper, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from qrnca_lens.core.shapes import Scores
from qrnca_lens.core.values import WrongKindError, given_text, items, number, told

CLUSTER_COLUMNS = ["layer", "neuron", "attribution", "templates"]

_SCORES = "a list of tensors [layer, neuron], one for each prompt"


@dataclass(frozen=True)
class Cluster:
    """`table` has one row a neuron (layer, neuron, attribution, templates), by layer and neuron.

    `attribution` is the sum, in probability units, of the scores with which the neuron passed the threshold; `templates`
    counts in how many it did. A template whose highest score is not positive adds nothing: no neuron raises the letter.
    """

    query: str
    group: str
    table: pd.DataFrame


def make_cluster(query: str, group: str, scores: Sequence[Scores], threshold: float) -> Cluster:
    """Keep, per template, the neurons with score > threshold * highest score; join the templates. May be empty.

    The threshold of each template by itself is the authors' code's; the paper does not say over what it is taken.
    """
    threshold = threshold_share(threshold)
    given_text("query", query)
    given_text("group", group)
    scores = items("scores", scores, _SCORES)
    if not scores:
        raise ValueError("scores is empty; give the scores of each of the query's prompts")
    for one in scores:
        if not isinstance(one, torch.Tensor) or one.ndim != 2:
            raise WrongKindError(f"scores must be {_SCORES}, not {told(one)}")
    parts = [_kept(template, threshold) for template in scores]
    table = pd.concat(parts, ignore_index=True)
    joined = table.groupby(["layer", "neuron"], as_index=False).agg(
        attribution=("attribution", "sum"), templates=("attribution", "size")
    )
    return Cluster(query, group, joined[CLUSTER_COLUMNS])


def threshold_share(value: float) -> float:
    """t as a plain float. ValueError outside of [0, 1)."""
    if not 0 <= (share := number("threshold", value)) < 1:
        raise ValueError(f"threshold must lie in [0, 1), not {share}")
    return share


def _kept(scores: Scores, threshold: float) -> pd.DataFrame:
    highest = scores.max()
    keep = (scores > threshold * highest) if highest > 0 else torch.zeros_like(scores, dtype=torch.bool)
    layers, neurons = keep.nonzero(as_tuple=True)
    values = scores[keep].double()
    return pd.DataFrame({"layer": layers.numpy(), "neuron": neurons.numpy(), "attribution": values.numpy()})
