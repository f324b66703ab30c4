"""From edit effects to the paper's tables: PCR (table 4) and edit success (table 6), with counts and intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from qrnca_lens.core.intervals import quantile_interval, resampled_rows, wilson_interval


@dataclass(frozen=True)
class PCR:
    """Probability change ratio = |mean % change of P(right letter), own query| / |the same, unrelated query|.

    `related`, `unrelated`: the means, in %, with 95 % bootstrap intervals over queries. `pcr` and its `ci` are None where
    the unrelated change cannot be told from zero (its interval holds 0): the ratio could then be anything above
    `at_least`, the related change over the largest unrelated change that the interval allows. `points` is the mean change of
    P on the own query in percentage points, which no small denominator can inflate.
    """

    queries: int
    related: float
    related_ci: tuple[float, float]
    unrelated: float
    unrelated_ci: tuple[float, float]
    pcr: float | None
    ci: tuple[float, float] | None
    at_least: float
    points: float


def probability_change_ratio(effects: pd.DataFrame, *, seed: int = 0) -> PCR:
    """PCR of one method and factor: the rows of `edit_effects` for it. ValueError for no rows."""
    if effects.empty:
        raise ValueError("no edit effects to summarise")
    related = _percent(effects["p_before"], effects["p_after"])
    unrelated = _percent(effects["p_unrelated_before"], effects["p_unrelated_after"])
    rows = resampled_rows(len(effects), seed=seed)
    related_means, unrelated_means = related[rows].mean(1), unrelated[rows].mean(1)
    related_ci, unrelated_ci = quantile_interval(related_means), quantile_interval(unrelated_means)
    told_apart = unrelated_ci[0] > 0 or unrelated_ci[1] < 0
    largest = max(abs(bound) for bound in unrelated_ci)
    return PCR(
        len(effects),
        float(related.mean()),
        related_ci,
        float(unrelated.mean()),
        unrelated_ci,
        abs(related.mean() / unrelated.mean()) if told_apart else None,
        quantile_interval(np.abs(related_means / unrelated_means)) if told_apart else None,
        abs(float(related.mean())) / largest if largest > 0 else 0.0,
        float(100 * (effects["p_after"] - effects["p_before"]).mean()),
    )


@dataclass(frozen=True)
class Flips:
    """How many predictions an edit turns: `count` of `of` prompts, `share` in %, `ci` the 95 % Wilson interval in %."""

    count: int
    of: int
    share: float
    ci: tuple[float, float]


def edit_success(effects: pd.DataFrame, *, boost: bool) -> Flips:
    """Table 6: with `boost`, wrong to right among the prompts answered wrongly; else right to wrong among the right ones."""
    right = int(effects["right_before"].sum())
    of = int(effects["prompts"].sum()) - right if boost else right
    count = int(effects["wrong_to_right" if boost else "right_to_wrong"].sum())
    low, high = wilson_interval(count, of)
    return Flips(count, of, 100 * count / of if of else float("nan"), (100 * low, 100 * high))


def group_changes(effects: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Figures 3 and 4: mean % change by group, own and unrelated query, each with its 95 % bootstrap interval."""
    rows = []
    for (factor, group), part in effects.groupby(["factor", "group"], sort=False):
        found = probability_change_ratio(part, seed=seed)
        rows.append((factor, group, found.queries, found.related, *found.related_ci, found.unrelated, *found.unrelated_ci))
    names = ["related", "related_low", "related_high", "unrelated", "unrelated_low", "unrelated_high"]
    return pd.DataFrame(rows, columns=["factor", "group", "queries", *names])


def _percent(before: pd.Series, after: pd.Series) -> np.ndarray:
    return np.asarray(100 * (after / before - 1), dtype=float)
