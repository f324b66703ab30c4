"""The circuit of a query's neurons: contributions, writes, attention, regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import LETTERS, Prompt, QuerySet, load_queries
from qrnca_lens.editing import scale
from qrnca_lens.models import ModelError, load_model, site_hook, to_tokens
from qrnca_lens.readout.contributions import regions
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.views import Explorer, circuit, write_explorer
from qrnca_lens.views.circuits import ask, circuit_of

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gpt2",
    "gpt-neox",
    "opt",
    "phi",
    "llama-bias",
    "mpt",
    "granite",
)
TEXT = "What is a blood group?\nOptions:\nA) O\nB) A\nC) B\nD) AB\nAnswer:"


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


@pytest.mark.transformer_lens_3
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
    ids = list(option_tokens(model, prompt.text).ids)
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


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_one_run_gives_the_circuits_that_a_run_for_each_neuron_gives(
    family: str, model_of: Callable[[str], Any], located_of: Callable[[str], QRNeurons]
) -> None:
    model, located = model_of(family), located_of(family)
    asked = ask(model, located.asked["q1"], 1, located.model.n_layers - 1)
    for chosen in (Neuron(2, 5), Neuron(0, 3), Neuron(1, 7)):
        alone, drawn = circuit(model, located, "q1", chosen, prompt=1), circuit_of(asked, NeuronSet((chosen,)))
        assert (drawn.tokens, drawn.heads) == (alone.tokens, alone.heads)
        for name in ("inputs", "contributions", "writes", "attention"):
            pd.testing.assert_frame_equal(getattr(drawn, name), getattr(alone, name), check_exact=True)
        assert np.array_equal(drawn.patterns, alone.patterns)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_models_with_a_norm_after_the_mlp_have_no_circuit_but_a_card(
    family: str,
    model_of: Callable[[str], Any],
    located_of: Callable[[str], QRNeurons],
    short_queries: QuerySet,
    tmp_path: Any,
) -> None:
    model, located = model_of(family), located_of(family)
    query = located.table["query"].iloc[0]
    with pytest.raises(ModelError, match=r"the contributions do not add up"):
        circuit(model, located, query)
    view = Explorer(model, short_queries, located).view
    assert "do not add up" in view["circuit"] and "<h2>" in view["card"]
    assert write_explorer(model, located, tmp_path / "page.html", per_group=1, top=1, progress=False).is_file()


def test_heads_are_the_strongest_and_patterns_and_shares_are_theirs(atlas: Any) -> None:
    queries = load_queries("atlas/domains").sample(2)
    query, chosen = queries.queries[0], Neuron(2, 5)
    found = circuit(atlas, locate(atlas, queries, QRNCAConfig(steps=2), progress=False), query.id, chosen)
    heads = found.contributions[found.contributions["kind"] == "head"]
    sizes = heads["value"].abs().groupby(heads["source"]).sum().to_dict()
    assert [f"L{layer}H{head}" for layer, head in found.heads] == sorted(sizes, key=sizes.__getitem__, reverse=True)[:6]
    text = query.prompts[0].text
    _, cache = atlas.run_with_cache(to_tokens(atlas, text)[None])
    for (layer, head), pattern in zip(found.heads, found.patterns, strict=True):
        assert np.allclose(pattern, cache[f"blocks.{layer}.attn.hook_pattern"][0, head], atol=1e-6)
    assert list(found.attention.columns[2:]) == ["rest", "question", "option A", "option B", "option C", "option D"]
    where = regions(atlas, query.prompts[0], query.question)
    for row in found.attention.to_dict("records"):
        looks = cache[f"blocks.{row['layer']}.attn.hook_pattern"][0, row["head"], -1].tolist()
        for region in set(where):
            share = sum(look for look, at in zip(looks, where, strict=True) if at == region)
            assert row[region] == pytest.approx(share, abs=1e-6)
    assert len(found.attention) == 3 * atlas.cfg.n_heads


def test_regions_hold_their_own_texts(atlas: Any) -> None:
    """Options of one letter also stand in "Options" and are themselves labels."""
    prompt = Prompt(TEXT, "A", options=("O", "A", "B", "AB"))
    spans = atlas.tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]
    held: dict[str, str] = {}
    for region, (start, end) in zip(regions(atlas, prompt, "What is a blood group?"), spans, strict=True):
        held[region] = held.get(region, "") + TEXT[start:end]
    del held["rest"]
    wanted = ("What is a blood group?", "O", "A", "B", "AB")
    assert {name: text.strip() for name, text in held.items()} == dict(
        zip(("question", *(f"option {a}" for a in "ABCD")), wanted, strict=True)
    )


@pytest.mark.usefixtures("unchecked")
def test_neurons_to_look_at_must_be_some(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    with pytest.raises(ValueError, match=r"the neuron set is empty; give the neurons to look at"):
        circuit(model, located, "q1", [])
    with pytest.raises(TypeError, match=r"expected neurons, found 1; make them with Neuron"):
        circuit(model, located, "q1", (1, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("prepends", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_circuits_with_and_without_a_bos(family: str, prepends: bool, folder_of: Any, short_queries: QuerySet) -> None:
    model = load_model(folder_of(family), device="cpu")
    model.cfg.default_prepend_bos = prepends
    queries = short_queries.sample(4)
    located = locate(model, queries, QRNCAConfig(steps=2), progress=False)
    found = circuit(model, located, "q0", Neuron(1, 2))
    assert len(found.tokens) == len(to_tokens(model, queries["q0"].prompts[0].text))
    regions = found.attention.drop(columns=["layer", "head"])
    assert np.allclose(regions.sum(axis=1), 1, atol=1e-4)


def test_regions_follow_the_tokens_that_are_read(model_of: Any) -> None:
    model = model_of("llama")
    prompt = Prompt("Why?\nA. one\nB. two\nC. three\nD. four\nAnswer:", "A", "", ("one", "two", "three", "four"))
    there = regions(model, prompt, "Why?")
    assert len(there) == len(to_tokens(model, prompt.text))
    assert there[0] == "rest"  # the BOS
    text = [model.tokenizer.decode([i]) for i in to_tokens(model, prompt.text).tolist()]
    for name, part in (("question", "Why?"), ("option B", "two")):
        assert "".join(t for t, r in zip(text, there, strict=True) if r == name).strip() == part


def test_several_neurons_of_one_layer_write_what_each_writes_alone(model_of: Any, located_of: Any) -> None:
    model, located, several = model_of("gemma"), located_of("gemma"), NeuronSet.of((1, 2), (1, 9), (2, 4), (2, 5))
    together = circuit(model, located, "q0", several).writes
    alone = pd.concat([circuit(model, located, "q0", one).writes for one in several], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone, rtol=1e-4, atol=1e-6)
