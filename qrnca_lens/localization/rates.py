"""The overlap of groups at equal sizes: a symmetric rate beside what it is under shuffled labels (paper, figure 2a).

The paper does not define its rate. |A and B| / |A| cannot be it, as the paper's matrix is symmetric and its groups differ in
size.
Here the rate of two sets is |A and B| over the mean of |A| and |B| (Dice's coefficient), and as every rate of sets grows
with the queries that make them, the same number of queries is drawn from every group. Its numbers therefore stand beside
their own mean under shuffled labels and not beside the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, repeat

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import check_located
from qrnca_lens.core.intervals import quantile_interval
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import seed_number, whole_number
from qrnca_lens.localization.overlaps import square
from qrnca_lens.localization.shuffles import (
    by_query,
    chunk_size,
    dealt,
    drawn,
    exchangeable,
    group_numbers,
    group_sums,
    neuron_numbers,
    unit_numbers,
)


@dataclass(frozen=True)
class OverlapRates:
    """|A and B| / mean(|A|, |B|) of the QR-neuron sets of every two groups, made by `per_group` queries each.

    `rates`: group x group, the mean over `draws` draws of queries; symmetric, in [0, 1], the diagonal 1. `permuted`: the
    mean of the same over as many draws, each after the group labels were shuffled. NaN for a group without QR neurons.
    """

    rates: pd.DataFrame
    permuted: pd.DataFrame
    per_group: int
    draws: int

    @property
    def mean(self) -> float:
        """The mean rate over all pairs of different groups; NaN where none is known."""
        return float(_pair_means(self.rates.to_numpy(dtype=float)))

    @property
    def permuted_mean(self) -> float:
        """The mean of `permuted` over all pairs of different groups; NaN where none is known."""
        return float(_pair_means(self.permuted.to_numpy(dtype=float)))

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of groups: group, other group, rate, permuted."""
        pairs = combinations(range(len(self.rates)), 2)
        names, (found, chance) = list(self.rates.index), (self.rates.to_numpy(), self.permuted.to_numpy())
        rows = [(names[a], names[b], found[a, b], chance[a, b]) for a, b in pairs]
        return pd.DataFrame(rows, columns=["group", "other group", "rate", "permuted"])

    def __repr__(self) -> str:
        return (
            f"OverlapRates({len(self.rates)} groups at {self.per_group} queries each: mean {self.mean:.3f}, "
            f"{self.permuted_mean:.3f} under shuffled labels)"
        )

    def _repr_html_(self) -> str:
        return notebook(repr(self), self.rates.reset_index(), self.to_frame())


@dataclass(frozen=True)
class OverlapDifference:
    """How the mean rates of two results differ, both at `per_group` queries a group.

    `first`, `second`: the mean rate over pairs of groups, averaged over `draws` draws of queries; `first_permuted`,
    `second_permuted`: the same with shuffled labels. `difference` is `first` - `second`; `low` and `high` are the 2.5 % and
    97.5 % quantiles of the difference over the draws, `p` is two-sided (see `overlap_difference`).
    """

    first: float
    second: float
    first_permuted: float
    second_permuted: float
    difference: float
    low: float
    high: float
    p: float
    per_group: int
    draws: int


def overlap_rates(located: QRNeurons, per_group: int | None = None, draws: int = 100, seed: int = 0) -> OverlapRates:
    """The symmetric overlap rate of every two groups at equal sizes, beside its mean under shuffled labels.

    `per_group` queries of every group (None: as many as the smallest has) make its set, drawn `draws` times without
    replacement; groups that ask for the same facts are drawn with the same ones. A draw counts for a pair if both sets hold
    neurons. Labels are shuffled as in the permutation tests (`localization.significance`), once a draw. `seed` fixes draws
    and shuffles. ValueError for no draw and for a `per_group` outside 1 .. the size of the smallest group.
    """
    check_located(located)
    smallest = int(located.queries["group"].value_counts().min())
    size = whole_number("per_group", smallest if per_group is None else per_group, at_least=1, at_most=smallest)
    count, seed = whole_number("draws", draws, at_least=1), seed_number(seed)
    found, permuted = (known_mean(rates, axis=0) for rates in _both(located, size, count, np.random.default_rng(seed)))
    return OverlapRates(square(located, found), square(located, permuted), size, count)


def overlap_difference(
    first: QRNeurons, second: QRNeurons, *, per_group: int | None = None, draws: int = 1000, seed: int = 0
) -> OverlapDifference:
    """Do the groups of `first` overlap more than those of `second`? Mean rates at equal sizes, with an interval.

    A set that is the union over queries grows with them, so queries drawn with replacement, which repeat, make smaller sets
    and a lower rate: such a bootstrap is biased. Here `per_group` queries of every group of both results (None: half of the
    smallest group) are drawn without replacement, and every rate, the estimate too, is one at that size. Where `per_group`
    is half of a group the spread over draws is that of new data for a statistic that is a sum over queries (delete-half
    jackknife), and wider for other statistics and for larger groups: hence no `per_group` above half of the smallest group
    is taken. Groups that ask for the same facts are drawn with the same ones, so that the spread is one over facts.

    `p` is the share of draws whose difference lies as far from the mean of all draws as that mean lies from 0 (1 added to
    both counts): the interval turned round, as approximate as it. It takes the groups as given and the questions as a
    sample; it cannot be had by shuffling, as the two results are not exchangeable under any null (other questions, other
    groups). The permuted means tell how much of a rate any groups of these questions would have.

    ValueError for fewer than 2 groups or a group with fewer than 2 queries in either result and for a `per_group` outside
    1 .. half of the smallest group. Without neurons the numbers are NaN.
    """
    half = _half(first, second)
    size = whole_number("per_group", half if per_group is None else per_group, at_least=1, at_most=half)
    count = whole_number("draws", draws, at_least=1)
    generators = np.random.default_rng(seed_number(seed)).spawn(2)
    rates = [
        [_pair_means(part) for part in _both(located, size, count, generator)]
        for located, generator in zip((first, second), generators, strict=True)
    ]
    (ours, our_chance), (theirs, their_chance) = ([float(known_mean(part, axis=0)) for part in pair] for pair in rates)
    apart = rates[0][0] - rates[1][0]
    apart = apart[~np.isnan(apart)]
    mean, (low, high) = ours - theirs, quantile_interval(apart)
    far = np.abs(apart - mean) >= abs(mean)
    p = float((1 + far.sum()) / (1 + len(apart))) if len(apart) else float("nan")
    return OverlapDifference(ours, theirs, our_chance, their_chance, mean, low, high, p, size, count)


def known_mean(values: Float[np.ndarray, "*any"], axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean over `axis` of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _half(first: QRNeurons, second: QRNeurons) -> int:
    """Half of the smallest group of both results."""
    sizes = []
    for name, located in (("first", first), ("second", second)):
        check_located(located)
        counts = located.queries["group"].value_counts()
        if len(counts) < 2:
            raise ValueError(f"the {name} result has one group ({counts.index[0]}); an overlap needs at least 2")
        if counts.min() < 2:
            raise ValueError(
                f"group {counts.index[-1]!r} of the {name} result has 1 query; half of every group is drawn, so each needs "
                "at least 2"
            )
        sizes.append(int(counts.min()))
    return min(sizes) // 2


def _both(
    located: QRNeurons, per_group: int, draws: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "draw group group"], Float[np.ndarray, "draw group group"]]:
    """The rates of every draw, with the true labels and with shuffled ones."""
    groups, units = group_numbers(located), unit_numbers(located)
    sets, (ours, shuffles) = exchangeable(groups, units), generator.spawn(2)
    shuffled = (dealt(groups, sets, shuffles) for _ in range(draws))
    members = by_query(located, neuron_numbers(located), np.ones(len(located.table)))
    found = [
        _rates(members, np.stack([drawn(given, units, per_group, random) for given in many]), len(located.groups))
        for many, random in ((repeat(groups, draws), ours), (shuffled, shuffles))
    ]
    return found[0], found[1]


def _rates(
    members: sparse.csr_array, labels: Int[np.ndarray, "draw query"], n_groups: int
) -> Float[np.ndarray, "draw group group"]:
    """The rates of the sets that the queries labelled in each draw make; -1 labels none."""
    rows = chunk_size(members, n_groups)
    parts = (labels[start : start + rows] for start in range(0, len(labels), rows))
    return np.concatenate([_dice(group_sums(members, part, n_groups) > 0) for part in parts])


def _dice(present: Bool[np.ndarray, "neuron draw group"]) -> Float[np.ndarray, "draw group group"]:
    """|A and B| / mean(|A|, |B|) of every two sets of a draw; NaN where either is empty."""
    sets = present.transpose(1, 2, 0).astype(np.float32)
    shared = (sets @ sets.transpose(0, 2, 1)).astype(float)
    sizes = np.diagonal(shared, axis1=1, axis2=2)
    mean = (sizes[:, :, None] + sizes[:, None, :]) / 2
    filled = (sizes[:, :, None] > 0) & (sizes[:, None, :] > 0)
    return np.divide(shared, mean, out=np.full(shared.shape, np.nan), where=filled)


def _pair_means(rates: Float[np.ndarray, "*draw group group"]) -> Float[np.ndarray, "*draw"]:
    """The mean over every pair of different groups."""
    apart = ~np.eye(rates.shape[-1], dtype=bool)
    return known_mean(rates[..., apart], axis=-1)
