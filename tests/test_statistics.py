"""Intervals and the statistics of edit effects, by hand, against slow references and on simulated data."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from handmade import effects
from scipy.stats import norm

from qrnca_lens.core.intervals import (
    FLIPS,
    bootstrap_interval,
    clustered_interval,
    normal_interval,
    paired_difference,
    quantile_interval,
    resampled_means,
    resampled_rows,
    wilson_interval,
    with_interval,
)
from qrnca_lens.editing.statistics import (
    Estimate,
    Ratio,
    edit_success,
    group_changes,
    probability_change_ratio,
    specific,
)


def test_intervals_by_hand() -> None:
    assert quantile_interval(np.arange(41.0)) == (1.0, 39.0)
    assert np.isnan(quantile_interval(np.array([]))).all()
    squares = np.array([0.0, 1.0, 4.0, 9.0, 16.0, 25.0])
    assert bootstrap_interval(squares) == (2.6625, pytest.approx(50 / 3))  # pinned: the draws of seed 0
    assert bootstrap_interval(squares, seed=1) != bootstrap_interval(squares)
    heads = np.repeat([0.0, 1.0], 200)  # the mean's standard error is 0.025
    assert bootstrap_interval(heads) == (pytest.approx(0.5 - 0.049, abs=0.005), pytest.approx(0.5 + 0.049, abs=0.005))
    half = 1.96 * (5 / 3) ** 0.5 / 2
    assert normal_interval(pd.Series([1, 2, 3, 4])) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))
    assert normal_interval(pd.Series([7])) == (7.0, 7.0)
    assert wilson_interval(0, 4) == (0.0, pytest.approx(1.959964**2 / (4 + 1.959964**2)))
    assert np.isnan(wilson_interval(0, 0)).all()
    assert with_interval(-1.25, (-2.06, 0.34)) == "-1.2 [-2.1, 0.3]"


def test_means_of_resampled_units_against_a_slow_reference() -> None:
    """Units of one, two and three rows, in any order; the last column is unknown for one of them."""
    units = ["a", "b", "c", "b", "c", "c"]
    values = np.array([[1.0, np.nan], [2.0, 5.0], [4.0, 1.0], [8.0, np.nan], [16.0, 2.0], [32.0, 3.0]])
    found = resampled_means(values, units, seed=3)
    for drawn, means in zip(resampled_rows(3, seed=3)[:50], found, strict=False):
        rows = np.concatenate([values[[unit == "abc"[one] for unit in units]] for one in drawn])
        for column, mean in zip(rows.T, means, strict=True):
            known = column[~np.isnan(column)]
            assert (np.isnan(mean) and not len(known)) or mean == pytest.approx(known.mean())
    assert np.isnan(found[:, 1]).any()
    alone = np.array([0.0, 1.0, 4.0, 9.0])
    assert quantile_interval(resampled_means(alone[:, None], list("abcd"))[:, 0]) == pytest.approx(bootstrap_interval(alone))


def test_the_interval_of_a_share_over_units_by_hand(unchecked: None) -> None:
    """Two units, 3 of 4 and 1 of 4: p = 1/2, squares 1 + 1, var = 2/1 * 2/64 = 1/16, so n = (1/4) / (1/16) = 4."""
    assert clustered_interval(np.array([3, 1]), np.array([4, 4])) == pytest.approx(wilson_interval(2, 4))
    # one prompt a unit is Wilson's own; an empty unit counts for nothing
    assert clustered_interval(np.array([1, 1, 0, 0, 0, 0]), np.array([1, 1, 1, 1, 1, 0])) == pytest.approx(
        wilson_interval(2, 5)
    )
    # units that agree within: the number of units, 4, is the effective number; three prompts each tell no more
    assert clustered_interval(np.array([3, 3, 0, 0]), np.array([3, 3, 3, 3])) == pytest.approx(wilson_interval(2, 4))
    # units that are all alike: not more than the prompts
    assert clustered_interval(np.array([1, 1, 1]), np.array([2, 2, 2])) == pytest.approx(wilson_interval(3, 6))
    # a share of 0 or 1, and one unit: the spread says nothing, so units of 2 and 4 count as 36 / 20 of them, one as one
    z = 1.959964
    z2 = z**2 / (36 / 20)
    assert clustered_interval(np.array([0, 0]), np.array([2, 4])) == (0.0, pytest.approx(z2 / (1 + z2), abs=1e-6))
    assert clustered_interval(np.array([2, 4]), np.array([2, 4])) == (pytest.approx(1 / (1 + z2), abs=1e-6), 1.0)
    assert clustered_interval(np.array([2]), np.array([4]))[0] == pytest.approx(0.5 - z / 2 / (1 + z**2) ** 0.5, abs=1e-6)
    assert np.isnan(clustered_interval(np.array([0]), np.array([0]))).all()
    for counts, totals, message in (
        ([1], [1, 1], "shapes"),
        ([3], [2], "unit 0 counts 3 of 2"),
        ([0, -1], [1, 1], "unit 1"),
    ):
        with pytest.raises(ValueError, match=message):
            clustered_interval(np.array(counts), np.array(totals))


def test_the_interval_of_a_share_covers_it_where_prompts_of_a_unit_agree() -> None:
    """40 units of 1 to 6 prompts, each unit with a share of its own (beta, mean 0.3): Wilson over prompts is too narrow."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        totals = rng.integers(1, 7, 40)
        counts = rng.binomial(totals, rng.beta(0.3, 0.7, 40))
        low, high = clustered_interval(counts, totals)
        covered += low <= 0.3 <= high
        low, high = wilson_interval(int(counts.sum()), int(totals.sum()))
        naive += low <= 0.3 <= high
    assert 0.925 < covered / 1000 < 0.975
    assert naive / 1000 < 0.85


def test_a_paired_difference_by_hand() -> None:
    """Units of -1, -2 and -3 - 3 + 1: sums -1, -2, -5. Of eight sign patterns two reach 8, so p is 1/4; NaN is left out."""
    first, units = np.array([-1.0, -2.0, -3.0, -3.0, 1.0, np.nan]), ["a", "b", "c", "c", "c", "d"]
    found = paired_difference(first, np.zeros(6), units)
    assert (found.mean, found.p) == (pytest.approx(-1.6), 0.25)
    assert found.interval == pytest.approx((-2.0, -1.0))
    assert paired_difference(np.ones(4), np.ones(4), list("abcd")).p == 1.0
    assert np.isnan(paired_difference(first[-1:], np.zeros(1), ["d"])[2])
    values = np.random.default_rng(2).normal(0.3, 1, 12)
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=12)]
    exact = np.mean(np.array(sums) >= abs(values.sum()) - 1e-12)
    assert paired_difference(values, np.zeros(12), list("abcdefghijkl")).p == pytest.approx(exact)
    many = np.random.default_rng(3).normal(0.1, 1, 200)  # too many patterns; those drawn give about the normal distribution
    drawn = paired_difference(many, np.zeros(200), np.arange(200), seed=1)
    expected = 2 * norm.sf(abs(many.sum()) / np.sqrt((many**2).sum()))
    assert 0.02 < expected < 0.5 and drawn.p == pytest.approx(expected, abs=0.02)
    assert drawn == paired_difference(many, np.zeros(200), np.arange(200), seed=1)
    assert paired_difference(np.ones(200), np.zeros(200), np.arange(200)).p == 1 / (FLIPS + 1)


def changed(own: list[float], same: list[float], other: list[float] | None = None) -> pd.DataFrame:
    """Changes in % of a P of 0.5."""
    after = [[0.5 * (1 + c / 100) for c in part] for part in (own, same, other or [0.0] * len(own))]
    return effects("m", 0.0, after[0], after[1], other=after[2])


def test_the_ratios_by_hand() -> None:
    found = probability_change_ratio(changed([-40.0, -60.0] * 50, [-19.0, -21.0] * 50, [-6.0, -4.0] * 50))
    assert (found.own.mean, found.same_letter.mean, found.other_letter.mean) == pytest.approx((-50, -20, -5))
    assert (found.queries, found.units, found.own.queries, found.same_letter.queries) == (100, 100, 100, 100)
    assert (found.ratio_same.value, found.ratio_other.value) == pytest.approx((2.5, 10.0))
    for ratio, value in ((found.ratio_same, 2.5), (found.ratio_other, 10.0)):
        assert ratio.ci is not None and ratio.ci[0] < value < ratio.ci[1]
    assert -53 < found.own.ci[0] < -50 < found.own.ci[1] < -47
    # in points: -25, of which the other letter shows -2.5 and the same letter -10
    assert (found.points.mean, found.specific.mean) == pytest.approx((-25, -15))
    assert (found.question.mean, found.letter.mean, found.general.mean) == pytest.approx((-15, -7.5, -2.5))
    assert found.letter_share is not None and found.letter_share.mean == pytest.approx(30.0)
    assert 28 < found.letter_share.ci[0] < 30 < found.letter_share.ci[1] < 33
    assert specific(changed([-40.0, -60.0], [-20.0, 0.0])).to_dict() == {"q0": pytest.approx(-10), "q1": pytest.approx(-30)}


def test_queries_of_one_unit_are_drawn_together() -> None:
    """Six languages ask for each of five facts and answer alike: the interval is that of five, not of thirty."""
    facts = changed([-10.0, -20.0, -30.0, -40.0, -50.0], [0.0] * 5)
    asked = pd.concat([facts] * 6, ignore_index=True)
    alone, together = probability_change_ratio(facts), probability_change_ratio(asked)
    assert together.own.ci == pytest.approx(alone.own.ci) and together.specific.ci == pytest.approx(alone.specific.ci)
    assert (together.queries, together.units) == (30, 5)
    assert edit_success(asked.assign(right_to_wrong=1), boost=False).ci == pytest.approx(
        edit_success(facts.assign(right_to_wrong=[1] * 5), boost=False).ci, abs=15
    )


def test_changes_are_compared_over_the_same_prompts() -> None:
    """q0 lacks a partner with the same letter for one prompt, q1 one with another letter for all: q2 alone has both."""
    table = changed([-40.0, -60.0, -80.0], [-10.0, -20.0, -30.0], [-2.0, -4.0, -6.0])
    table["same_prompts"], table["other_prompts"] = [2, 3, 3], [3, 0, 3]
    table.loc[1, ["p_other_before", "p_other_after"]] = np.nan
    found = probability_change_ratio(table)
    assert (found.own.mean, found.same_letter.mean, found.other_letter.mean) == pytest.approx((-60, -25, -4))
    assert found.ratio_same.value == pytest.approx(70 / 25) and found.ratio_other.value == pytest.approx(60 / 4)
    assert (found.specific.mean, found.specific.queries) == (pytest.approx(-22.5), 2)
    for part, value in ((found.question, -25), (found.letter, -12), (found.general, -3)):
        assert (part.mean, *part.ci, part.queries) == pytest.approx((value, value, value, 1))
    assert found.letter_share is not None and found.letter_share.mean == pytest.approx(30)
    assert specific(table).isna().tolist() == [True, False, False]
    none = probability_change_ratio(table.assign(same_prompts=0))
    assert none.ratio_same == Ratio(None, None, None) and none.specific.queries == 0 and np.isnan(none.specific.ci[0])
    assert none.letter_share is None and none.own == found.own


def test_a_change_of_a_partner_that_is_noise_gives_no_ratio() -> None:
    noise = list(np.random.default_rng(1).normal(0, 1, 100))
    noise = [x - sum(noise) / 100 + 0.001 for x in noise]
    found = probability_change_ratio(changed([-50.0] * 100, noise)).ratio_same
    assert (found.value, found.ci) == (None, None)
    assert found.at_least is not None and 100 < found.at_least < 1000  # 50 over the largest change allowed, about 0.2
    nothing = probability_change_ratio(changed([0.0] * 10, [0.0] * 10))
    assert nothing.ratio_same == nothing.ratio_other == Ratio(None, None, None)
    assert nothing.letter_share is None and nothing.own == Estimate(0.0, (0.0, 0.0), 10)
    with pytest.raises(ValueError, match="no edit effects"):
        probability_change_ratio(changed([], []))


def test_a_probability_of_zero_leaves_what_is_known() -> None:
    """P stays 0 for q0 (no change), rises from 0 for q1 (no number in %), and falls by half for q2."""
    table = changed([0.0, 0.0, -50.0], [0.0] * 3).assign(p_before=[0.0, 0.0, 0.5], p_after=[0.0, 0.25, 0.25])
    found = probability_change_ratio(table)
    assert (found.own.mean, found.own.queries) == (pytest.approx(-25), 2)
    assert found.points.mean == pytest.approx(0.0) and np.isfinite([*found.own.ci, *found.points.ci]).all()


def test_flips_with_counts_and_intervals() -> None:
    """Per pair of queries 2 of 3 right prompts turn wrong, then 0 of 2; 0 of 0 wrong ones turn right, then 1 of 1."""
    table = effects("m", 0.0, [0.5] * 10, [0.5] * 10, turned=[(0, 2), (1, 0)] * 5).assign(right_before=[3, 2] * 5)
    off, on = edit_success(table, boost=False), edit_success(table, boost=True)
    assert (off.count, off.of, off.share) == (10, 25, 40.0)
    assert (on.count, on.of, on.share) == (5, 5, 100.0)
    # squares 5 * (0.8² + 0.8²) = 6.4, var = 10/9 * 6.4 / 625, n = 0.24 / var = 21.09 (above 625 / 65 = 9.6)
    wanted = clustered_interval(np.array([2, 0] * 5), np.array([3, 2] * 5))
    assert off.ci == pytest.approx((100 * wanted[0], 100 * wanted[1]))
    z2 = 1.959964**2 / 21.09375
    half = (z2 * 0.24 + z2**2 / 4) ** 0.5
    assert off.ci == pytest.approx([100 * (0.4 + z2 / 2 + side * half) / (1 + z2) for side in (-1, 1)], abs=1e-4)
    assert on.ci == (pytest.approx(100 * 5 / (5 + 1.959964**2), abs=1e-4), 100.0)
    never_wrong = table.assign(right_before=3, wrong_to_right=0)
    assert edit_success(never_wrong, boost=True).of == 0
    assert np.isnan(edit_success(never_wrong, boost=True).share)


def test_changes_by_group() -> None:
    """x has -40 and -60 %, same letter 0 and -2 %, another 1 and 3 %: with two queries a bootstrap interval reaches from one
    to the other."""
    found = group_changes(changed([-40.0, -10.0, -60.0, -10.0], [0.0, 5.0, -2.0, 5.0], [1.0, 0.0, 3.0, 0.0]))
    kinds = [f"{kind}{bound}" for kind in ("own", "same", "other") for bound in ("", "_low", "_high")]
    assert found[["factor", "group", "queries"]].to_numpy().tolist() == [[0.0, "x", 2], [0.0, "y", 2]]
    assert found.loc[0, kinds].tolist() == pytest.approx([-50, -60, -40, -1, -2, 0, 2, 1, 3])
    assert found.loc[1, kinds].tolist() == pytest.approx([-10, -10, -10, 5, 5, 5, 0, 0, 0])
