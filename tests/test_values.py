"""Numbers that a user gives are taken as what they are or refused, naming the thing and the value."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pandas as pd
import pytest
import torch

import qrnca_lens as ql
from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.clustering import QRNCAConfig, QRNeurons, cluster_neurons, make_cluster
from qrnca_lens.clustering.profiles import NeuronClusters
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.rules import quadrature
from qrnca_lens.core.values import LARGEST_SEED, listed, number, seed_number, whole_number
from qrnca_lens.data import QuerySet
from qrnca_lens.editing.collateral import neutral_loss, other_queries
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.localization import (
    common_layer_test,
    concentration_test,
    group_heatmap,
    layer_test,
    overlap_difference,
    overlap_rates,
    overlap_test,
)
from qrnca_lens.methods import at_most, share
from qrnca_lens.methods.controls import random_rankings, random_sets
from qrnca_lens.methods.variants import qrnca
from qrnca_lens.readout.token_kinds import common_token_test
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study.reproduction import Sample
from qrnca_lens.views import Explorer, circuit, show
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.plots import localization as plots_localization

NAN, INF = float("nan"), float("inf")
NO_WHOLE = [True, np.bool_(True), torch.tensor(True), 1.5, 2.0, np.float64(2), NAN, INF, "2", None, [2], np.array([2]), 2j]
NO_NUMBER = [True, np.bool_(True), torch.tensor(True), NAN, -INF, np.float32("nan"), "2", None, [2.0], np.array([2.0]), 2j]
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize("value", NO_WHOLE, ids=repr)
def test_no_whole_number(value: Any) -> None:
    with pytest.raises(TypeError, match="top must be a whole number, not "):
        whole_number("top", value)


@pytest.mark.parametrize("value", [*NO_NUMBER, decimal.Decimal(2), 10**400], ids=lambda v: repr(v)[:20])
def test_no_number(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"the factor must be a (finite )?number, not "):
        number("the factor", value)


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), torch.tensor(2), np.array(2)], ids=repr)
def test_whole_numbers_become_ints(value: Any) -> None:
    assert type(whole_number("n", value)) is int and whole_number("n", value, at_least=2, at_most=2) == 2
    assert type(number("n", value)) is float and number("n", value) == 2


def test_numbers_become_floats_and_ranges_are_told() -> None:
    for value in (0.5, np.float32(0.5), np.float16(0.5), torch.tensor(0.5), Fraction(1, 2)):
        assert type(number("n", value)) is float and number("n", value) == 0.5
    for limits, words in (
        ({"at_least": 3}, "n must be at least 3, not 2"),
        ({"at_most": 1}, "n must be at most 1, not 2"),
        ({"at_least": 3, "at_most": 4}, "n must lie in 3 to 4, not 2"),
    ):
        with pytest.raises(ValueError, match=words):
            whole_number("n", 2, **limits)
    assert seed_number(np.int64(LARGEST_SEED)) == LARGEST_SEED
    for seed in (-1, LARGEST_SEED + 1):
        with pytest.raises(ValueError, match="seed must lie in 0 to 4294967295, not "):
            seed_number(seed)
    assert listed("ids", ["ab", "c"]) == ("ab", "c")
    with pytest.raises(TypeError, match=r"ids is a list of texts; give \['ab'\]"):
        listed("ids", "ab")


@pytest.mark.parametrize("value", NO_WHOLE, ids=repr)
def test_a_neuron_has_whole_numbers(value: Any) -> None:
    for make in (lambda: Neuron(1, value), lambda: Neuron(value, 1), lambda: NeuronSet.of((1, value))):
        with pytest.raises(TypeError, match=r"a neuron's (layer|index) must be a whole number, not "):
            make()
    with pytest.raises(TypeError, match=r"expected neurons, found \(1, 2\)"):
        NeuronSet(((1, 2),))  # type: ignore[arg-type]


def test_numbers_of_numpy_make_the_same_neuron_and_the_same_configuration() -> None:
    made = Neuron(np.int64(1), torch.tensor(2))  # type: ignore[arg-type]
    assert made == Neuron(1, 2) and (type(made.layer), type(made.index)) == (int, int) and str(made) == "L1.N2"
    config = QRNCAConfig(steps=np.int64(2), threshold=np.float32(0.25), top=np.int32(3), common_share=1)  # type: ignore[arg-type]
    assert config == QRNCAConfig(2, threshold=0.25, top=3, common_share=1.0)
    assert [type(v) for v in (config.steps, config.threshold, config.top, config.common_share)] == [int, float, int, float]


@pytest.mark.parametrize("name", ["steps", "top", "threshold", "common_share"])
@pytest.mark.parametrize("value", [True, NAN, INF, "0.5", 1.5, None], ids=repr)
def test_a_configuration_refuses_what_is_no_number(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        QRNCAConfig(**{name: value})


def test_a_configuration_refuses_an_unknown_site() -> None:
    with pytest.raises(ValueError, match="site must be None or one of up, gate, pre, post, not 'down'"):
        QRNCAConfig(site="down")  # type: ignore[arg-type]


def test_a_run_with_numpys_numbers_is_the_run_with_pythons(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    for steps in (np.int64(2), 2):
        found = locate(model_of("llama"), short_queries, QRNCAConfig(steps=steps), out=tmp_path / "run", progress=False)
        assert found.config.steps == 2


Run = tuple[Any, QRNeurons]
WHOLE: dict[str, Callable[[Any, QRNeurons, Any], Any]] = {
    "steps": lambda model, located, value: quadrature("right", value),
    "attribute steps": lambda model, located, value: ql.attribute(model, "Answer:", 5, steps=value),
    "attribution k": lambda model, located, value: ql.attribute(model, "Answer:", 5, steps=1).top(value),
    "attribution neurons k": lambda model, located, value: ql.attribute(model, "Answer:", 5, steps=1).neurons(value),
    "result k": lambda model, located, value: located.top(value),
    "promoted k": lambda model, located, value: ql.promoted_tokens(model, Neuron(0, 1), value),
    "per_group": lambda model, located, value: located.asked.sample(value),
    "sample seed": lambda model, located, value: located.asked.sample(1, value),
    "split seed": lambda model, located, value: located.asked.split(0.5, value),
    "load seed": lambda model, located, value: ql.load_queries("atlas/domains", seed=value),
    "show prompt": lambda model, located, value: show(model, located, "q1", prompt=value),
    "circuit prompt": lambda model, located, value: circuit(model, located, "q1", prompt=value),
    "k": lambda model, located, value: value is None or cluster_neurons(located, min_queries=1, k=value),
    "min_queries": lambda model, located, value: cluster_neurons(located, min_queries=value),
    "bootstraps": lambda model, located, value: cluster_neurons(located, min_queries=1, bootstraps=value),
    "cluster seed": lambda model, located, value: cluster_neurons(located, min_queries=1, seed=value),
    "permutations": lambda model, located, value: overlap_test(located, value),
    "concentration permutations": lambda model, located, value: concentration_test(located, value),
    "layer permutations": lambda model, located, value: layer_test(located, value),
    "rate draws": lambda model, located, value: overlap_rates(located, draws=value),
    "rate size": lambda model, located, value: overlap_rates(located, value),
    "difference draws": lambda model, located, value: overlap_difference(located, located, draws=value),
    "difference size": lambda model, located, value: overlap_difference(located, located, per_group=value),
    "difference seed": lambda model, located, value: overlap_difference(located, located, seed=value),
    "common draws": lambda model, located, value: common_layer_test(located, value),
    "kinds k": lambda model, located, value: common_token_test(model, located, value),
    "controls": lambda model, located, value: common_token_test(model, located, controls=value),
    "test seed": lambda model, located, value: overlap_test(located, 9, value),
    "test bins": lambda model, located, value: concentration_test(located, 9, bins=value),
    "map bins": lambda model, located, value: group_heatmap(located, bins=value),
    "heatmap bins": lambda model, located, value: plots.heatmap(located, bins=value),
    "zoom layer": lambda model, located, value: plots_localization.layer_zoom(located, None, value),
    "effects seed": lambda model, located, value: edit_effects(model, located.asked, {}, seed=value),
    "random seed": lambda model, located, value: random_sets({"q1": NeuronSet.of((0, 1))}, 48, seed=value),
    "rankings seed": lambda model, located, value: random_rankings(qrnca(located), 48, seed=value),
    "budget": lambda model, located, value: at_most(value),
    "ranking k": lambda model, located, value: qrnca(located)["q1"].top(value),
    "pcr seed": lambda model, located, value: ql.probability_change_ratio(effects(), seed=value),
    "letters batch": lambda model, located, value: letter_probabilities(model, located.asked["q1"].prompts, batch=value),
    "page top": lambda model, located, value: ql.write_explorer(model, located, "never.html", top=value),
    "page per_group": lambda model, located, value: ql.write_explorer(model, located, "never.html", per_group=value),
    "sample extended": lambda model, located, value: Sample(extended=value),
    "sample permutations": lambda model, located, value: Sample(permutations=value),
    "subject seed": lambda model, located, value: ql.subject("domains", seed=value),
}


def effects() -> pd.DataFrame:
    return handmade.effects("qrnca", 0.0, [0.1, 0.2], [0.4, 0.4])


@pytest.mark.parametrize("name", WHOLE)
def test_every_count_is_a_whole_number(name: str, run: Run) -> None:
    for value in (True, 1.5, NAN, INF, "1", [1]):
        with pytest.raises(TypeError, match="must be a whole number, not "):
            WHOLE[name](*run, value)
    with pytest.raises(ValueError, match=r"-3"):
        WHOLE[name](*run, -3)


def test_a_cluster_is_asked_for_by_its_number(run: Run) -> None:
    found: NeuronClusters = cluster_neurons(run[1], min_queries=1, bootstraps=0)
    assert found.for_cluster(np.int64(1)) == found.for_cluster(1)  # type: ignore[arg-type]
    for value in (True, 1.0, "1"):
        with pytest.raises(TypeError, match="i must be a whole number"):
            found.for_cluster(value)


NUMBERS: dict[str, Callable[[Any, QRNeurons, Any], Any]] = {
    "scale": lambda model, located, value: ql.scale(model, Neuron(0, 1), value).__enter__(),
    "enhance": lambda model, located, value: ql.enhance(model, Neuron(0, 1), value).__enter__(),
    "suppress": lambda model, located, value: ql.suppress(model, Neuron(0, 1), value).__enter__(),
    "factors": lambda model, located, value: edit_effects(model, located.asked, {}, factors=[1.0, value]),
    "others": lambda model, located, value: other_queries(model, located.asked, {"q1": NeuronSet.of((0, 1))}, value),
    "share": lambda model, located, value: share(value, located.model),
    "loss": lambda model, located, value: neutral_loss(model, {"q1": NeuronSet.of((0, 1))}, value, "Answer:"),
    "detection": lambda model, located, value: located.asked.split(value),
    "threshold": lambda model, located, value: make_cluster("q", "g", [torch.ones(1, 2)], value),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_factor_and_share_is_a_finite_number(name: str, run: Run) -> None:
    for value in NO_NUMBER:
        with pytest.raises((TypeError, ValueError), match=r"must be a (finite )?number, not "):
            NUMBERS[name](*run, value)
    assert not run[0].blocks[0].mlp.hook_post.fwd_hooks, "a hook remains"


@pytest.mark.parametrize("factor", [True, NAN, "1", 0.3], ids=repr)
def test_the_slider_takes_its_own_factors(factor: Any, run: Run, short_queries: QuerySet) -> None:
    explorer = Explorer(run[0], short_queries, run[1])
    with pytest.raises((TypeError, ValueError), match="factor must be "):
        explorer.selected = {"factor": factor}
    explorer.selected = {"factor": np.float32(0.25)}
    assert type(explorer.selected["factor"]) is float


def test_one_text_is_no_list_and_no_group_is_not_all(run: Run) -> None:
    with pytest.raises(ValueError, match="groups is empty"):
        plots.heatmap(run[1], [])
    for use in (run[1].asked.keep, run[1].restrict, lambda text: plots.heatmap(run[1], text)):
        with pytest.raises(TypeError, match="is a list of texts; give"):
            use("q1")
