"""Neuron-based prediction: on a model whose neurons are known to write letters, and what it may know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from handmade import MARKS, WRITER, made, planted_model, planted_prompt
from runs import CONFIG, LONG

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.runs.pipeline import FailedQueriesWarning, locate
from qrnca_lens.study.prediction import COLUMNS, predict_from_neurons

FITTED, ASKED = "ABCCD", "ABBCCCDDDD"
"""The right letters of every query that the probe is fitted on, and of the one that is asked."""
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

    In group "said" the neurons write the right letter: both readings get 10 of 10. In "turned" they write another one,
    always the same for the same right letter: reading them directly gives 0, a probe learns what they mean. The random
    neurons are silent: what they write ties, so the first letter is read, 1 of 10 A; a probe says the letter that is most
    common in what it is fitted on, 3 of 10 C. Wilson's interval of 10 / 10 is from 10 / (10 + z²), of 4 / 10 0.168 to 0.687.
    """
    model = planted_model(folder_of("llama"), habit=40.0)
    rights = {"said": {letter: letter for letter in "ABCD"}, "turned": TURNED, "empty": TURNED}
    fitted = [query(f"{group}{i}", group, FITTED, right) for group, right in rights.items() for i in range(2)]
    asked = [query(f"{group} asked", group, ASKED, right) for group, right in rights.items()]
    located = writers_located({q.id: q.group for q in fitted}, {"said": True, "turned": True, "empty": False})
    assert not set(random_sets({"said": located.for_group("said")}, 48)["said"]) & set(located.for_group("said"))
    found = predict_from_neurons(model, [QuerySet(tuple(fitted))], QuerySet(tuple(asked)), located)
    columns = ["group", "neurons", "reading", "count", "right", "of", "accuracy"]
    wanted = [
        row
        for group, direct in (("said", 10), ("turned", 0))
        for row in (
            (group, "the prompted model", "", 0, 4, 10, 0.4),
            (group, "QR neurons", "probe", 4, 10, 10, 1.0),
            (group, "QR neurons", "direct", 4, direct, 10, direct / 10),
            (group, "random, same layers", "probe", 4, 3, 10, 0.3),
            (group, "random, same layers", "direct", 4, 1, 10, 0.1),
        )
    ]
    assert list(found[columns].itertuples(index=False, name=None)) == wanted
    intervals = found[["low", "high"]].to_numpy().round(3).tolist()
    assert intervals[:2] == [[0.168, 0.687], [0.722, 1.0]]
    assert intervals[7] == [0.0, 0.278]


def test_the_probe_learns_from_all_renderings_and_its_own_group(planted: Any) -> None:
    """One rendering shows the probe the letters A and B, the other C and D; another group has them the other way round."""
    same = {letter: letter for letter in "ABCD"}
    halves = [QuerySet(tuple(query(f"g{i}", "g", letters * 2, same) for i in range(2))) for letters in ("AB", "CD")]
    other = tuple(query(f"h{i}", "h", "ABCD" * 4, TURNED) for i in range(2))
    halves[0] = QuerySet((*halves[0], *other))
    asked = QuerySet((query("asked", "g", "ABCD", same),))
    located = writers_located({q.id: q.group for q in halves[0]}, {"g": True, "h": True})
    found = predict_from_neurons(planted, halves, asked, located)
    assert found.query("neurons == 'QR neurons' and reading == 'probe'")["right"].tolist() == [4]
    one = predict_from_neurons(planted, halves[:1], asked, located)
    assert one.query("neurons == 'QR neurons' and reading == 'probe'")["right"].tolist() == [2]


def test_prediction_knows_no_evaluated_question(planted: Any) -> None:
    same = {letter: letter for letter in "ABCD"}
    first, second, asked = (query(key, "g", "ABCD", same) for key in ("first", "second", "asked"))
    located = writers_located({"first": "g", "second": "g"}, {"g": True})
    detection, evaluation = QuerySet((first, second)), QuerySet((asked,))
    assert list(predict_from_neurons(planted, [detection], evaluation, located).columns) == COLUMNS
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
    found = predict_from_neurons(model_of("llama"), [asked], evaluated, located)
    assert set(found["group"]) == {"g0", "g1", "g2"}  # every query of g9 failed
    pd.testing.assert_frame_equal(found, predict_from_neurons(model_of("llama"), [detection], evaluation, located))
