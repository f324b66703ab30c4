"""What an edit does elsewhere: on a model whose neurons are known, and against runs of single prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from handmade import planted_queries, writers

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import LETTERS, QuerySet
from qrnca_lens.editing.collateral import (
    LOSS_COLUMNS,
    NEUTRAL_TEXT,
    OTHERS_COLUMNS,
    neutral_loss,
    neutral_text,
    other_queries,
)
from qrnca_lens.models import ModelError, site_hook, to_tokens

SOME = NeuronSet.of((0, 3), (1, 17), (2, 1), (2, 40))
WORDS = "The path followed the river"


def test_other_queries_by_hand(planted: Any) -> None:
    """One query a letter; without its neuron a query is answered D. The owner itself does not count, nor a second prompt.

    B's neuron matters to B alone. C's neuron, edited for A, turns one of the three others; all four neurons, edited for D,
    turn all three; D's neuron, edited for B, leaves D right, and less likely.
    """
    queries = planted_queries(["AB", "BA", "CD", "DC"], ["x", "y"])
    a, b, c, d = (query.id for query in queries)
    found = other_queries(planted, queries, {b: writers("B"), a: writers("C"), d: writers("ABCD"), c: writers("D")}, 0.0)
    assert list(found.columns) == OTHERS_COLUMNS
    assert found["query"].tolist() == [b, a, d, c]
    assert found["accuracy_before"].tolist() == [1.0] * 4
    assert found["accuracy_after"].tolist() == pytest.approx([1.0, 2 / 3, 0.0, 1.0])
    p = {query.id: letter_probabilities(planted, query.prompts[:1]).max().item() for query in queries}
    assert found["p_before"].tolist() == pytest.approx([(sum(p.values()) - p[key]) / 3 for key in (b, a, d, c)])
    assert found["p_after"][0] == pytest.approx(found["p_before"][0])
    assert all(found["p_after"][1:] < found["p_before"][1:])


def test_other_queries_against_single_prompts(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model = model_of("llama")
    found = other_queries(model, short_queries, {"q4": SOME, "q7": NeuronSet()}, 3.0)
    prompts = {query.id: query.prompts[0] for query in short_queries if query.id != "q4"}

    def triple(post: torch.Tensor, hook: Any) -> torch.Tensor:
        indices = SOME.by_layer()[hook.layer()]
        post[:, -1, indices] = 3 * post[:, -1, indices]
        return post

    def p(hooks: list[Any]) -> list[float]:
        with model.hooks(fwd_hooks=hooks):
            letters = [letter_probabilities(model, [prompt])[0] for prompt in prompts.values()]
        right = [LETTERS.index(prompt.letter) for prompt in prompts.values()]
        hits = [int(row.argmax()) == i for row, i in zip(letters, right, strict=True)]
        return [sum(hits) / 11, sum(row[i].item() for row, i in zip(letters, right, strict=True)) / 11]

    before, after = p([]), p([(site_hook(model, layer, "post"), triple) for layer in SOME.by_layer()])
    assert abs(after[1] - before[1]) > 1e-4
    assert found.iloc[0, 1:].tolist() == pytest.approx([before[0], after[0], before[1], after[1]], rel=1e-4)
    assert found["p_after"][1] == pytest.approx(found["p_before"][1])


def test_neutral_loss_is_the_mean_surprise_of_the_next_tokens(model_of: Callable[[str], Any]) -> None:
    """Against log-probabilities read one by one, the neurons scaled at all positions by a hook of the test's own."""
    model = model_of("llama")
    found = neutral_loss(model, {"q1": SOME, "q2": NeuronSet()}, 3.0, WORDS)
    assert list(found.columns) == LOSS_COLUMNS
    tokens = to_tokens(model, WORDS)

    def triple(post: torch.Tensor, hook: Any) -> torch.Tensor:
        indices = SOME.by_layer()[hook.layer()]
        post[:, :, indices] = 3 * post[:, :, indices]
        return post

    def surprise(hooks: list[Any]) -> float:
        with model.hooks(fwd_hooks=hooks), torch.no_grad():
            told = model(tokens[None])[0].log_softmax(-1)
        return sum(-told[i, token].item() for i, token in enumerate(tokens[1:])) / (len(tokens) - 1)

    before, after = surprise([]), surprise([(site_hook(model, layer, "post"), triple) for layer in SOME.by_layer()])
    assert abs(after - before) > 1e-3
    assert found["query"].tolist() == ["q1", "q2"]
    assert found["loss_before"].tolist() == pytest.approx([before, before], rel=1e-5)
    assert found["loss_after"].tolist() == pytest.approx([after, before], rel=1e-5)


def test_the_neutral_text_is_cut_to_what_the_model_holds(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = model_of("llama"), NEUTRAL_TEXT.split(" ")
    kept = neutral_text(model).split(" ")
    assert kept == words[: len(kept)]
    to_tokens(model, " ".join(kept))
    with pytest.raises(ModelError, match="context holds 128"):
        to_tokens(model, " ".join(words[: len(kept) + 1]))
    monkeypatch.setattr(model.cfg, "n_ctx", 1000)
    assert neutral_text(model) == NEUTRAL_TEXT
    monkeypatch.setattr(model.cfg, "n_ctx", 2)
    with pytest.raises(ModelError, match="context of 2 tokens does not hold two words"):
        neutral_text(model)
