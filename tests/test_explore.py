"""Neuron cards and query views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.store import RunError
from qrnca_lens.data import LETTERS, QuerySet
from qrnca_lens.editing import scale
from qrnca_lens.engine.activity import last_activations, token_activations
from qrnca_lens.models import site_hook, to_tokens
from qrnca_lens.views import neuron, show
from qrnca_lens.views.query_view import ALL, FACTORS


def test_a_saved_run_knows_its_prompts(run: tuple[Any, QRNeurons], short_queries: QuerySet, tmp_path: Any) -> None:
    _, located = run
    assert located.asked == short_queries
    located.save(tmp_path / "run")
    assert QRNeurons.load(tmp_path / "run").asked == short_queries
    kept = located.restrict(["q0", "q4", "q5", "q7"]).asked
    assert [query.id for query in kept] == ["q0", "q4", "q5", "q7"]


def test_the_dose_response_is_what_scaling_does(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    query = located.asked["q2"]
    view = show(model, located, "q2", prompt=1)
    untouched = letter_probabilities(model, query.prompts)
    assert np.allclose(view.letters[[f"P({a})" for a in LETTERS]], untouched, atol=1e-6)
    assert view.right == query.prompts[1].letter
    assert tuple(view.curve().index) == FACTORS
    first = next(iter(located.for_query("q2")))
    for edit, neurons in ((ALL, located.for_query("q2")), (first, NeuronSet((first,)))):
        for factor in (0.0, 1.0, 2.0, 4.0):
            with scale(model, neurons, factor):
                slow = letter_probabilities(model, [query.prompts[1]])[0]
            assert np.allclose(view.curve(edit).loc[factor], slow, atol=1e-5)
    assert view.to_frame()["P x 0"].iloc[0] == pytest.approx(view.curve(first).loc[0.0, view.right])
    with pytest.raises(KeyError, match=r"no edit 'L9.N9' here"):
        view.curve("L9.N9")


@pytest.mark.usefixtures("unchecked")
def test_views_refuse_what_is_no_run_or_no_neuron(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    with pytest.raises(
        TypeError, match=r"expected a QRNeurons .* found (Hooked)?Transformer(Bridge)?; the order is show\(model, located"
    ):
        show(located, model, "q1")  # type: ignore[arg-type]
    by_hand = QRNeurons(located.clusters, located.queries, located.config, located.model)
    with pytest.raises(RunError, match=r"holds no prompts"):
        neuron(model, 0, 1, located=by_hand)
    for layer, index in (("0", 1), (0.7, 1), (True, 1), (0, None)):
        with pytest.raises(TypeError, match=r"a neuron's (layer|index) must be a whole number, not"):
            neuron(model, layer, index, located=located)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"effects_on is a list of texts; give \['q9'\]"):
        neuron(model, 0, 1, located=located, effects_on="q9")
    with pytest.raises(KeyError, match=r"no query 'q99' among the 12"):
        neuron(model, 0, 1, located=located, effects_on=["q99"])


def test_views_refuse_what_does_not_exist(run: tuple[Any, QRNeurons], model_of: Callable[[str], Any]) -> None:
    model, located = run
    with pytest.raises(KeyError, match=r"no query 'q111' among the 12 of this result; the nearest is 'q11'"):
        show(model, located, "q111")
    with pytest.raises(ValueError, match=r"prompts 0 to 2, not 5"):
        show(model, located, "q1", prompt=5)
    with pytest.raises(ValueError, match=r"neuron L3.N0 is outside the model: it has layers 0 to 2 of 48 neurons each"):
        neuron(model, 3, 0, located=located)
    for other in (lambda: show(model_of("mistral"), located, "q1"), lambda: neuron(model_of("gpt2"), 0, 0, located=located)):
        with pytest.raises(RunError, match=r"this run was made with 'llama'"):
            other()
    with pytest.raises(RunError, match=r"made with 'llama'; load that model and give it as model="):
        show(None, located, "q1")
    by_hand = QRNeurons(located.clusters, located.queries, located.config, located.model)
    with pytest.raises(RunError, match=r"holds no prompts"):
        show(model, by_hand, "q1")


def test_a_written_weight_makes_it_another_model(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    show(model, located, "q0")
    weight = model.blocks[0].mlp.W_out
    old = weight[0, 0].item()
    try:
        weight[0, 0] += 1
        with pytest.raises(RunError, match=r"this run was made with"):
            show(model, located, "q0")
    finally:
        weight[0, 0] = old
    show(model, located, "q0")


def test_the_card_holds_what_slow_ways_give(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    top = located.top(1).iloc[0]
    chosen = Neuron(int(top["layer"]), int(top["neuron"]))
    card = neuron(model, chosen.layer, chosen.index, located=located)
    asked = [(query, prompt) for query in located.asked for prompt in query.prompts]
    name = site_hook(model, chosen.layer, "post")
    for value, (_, prompt) in zip(card.activity["activation"], asked, strict=True):
        _, cache = model.run_with_cache(to_tokens(model, prompt.text)[None])
        assert value == pytest.approx(cache[name][0, -1, chosen.index].item(), rel=1e-4, abs=1e-6)
    for row in card.effects.to_dict("records"):
        query = located.asked[row["query"]]
        for factor, column in ((1.0, "P untouched"), (0.0, "P ablated (x 0)"), (2.0, "P doubled (x 2)")):
            with scale(model, chosen, factor):
                p = letter_probabilities(model, query.prompts)
            right = [p[i, LETTERS.index(prompt.letter)].item() for i, prompt in enumerate(query.prompts)]
            assert row[column] == pytest.approx(np.mean(right), abs=1e-5)
    mine = located.table[(located.table["layer"] == chosen.layer) & (located.table["neuron"] == chosen.index)]
    assert set(card.scores.loc[card.scores["rank"].notna(), "query"]) == set(mine["query"])
    assert card.by_group()["naica"].sum() == pytest.approx(mine["naica"].sum())
    assert card.common == (chosen in located.common_set)
    assert len(card.to_frame()) == 12


def test_a_card_takes_whole_numbers_of_any_kind_and_queries_of_ones_own(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    top = located.top(1).iloc[0]
    card = neuron(model, np.int64(top["layer"]), np.int64(top["neuron"]), located=located, effects_on=["q7", "q2"])
    same = neuron(model, int(top["layer"]), int(top["neuron"]), located=located)
    assert card.scores.equals(same.scores) and len(same.scores)
    assert card.effects["query"].tolist() == ["q7", "q2"]
    letters = card.by_letter()
    assert letters["prompts"].sum() == len(card.activity) == 36
    right = {prompt.text: prompt.letter for query in located.asked for prompt in query.prompts}
    assert letters.set_index("letter")["prompts"].to_dict() == dict(sorted(Counter(right.values()).items()))


def test_a_common_neuron_has_no_rank(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    common = next(iter(located.common_set))
    card = neuron(model, common.layer, common.index, located=located)
    assert card.common and card.scores["rank"].isna().all() and len(card.effects)
    page = card.to_html()
    assert "A common neuron: it is in " in page
    assert "nan" not in page.replace("naica", "")


def test_examples_keep_the_signs_apart(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    card = neuron(model, 1, 3, located=located)
    values = card.activity["activation"]
    best, worst = card.examples["highest positive"], card.examples["lowest negative"]
    assert all(example.values[-1] > 0 for example in best)
    assert all(example.values[-1] < 0 for example in worst)
    for found, extreme in ((best, values.max()), (worst, values.min())):
        if found:
            assert found[0].values[-1] == pytest.approx(extreme, rel=1e-4)
            assert len({example.query for example in found}) == len(found)
    assert best or worst


def test_neighbours_are_cosines_of_naica(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    wide = located.scored.pivot_table(index=["layer", "neuron"], columns="query", values="naica", fill_value=0.0)
    key = wide.index[int(np.argmax((wide > 0).sum(axis=1)))]
    card = neuron(model, int(key[0]), int(key[1]), located=located)
    assert len(card.neighbours)
    for row in card.neighbours.itertuples():
        a, b = wide.loc[key].to_numpy(), wide.loc[(row.layer, row.neuron)].to_numpy()
        assert row.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    lone = next(n for n in (Neuron(0, i) for i in range(48)) if (n.layer, n.index) not in wide.index)
    empty = neuron(model, lone.layer, lone.index, located=located)
    assert empty.neighbours.empty and empty.effects.empty and "in no query" in empty.to_html()


def test_reading_directions_are_those_of_the_embeddings(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    card = neuron(model, 1, 3, located=located)
    assert list(card.reads["input"].unique()) == ["gate", "up"]
    seen = model.blocks[1].ln2(model.W_E[: len(model.tokenizer)][None])[0] @ model.blocks[1].mlp.W_gate[:, 3]
    assert card.reads.query("input == 'gate'")["raised"].iloc[0] == pytest.approx(seen.max().item(), rel=1e-5)
    assert card.reads.query("input == 'gate'")["lowered"].iloc[0] == pytest.approx(seen.min().item(), rel=1e-5)


def test_prompts_that_do_not_fit_together_are_read_in_smaller_batches(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, texts, sizes = model_of("llama"), [f"Question {i}: which?" for i in range(7)], []
    wanted = last_activations(model, texts, NeuronSet.of((1, 3)))
    each = [values for _, values in token_activations(model, texts, Neuron(1, 3))]
    run = model.run_with_cache

    def small(tokens: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(tokens, **options)

    monkeypatch.setattr(model, "run_with_cache", small)
    assert torch.allclose(last_activations(model, texts, NeuronSet.of((1, 3))), wanted, atol=1e-6)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    for found, values in zip(token_activations(model, texts, Neuron(1, 3)), each, strict=True):
        assert torch.allclose(found[1], values, atol=1e-6)
    assert sizes[9:] == sizes[:9]


def test_last_activations_of_many_prompts_equal_those_of_one(model_of: Callable[[str], Any]) -> None:
    model, chosen = model_of("mistral"), NeuronSet.of((0, 1), (2, 40), (2, 3))
    texts = ["A short one:", "A rather longer one than that:", "Another one"]
    together = last_activations(model, texts, chosen)
    for row, text in zip(together, texts, strict=True):
        assert torch.allclose(row, last_activations(model, [text], chosen)[0], atol=1e-5)
    _, cache = model.run_with_cache(to_tokens(model, texts[1])[None])
    assert together[1, 1].item() == pytest.approx(cache["blocks.2.mlp.hook_post"][0, -1, 3].item(), rel=1e-4)
