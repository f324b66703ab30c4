from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qrnca_lens.core.intervals import (
    bootstrap_interval,
    normal_interval,
    quantile_interval,
    wilson_interval,
    with_interval,
)
from qrnca_lens.editing.statistics import edit_success, group_changes, probability_change_ratio


def effects(own: list[float], unrelated: list[float]) -> pd.DataFrame:
    n = len(own)
    return pd.DataFrame(
        {
            "factor": 0.0,
            "group": ["x", "y"] * (n // 2),
            "prompts": 3,
            "p_before": 0.5,
            "p_after": [0.5 * (1 + c / 100) for c in own],
            "p_unrelated_before": 0.8,
            "p_unrelated_after": [0.8 * (1 + c / 100) for c in unrelated],
            "right_before": [3, 2] * (n // 2),
            "wrong_to_right": [0, 1] * (n // 2),
            "right_to_wrong": [2, 0] * (n // 2),
        }
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


def test_the_ratio_by_hand() -> None:
    found = probability_change_ratio(effects([-40.0, -60.0] * 50, [-9.0, -11.0] * 50))
    assert (found.related, found.unrelated, found.queries) == (pytest.approx(-50), pytest.approx(-10), 100)
    assert found.pcr == pytest.approx(5.0)
    assert found.ci is not None
    assert found.ci[0] < 5.0 < found.ci[1]
    assert found.related_ci[0] < -50 < found.related_ci[1] < -47
    assert found.points == pytest.approx(-25.0)


def test_an_unrelated_change_that_is_noise_gives_no_ratio() -> None:
    noise = list(np.random.default_rng(1).normal(0, 1, 100))
    noise = [x - sum(noise) / 100 + 0.001 for x in noise]
    found = probability_change_ratio(effects([-50.0] * 100, noise))
    assert found.pcr is None
    assert found.ci is None
    assert 100 < found.at_least < 1000  # 50 over the largest unrelated change that the interval allows, about 0.2
    nothing = probability_change_ratio(effects([0.0] * 10, [0.0] * 10))
    assert (nothing.pcr, nothing.at_least) == (None, 0.0)
    with pytest.raises(ValueError, match="no edit effects"):
        probability_change_ratio(effects([], []))


def test_flips_with_counts_and_intervals() -> None:
    table = effects([0.0] * 10, [0.0] * 10)
    off, on = edit_success(table, boost=False), edit_success(table, boost=True)
    assert (off.count, off.of, off.share) == (10, 25, 40.0)
    assert (on.count, on.of, on.share) == (5, 5, 100.0)
    assert off.ci == (pytest.approx(23.40, abs=0.01), pytest.approx(59.26, abs=0.01))  # Wilson, by hand
    never_wrong = table.assign(right_before=3)
    assert edit_success(never_wrong, boost=True).of == 0
    assert np.isnan(edit_success(never_wrong, boost=True).share)


def test_changes_by_group() -> None:
    """x has -40 and -60 %, unrelated 0 and -2 %: with two queries a bootstrap interval reaches from one to the other."""
    found = group_changes(effects([-40.0, -10.0, -60.0, -10.0], [0.0, 5.0, -2.0, 5.0]))
    kinds = ["related", "related_low", "related_high", "unrelated", "unrelated_low", "unrelated_high"]
    assert found[["factor", "group", "queries"]].to_numpy().tolist() == [[0.0, "x", 2], [0.0, "y", 2]]
    assert found.loc[0, kinds].tolist() == pytest.approx([-50, -60, -40, -1, -2, 0])
    assert found.loc[1, kinds].tolist() == pytest.approx([-10, -10, -10, 5, 5, 5])
