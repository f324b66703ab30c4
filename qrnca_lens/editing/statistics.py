"""From edit effects to the paper's tables: PCR (table 4) and edit success (table 6), with counts and intervals.

All intervals are over units (`Query.unit`): a query, or a fact where several queries ask for the same. A query that lacks an
unrelated partner for one of its prompts has no part in what is compared with such partners, so that changes are always
compared over the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qrnca_lens.core.intervals import Interval, clustered_interval, quantile_interval, resampled_means
from qrnca_lens.core.values import check_columns, seed_number, yes_or_no

KINDS = ("same", "other")
"""The two kinds of partners (`editing.partners`): with the same right letter and with another or, for open prompts, of the
same group and of another."""

CHANGE_COLUMNS = [
    *("factor", "group", "queries"),
    *(f"{kind}{bound}" for kind in ("own", *KINDS) for bound in ("", "_low", "_high")),
]
"""The columns of `group_changes`."""
_TURNED = ["unit", "prompts", "right_before", "wrong_to_right", "right_to_wrong"]
_CHANGED = [
    *("unit", "prompts"),
    *(f"{log}p_{kind}{when}" for log in ("", "log_") for kind in ("", "same_", "other_") for when in ("before", "after")),
    *("same_prompts", "other_prompts"),
]


@dataclass(frozen=True)
class Estimate:
    """A mean over `queries` queries with its 95 % cluster bootstrap interval over units; NaN over none."""

    mean: float
    ci: Interval
    queries: int


@dataclass(frozen=True)
class Ratio:
    """|mean % change, own query| / |mean % change, its partner|, over the queries that have both.

    `value` and its `ci` are None where the partner's change cannot be told from zero (its interval holds 0): the ratio could
    then be anything above `at_least`, the own change over the largest change of the partner that the interval allows; None
    where the interval allows none, as where no partner changes or none is known.
    """

    value: float | None
    ci: Interval | None
    at_least: float | None


@dataclass(frozen=True)
class PCR:
    """What an edit does to P of the right option: of the own query, of unrelated ones, and what is left of the one less the
    other.

    For open prompts P is that of the right answer, a token (the geometric mean over its tokens), and "the same letter" is
    the same group, "another letter" another group: then `letter` is the part of an effect that a group shares.

    In %, means of the change relative to P before the edit: `own`, `same_letter` (unrelated prompts with the same right
    letter), `other_letter` (with another). A query whose P was 0 and is not has no such change and is left out of it.
    `ratio_same` and `ratio_other` are the probability change ratios (paper, section 4.2).

    In percentage points, which no small denominator can inflate: `points`, the change of the own query; `specific`, that
    less the change of the same letter's partner, the effect that is not one on the letter. And over the queries that have
    both partners for all their prompts the parts of their own change: `question` (own - same letter), `letter` (same - other
    letter) and `general` (other letter), which add up to it. `letter_share` is letter / own change in %, None where that
    change cannot be told from zero.

    In nats, the change of the mean log P (of an answer the mean over its tokens), where P is above 0: `nats` of the own
    query and `specific_nats`, that less the change of the same letter's partner.
    """

    queries: int
    units: int
    own: Estimate
    same_letter: Estimate
    other_letter: Estimate
    ratio_same: Ratio
    ratio_other: Ratio
    points: Estimate
    specific: Estimate
    question: Estimate
    letter: Estimate
    general: Estimate
    letter_share: Estimate | None
    nats: Estimate
    specific_nats: Estimate


def probability_change_ratio(effects: pd.DataFrame, *, seed: int = 0) -> PCR:
    """PCR of one method and factor: the rows of `edit_effects` for it. ValueError for no rows."""
    check_effects(effects, _CHANGED)
    if effects.empty:
        raise ValueError("no edit effects to summarise")
    changes = _changes(effects)
    drawn = resampled_means(changes.to_numpy(), effects["unit"], seed=seed)
    means = pd.DataFrame(drawn, columns=changes.columns)
    estimates = {name: _estimate(changes[name], means[name]) for name in changes}
    return PCR(
        len(effects),
        effects["unit"].nunique(),
        estimates["own %"],
        estimates["same %"],
        estimates["other %"],
        _ratio(estimates["own % beside same"], estimates["same %"], means["own % beside same"] / means["same %"]),
        _ratio(estimates["own % beside other"], estimates["other %"], means["own % beside other"] / means["other %"]),
        estimates["own"],
        estimates["specific"],
        estimates["question"],
        estimates["letter"],
        estimates["general"],
        _share(estimates["letter"], estimates["own compared"], means["letter"] / means["own compared"]),
        estimates["nats"],
        estimates["specific nats"],
    )


def specific(effects: pd.DataFrame) -> pd.Series:
    """By query the change of its P less that of the `same` partners, in percentage points (one method and factor).

    NaN for a query that lacks a partner for one of its prompts.
    """
    return _changes(effects)["specific"].set_axis(effects["query"])


def _changes(effects: pd.DataFrame) -> pd.DataFrame:
    """A row of changes for each row of effects, in % and in points; NaN where there is nothing to compare."""
    effects = effects.reset_index(drop=True)
    same, other = (_points(effects, kind).where(effects[f"{kind}_prompts"] == effects["prompts"]) for kind in KINDS)
    own = _points(effects)
    both = same.notna() & other.notna()
    nats = _nats(effects)
    own_percent, same_percent, other_percent = (_percent(effects, kind) for kind in ("", *KINDS))
    same_percent, other_percent = same_percent.where(same.notna()), other_percent.where(other.notna())
    return pd.DataFrame(
        {
            "own %": own_percent,
            "same %": same_percent,
            "other %": other_percent,
            "own % beside same": own_percent.where(same_percent.notna()),
            "own % beside other": own_percent.where(other_percent.notna()),
            "own": own,
            "specific": own - same,
            "question": (own - same).where(both),
            "letter": same - other,
            "general": other.where(both),
            "own compared": own.where(both),
            "nats": nats,
            "specific nats": (nats - _nats(effects, "same_")).where(same.notna()),
        },
        dtype=float,
    )


def _points(effects: pd.DataFrame, kind: str = "") -> pd.Series:
    before, after = _before_after(effects, kind)
    return 100 * (after - before)


def _nats(effects: pd.DataFrame, kind: str = "") -> pd.Series:
    """The change of the mean log P; NaN where P is 0 before or after."""
    change = effects[f"log_p_{kind}after"] - effects[f"log_p_{kind}before"]
    return change.where(np.isfinite(change))


def _percent(effects: pd.DataFrame, kind: str) -> pd.Series:
    """The change relative to P before; 0 where P stays 0, NaN where it was 0 and is not."""
    before, after = _before_after(effects, kind)
    return (100 * (after / before.where(before != 0) - 1)).where(before != after, 0.0)


def _before_after(effects: pd.DataFrame, kind: str) -> tuple[pd.Series, pd.Series]:
    name = f"p_{kind}_" if kind else "p_"
    return effects[f"{name}before"], effects[f"{name}after"]


def _estimate(values: pd.Series, drawn: pd.Series) -> Estimate:
    return Estimate(float(values.mean()), _interval(drawn), int(values.count()))


def _interval(drawn: pd.Series) -> Interval:
    """Of what is a number: samples without a query that has the change say nothing."""
    return quantile_interval(drawn[np.isfinite(drawn)].to_numpy(dtype=float))


def _told_from_zero(found: Estimate) -> bool:
    return found.ci[0] > 0 or found.ci[1] < 0


def _ratio(own: Estimate, partner: Estimate, drawn: pd.Series) -> Ratio:
    largest = max(abs(bound) for bound in partner.ci)
    at_least = abs(own.mean) / largest if largest > 0 else None
    if not _told_from_zero(partner):
        return Ratio(None, None, at_least)
    return Ratio(abs(own.mean / partner.mean), _interval(drawn.abs()), at_least)


def _share(part: Estimate, whole: Estimate, drawn: pd.Series) -> Estimate | None:
    if not _told_from_zero(whole):
        return None
    return Estimate(100 * part.mean / whole.mean, _interval(100 * drawn), part.queries)


@dataclass(frozen=True)
class Flips:
    """How many predictions an edit turns: `count` of `of` prompts, `share` in %, `ci` its 95 % interval over units in %."""

    count: int
    of: int
    share: float
    ci: Interval


def edit_success(effects: pd.DataFrame, *, boost: bool) -> Flips:
    """Table 6: with `boost`, wrong to right among the prompts answered wrongly; else right to wrong among the right ones.

    The interval is Wilson's for as many prompts as independent ones would tell as much (`clustered_interval`).
    """
    check_effects(effects, _TURNED)
    boost = yes_or_no("boost", boost)
    by_unit = effects.groupby("unit")[["prompts", "right_before", "wrong_to_right", "right_to_wrong"]].sum()
    right = by_unit["right_before"]
    totals = (by_unit["prompts"] - right if boost else right).to_numpy(dtype=int)
    counts = by_unit["wrong_to_right" if boost else "right_to_wrong"].to_numpy(dtype=int)
    low, high = clustered_interval(counts, totals)
    count, of = int(counts.sum()), int(totals.sum())
    return Flips(count, of, 100 * count / of if of else math.nan, (100 * low, 100 * high))


def group_changes(effects: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Figures 3 and 4: mean % change by factor and group, each with its 95 % interval.

    Columns: factor, group, queries, and own (the query itself), same and other (their partners: unrelated prompts with the
    same right letter and with another, of open prompts those of the same group and of another), each with _low and _high.
    """
    check_effects(effects, ["factor", "group", *_CHANGED])
    rows, seed = [], seed_number(seed)
    for (factor, group), part in effects.groupby(["factor", "group"], sort=False):
        found = probability_change_ratio(part, seed=seed)
        kinds = (found.own, found.same_letter, found.other_letter)
        rows.append((factor, group, found.queries, *[x for kind in kinds for x in (kind.mean, *kind.ci)]))
    return pd.DataFrame(rows, columns=CHANGE_COLUMNS)


def check_effects(effects: pd.DataFrame, columns: Collection[str]) -> None:
    """TypeError for what is no table, ValueError for one that is not of `edit_effects`."""
    check_columns("effects", effects, columns, "a table of edit_effects")
