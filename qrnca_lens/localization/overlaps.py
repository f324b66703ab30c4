"""How far the QR-neuron sets of groups coincide, each made by all of its queries."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import check_located
from qrnca_lens.core.values import listed


def overlap(located: QRNeurons) -> pd.DataFrame:
    """The share of group a's QR neurons (row) that are also QR neurons of group b (column).

    A group's set holds every neuron that is a QR neuron of any of its queries, counted once. Groups come in the order of
    `located.groups` on both axes; shares lie in [0, 1] and the diagonal is 1. The table is not symmetric: a small set can
    lie wholly inside a large one; and shares grow with the number of queries a group, so groups of other sizes cannot be
    compared by it (`overlap_rates` is for that). The row of a group without QR neurons is NaN.
    """
    shared = _intersections(located)
    return square(located, _ratio(shared, np.broadcast_to(np.diag(shared)[:, None], shared.shape)))


def jaccard(located: QRNeurons) -> pd.DataFrame:
    """Neurons in both sets / neurons in either set, for every pair of groups: symmetric, in [0, 1], diagonal 1.

    Sets and order as in `overlap`. Rows and columns of a group without QR neurons are NaN.
    """
    shared = _intersections(located)
    sizes = np.diag(shared)
    both_filled = np.outer(sizes, sizes) > 0
    return square(located, _ratio(shared, np.where(both_filled, sizes[:, None] + sizes - shared, 0.0)))


def mean_overlap(located: QRNeurons, queries: Collection[str] | None = None) -> float:
    """The mean of `overlap` over every pair of different groups; with `queries`, of the sets that these alone make.

    A group without QR neurons has no share of its own; NaN where none has. KeyError for a query that is not in the result,
    ValueError for a single group.
    """
    check_located(located)
    chosen = None if queries is None else listed("queries", queries)
    for query in chosen or ():
        located.check_query(query)
    if len(located.groups) < 2:
        raise ValueError(f"an overlap needs at least 2 groups; this result has {', '.join(located.groups)} alone")
    shares = mean_shares(_present(located, chosen))
    return float(shares[~np.isnan(shares)].mean()) if not np.isnan(shares).all() else float("nan")


def mean_shares(present: Bool[np.ndarray, "neuron *shuffle group"]) -> Float[np.ndarray, "*shuffle group"]:
    """The share of each group's neurons that another group has too, the mean over the other groups; NaN for an empty one.

    `present` tells which neurons each group's set holds. This is the mean of the group's row of `overlap` without the
    diagonal.
    """
    holders = present.sum(axis=-1, keepdims=True)
    shared = (present * (holders - 1)).sum(axis=0)
    return _ratio(shared / (present.shape[-1] - 1), present.sum(axis=0))


def _intersections(located: QRNeurons) -> Float[np.ndarray, "group group"]:
    """How many neurons each two groups share; the diagonal holds the sizes of the sets."""
    present = _present(located).astype(float)
    return present.T @ present


def _present(located: QRNeurons, queries: Collection[str] | None = None) -> Bool[np.ndarray, "neuron group"]:
    """Which neurons the set of each group holds, made by all of its queries or by those in `queries`."""
    check_located(located)
    rows = located.table if queries is None else located.table[located.table["query"].isin(queries)]
    position = {group: i for i, group in enumerate(located.groups)}
    row = rows.groupby(["layer", "neuron"]).ngroup().to_numpy()
    present = np.zeros((int(row.max(initial=-1)) + 1, len(position)), dtype=bool)
    present[row, rows["group"].map(position).to_numpy(dtype=int)] = True
    return present


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def square(located: QRNeurons, values: Float[np.ndarray, "group group"]) -> pd.DataFrame:
    """A table of group x group, in the order of `located.groups`."""
    names = list(located.groups)
    return pd.DataFrame(values, index=pd.Index(names, name="group"), columns=pd.Index(names, name="other group"))
