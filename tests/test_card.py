"""The measured card: its tables on hand-made answers and effects, and on a model whose neurons are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from handmade import effects, made, planted_queries

from qrnca_lens.clustering.tables import Failure, failed_table
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.study import card
from qrnca_lens.study.card import Card, at_last, at_others, measure_card


def test_effects_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """P before 0.8, 0.4, 0.2, after 0.4, 0.1, 0.1: the mean falls from 1.4 / 3 to 0.2, that of the two below 0.6 from 0.3 to
    0.1. With the same letter it falls from 2.5 / 3 to 0.5, by 40 %, with another from 0.5 to 0.45. Six of nine prompts are
    right, three turn wrong."""
    rows = effects("QR neurons", 0.0, [0.4, 0.1, 0.1], [0.6, 0.5, 0.4], other=[0.4, 0.45, 0.5],
                   turned=[(0, 2), (1, 1), (1, 0)])  # fmt: skip
    rows = rows.assign(p_before=[0.8, 0.4, 0.2], p_same_before=[0.8, 0.8, 0.9])
    rows = pd.concat([rows, rows.assign(factor=2.0, p_after=[0.9, 0.6, 0.6], p_same_after=1.0)], ignore_index=True)
    located, given = made([("q0", 0, 1, 1.0), ("q1", 1, 2, 1.0)], {"q0": "x", "q1": "y", "q2": "y"}), []
    monkeypatch.setattr(card, "edit_effects", lambda *arguments: given.append(arguments) or rows)
    off, double = card._effects(None, located, located.asked).to_dict("records")
    assert off == {
        "neurons": "QR neurons",
        "factor": 0.0,
        "queries": 3,
        "P own": "0.467 to 0.200",
        "P same letter": "0.833 to 0.500",
        "P other letter": "0.500 to 0.450",
        "% own": pytest.approx(100 * (0.2 / (1.4 / 3) - 1)),
        "% same letter": pytest.approx(-40.0),
        "% other letter": pytest.approx(-10.0),
        "% own, P < 0.6": pytest.approx(100 * (0.1 / 0.3 - 1)),
        "such queries": 2,
        "right to wrong": "3 / 6",
        "wrong to right": "2 / 3",
    }
    assert (double["factor"], double["P own"], double["% own"]) == (2.0, "0.467 to 0.700", pytest.approx(50.0))
    assert double["% own, P < 0.6"] == pytest.approx(100.0)
    ((_, _, methods),) = given
    assert list(methods) == ["QR neurons", "random, same layers"]
    assert methods["QR neurons"] == {"q0": NeuronSet.of((0, 1)), "q1": NeuronSet.of((1, 2)), "q2": NeuronSet()}
    assert [len(neurons) for neurons in methods["random, same layers"].values()] == [1, 1, 0]


def test_accuracy_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queries in x, one in y; the held-out template is answered worse."""
    fresh, held = planted_queries("ABC", "xyx"), planted_queries("ABC", "xyx", first="h")
    right = {id(fresh): [True, False, True], id(held): [False, False, True]}
    p = {id(fresh): [0.9, 0.4, 0.7], id(held): [0.1, 0.3, 0.5]}

    def answers(model: Any, queries: Any) -> pd.DataFrame:
        return pd.DataFrame({"group": list("xyx"), "right": right[id(queries)], "probability": p[id(queries)]})

    monkeypatch.setattr(card, "answers", answers)
    found = card._accuracy(None, fresh, held).set_index("group")
    assert found.to_dict("index") == {
        "x": {
            "questions": 2,
            "accuracy": 1.0,
            "P(letter)": pytest.approx(0.8),
            "accuracy (held-out template)": 0.5,
            "P(letter) (held-out template)": pytest.approx(0.3),
        },
        "y": {
            "questions": 1,
            "accuracy": 0.0,
            "P(letter)": 0.4,
            "accuracy (held-out template)": 0.0,
            "P(letter) (held-out template)": 0.3,
        },
    }


def test_zeroing_by_hand(planted: Any) -> None:
    """Layer 1 holds the neurons of A and B, layer 2 those of C and D; without its neuron a prompt is answered D. Nothing
    attends, so what other tokens do is the same to the last."""
    found = card._zeroing(planted, planted_queries("ABCD", "xy"), [1, 2])
    assert found[["MLPs zeroed", "accuracy"]].to_numpy().tolist() == [
        ["nothing", 1.0],
        ["layers [1, 2] at the last token", 0.25],
        ["layers [1, 2] at all other tokens", 1.0],
        ["layer 0 at the last token", 1.0],
        ["layer 1 at the last token", 0.5],
        ["layer 2 at the last token", 0.75],
    ]
    p = found["P(letter)"]
    assert p[0] == pytest.approx(p[2]) == pytest.approx(p[3]) and p[1] < p[4] < p[0] and p[1] < p[5] < p[0]


def test_what_is_zeroed_where() -> None:
    post = torch.arange(1.0, 13.0).reshape(2, 3, 2)
    last, others = at_last(post), at_others(post)
    assert last[:, :-1].equal(post[:, :-1]) and not last[:, -1].any()
    assert others[:, -1].equal(post[:, -1]) and not others[:, :-1].any()


def test_layers_that_are_none_are_refused_before_computing(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    monkeypatch.setattr(card, "load_queries", None)
    for layers in ([99], [0, -1]):
        with pytest.raises(ValueError, match=f"each of recall_layers must lie in 0 to 2, not {layers[-1]}"):
            measure_card(model_of("llama"), recall_layers=layers)
    for layers, message in (
        (["1"], "each of recall_layers must be a whole number, not '1'"),
        (1, "a list of layers, .* not 1"),
    ):
        with pytest.raises(TypeError, match=message):
            measure_card(model_of("llama"), recall_layers=layers)
    with pytest.raises(TypeError, match="model"):
        measure_card("atlas")


def test_the_card_as_markdown() -> None:
    accuracy = pd.DataFrame({"group": ["a|b"], "questions": [3], "accuracy": [2 / 3]})
    zeroing, shown = pd.DataFrame({"MLPs zeroed": ["nothing"]}), pd.DataFrame({"neurons": ["QR neurons"]})
    located = {"atlas/domains": made([("q0", 0, 1, 1.0)], {"q0": "x", "q1": "y"})}
    text = Card(accuracy, zeroing, shown, located).to_markdown()
    parts = text.split("\n## ")[1:]
    assert [part.partition("\n")[0].split(" (")[0].split(":")[0] for part in parts] == [
        "Answers",
        "Zeroing MLPs",
        "Scaling each query's QR neurons",
    ]
    assert "| group | questions | accuracy |\n| --- | --- | --- |\n| a\\|b | 3 | 0.667 |" in parts[0]
    assert "| nothing |" in parts[1] and "| QR neurons |" in parts[2]
    assert "atlas/domains: QRNeurons(2 queries in 2 groups, 0.5 QR neurons a query" in parts[2]
    lost = failed_table([Failure("q7", "x", 2, "too long")])
    assert "in no table)\n\n| query | group | prompt | reason |" in Card(accuracy, zeroing, shown, {}, lost).to_markdown()
