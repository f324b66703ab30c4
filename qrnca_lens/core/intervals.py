"""95 % intervals: of drawn values, of a mean (by the bootstrap, by the normal distribution), of a share (Wilson's).

Rows that share a unit of observation, such as the prompts of a question or a fact in six languages, are not independent of
one another: the bootstrap draws whole units, a share counts for as many prompts as independent ones would tell as much, and
permutations turn the sign of whole units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qrnca_lens.core.values import seed_number

RESAMPLES = 2000
FLIPS = 10_000
_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
Units: TypeAlias = Sequence[str] | np.ndarray | pd.Series
"""A row's unit of observation, for every row."""
Interval: TypeAlias = tuple[float, float]
"""The lower and the upper bound."""


def quantile_interval(values: Float[np.ndarray, " value"]) -> Interval:
    """The 2.5 % and 97.5 % quantiles; NaN for no values."""
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def resampled_rows(count: int, *, seed: int = 0) -> Int[np.ndarray, "resample row"]:
    """The rows of each of `RESAMPLES` bootstrap samples of `count` rows, drawn with replacement."""
    return np.random.default_rng(seed_number(seed)).integers(0, count, (RESAMPLES, count))


def bootstrap_interval(values: Float[np.ndarray, " row"], *, seed: int = 0) -> Interval:
    """The interval of the mean, from bootstrap samples of `values`."""
    return quantile_interval(values[resampled_rows(len(values), seed=seed)].mean(1))


def normal_interval(values: pd.Series) -> Interval:
    """The interval of the mean, 1.96 standard errors to either side; a single value is its own interval."""
    half = 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()) - half, float(values.mean()) + half


def resampled_means(
    values: Float[np.ndarray, "row column"], units: Units, *, seed: int = 0
) -> Float[np.ndarray, "resample column"]:
    """The means of the columns in each of `RESAMPLES` bootstrap samples of the units, which bring all their rows.

    NaN is passed over; a sample that holds nothing else in a column has a mean of NaN there. With one row a unit these are
    the means of samples of rows.
    """
    codes, names = pd.factorize(np.asarray(units, dtype=object))
    known = ~np.isnan(values)
    sums, counts = np.zeros((len(names), values.shape[1])), np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, np.where(known, values, 0.0))
    np.add.at(counts, codes, known)
    drawn = resampled_rows(len(names), seed=seed)
    times = np.stack([np.bincount(units_drawn, minlength=len(names)) for units_drawn in drawn]).astype(float)
    with np.errstate(invalid="ignore"):
        return (times @ sums) / (times @ counts)


class Paired(NamedTuple):
    """The mean of paired differences, its interval, and the p-value of "a unit's difference could as well be reversed"."""

    mean: float
    interval: Interval
    p: float


def paired_difference(
    first: Float[np.ndarray, " row"], second: Float[np.ndarray, " row"], units: Units, *, seed: int = 0
) -> Paired:
    """`first` - `second` row by row: the mean, its cluster bootstrap interval and a two-sided sign-flip p-value over units.

    Rows where either is NaN are left out; all are NaN if none is left. The p-value is that of all sign patterns where there
    are at most `FLIPS` of them, else of `FLIPS` drawn ones and the observed one.
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    known = ~np.isnan(difference)
    if not known.any():
        return Paired(math.nan, (math.nan, math.nan), math.nan)
    difference, units = difference[known], np.asarray(units, dtype=object)[known]
    drawn = resampled_means(difference[:, None], units, seed=seed)[:, 0]
    sums = np.bincount(pd.factorize(units)[0], weights=difference)
    return Paired(float(difference.mean()), quantile_interval(drawn), _sign_flip_p(sums, seed_number(seed)))


def _sign_flip_p(sums: Float[np.ndarray, " unit"], seed: int) -> float:
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # sums that are equal on paper count as such
    if 2 ** len(sums) <= FLIPS:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((2 * patterns - 1) @ sums) >= least).mean())
    rng, found = np.random.default_rng(seed), 1
    for _ in range(FLIPS // 100):
        found += int((np.abs(rng.choice([-1.0, 1.0], (100, len(sums))) @ sums) >= least).sum())
    return found / (FLIPS + 1)


def wilson_interval(count: int, of: int) -> Interval:
    """The interval of the share `count` / `of` (Wilson 1927), within [0, 1]; NaN where `of` is 0."""
    return _wilson(count / of, float(of)) if of else (math.nan, math.nan)


def clustered_interval(counts: Int[np.ndarray, " unit"], totals: Int[np.ndarray, " unit"]) -> Interval:
    """The interval of a share, `counts` of `totals` cases of each unit, within [0, 1]; NaN for no cases.

    Wilson's formula with the effective number of cases, n = p (1 - p) / var(p): the number of independent cases that would
    tell as much (Kish 1965: the cases over the design effect). var(p) is that of a ratio over units,
    k / (k - 1) sum (count - p total)² / (sum total)² for k units. n lies between the number of all cases and
    (sum total)² / sum total², its value where the cases of a unit always agree: the number of units, if they are equally
    large. It is the latter where the spread says nothing, at a share of 0 or 1 and for a single unit. Raises ValueError
    for arrays of different lengths, and for a count below 0 or above its total.
    """
    count, total = np.asarray(counts, dtype=float), np.asarray(totals, dtype=float)
    if count.shape != total.shape or count.ndim != 1:
        raise ValueError(f"counts and totals need an entry for each unit, not the shapes {count.shape} and {total.shape}")
    wrong = np.flatnonzero((count < 0) | (count > total))
    if len(wrong):
        raise ValueError(f"unit {wrong[0]} counts {counts[wrong[0]]} of {totals[wrong[0]]}")
    cases, units = float(total.sum()), int((total > 0).sum())
    if not units:
        return math.nan, math.nan
    share, fewest = float(count.sum()) / cases, cases**2 / float((total**2).sum())
    squares = float(((count - share * total) ** 2).sum())
    if units == 1 or share in (0.0, 1.0):
        return _wilson(share, fewest)
    if not squares:
        return _wilson(share, cases)
    variance = units / (units - 1) * squares / cases**2
    return _wilson(share, min(max(share * (1 - share) / variance, fewest), cases))


def _wilson(share: float, cases: float) -> Interval:
    middle, half = share + _Z**2 / (2 * cases), _Z * math.sqrt(share * (1 - share) / cases + (_Z / (2 * cases)) ** 2)
    scale = 1 + _Z**2 / cases
    return (middle - half) / scale if share > 0 else 0.0, (middle + half) / scale if share < 1 else 1.0


def with_interval(mean: float, interval: Interval, digits: int = 1) -> str:
    """The two as they stand in a table: "12.3 [10.1, 14.5]"."""
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
