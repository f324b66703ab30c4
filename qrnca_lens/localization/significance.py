"""Is a region real? Permutation tests of what sets a group's QR neurons apart (added to the paper's figures 2a and 5).

The null hypothesis: which group a query belongs to does not matter for its QR neurons. Each permutation deals the group
labels anew over the queries, so that every group keeps its number of queries and every query keeps its neurons and naica
(common neurons, ica and naica do not depend on labels, so nothing has to be computed again). A region counts as real if its
statistic is extreme among the same statistic under shuffled labels.

Both tests return the columns of `TEST_COLUMNS`, one row a group:
`statistic` names what is measured, `queries` is the group's size, `observed` its value; `permuted`, `low` and `high` are
the mean and the 2.5 % and 97.5 % quantiles under shuffled labels; `p` = (1 + permutations at least as extreme) / (1 +
permutations) is one-sided; `p_corrected` is `p` after Holm's correction for the number of groups. A group without QR
neurons has NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import quantile_interval
from qrnca_lens.core.values import seed_number, whole_number
from qrnca_lens.localization.overlaps import mean_shares

TEST_COLUMNS = ["group", "statistic", "queries", "observed", "permuted", "low", "high", "p", "p_corrected"]
_CHUNK_ENTRIES = 8_000_000
_TIE = 1e-12


def overlap_test(located: QRNeurons, permutations: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Does a group share FEWER of its QR neurons with the other groups than chance would have it?

    The statistic of a group is the mean of its row in `overlap` without the diagonal: the share of its QR-neuron set
    found in another group's set, averaged over the other groups (in [0, 1]). `p` counts permutations at or below the
    observed value.

    Returns the frame described in the module; `seed` fixes the shuffles. ValueError for fewer than 2 groups or 1
    permutation.
    """
    permutations, seed = _checked(located, permutations, seed)
    column = located.table.groupby(["layer", "neuron"]).ngroup().to_numpy()
    members = _matrix(located, column, np.ones(len(column)))
    values = _permuted(located, members, lambda counts: mean_shares(counts > 0), permutations, seed)
    return _frame(located, "mean overlap with the other groups' sets", values, smaller=True)


def concentration_test(located: QRNeurons, permutations: int = 1000, seed: int = 0, bins: int = 128) -> pd.DataFrame:
    """Do a group's QR neurons crowd into FEWER cells of the map than chance would have it?

    The statistic of a group is the Herfindahl index of its map: naica summed over the group's queries in every cell of
    layer x neuron bin (the cells of `group_heatmap` with the same `bins`; paper, figure 5), each cell divided by the
    map's total, squared, added up. It lies in (0, 1]; its inverse is the number of equally strong cells that would be as
    concentrated, so 1 means one cell holds everything. Cells with a negative sum (possible only with a common_share near
    1) count as 0. `p` counts permutations at or above the observed value. A neuron's index has no meaning as a place: a
    small `p` says that the same few cells recur over the group's queries, not that they are neighbours.

    Returns the frame described in the module; `seed` fixes the shuffles. ValueError for fewer than 2 groups, 1
    permutation or 1 bin.
    """
    permutations, seed = _checked(located, permutations, seed)
    width = located.model.bin_width(bins)
    cells = located.table["layer"] * located.model.d_mlp + located.table["neuron"] // width
    column = np.unique(cells.to_numpy(dtype=int), return_inverse=True)[1]
    naica = _matrix(located, column, located.table["naica"].to_numpy(dtype=float))
    values = _permuted(located, naica, _herfindahl, permutations, seed)
    return _frame(located, "Herfindahl index of the summed naica", values, smaller=False)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Holm's step-down correction of p-values for the number of tests; NaN stays NaN and does not count as a test."""
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected


def _herfindahl(sums: Float[np.ndarray, "column shuffle group"]) -> Float[np.ndarray, "shuffle group"]:
    """Sum of squared shares of each group's columns; NaN for a group whose total is 0."""
    positive = np.maximum(sums, 0.0)
    total, squares = positive.sum(axis=0), (positive**2).sum(axis=0)
    return np.divide(squares, total**2, out=np.full(total.shape, np.nan), where=total > 0)


def _permuted(
    located: QRNeurons,
    entries: sparse.csr_array,
    statistic: Callable[[np.ndarray], np.ndarray],
    permutations: int,
    seed: int,
) -> Float[np.ndarray, "shuffle group"]:
    """The statistic of every group: row 0 with the true labels, the other rows with shuffled ones."""
    position = {group: i for i, group in enumerate(located.groups)}
    labels = located.queries["group"].map(position).to_numpy(dtype=int)
    chunk = max(1, _CHUNK_ENTRIES // max(1, len(entries.indptr) * len(position)))
    found, rows = [], len(entries.indptr) - 1
    for dealt in _label_chunks(labels, permutations, seed, chunk):
        one_hot = (dealt[..., None] == np.arange(len(position))).astype(float)  # shuffle, query, group
        flat = one_hot.transpose(1, 0, 2).reshape(len(labels), -1)
        found.append(statistic((entries @ flat).reshape(rows, len(dealt), len(position))))
    return np.concatenate(found)


def _label_chunks(
    labels: Int[np.ndarray, " query"], permutations: int, seed: int, chunk: int
) -> Iterator[Int[np.ndarray, "shuffle query"]]:
    """The true labels, then shuffles of them, in blocks of at most `chunk`; the block size does not change the shuffles."""
    yield labels[None]
    generator = np.random.default_rng(seed)
    for start in range(0, permutations, chunk):
        yield np.stack([generator.permutation(labels) for _ in range(min(chunk, permutations - start))])


def _matrix(located: QRNeurons, column: np.ndarray, values: np.ndarray) -> sparse.csr_array:
    """One row for each distinct neuron or cell, one column for each query; values of the same place add up."""
    position = {query: i for i, query in enumerate(located.queries["query"])}
    query = located.table["query"].map(position).to_numpy(dtype=int)
    shape = (int(column.max(initial=-1)) + 1, len(position))
    return sparse.csr_array(sparse.coo_array((values, (column, query)), shape=shape))


def _frame(located: QRNeurons, statistic: str, values: Float[np.ndarray, "shuffle group"], *, smaller: bool) -> pd.DataFrame:
    observed, permuted = values[0], values[1:]
    # an undefined permuted value counts as extreme, which can only raise p
    less_extreme = permuted > observed + _TIE if smaller else permuted < observed - _TIE
    p = np.where(np.isnan(observed), np.nan, (1 + (~less_extreme).sum(axis=0)) / (1 + len(permuted)))
    columns = [column[~np.isnan(column)] for column in permuted.T]
    mean = [column.mean() if len(column) else np.nan for column in columns]
    low, high = zip(*map(quantile_interval, columns), strict=True)
    sizes = located.queries["group"].value_counts().reindex(list(located.groups)).to_numpy()
    made = [list(located.groups), statistic, sizes, observed, mean, low, high, p, holm(p)]
    return pd.DataFrame(dict(zip(TEST_COLUMNS, made, strict=True)))


def _checked(located: QRNeurons, permutations: int, seed: int) -> tuple[int, int]:
    if len(located.groups) < 2:
        raise ValueError(
            "a permutation test shuffles queries between groups and needs at least 2 groups; "
            f"there are {len(located.groups)}"
        )
    return whole_number("permutations", permutations, at_least=1), seed_number(seed)
