from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.data import LETTERS, Prompt, Query, QuerySet
from qrnca_lens.editing import scale
from qrnca_lens.explore import Explorer, circuit, neuron, show, write_explorer
from qrnca_lens.explore import html as pieces
from qrnca_lens.explore.components import attention_patterns, coloured_tokens, component, library
from qrnca_lens.explore.query_view import ALL, FACTORS
from qrnca_lens.models import ModelError, option_tokens, site_hook, to_tokens
from qrnca_lens.models.activity import last_activations
from qrnca_lens.models.letters import letter_probabilities
from qrnca_lens.neurons import Neuron, NeuronSet
from qrnca_lens.pipeline import locate
from qrnca_lens.store import RunError

HOSTILE = '</script><img src=x onerror=window.hacked=1> & "quotes" <b>'
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gpt-neox", "opt")


@pytest.fixture(scope="module")
def located_of(model_of: Callable[[str], Any], short_queries: QuerySet) -> Callable[[str], QRNeurons]:
    """A run of a family's tiny model over the short queries, made once."""
    made: dict[str, QRNeurons] = {}

    def get(family: str) -> QRNeurons:
        if family not in made:
            made[family] = located_for(model_of(family), short_queries)
        return made[family]

    return get


@pytest.fixture
def run(model_of: Callable[[str], Any], located_of: Callable[[str], QRNeurons]) -> tuple[Any, QRNeurons]:
    return model_of("llama"), located_of("llama")


def test_a_saved_run_knows_its_prompts(run: tuple[Any, QRNeurons], short_queries: QuerySet, tmp_path: Any) -> None:
    _, located = run
    assert located.asked == short_queries
    located.save(tmp_path / "run")
    assert QRNeurons.load(tmp_path / "run").asked == short_queries
    kept = located.restrict(["q0", "q4", "q5", "q7"]).asked
    assert [query.id for query in kept] == ["q0", "q4", "q5", "q7"]


def located_for(model: Any, queries: QuerySet) -> QRNeurons:
    return locate(model, queries, QRNCAConfig(steps=2), progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_add_up_to_what_the_model_computes(
    family: str, model_of: Callable[[str], Any], located_of: Callable[[str], QRNeurons], short_queries: QuerySet
) -> None:
    model, located = model_of(family), located_of(family)
    chosen = NeuronSet.of((0, 3), (1, 7), (2, 1))
    found = circuit(model, located, "q1", chosen, prompt=2)
    tokens = to_tokens(model, short_queries["q1"].prompts[2].text)
    _, cache = model.run_with_cache(tokens[None])
    for (layer, index, site), rows in found.contributions.groupby(["layer", "neuron", "input"]):
        direct = cache[site_hook(model, layer, site)][0, -1, index].item()
        assert rows["value"].sum() == pytest.approx(direct, rel=1e-4, abs=1e-5)
        remainder = rows.loc[rows["kind"] == "remainder", "value"].item()
        assert abs(remainder) < 1e-4 * rows["value"].abs().sum()
    for row in found.writes.itertuples():
        assert row.activation == pytest.approx(
            cache[site_hook(model, row.layer, "post")][0, -1, row.neuron].item(), rel=1e-5
        )
    shares = found.attention.drop(columns=["layer", "head"]).sum(axis=1)
    assert np.allclose(shares, 1, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_head_contributes_what_its_removal_takes_away(
    family: str, model_of: Callable[[str], Any], located_of: Callable[[str], QRNeurons], short_queries: QuerySet
) -> None:
    """The head of the neuron's own layer, the norm's scale held: an intervention on the model, not the same sum again."""
    model, chosen, layer, head = model_of(family), Neuron(1, 5), 1, 2
    found = circuit(model, located_of(family), "q0", chosen).of(chosen)
    tokens = to_tokens(model, short_queries["q0"].prompts[0].text)[None]
    _, cache = model.run_with_cache(tokens)

    def without(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        z[:, -1, head] = 0
        return z

    def held(norm_scale: torch.Tensor, hook: Any) -> torch.Tensor:
        return cache[hook.name]

    seen: dict[str, torch.Tensor] = {}
    for site in found["input"].unique():
        name = site_hook(model, layer, site)
        hooks = [(f"blocks.{layer}.attn.hook_z", without), (f"blocks.{layer}.ln2.hook_scale", held)]
        hooks.append((name, lambda tensor, hook: seen.update({hook.name: tensor.clone()})))
        model.run_with_hooks(tokens, fwd_hooks=hooks)
        change = (cache[name] - seen[name])[0, -1, chosen.index].item()
        told = found[(found["input"] == site) & (found["source"] == f"L{layer}H{head}")]["value"].item()
        assert told == pytest.approx(change, rel=1e-3, abs=1e-5)


def test_writes_are_what_the_letters_lose_without_the_neuron(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    """In the last layer nothing lies between a neuron and the logits but the final norm, whose scale is held."""
    model, located = run
    prompt, chosen = short_queries["q0"].prompts[0], Neuron(2, 4)
    found = circuit(model, located, "q0", chosen)
    tokens = to_tokens(model, prompt.text)[None]
    before, cache = model.run_with_cache(tokens)
    with scale(model, chosen, 0.0):
        after = model.run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_scale", lambda _, hook: cache[hook.name])])
    ids = list(option_tokens(model.tokenizer, prompt.text).ids)
    lost = (before - after)[0, -1, ids].tolist()
    assert found.writes[list(LETTERS)].iloc[0].tolist() == pytest.approx(lost, rel=1e-3, abs=1e-5)


def test_a_circuit_that_would_be_wrong_is_refused(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_mid", lambda resid, hook: resid + torch.arange(32))]),
        pytest.raises(ModelError, match=r"layer 1 of llama: the contributions do not add up"),
    ):
        circuit(model, located, "q0", Neuron(1, 0))
    with pytest.raises(ValueError, match=r"neuron L9.N0 is outside the model"):
        circuit(model, located, "q0", Neuron(9, 0))
    with pytest.raises(KeyError, match=r"L0.N1 is not in this circuit; there are L1.N0"):
        circuit(model, located, "q0", Neuron(1, 0)).of(Neuron(0, 1))
    with pytest.raises(ValueError, match=r"has prompts 0 to 2, not 3"):
        circuit(model, located, "q0", prompt=3)


def test_regions_name_the_question_and_the_options(atlas: Any) -> None:
    from qrnca_lens.data import load_queries

    queries = load_queries("atlas/domains").sample(2)
    found = circuit(atlas, located_for(atlas, queries), queries.queries[0].id, Neuron(1, 0))
    assert list(found.attention.columns[2:]) == ["rest", "question", "option A", "option B", "option C", "option D"]
    assert set(found.heads) <= {(layer, head) for layer in (0, 1) for head in range(4)}
    assert found.patterns.shape == (6, len(found.tokens), len(found.tokens))
    assert "".join(found.tokens).endswith(queries.queries[0].prompts[0].text[-20:])


def test_the_dose_response_is_what_scaling_does(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    query = located.asked["q2"]
    view = show(located, "q2", model, prompt=1)
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


def test_views_refuse_what_does_not_exist(run: tuple[Any, QRNeurons], model_of: Callable[[str], Any]) -> None:
    model, located = run
    with pytest.raises(KeyError, match=r"no query 'q111' among the 12 of this result; the nearest is 'q11'"):
        show(located, "q111", model)
    with pytest.raises(ValueError, match=r"prompts 0 to 2, not 5"):
        show(located, "q1", model, prompt=5)
    with pytest.raises(ValueError, match=r"neuron L3.N0 is outside the model: it has layers 0 to 2 of 48 neurons each"):
        neuron(model, 3, 0, located=located)
    for other in (lambda: show(located, "q1", model_of("mistral")), lambda: neuron(model_of("gpt2"), 0, 0, located=located)):
        with pytest.raises(RunError, match=r"this run was made with 'llama'"):
            other()
    with pytest.raises(RunError, match=r"made with 'llama'; load that model and give it as model="):
        show(located, "q1")
    by_hand = QRNeurons(located.clusters, located.queries, located.config, located.model)
    with pytest.raises(RunError, match=r"holds no prompts"):
        show(by_hand, "q1", model)


def test_a_written_weight_makes_it_another_model(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    show(located, "q0", model)
    weight = model.blocks[0].mlp.W_out
    old = weight[0, 0].item()
    try:
        weight[0, 0] += 1
        with pytest.raises(RunError, match=r"this run was made with"):
            show(located, "q0", model)
    finally:
        weight[0, 0] = old
    show(located, "q0", model)


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


def test_last_activations_of_many_prompts_equal_those_of_one(model_of: Callable[[str], Any]) -> None:
    model, chosen = model_of("mistral"), NeuronSet.of((0, 1), (2, 40), (2, 3))
    texts = ["A short one:", "A rather longer one than that:", "Another one"]
    together = last_activations(model, texts, chosen)
    for row, text in zip(together, texts, strict=True):
        assert torch.allclose(row, last_activations(model, [text], chosen)[0], atol=1e-5)
    _, cache = model.run_with_cache(to_tokens(model, texts[1])[None])
    assert together[1, 1].item() == pytest.approx(cache["blocks.2.mlp.hook_post"][0, -1, 3].item(), rel=1e-4)


def hostile_queries() -> QuerySet:
    def prompts(i: int) -> tuple[Prompt, ...]:
        return tuple(Prompt(f"{HOSTILE} {7 * i + j}\nAnswer:", "ABCD"[(i + j) % 4]) for j in range(2))

    return QuerySet(tuple(Query(f"q{i}<b>", f"g{i % 2}<i>", prompts(i), HOSTILE, "a") for i in range(8)), "hostile")


def test_views_escape_what_they_show_and_ask_no_network(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model, queries = model_of("llama"), hostile_queries()
    located = located_for(model, queries)

    def refuse(*_: object) -> None:
        raise AssertionError("a view went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    first = next(iter(located.for_query("q0<b>")), Neuron(1, 1))
    card = neuron(model, first.layer, first.index, located=located)
    views = [show(located, "q0<b>", model), card, circuit(model, located, "q0<b>", first)]
    for view in views:
        body = view.to_html()
        assert "<img" not in body and "</script" not in body and "<b>\n" not in body
        shown = view._repr_html_().replace(library(), "")
        assert shown.count("</script") == shown.count("<script")
        assert not re.search(r"<[a-z][^<>]*\s(?:src|href)\s*=|https?://", shown)
    page = write_explorer(located, tmp_path / "page.html", model, progress=False).read_text("utf-8")
    own = page.replace(library(), "")
    assert len(page) - len(own) == len(library()), "the script of CircuitsVis stands in the page once"
    assert own.count("</script") == own.count("<script")
    assert "<img" not in own


def test_the_script_goes_into_the_first_output_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_SENT", set())
    assert library() in pieces.notebook_html("<p>1</p>")
    assert library() not in pieces.notebook_html("<p>2</p>")
    assert "sourceMappingURL" not in library()
    assert "</script" not in library()


def test_components_carry_their_numbers() -> None:
    made = coloured_tokens(["a", HOSTILE], np.array([0.5, -1.0]))
    assert "<img" not in made
    assert 'data-component="ColoredTokens"' in made
    assert "rgba(230,159,0,0.38)" in made
    listed = attention_patterns(["x", "y"], np.array([[[1.0, 0.0], [0.25, 0.75]]]), ["L0H1"])
    assert "y 0.75, x 0.25" in listed
    with pytest.raises(ValueError):
        component("ColoredTokens", "", values=[float("nan")])


def test_the_explorer_follows_python(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    model, located = run
    explorer = Explorer(model, short_queries, located)
    first = located.table.nlargest(1, "naica").iloc[0]
    assert (explorer.selected["query"], explorer.neuron) == (
        first["query"],
        Neuron(int(first["layer"]), int(first["neuron"])),
    )
    assert type(explorer.selected["layer"]) is int
    second = list(located.for_query("q3"))[1]
    explorer.selected = {"query": "q3", "layer": second.layer, "neuron": second.index, "factor": 0, "scope": "neuron"}
    assert explorer.neuron == second
    assert f"<h2>{second}</h2>" in explorer.view["card"]
    for scope, neurons in (("neuron", NeuronSet((second,))), ("all", located.for_query("q3"))):
        explorer.selected = {"scope": scope}
        with scale(model, neurons, 0.0):
            p = letter_probabilities(model, short_queries["q3"].prompts[:1])[0]
        assert list(explorer.letters.values()) == pytest.approx(p.tolist(), abs=1e-5)
    stranger = next(Neuron(0, i) for i in range(48) if Neuron(0, i) not in located.for_query("q3"))
    explorer.selected = {"layer": 0, "neuron": stranger.index}
    assert f"<h2>{stranger}</h2>" in explorer.view["card"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "q12"}, "the nearest is 'q11'|the nearest is 'q1'|the nearest is 'q2'"),
        ({"group": "g9"}, "no group 'g9'; there are all groups, g0, g1, g2"),
        ({"neuron": 48}, "outside the model"),
        ({"factor": 0.3}, "factor must be one of 0, 0.25"),
        ({"scope": "both"}, "scope must be 'neuron' or 'all'"),
    ],
)
def test_the_explorer_refuses_what_does_not_exist(
    change: dict[str, Any], message: str, run: tuple[Any, QRNeurons], short_queries: QuerySet
) -> None:
    explorer = Explorer(run[0], short_queries, run[1])
    before = dict(explorer.selected)
    with pytest.raises((KeyError, ValueError), match=message):
        explorer.selected = change
    assert explorer.selected == before


def test_the_explorer_needs_the_runs_queries(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    with pytest.raises(RunError, match=r"query 'q1' of the run is not in short with the same prompts"):
        Explorer(run[0], short_queries.keep(["q0"]), run[1])


def test_a_query_without_neurons_is_told_so(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    model, located = run
    clusters = located.clusters[located.clusters["query"] != "q5"].reset_index(drop=True)
    without = QRNeurons(clusters, located.queries, located.config, located.model, {}, located.asked)
    explorer = Explorer(model, short_queries, without)
    explorer.selected = {"query": "q5", "layer": None, "neuron": None}
    assert "no QR neurons" in explorer.view["card"]
    assert explorer.neuron is None
    assert isinstance(show(without, "q5", model).to_html(), str)
    assert isinstance(show(without, "q5", model).to_frame(), pd.DataFrame)
    with pytest.raises(ValueError, match=r"no QR neurons; give the neurons"):
        circuit(model, without, "q5")
