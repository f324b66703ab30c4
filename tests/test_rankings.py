"""Rankings, the budgets that cut them and the control that follows them, on the worked example of test_clustering."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_clustering import CONFIG, GROUPS, clusters

from qrnca_lens.clustering import ModelShape, QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.methods import Budget, Ranking, at_most, cut, equal_counts, like, own_sizes, share
from qrnca_lens.methods.controls import random_rankings, random_sets
from qrnca_lens.methods.variants import (
    knowledge_neurons,
    knowledge_neurons_without_common,
    qrnca,
    with_common,
    without_ica,
)

MODEL = ModelShape("by hand", 2, 3, "0")


def by_hand(prompts: list[int]) -> QRNeurons:
    """q1 has na 0.5, 0.2, 0.3 and naica 0.11, 0.10, 0.15 for the neurons 00, 02, 12; 00 is common; v is 2."""
    ids, groups = list(GROUPS), list(GROUPS.values())
    queries = pd.DataFrame({"query": ids, "group": groups, "prompts": prompts, "probability": 0.5, "gap": 0.0})
    return QRNeurons(clusters(), queries, CONFIG, MODEL)


LOCATED = by_hand([1, 2, 1, 1, 1])


def shown(ranking: Ranking) -> tuple[list[list[int]], int | None]:
    return ranking.to_frame()[["layer", "neuron"]].to_numpy().tolist(), ranking.own


def ranking(*places: tuple[int, int, float], own: int | None = None) -> Ranking:
    layer, neuron, score = zip(*places, strict=True)
    return Ranking(np.array(layer), np.array(neuron), np.array(score, dtype=float), own)


def test_variants_rank_the_cluster_and_name_the_papers_cut() -> None:
    assert shown(qrnca(LOCATED)["q1"]) == ([[1, 2], [0, 2]], 1)  # of the two best by naica, 12 and 00, one is common
    assert shown(with_common(LOCATED)["q1"]) == ([[1, 2], [0, 0], [0, 2]], 2)
    assert shown(without_ica(LOCATED)["q2"]) == ([[1, 2], [0, 2]], 1)  # na 0.4 and 4 / 15; the common one has 1/3
    assert shown(knowledge_neurons(LOCATED)["q1"]) == ([[0, 0], [1, 2], [0, 2]], 2)
    assert shown(knowledge_neurons_without_common(LOCATED)["q1"]) == ([[1, 2], [0, 2]], 1)  # 00 is one of the best two
    # q2 has two templates, so one is half of them: all three neurons count
    assert shown(knowledge_neurons(LOCATED)["q2"]) == ([[1, 2], [0, 0], [0, 2]], 2)
    assert shown(with_common(LOCATED)["q4"]) == ([[0, 1], [1, 1]], 2)  # a tie goes to the lower layer
    assert with_common(LOCATED)["q1"].score.tolist() == pytest.approx(
        [0.3 * np.log(5 / 3), 0.5 * np.log(5 / 4), 0.2 * np.log(5 / 3)]
    )
    for variant in (qrnca, without_ica, with_common, knowledge_neurons):
        assert shown(variant(LOCATED)["q5"]) == ([], 0)
        assert list(variant(LOCATED)) == list(GROUPS)


def test_knowledge_neurons_need_half_of_the_templates() -> None:
    found = knowledge_neurons(by_hand([3, 3, 3, 3, 3]))
    assert shown(found["q2"]) == ([[1, 2]], 1)  # the only one that two templates share
    assert shown(found["q1"]) == ([], 0)


def test_scores_are_ranked_and_ties_go_to_the_lower_layer_then_to_the_lower_neuron() -> None:
    found = Ranking.of_scores(torch.tensor([[0.5, -1.0, 2.0], [2.0, 0.5, 0.5]]))
    assert shown(found) == ([[0, 2], [1, 0], [0, 0], [1, 1], [1, 2], [0, 1]], None)
    assert found.score.tolist() == [2, 2, 0.5, 0.5, 0.5, -1]
    assert found.top(2) == NeuronSet.of((0, 2), (1, 0))
    assert (found.top(0), len(found.top(99))) == (NeuronSet(), 6)
    many = Ranking.of_scores(torch.zeros(2, 3000))  # more than sorting networks keep in order by themselves
    assert many.to_frame()[["layer", "neuron"]].apply(tuple, axis=1).is_monotonic_increasing
    assert repr(found) == "Ranking(6 neurons, the best is L0.N2 with 2)"
    assert "<table" in found._repr_html_()


def test_what_is_no_ranking_is_refused() -> None:
    cases = {
        "none is higher than the one before; place 1 holds layer 0, neuron 1, score 2.0": ((0, 0, 1.0), (0, 1, 2.0)),
        "no neuron stands twice; place 2": ((0, 1, 1.0), (0, 0, 1.0), (0, 1, 0.0)),
        "layers and neurons start at 0; place 0": ((0, -1, 1.0),),
        "scores are finite numbers; place 1": ((0, 0, 1.0), (0, 1, float("nan"))),
    }
    for message, places in cases.items():
        with pytest.raises(ValueError, match=message):
            ranking(*places)
    with pytest.raises(ValueError, match="own must lie in 0 to 1, not 2"):
        ranking((0, 0, 1.0), own=2)


@pytest.mark.usefixtures("unchecked")
def test_a_ranking_has_whole_layers_and_keeps_its_own_numbers() -> None:
    with pytest.raises(TypeError, match="a ranking's layer must be whole numbers, not float64"):
        Ranking(np.array([0.0]), np.array([0]), np.array([1.0]))
    with pytest.raises(
        ValueError, match=r"as many layers as neurons and scores, not arrays of the shapes \[\(1,\), \(1,\), \(2,\)"
    ):
        Ranking(np.array([0]), np.array([0]), np.array([1.0, 0.0]))
    scores = np.array([2.0, 1.0])
    found = Ranking(np.array([0, 0]), np.array([0, 1]), scores)
    scores[1] = 3
    assert found.score.tolist() == [2, 1]
    with pytest.raises(ValueError, match="read-only"):
        found.score[0] = 0


def test_budgets_by_hand() -> None:
    def counts(budget: Budget, method: Callable[[QRNeurons], dict[str, Ranking]] = qrnca) -> list[int]:
        return [len(found) for found in cut(method(LOCATED), budget).values()]

    assert counts(own_sizes(LOCATED)) == counts(like(LOCATED)) == [1, 2, 1, 2, 0]
    assert counts(own_sizes(LOCATED), with_common) == [2, 2, 2, 2, 0]
    assert counts(like(LOCATED), with_common) == [1, 2, 1, 2, 0]
    assert counts(at_most(2)) == [2, 2, 1, 2, 0]  # q3 has one neuron beside the common one
    assert counts(share(0.5, MODEL), with_common) == [3, 3, 2, 2, 0]
    assert counts(share(0.29, ModelShape("", 2, 5, "")), with_common) == [3, 3, 2, 2, 0]  # 2.9 neurons
    assert cut(qrnca(LOCATED), at_most(2))["q1"] == NeuronSet.of((1, 2), (0, 2))
    dense = Ranking.of_scores(torch.arange(6.0).view(2, 3))
    assert [own_sizes(LOCATED)(query, dense) for query in GROUPS] == [1, 2, 1, 2, 0]
    assert own_sizes(LOCATED)("q1", ranking((0, 0, 1.0), (0, 1, 1.0), own=0)) == 0
    with pytest.raises(KeyError, match="no query 'q9'"):
        like(LOCATED)("q9", dense)
    for part in (0.0, 0.05, 1.01):
        with pytest.raises(ValueError, match=f"part must be at most 1 and no less than one of the 6 neurons, not {part}"):
            share(part, MODEL)


def test_equal_counts_are_those_of_the_shortest_set() -> None:
    sets = {method.__name__: cut(method(LOCATED), at_most(3)) for method in (qrnca, with_common, knowledge_neurons)}
    equal = equal_counts(sets)
    assert [[len(found) for found in part.values()] for part in equal.values()] == [[2, 2, 1, 2, 0]] * 3
    assert equal["with_common"]["q1"] == NeuronSet.of((1, 2), (0, 0))


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    places = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), unique=True, min_size=1))
    scores = sorted((draw(st.floats(-5, 5)) for _ in places), reverse=True)
    own = draw(st.none() | st.integers(0, len(places)))
    return ranking(*[(*place, score) for place, score in zip(places, scores, strict=True)], own=own)


@given(rankings(), st.integers(1, 40), st.integers(0, 9))
def test_every_cut_is_a_prefix_and_a_control_cut_anywhere_matches_in_number_and_layer(
    found: Ranking, k: int, seed: int
) -> None:
    control = random_rankings({"q1": found}, 8, seed=seed)["q1"]
    for budget in (at_most(k), like(LOCATED), own_sizes(LOCATED), share(0.5, MODEL)):
        chosen, drawn = (cut({"q1": each}, budget)["q1"] for each in (found, control))
        assert chosen.neurons == found.top(len(found)).neurons[: len(chosen)]
        assert Counter(neuron.layer for neuron in chosen) == Counter(neuron.layer for neuron in drawn)
    drawn_for_own = random_sets({"q1": found.top(len(found) if found.own is None else found.own)}, 8, seed=seed)["q1"]
    assert set(control.top(len(drawn_for_own))) == set(drawn_for_own)
