"""Neuron-based prediction: on a model whose neurons are known to write letters, and what it may know."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from handmade import MARKS, WRITER, made, planted_model, planted_prompt
from runs import CONFIG, LONG

from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.methods.controls import disjoint_draws
from qrnca_lens.models import to_tokens
from qrnca_lens.readout.residual import logits_of
from qrnca_lens.runs.pipeline import FailedQueriesWarning, locate
from qrnca_lens.study.direct import NONE, written_options
from qrnca_lens.study.prediction import COLUMNS, predict_from_neurons

FITTED, ASKED, HALVES = "ABCCD", "ABBCCCDDDD", ("ABBCC", "CDDDD")
"""The right letters of every query that the probe is fitted on, of the one that is asked, and of two."""
FEW = {"draws": 3, "probe_draws": 1}
TURNED = dict(zip("ABCD", "BCDA", strict=True))


def query(key: str, group: str, letters: str, right: dict[str, str]) -> Query:
    """A query whose prompts end in the mark of the letter that `right` turns into the right one."""
    marks = {right[mark]: MARKS["ABCD".index(mark)] for mark in "ABCD"}
    number = sum(map(ord, key))
    return Query(key, group, tuple(planted_prompt(10 * number + i, own, marks[own]) for i, own in enumerate(letters)))


def writers_located(group_of: dict[str, str], neurons: dict[str, Any]) -> QRNeurons:
    """A result in which every query has the neurons that write the letters, or none where its group has none."""
    rows = [(key, *at, 1.0) for key, group in group_of.items() if neurons[group] for at in WRITER.values()]
    return made(rows, group_of, d_mlp=48, common_share=1.0)


def test_both_readings_on_a_model_whose_neurons_write_letters(folder_of: Callable[[str], Path]) -> None:
    """The model answers D whatever it is asked, as its habit is louder than its neurons: 4 of 10 letters are D.

    In group "said" the neurons write the right letter: both readings get 10 of 10, those of layer 1 alone the 1 A and 2 B,
    those of layer 2 the 3 C and 4 D. In "turned" they write another one, always the same for the same right letter: reading
    them directly gives 0, a probe learns what they mean. The random neurons are silent: no letter is read; a probe says the
    letter that is most common in what it is fitted on, 3 of 10 C. So p is 1/10 of 9 draws and 1/4 of 3, or 1 where the QR
    neurons are right as seldom; Holm doubles the smaller of two.
    """
    model = planted_model(folder_of("llama"), habit=40.0)
    rights = {"said": {letter: letter for letter in "ABCD"}, "turned": TURNED, "empty": TURNED}
    fitted = [query(f"{group}{i}", group, FITTED, right) for group, right in rights.items() for i in range(2)]
    asked = [query(f"{group} asked", group, ASKED, right) for group, right in rights.items()]
    located = writers_located({q.id: q.group for q in fitted}, {"said": True, "turned": True, "empty": False})
    found = predict_from_neurons(model, [QuerySet(tuple(fitted))], QuerySet(tuple(asked)), located, draws=9, probe_draws=3)
    prompted, qr, alone = ("the prompted model", ""), ("QR neurons", "probe", "all"), ("QR neurons", "direct")
    nothing, silent = (0, *[None] * 5), (9, 0.0, 0.0, 0.0)
    wanted = [
        ("said", *prompted, "", 0, 4, *nothing),
        ("said", *qr, 4, 10, 3, 0.3, 0.3, 0.3, 0.25, 0.5),
        ("said", *alone, "all", 4, 10, *silent, 0.1, 0.2),
        ("said", *alone, "1", 2, 3, *silent, 0.1, 0.2),
        ("said", *alone, "2", 2, 7, *silent, 0.1, 0.2),
        ("turned", *prompted, "", 0, 4, *nothing),
        ("turned", *qr, 4, 10, 3, 0.3, 0.3, 0.3, 0.25, 0.5),
        ("turned", *alone, "all", 4, 0, *silent, 1.0, 1.0),
        ("turned", *alone, "1", 2, 0, *silent, 1.0, 1.0),
        ("turned", *alone, "2", 2, 0, *silent, 1.0, 1.0),
    ]
    shown = found.drop(columns=["of", "accuracy", "low", "high"]).astype(object)
    assert list(shown.where(shown.notna(), None).itertuples(index=False, name=None)) == wanted
    assert (found["of"] == 10).all() and (found["accuracy"] == found["right"] / 10).all()


@pytest.mark.parametrize(("facts", "size"), [(("", ""), 2.0), (("one", "one"), 1.0)])
def test_intervals_are_over_questions(facts: tuple[str, str], size: float, folder_of: Callable[[str], Path]) -> None:
    """The model answers D: 0 of 5 prompts of one question and 4 of 5 of another are right. The variance of their share, by
    questions 2 (2² + 2²) / 10² = 0.16, is 6.67 times 0.4 · 0.6 / 10: ten prompts tell as much as 1.5 and count as the two
    questions, below which nothing goes. Of one fact, as 1."""
    model, same = planted_model(folder_of("llama"), habit=40.0), {letter: letter for letter in "ABCD"}
    fitted = QuerySet(tuple(query(f"g{i}", "g", FITTED, same) for i in range(2)))
    asked = [replace(query(letters, "g", letters, same), fact=fact) for letters, fact in zip(HALVES, facts, strict=True)]
    located = writers_located({q.id: "g" for q in fitted}, {"g": True})
    found = predict_from_neurons(model, [fitted], QuerySet(tuple(asked)), located, draws=1, probe_draws=1).iloc[0]
    square = 1.959964**2
    middle, half = 0.4 + square / 2 / size, math.sqrt(square * (0.24 / size + square / 4 / size**2))
    bounds = [(middle - half) / (1 + square / size), (middle + half) / (1 + square / size)]
    assert found[["low", "high"]].tolist() == pytest.approx(bounds, abs=1e-6)


def test_random_neurons_are_read_as_a_slow_reading_reads_them(run: Any) -> None:
    """Every draw of a random model's neurons, one prompt at a time and over the whole vocabulary."""
    model, located = run
    detection, evaluation = located.asked.split(0.5)
    own = located.restrict(query.id for query in detection)
    found = predict_from_neurons(model, [detection], evaluation, own, draws=12, probe_draws=1, seed=3)
    direct = found[(found["reading"] == "direct")].set_index(["group", "layers"])
    for group in evaluation.groups:
        neurons = own.for_group(group)
        prompts = [prompt for query in evaluation.for_group(group) for prompt in query.prompts]
        drawn = disjoint_draws(neurons, 48, draws=12, seed=3)
        assert direct.loc[(group, "all"), "count"] == len(neurons)
        for layers, chosen in {"all": list(drawn), **{str(layer): [layer] for layer in drawn}}.items():
            sets = [{layer: neurons.by_layer()[layer] for layer in chosen}]
            sets += [{layer: drawn[layer][i].tolist() for layer in chosen} for i in range(12)]
            own_right, *right = [sum(slowly(model, prompt, some) == prompt.right for prompt in prompts) for some in sets]
            row, shares = direct.loc[(group, layers)], np.array(right) / len(prompts)
            assert (row["right"], row["draws"]) == (own_right, 12)
            random = [shares.mean(), *np.quantile(shares, [0.025, 0.975]), (1 + sum(n >= own_right for n in right)) / 13]
            assert row[["random_mean", "random_low", "random_high", "p"]].tolist() == pytest.approx(random)
    assert direct["random_mean"].nunique() > 1


def slowly(model: Any, prompt: Prompt, neurons: dict[int, list[int]]) -> int:
    _, cache = model.run_with_cache(to_tokens(model, prompt.text)[None])
    written = sum(
        cache[f"blocks.{layer}.mlp.hook_post"][0, -1, indices] @ model.blocks[layer].mlp.W_out[indices]
        for layer, indices in neurons.items()
    )
    logits = logits_of(model, written[None])[0, list(option_tokens(model, prompt.text).ids)]
    return int(logits.argmax())


def test_what_is_only_rounding_is_no_letter(folder_of: Callable[[str], Path]) -> None:
    """After the mark of A: a silent neuron; one that writes A a billion times softer than the residual stream is loud; one
    that writes A and B alike; one that writes A softly."""
    model = planted_model(folder_of("llama"))
    mlp, (_, writer) = model.blocks[1].mlp, WRITER["A"]
    for index in (1, 2, 3):
        mlp.W_in.data[:, index], mlp.W_gate.data[:, index] = mlp.W_in[:, writer], mlp.W_gate[:, writer]
    mlp.W_out.data[1] = 1e-9 * mlp.W_out[writer]
    mlp.W_out.data[2] = mlp.W_out[writer] + mlp.W_out[WRITER["B"][1]]
    mlp.W_out.data[3] = 1e-3 * mlp.W_out[writer]
    found = written_options(model, [planted_prompt(0, "A")], {1: np.array([[0], [1], [2], [3]])})
    assert found["1"][:, 0].tolist() == found["all"][:, 0].tolist() == [NONE, NONE, NONE, 0]


def test_draws_are_of_other_neurons_of_the_same_layers() -> None:
    """Of ten neurons 2 to 5 others can stand for, but not for six."""
    neurons = NeuronSet.of((0, 7), (0, 2), *((1, i) for i in range(5)), *((2, i) for i in range(6)))
    drawn = disjoint_draws(neurons, 10, draws=50, seed=1)
    assert {layer: indices.shape for layer, indices in drawn.items()} == {0: (50, 2), 1: (50, 5)}
    assert all(len(set(row)) == len(row) for indices in drawn.values() for row in indices.tolist())
    assert set(drawn[0].flatten().tolist()) == set(range(10)) - {2, 7} and set(drawn[1].flatten().tolist()) == {
        5,
        6,
        7,
        8,
        9,
    }
    again, other = (disjoint_draws(neurons, 10, draws=20, seed=seed)[0].tolist() for seed in (1, 2))
    assert again == drawn[0][:20].tolist() != other


def test_no_draw_where_too_few_others_are_left(planted: Any) -> None:
    """25 of the 48 neurons of layer 1 are the group's: nothing stands for them, but for those of layer 2."""
    same = {letter: letter for letter in "ABCD"}
    fitted, asked = (QuerySet(tuple(query(f"{key}{i}", "g", ASKED, same) for i in range(2))) for key in ("f", "a"))
    neurons = sorted({*WRITER.values(), *((1, i) for i in range(7, 32))})
    rows = [(f"f{i % 2}", *at, 1.0) for i, at in enumerate(neurons)]  # 13 or 14 each: a query has at most 20
    located = made(rows, {q.id: "g" for q in fitted}, d_mlp=48, common_share=1.0)
    found = predict_from_neurons(planted, [fitted], asked, located, draws=4, probe_draws=2).set_index(["reading", "layers"])
    assert found.loc["direct", "count"].to_dict() == {"all": 27, "1": 25, "2": 2}
    assert found["draws"].to_dict() == {("", ""): 0, ("probe", "all"): 0, ("direct", "all"): 0, ("direct", "1"): 0,
                                        ("direct", "2"): 4}  # fmt: skip
    assert found["right"].to_dict()["direct", "all"] == 20
    for column in ("random_mean", "random_low", "random_high", "p", "p_corrected"):
        assert found.index[found[column].notna()].tolist() == [("direct", "2")]


def test_the_probe_learns_from_all_renderings_and_its_own_group(planted: Any) -> None:
    """One rendering shows the probe the letters A and B, the other C and D; another group has them the other way round."""
    same = {letter: letter for letter in "ABCD"}
    halves = [QuerySet(tuple(query(f"g{i}", "g", letters * 2, same) for i in range(2))) for letters in ("AB", "CD")]
    other = tuple(query(f"h{i}", "h", "ABCD" * 4, TURNED) for i in range(2))
    halves[0] = QuerySet((*halves[0], *other))
    asked = QuerySet((query("asked", "g", "ABCD", same),))
    located = writers_located({q.id: q.group for q in halves[0]}, {"g": True, "h": True})
    found = predict_from_neurons(planted, halves, asked, located, **FEW)
    assert found.query("neurons == 'QR neurons' and reading == 'probe'")["right"].tolist() == [4]
    one = predict_from_neurons(planted, halves[:1], asked, located, **FEW)
    assert one.query("neurons == 'QR neurons' and reading == 'probe'")["right"].tolist() == [2]


def test_a_probe_of_queries_with_one_letter_each_is_fitted_all_the_same(planted: Any) -> None:
    """Without either of two queries, one right with A and one with B, one letter is left: no fold can choose a penalty."""
    same = {letter: letter for letter in "ABCD"}
    fitted = QuerySet((query("first", "g", "AAA", same), query("second", "g", "BBB", same)))
    asked = QuerySet((query("asked", "g", "AB", same),))
    located = writers_located({"first": "g", "second": "g"}, {"g": True})
    found = predict_from_neurons(planted, [fitted], asked, located, **FEW)
    assert found.query("neurons == 'QR neurons' and reading == 'probe'")["right"].tolist() == [2]


def test_prediction_knows_no_evaluated_question(planted: Any) -> None:
    same = {letter: letter for letter in "ABCD"}
    first, second, asked = (query(key, "g", "ABCD", same) for key in ("first", "second", "asked"))
    located = writers_located({"first": "g", "second": "g"}, {"g": True})
    detection, evaluation = QuerySet((first, second)), QuerySet((asked,))
    assert list(predict_from_neurons(planted, [detection], evaluation, located, **FEW).columns) == COLUMNS
    with pytest.raises(ValueError, match="'asked' is evaluated and in detection"):
        predict_from_neurons(planted, [detection, QuerySet((first, asked))], evaluation, located)
    knows = writers_located({"first": "g", "asked": "g"}, {"g": True})
    with pytest.raises(ValueError, match="'asked' is evaluated and in located"):
        predict_from_neurons(planted, [detection], evaluation, knows)


def test_prediction_is_not_fitted_on_queries_that_failed(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    detection, evaluation = short_queries.split(0.5)
    lost = replace(LONG, id="other", group="g9")
    asked = QuerySet((LONG, lost, *detection.queries))
    with pytest.warns(FailedQueriesWarning, match="2 of 8"):
        located = locate(model_of("llama"), asked, CONFIG, progress=False)
    evaluated = QuerySet((*evaluation.queries, replace(short_queries["q0"], id="new", group="g9")))
    found = predict_from_neurons(model_of("llama"), [asked], evaluated, located, **FEW)
    assert set(found["group"]) == {"g0", "g1", "g2"}  # every query of g9 failed
    pd.testing.assert_frame_equal(found, predict_from_neurons(model_of("llama"), [detection], evaluation, located, **FEW))
