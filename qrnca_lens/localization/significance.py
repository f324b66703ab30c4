"""Is a region real? Permutation tests of what sets a group's QR neurons apart (added to the paper's figures 2a, 2b and 5).

The null hypothesis: which group a question belongs to does not matter for its QR neurons. Each permutation deals the group
labels anew over the queries, so that every group keeps its number of queries and every query keeps its neurons and naica
(common neurons, ica and naica do not depend on labels, so nothing has to be computed again). Where groups ask for the same
facts (`QRNeurons.units`), labels change places only among the queries for one fact, so that what differs between facts is
no evidence; elsewhere among all queries. For languages the null is false before anything is measured, as their scripts and
words differ: a small p says there that a text's language shows in its neurons, not that knowledge is kept by language.

The tests return the columns of `TEST_COLUMNS`, one row a group:
`statistic` names what is measured, `queries` is the group's size, `observed` its value; `permuted`, `low` and `high` are
the mean and the 2.5 % and 97.5 % quantiles under shuffled labels; `p` = (1 + permutations at least as extreme) / (1 +
permutations) is one-sided; `p_corrected` is `p` after Holm's correction for the number of groups. A group without QR
neurons has NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import sparse

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import check_located
from qrnca_lens.core.intervals import quantile_interval
from qrnca_lens.core.values import check_columns, seed_number, whole_number
from qrnca_lens.localization.overlaps import mean_shares
from qrnca_lens.localization.shuffles import by_query, chunk_size, group_sums, label_chunks, neuron_numbers

TEST_COLUMNS = ["group", "statistic", "queries", "observed", "permuted", "low", "high", "p", "p_corrected"]
LEVEL = 0.05
TIE = 1e-12
"""How far two values of a statistic may lie apart and still count as equal."""


def overlap_test(located: QRNeurons, permutations: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Does a group share FEWER of its QR neurons with the other groups than chance would have it?

    The statistic of a group is the mean of its row in `overlap` without the diagonal: the share of its QR-neuron set
    found in another group's set, averaged over the other groups (in [0, 1]). `p` counts permutations at or below the
    observed value.

    Returns the frame described in the module; `seed` fixes the shuffles. ValueError for fewer than 2 groups or 1
    permutation.
    """
    permutations, seed = _checked(located, permutations, seed)
    members = by_query(located, neuron_numbers(located), np.ones(len(located.table)))
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
    naica = by_query(located, column, located.table["naica"].to_numpy(dtype=float))
    values = _permuted(located, naica, _herfindahl, permutations, seed)
    return _frame(located, "Herfindahl index of the summed naica", values, smaller=False)


def layer_test(located: QRNeurons, permutations: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Do a group's QR neurons lie in OTHER layers than those of the other groups, more than chance would have it?

    The statistic of a group is the total variation distance between its distribution over layers and that of all other
    groups together: half the sum of the absolute differences, in [0, 1], 1 where they share no layer. A distribution is
    the mean over queries of the share of the query's QR neurons in each layer, so that every query counts equally, however
    many neurons it has (the query is what is dealt, and what is observed); queries without QR neurons do not count. `p`
    counts permutations at or above the observed value.

    Returns the frame described in the module; `seed` fixes the shuffles. ValueError for fewer than 2 groups or 1
    permutation.
    """
    permutations, seed = _checked(located, permutations, seed)
    share = 1 / located.table.groupby("query")["query"].transform("size").to_numpy(dtype=float)
    shares = by_query(located, located.table["layer"].to_numpy(dtype=int), share)
    values = _permuted(located, shares, _apart, permutations, seed)
    return _frame(located, "distance in layers from the other groups", values, smaller=False)


def significant(test_frame: pd.DataFrame) -> tuple[int, int]:
    """In how many groups of a test's frame `p_corrected` is below 0.05, and for how many the test could tell (not NaN)."""
    check_columns("test_frame", test_frame, ["p_corrected"], "the frame of overlap_test, concentration_test or layer_test")
    known = test_frame["p_corrected"].dropna()
    return int((known < LEVEL).sum()), len(known)


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


def _apart(sums: Float[np.ndarray, "layer shuffle group"]) -> Float[np.ndarray, "shuffle group"]:
    """Total variation distance of each group's sums from those of all others; NaN where either are all 0."""
    rest = sums.sum(axis=-1, keepdims=True) - sums
    totals = sums.sum(axis=0), rest.sum(axis=0)
    known = (totals[0] > TIE) & (totals[1] > TIE)
    own, others = (part / np.where(known, total, 1.0) for part, total in zip((sums, rest), totals, strict=True))
    return np.where(known, np.abs(own - others).sum(axis=0) / 2, np.nan)


def _permuted(
    located: QRNeurons,
    entries: sparse.csr_array,
    statistic: Callable[[np.ndarray], np.ndarray],
    permutations: int,
    seed: int,
) -> Float[np.ndarray, "shuffle group"]:
    """The statistic of every group: row 0 with the true labels, the other rows with shuffled ones."""
    n_groups = len(located.groups)
    chunks = label_chunks(located, permutations, seed, chunk_size(entries, n_groups))
    return np.concatenate([statistic(group_sums(entries, labels, n_groups)) for labels in chunks])


def _frame(located: QRNeurons, statistic: str, values: Float[np.ndarray, "shuffle group"], *, smaller: bool) -> pd.DataFrame:
    observed, permuted = values[0], values[1:]
    # an undefined permuted value counts as extreme, which can only raise p
    less_extreme = permuted > observed + TIE if smaller else permuted < observed - TIE
    p = np.where(np.isnan(observed), np.nan, (1 + (~less_extreme).sum(axis=0)) / (1 + len(permuted)))
    columns = [column[~np.isnan(column)] for column in permuted.T]
    mean = [column.mean() if len(column) else np.nan for column in columns]
    low, high = zip(*map(quantile_interval, columns), strict=True)
    sizes = located.queries["group"].value_counts().reindex(list(located.groups)).to_numpy()
    made = [list(located.groups), statistic, sizes, observed, mean, low, high, p, holm(p)]
    return pd.DataFrame(dict(zip(TEST_COLUMNS, made, strict=True)))


def _checked(located: QRNeurons, permutations: int, seed: int) -> tuple[int, int]:
    check_located(located)
    if len(located.groups) < 2:
        raise ValueError(
            "a permutation test shuffles queries between groups and needs at least 2 groups; "
            f"there are {len(located.groups)}"
        )
    return whole_number("permutations", permutations, at_least=1), seed_number(seed)
