from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.attribution.options import answers, edited_options
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import QuerySet
from qrnca_lens.editing import effects, enhance, scale, suppress
from qrnca_lens.editing.effects import COLUMNS, edit_effects
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import to_tokens
from qrnca_lens.models.hooked import is_hooked_transformer

TEXT = "Question: which letter is right? A. one B. two Answer:"
CHOSEN = NeuronSet.of((0, 3), (2, 1), (2, 40))
MANY = NeuronSet.of(*[(layer, i) for layer in range(3) for i in range(0, 48, 3)])


def post(model: Any, ids: torch.Tensor, layer: int) -> torch.Tensor:
    _, cache = model.run_with_cache(ids, names_filter=f"blocks.{layer}.mlp.hook_post")
    return cache[f"blocks.{layer}.mlp.hook_post"][0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_scaling_is_exact_and_leaves_nothing_behind(family: str, positions: Any, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    ids = to_tokens(model, TEXT)[None]
    before, first = model(ids), post(model, ids, 0)
    with scale(model, CHOSEN, 3.0, positions=positions):
        scaled, after = post(model, ids, 0), model(ids)
    wanted = first.clone()
    wanted[-1 if positions == "last" else slice(None), 3] *= 3
    assert torch.allclose(scaled, wanted, atol=1e-6)
    assert not torch.equal(after, before)
    assert torch.equal(model(ids), before)
    if positions == "last":
        assert torch.equal(after[:, :-1], before[:, :-1])


def test_scaling_the_post_activation_is_scaling_the_up_projection(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    ids = to_tokens(model, TEXT)[None]

    def by_hand(up: torch.Tensor, hook: object) -> torch.Tensor:
        up = up.clone()
        up[:, -1, [1, 40]] *= 0.25
        return up

    wanted = model.run_with_hooks(ids, fwd_hooks=[("blocks.2.mlp.hook_pre_linear", by_hand)])
    with scale(model, NeuronSet.of((2, 1), (2, 40)), 0.25):
        assert torch.allclose(model(ids), wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("positions", [3, -2, -1, [(0, 1), (2, 4)], [(-3, -1)]])
def test_chosen_positions_are_counted_in_every_row(family: str, positions: Any, model_of: Callable[[str], Any]) -> None:
    """Against rows that are edited at the same positions, one prompt at a time; padded on both sides."""
    model, texts = model_of(family), [TEXT, "Which letter is right? Answer:"]
    wanted = read_edited(model, texts, [[(MANY, 3.0)]] * 2, [lambda logits: logits[:, -1]] * 2, positions=positions)
    tokens = [to_tokens(model, text) for text in texts]
    longest, pad = max(map(len, tokens)), model.tokenizer.pad_token_id
    for left in (False, True):
        rows = [
            [pad] * ((longest - len(ids)) * left) + ids.tolist() + [pad] * ((longest - len(ids)) * (not left))
            for ids in tokens
        ]
        ids = torch.tensor(rows)
        mask = (ids != pad).long()
        with scale(model, MANY, 3.0, positions=positions):
            logits = model(ids, attention_mask=mask)
            if left:
                with pytest.raises(ValueError, match=r"row 1 begins with '<pad>'.*cannot be counted; pass attention_mask"):
                    model(ids)
            else:
                assert torch.allclose(model(ids)[0], logits[0], atol=1e-4)
        for row, (edited, real) in enumerate(zip(wanted, mask, strict=True)):
            assert torch.allclose(logits[row, real.nonzero().max()], edited[1], atol=1e-4)
            assert not torch.allclose(edited[0], edited[1], atol=1e-3)


def test_positions_that_cannot_be_counted_are_refused(model_of: Callable[[str], Any], unchecked: None) -> None:
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    model = model_of("llama")
    ids = to_tokens(model, TEXT)[None]
    with scale(model, CHOSEN, 3.0, positions=2):
        with pytest.raises(ValueError, match=r"cannot be counted in `generate`.*scale at 'last' or 'all'"):
            model.generate(ids, max_new_tokens=2, verbose=False)
        with pytest.raises(ValueError, match="with a KV cache"):
            if is_hooked_transformer(model):
                model(ids, past_kv_cache=TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 1))
            else:
                model(ids, past_key_values=DynamicCache())
        with pytest.raises(ValueError, match="in a part of the model"):
            model.blocks[0](torch.zeros(1, 5, model.cfg.d_model))
        with pytest.raises(ValueError, match=r"the span \(2, 3\) does not lie in a prompt of 2 tokens"):
            model(ids[:, :2])
        with pytest.raises(ValueError, match="row 0 begins with '<s>', which may be padding"):
            model(torch.cat([ids[:, :1], ids], dim=1))
        assert model(ids).isfinite().all()
    wrong: list[tuple[Any, type[Exception]]] = [([], ValueError), ([(1, 2, 3)], TypeError), (1.5, TypeError)]
    for positions, error in wrong:
        with pytest.raises(error, match=r"position|span"), scale(model, CHOSEN, 3.0, positions=positions):
            pass


def test_nesting_and_exceptions(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    ids = to_tokens(model, TEXT)[None]
    before = model(ids)
    with enhance(model, CHOSEN), scale(model, CHOSEN, 0.5):
        assert torch.allclose(model(ids), before, atol=1e-5)
    with suppress(model, CHOSEN):
        once = model(ids)
        with suppress(model, Neuron(1, 1)):
            assert not torch.equal(model(ids), once)
        assert torch.equal(model(ids), once)
    with pytest.raises(RuntimeError, match="stop"), suppress(model, CHOSEN):
        raise RuntimeError("stop")
    assert torch.equal(model(ids), before)


@pytest.mark.transformer_lens_3
def test_generation_with_a_cache_scales_every_new_token(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    ids = to_tokens(model, TEXT)[None]
    with enhance(model, CHOSEN, 4.0):
        made = model.generate(ids, max_new_tokens=5, do_sample=False, verbose=False, stop_at_eos=False)
    prompt, step = ids, ids
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 1)
    for _ in range(5):
        with enhance(model, CHOSEN, 4.0):
            step = model(step, past_kv_cache=cache)[:, -1].argmax(-1)[None]
        prompt = torch.cat([prompt, step], dim=1)
    assert torch.equal(made, prompt)


def test_bad_sets_and_factors(model_of: Callable[[str], Any], unchecked: None) -> None:
    model = model_of("llama")
    for neurons, message in (
        (NeuronSet(), "the neuron set is empty"),
        (Neuron(3, 0), r"neuron L3\.N0 is outside the model"),
    ):
        with pytest.raises(ValueError, match=message), suppress(model, neurons):
            pass
    with pytest.raises(ValueError, match="finite"), enhance(model, CHOSEN, float("inf")):
        pass
    with (
        pytest.raises(ValueError, match="positions 'first' are none; give 'last', 'all'"),
        enhance(model, CHOSEN, positions="first"),
    ):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_effects_are_those_of_single_prompts(family: str, model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    """P of each prompt from a run of its own inside `suppress`; q0 is alone at its second place, without partners there."""
    model, sets = model_of(family), {"q4": CHOSEN, "q5": NeuronSet(), "q0": CHOSEN}
    queries = QuerySet(
        tuple(replace(q, prompts=q.prompts[: 2 if q.id == "q0" else 1], fact=f"fact {q.id}") for q in short_queries)
    )
    found = edit_effects(model, queries, {"mine": sets, "other": {"q4": NeuronSet.of((1, 1))}}, factors=(0.0, 1.0, 2.0))
    assert len(found) == 12 and list(found.columns) == COLUMNS
    rows = found.set_index(["method", "factor", "query"]).sort_index()

    def p(places: list[Any]) -> float:
        prompts = [queries[query].prompts[place] for query, place in places]
        found = letter_probabilities(model, prompts)
        return sum(row[prompt.right].item() for row, prompt in zip(found, prompts, strict=True)) / len(prompts)

    for query, prompts in (("q4", 1), ("q0", 2)):
        one = rows.loc[("mine", 0.0, query)]
        assert (one["unit"], one["neurons"], one["prompts"]) == (f"fact {query}", 3, prompts)
        same, other = json.loads(one["same_partners"]), json.loads(one["other_partners"])
        letters = [[queries[place[0]].prompts[0].letter for place in places if place] for places in (same, other)]
        assert letters[0] == [queries[query].prompts[0].letter] != letters[1] and len(same) == len(other) == prompts
        assert (one["same_prompts"], one["other_prompts"]) == (1, 1)
        for name, places in (("p_", [(query, i) for i in range(prompts)]), ("p_same_", same), ("p_other_", other)):
            known = [place for place in places if place]
            assert one[f"{name}before"] == pytest.approx(p(known), rel=1e-4)
            with suppress(model, CHOSEN):
                assert one[f"{name}after"] == pytest.approx(p(known), rel=1e-4)
    for key in (("mine", 0.0, "q5"), ("mine", 1.0, "q4")):
        assert rows.loc[key, "p_after"] == pytest.approx(rows.loc[key, "p_before"], rel=1e-4)
        assert rows.loc[key, "wrong_to_right"] == rows.loc[key, "right_to_wrong"] == 0
    kept = ["same_partners", "other_partners", "p_same_before", "p_other_before"]
    assert rows.loc[("other", 2.0, "q4"), kept].tolist() == rows.loc[("mine", 0.0, "q4"), kept].tolist()


def test_what_has_no_partner_is_no_number(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    """q0 and q1 differ in every letter, and there is nobody else."""
    two = QuerySet(short_queries.queries[:2])
    (row,) = edit_effects(model_of("llama"), two, {"m": {"q0": CHOSEN}}, factors=(0.0,)).to_dict("records")
    assert (row["same_prompts"], row["other_prompts"], row["same_partners"]) == (0, 3, "[null, null, null]")
    assert math.isnan(row["p_same_before"]) and math.isnan(row["p_same_after"]) and 0 < row["p_other_after"] < 1


def test_every_prompt_runs_once(
    model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def watched(model: Any, prompts: list[Prompt], edits: Any, **others: Any) -> Any:
        asked.extend(prompt.text for prompt in prompts)
        return edited_options(model, prompts, edits, **others)

    monkeypatch.setattr(effects, "edited_options", watched)
    methods = {name: {query.id: CHOSEN for query in short_queries} for name in ("one", "two")}
    assert len(edit_effects(model_of("llama"), short_queries, methods)) == 48
    assert sorted(asked) == sorted(prompt.text for query in short_queries for prompt in query.prompts)


def test_flips_count_prompts(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model = model_of("llama")
    everywhere = NeuronSet.of(*[(layer, i) for layer in range(3) for i in range(48)])
    found = edit_effects(model, short_queries, {"all": {q.id: everywhere for q in short_queries}}, factors=(0.0,))
    before = answers(model, short_queries)["right"]
    with suppress(model, everywhere):
        after = answers(model, short_queries)["right"]
    assert found["right_before"].sum() == before.sum()
    assert found["right_to_wrong"].sum() == (before & ~after).sum()
    assert found["wrong_to_right"].sum() == (~before & after).sum()


def test_effects_refuse_what_makes_no_sense(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model = model_of("llama")
    with pytest.raises(ValueError, match="at least two groups"):
        edit_effects(model, short_queries.for_group("g0"), {"m": {"q0": CHOSEN}})
    with pytest.raises(ValueError, match="method 'm' has neurons for 'q99'"):
        edit_effects(model, short_queries, {"m": {"q99": CHOSEN}})
    with pytest.raises(ValueError, match=r"neuron L9\.N0 is outside the model"):
        edit_effects(model, short_queries, {"m": {"q0": NeuronSet.of((9, 0))}})


def test_random_sets_match_number_and_layers() -> None:
    drawn = random_sets({"a": CHOSEN, "b": NeuronSet()}, d_mlp=48)
    assert {layer: len(indices) for layer, indices in drawn["a"].by_layer().items()} == {0: 1, 2: 2}
    assert drawn["b"] == NeuronSet()
    assert drawn == random_sets({"a": CHOSEN, "b": NeuronSet()}, d_mlp=48) != random_sets({"a": CHOSEN}, 48, seed=1)
