"""Overlap at equal sizes, shuffles within facts, layers and common neurons, on results worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import Row, by_hand, made
from runs import as_older

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.localization import (
    common_layer_test,
    concentration_test,
    layer_test,
    overlap_difference,
    overlap_rates,
    overlap_test,
    significant,
)
from qrnca_lens.localization.shuffles import drawn, exchangeable, label_chunks

TESTS = [overlap_test, concentration_test, layer_test]


def asked(located: QRNeurons, fact_of: dict[str, str]) -> QRNeurons:
    """The same result, whose queries ask for these facts."""
    prompt = (Prompt("Which letter is right?", "A"),)
    rows = located.queries[["query", "group"]].itertuples(index=False, name=None)
    return replace(located, asked=QuerySet(tuple(Query(q, g, prompt, fact=fact_of.get(q, "")) for q, g in rows)))


def by_fact(n: int = 8, groups: str = "xyz") -> QRNeurons:
    """Each of `n` facts has two neurons of its own, whatever group asks for it; x asks for the facts in layer 0 twice."""
    group_of = {f"{group}{i}": group for group in groups for i in range(n)}
    rows: list[Row] = [(q, int(q[1:]) % 3, 2 * int(q[1:]) + j, 1.0) for q in group_of for j in (0, 1)]
    return asked(made(rows, group_of, d_mlp=4 * n, common_share=0.6), {query: f"fact {query[1:]}" for query in group_of})


def crowd(seed: int, pool: int = 30, n: int = 12, sizes: int = 5) -> QRNeurons:
    """Two groups of `n` queries, each with `sizes` neurons drawn from the same `pool`."""
    generator, group_of = np.random.default_rng(seed), {f"q{i}": "xy"[i % 2] for i in range(2 * n)}
    rows = [(q, 0, int(i), 1.0) for q in group_of for i in generator.choice(pool, sizes, replace=False)]
    return made(rows, group_of, d_mlp=pool, common_share=0.99)


def test_rates_by_hand() -> None:
    """x has three neurons, y two, of which they share one; z has none."""
    found = overlap_rates(by_hand())
    assert (found.per_group, found.draws) == (2, 100)
    wanted = pd.DataFrame({"x": [1, 0.4, np.nan], "y": [0.4, 1, np.nan], "z": np.nan}, index=["x", "y", "z"])
    pd.testing.assert_frame_equal(found.rates, wanted, check_names=False)
    assert found.mean == pytest.approx(0.4)
    pairs = found.to_frame()
    assert pairs[["group", "other group"]].to_numpy().tolist() == [["x", "y"], ["x", "z"], ["y", "z"]]
    assert pairs["rate"].tolist() == pytest.approx([0.4, np.nan, np.nan], nan_ok=True)
    assert pairs["permuted"].tolist() == [found.permuted.loc[a, b] for a, b in (("x", "y"), ("x", "z"), ("y", "z"))]
    assert "mean 0.400" in repr(found)


def test_rates_of_drawn_queries_and_of_shuffled_labels_by_enumeration() -> None:
    """One query a group: x and y are a pair of one query of each; with shuffled labels any two queries with neurons are."""
    located = by_hand()
    sets = {query: set(located.for_query(query)) for query in "abcd"}

    def dice(pairs: list[tuple[str, str]]) -> float:
        return float(np.mean([len(sets[a] & sets[b]) / ((len(sets[a]) + len(sets[b])) / 2) for a, b in pairs]))

    found = overlap_rates(located, per_group=1, draws=4000)
    assert found.rates.loc["x", "y"] == pytest.approx(dice(list(product("ab", "cd"))), abs=0.02)
    chance = dice(list(combinations("abcd", 2)))
    assert found.permuted_mean == pytest.approx(chance, abs=0.02)
    assert found.permuted.loc["x", "z"] == pytest.approx(chance, abs=0.02)
    assert found.rates.equals(found.rates.T) and found.permuted.equals(found.permuted.T)


def test_a_rate_does_not_grow_with_the_queries_of_a_group() -> None:
    """z has five times the queries of x and y, all alike: its rate is theirs, where the share of the set would be larger."""
    generator = np.random.default_rng(0)
    group_of = {f"q{i}": "xyzzzzz"[i % 7] for i in range(140)}
    rows = [(q, 0, int(i), 1.0) for q in group_of for i in generator.choice(400, 5, replace=False)]
    rates = overlap_rates(made(rows, group_of, d_mlp=400)).rates
    assert rates.loc["x", "z"] == pytest.approx(rates.loc["x", "y"], abs=0.06)


def test_a_draw_takes_as_many_of_every_group_and_the_same_facts() -> None:
    groups, units = np.repeat([0, 1, 2], [6, 4, 5]), np.array([*range(6), *range(4), *range(10, 15)])
    generator = np.random.default_rng(3)
    many = [drawn(groups, units, 3, generator) for _ in range(200)]
    for found in many:
        assert np.bincount(found[found >= 0]).tolist() == [3, 3, 3]
        assert np.array_equal(found[found >= 0], groups[found >= 0])
        first = set(units[found == 0])
        assert first & {0, 1, 2, 3} <= set(units[found == 1])  # what x asks for and y could ask for, y asks for too
    often = np.mean([found >= 0 for found in many], axis=0)
    assert often == pytest.approx(np.repeat([3 / 6, 3 / 4, 3 / 5], [6, 4, 5]), abs=0.12)


def test_labels_change_places_within_facts() -> None:
    groups, units = np.array([0, 0, 1, 1, 0, 1, 1]), np.array([0, 1, 0, 2, 2, 3, 3])
    assert [found.tolist() for found in exchangeable(groups, units)] == [[1, 5, 6], [0, 2], [3, 4]]
    located = by_fact()
    numbers = located.units.to_numpy()
    true, shuffled = label_chunks(located, 50, 0, 50)
    for labels in shuffled:
        by_number = pd.Series(labels).groupby(numbers).apply(sorted)
        assert by_number.tolist() == [[0, 1, 2]] * 8
    assert (shuffled != true).any()


@pytest.mark.parametrize("test", TESTS)
def test_what_differs_between_facts_is_no_evidence(test: type) -> None:
    """Groups that ask for the same facts have the same neurons: no shuffle within a fact changes anything."""
    found = test(by_fact(), 30)
    assert found["p"].tolist() == [1.0] * 3
    assert found["low"].tolist() == pytest.approx(found["observed"].tolist())
    loose = replace(by_fact(), asked=QuerySet(()))
    assert (test(loose, 30)["high"] - test(loose, 30)["low"] > 0.01).all()


def test_units_are_facts_where_they_are_named() -> None:
    located = asked(by_hand(), {"a": "one", "c": "one"})
    assert located.units.tolist() == ["one", "b", "one", "d", "e", "f"]
    assert located.restrict(list("abce")).units.tolist() == ["one", "b", "one", "e"]
    assert by_hand().units.tolist() == list("abcdef")


def test_a_run_of_a_time_before_facts_opens(tmp_path: Path) -> None:
    located = asked(by_hand(), {"a": "one", "c": "one"})
    located.save(tmp_path / "run")
    as_older(tmp_path / "run")
    assert QRNeurons.load(tmp_path / "run").units.tolist() == located.units.tolist()
    record = json.loads((tmp_path / "run" / "asked.json").read_text())
    for query in record["queries"]:
        del query["fact"]
    (tmp_path / "run" / "asked.json").write_text(json.dumps(record))
    assert QRNeurons.load(tmp_path / "run").units.tolist() == list("abcdef")


def test_rates_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="per_group must lie in 1 to 2, not 3"):
        overlap_rates(by_hand(), 3)
    with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
        overlap_rates(by_hand(), draws=0)
    empty = overlap_rates(made([], dict(zip("abcd", "xxyy", strict=True))))
    assert empty.rates.isna().all(axis=None) and np.isnan(empty.mean) and np.isnan(empty.permuted_mean)
    alone = overlap_rates(made([("a", 0, 1, 1.0), ("b", 0, 2, 1.0)], {"a": "x", "b": "x"}))
    assert alone.rates.to_numpy().tolist() == [[1.0]] and alone.to_frame().empty and np.isnan(alone.mean)


def test_a_difference_between_regions_and_a_crowd_is_found() -> None:
    apart = made([(f"q{i}", i % 2, i // 2 % 4, 1.0) for i in range(24)], {f"q{i}": "xy"[i % 2] for i in range(24)})
    found = overlap_difference(crowd(0), apart, draws=200, seed=4)
    assert (found.per_group, found.draws) == (6, 200)
    assert found.second == 0.0 and found.second_permuted > 0.3
    assert found.difference == found.first > 0.4
    assert found.low > 0.3 and found.p == pytest.approx(1 / 201)
    assert found == overlap_difference(crowd(0), apart, draws=200, seed=4)
    turned = overlap_difference(apart, crowd(0), draws=200, seed=4)
    assert turned.high < 0 and turned.difference == pytest.approx(-found.difference, abs=0.05)
    assert turned.p == found.p


def test_a_difference_is_that_of_the_rates_at_its_size() -> None:
    first, second = crowd(1, pool=30), crowd(2, pool=60)
    found = overlap_difference(first, second, per_group=4, draws=2000)
    for located, mean, chance in ((first, found.first, found.first_permuted), (second, found.second, found.second_permuted)):
        rates = overlap_rates(located, 4, draws=2000)
        assert mean == pytest.approx(rates.mean, abs=0.01)
        assert chance == pytest.approx(rates.permuted_mean, abs=0.01)
    assert found.low < found.difference < found.high  # the estimate lies in its own interval


def test_a_difference_that_is_none_is_seldom_found() -> None:
    found = [overlap_difference(crowd(2 * i), crowd(2 * i + 1), draws=60) for i in range(30)]
    assert sum(one.p < 0.05 for one in found) <= 3
    assert sum(one.low > 0 or one.high < 0 for one in found) <= 3
    assert np.mean([one.p for one in found]) > 0.4


def test_a_difference_refuses_what_it_cannot_tell() -> None:
    with pytest.raises(ValueError, match=r"the second result has one group \(x\); an overlap needs at least 2"):
        overlap_difference(by_hand(), made([("a", 0, 1, 1.0)], {"a": "x", "b": "x"}))
    with pytest.raises(ValueError, match="group 'y' of the first result has 1 query"):
        overlap_difference(made([], {"a": "x", "b": "x", "c": "y"}), by_hand())
    with pytest.raises(ValueError, match="per_group must lie in 1 to 1, not 2"):
        overlap_difference(by_hand(), crowd(0), per_group=2)
    none = overlap_difference(by_hand(), made([], dict(zip("abcd", "xxyy", strict=True))), draws=5)
    assert np.isnan([none.second, none.difference, none.low, none.p]).all() and none.first > 0


def test_layers_by_hand() -> None:
    """x is 3/4 in layer 0 and 1/4 in layer 1, as each of its queries counts once; y is half in layer 1, half in layer 2."""
    rows = [("a", 0, 1, 1.0), ("b", 0, 2, 1.0), ("b", 1, 3, 1.0), ("c", 1, 4, 1.0), ("d", 2, 5, 1.0)]
    found = layer_test(made(rows, dict(zip("abcdef", "xxyyzz", strict=True))), 20)
    assert found["observed"].tolist() == pytest.approx([0.75, 0.75, np.nan], nan_ok=True)
    assert found["p"].isna().tolist() == [False, False, True]
    alone = layer_test(made(rows[:3], dict(zip("abcd", "xxyy", strict=True))), 20)
    assert alone["observed"].isna().all()  # the other group has no layer to differ from


def test_groups_that_pass_are_counted() -> None:
    frame = pd.DataFrame({"p_corrected": [0.049, 0.05, 0.001, np.nan]})
    assert significant(frame) == (2, 3)


def test_common_neurons_of_the_last_layer_by_hand() -> None:
    """One common neuron, in the last of three layers. The clusters have 2, 2 and 1 neurons: only the last layer is as far
    from the mean depth of 0.4, so 1 choice in 5 is; in the model the first layer is as far from 0.5 too, so 2 in 3 are."""
    found = common_layer_test(by_hand(), draws=4000)
    assert found["neurons"].tolist() == [1, 1] and found["depth"].tolist() == [1.0, 1.0]
    assert found["expected"].tolist() == pytest.approx([0.4, 0.5])
    assert found["p"].tolist() == pytest.approx([1 / 5, 2 / 3], abs=0.03)
    assert found[["low", "high"]].to_numpy().tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("n_layers", [6, 32])
def test_common_neurons_at_the_top_of_a_model(n_layers: int) -> None:
    """Eight common neurons in the last layer, and six others in every layer; no choice of eight lies as deep."""
    queries = {f"q{i}": "xy"[i % 2] for i in range(6)}
    common = [(query, n_layers - 1, index, 1.0) for query in queries for index in range(8)]
    others = [(f"q{i}", layer, 10 + i, 1.0) for layer in range(n_layers) for i in range(6)]
    located = made(common + others, queries, n_layers=n_layers, d_mlp=20)
    found = common_layer_test(located, draws=500)
    assert found["p"].tolist() == pytest.approx([1 / 501] * 2)
    assert found["expected"].tolist() == pytest.approx([(6 * n_layers / 2 + 8) / (6 * n_layers + 8), 0.5])
    assert (found["depth"] > found["high"]).all()
    mirrored = located.clusters.assign(layer=n_layers - 1 - located.clusters["layer"])
    low = common_layer_test(replace(located, clusters=mirrored), draws=500)
    assert low["depth"].tolist() == [0.0, 0.0] and low["p"].tolist() == pytest.approx([1 / 501] * 2)


def test_without_common_neurons_or_with_one_layer_nothing_is_told() -> None:
    none = common_layer_test(made([("a", 1, 1, 1.0)], dict(zip("abcd", "xxyy", strict=True))))
    assert none["neurons"].tolist() == [0, 0] and none[["depth", "low", "high", "p"]].isna().all(axis=None)
    flat = made([(query, 0, 1, 1.0) for query in "abcd"], dict(zip("abcd", "xxyy", strict=True)), n_layers=1)
    assert common_layer_test(flat, 9)["p"].tolist() == [1.0, 1.0]
