"""The columns of a result's tables, and the small records that stand beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd

from qrnca_lens.clustering.cluster import CLUSTER_COLUMNS
from qrnca_lens.core.values import check_kind, whole_number

TABLE_COLUMNS = ["query", "group", *CLUSTER_COLUMNS]
QUERY_COLUMNS = ["query", "group", "prompts", "probability", "gap"]
FAILED_COLUMNS = ["query", "group", "prompt", "reason"]


@dataclass(frozen=True)
class ModelShape:
    """Which model the neurons belong to: its name, its size and the fingerprint of its weights.

    TypeError or ValueError for a size that is no whole number from 1 on, and for a name or fingerprint that is no text.
    """

    name: str
    n_layers: int
    d_mlp: int
    fingerprint: str

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_mlp"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), at_least=1))
        for name in ("name", "fingerprint"):
            check_kind(f"the model's {name}", getattr(self, name), str, "a text")

    def bin_width(self, bins: int) -> int:
        """How many neurons of a layer stand in each of at most `bins` bins of equal width. ValueError for `bins` below 1."""
        return -(-self.d_mlp // whole_number("bins", bins, at_least=1))


@dataclass(frozen=True)
class Failure:
    """A query that could not be used: its first prompt (counted from 0) that failed, and why."""

    query: str
    group: str
    prompt: int
    reason: str


def failed_table(failures: Iterable[Failure] = ()) -> pd.DataFrame:
    """`QRNeurons.failed`: one row a query with FAILED_COLUMNS."""
    return pd.DataFrame([asdict(failure) for failure in failures], columns=FAILED_COLUMNS)
