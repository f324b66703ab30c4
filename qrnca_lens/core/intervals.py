"""95 % intervals: of drawn values, of a mean (by the bootstrap, by the normal distribution), of a share (Wilson's)."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import binomtest

from qrnca_lens.core.values import seed_number

RESAMPLES = 2000
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


def wilson_interval(count: int, of: int) -> Interval:
    """The interval of the share `count` / `of` (Wilson 1927), within [0, 1]; NaN where `of` is 0."""
    if not of:
        return math.nan, math.nan
    bounds = binomtest(count, of).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def clustered_interval(counts: Float[np.ndarray, " unit"], totals: Float[np.ndarray, " unit"]) -> Interval:
    """The interval of the share sum(counts) / sum(totals) of prompts that are right, over units of several prompts each.

    Wilson's formula with the effective sample size: the prompts divided by Kish's design effect of the ratio estimator, and
    the number of units where the share is 0 or 1 or there is one unit. NaN without prompts.
    """
    units, of = len(totals), float(np.sum(totals))
    if not of:
        return math.nan, math.nan
    share, size = float(np.sum(counts)) / of, float(units)
    spread = float(np.sum((counts - share * totals) ** 2))
    if 0 < share < 1 and units > 1:
        size = share * (1 - share) * of**2 * (units - 1) / (units * spread) if spread else of
    size = min(size, of)
    z = 1.959963984540054
    middle, half = share + z**2 / (2 * size), z * math.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    low, high = (middle - half) / (1 + z**2 / size), (middle + half) / (1 + z**2 / size)
    return max(0.0, low), min(1.0, high)


def with_interval(mean: float, interval: Interval) -> str:
    """The two as they stand in a table: "12.3 [10.1, 14.5]"."""
    return f"{mean:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"
