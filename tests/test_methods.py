from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from runs import LONG
from test_rankings import LOCATED

from qrnca_lens.attribution import AttributionError, attribute
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.editing import suppress
from qrnca_lens.methods import (
    METHODS,
    Asked,
    Evidence,
    Ranking,
    Sets,
    ablate_each,
    at_most,
    find_at_equal_counts,
    find_neurons,
    rank_neurons,
    register,
    register_ranking,
    score,
)
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import to_tokens
from qrnca_lens.runs.pipeline import FailedQueriesWarning, locate

PROMPT = Prompt("Which letter is right?\nAnswer:", "B")


def p_right(model: Any) -> float:
    logits = model(to_tokens(model, PROMPT.text)[None])[0, -1]
    return logits.softmax(-1)[option_tokens(model, PROMPT.text).id_of("B")].item()


def test_exact_ablation_is_the_effect_of_the_intervention(model_of: Callable[[str], Any]) -> None:
    for family in ("llama", "gpt2", "opt"):
        model = model_of(family)
        scores = score(model, PROMPT, "ablation")
        untouched = p_right(model)
        for layer, index in ((0, 5), (1, 47), (2, 0)):
            with suppress(model, Neuron(layer, index)):
                assert scores[layer, index].item() == pytest.approx(untouched - p_right(model), abs=1e-6)
    asked = Asked(model_of("llama"), PROMPT, option_tokens(model_of("llama"), PROMPT.text))
    few = ablate_each(asked, NeuronSet.of((2, 0), (0, 5)))
    everything = score(model_of("llama"), PROMPT, "ablation")
    assert torch.allclose(few, torch.stack([everything[2, 0], everything[0, 5]]), atol=1e-7)


def test_activation_is_what_w_out_multiplies(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    _, cache = model.run_with_cache(to_tokens(model, PROMPT.text)[None])
    posts = cache["blocks.1.mlp.hook_post"][0, -1]
    assert (posts < 0).any()
    assert torch.equal(score(model, PROMPT, "activation")[1], posts)
    assert torch.equal(score(model, PROMPT, "activation-absolute")[1], posts.abs())


def test_gradient_times_activation_by_autograd(model_of: Callable[[str], Any]) -> None:
    model, layer = model_of("gpt2"), 1
    kept: dict[str, torch.Tensor] = {}

    def keep(post: torch.Tensor, hook: object) -> torch.Tensor:
        kept["post"] = post.detach().requires_grad_(True)
        return kept["post"]

    with torch.enable_grad():
        logits = model.run_with_hooks(to_tokens(model, PROMPT.text)[None], fwd_hooks=[("blocks.1.mlp.hook_post", keep)])
        logits[0, -1].softmax(-1)[option_tokens(model, PROMPT.text).id_of("B")].backward()
    assert kept["post"].grad is not None
    wanted = (kept["post"] * kept["post"].grad)[0, -1].detach()
    assert torch.allclose(score(model, PROMPT, "gradient")[layer], wanted, atol=1e-7)


def test_log_probability_increase_by_hand(model_of: Callable[[str], Any]) -> None:
    model, layer, index = model_of("llama"), 2, 11
    _, cache = model.run_with_cache(to_tokens(model, PROMPT.text)[None])
    before = cache["blocks.2.hook_resid_mid"][0, -1]
    added = cache["blocks.2.mlp.hook_post"][0, -1, index] * model.blocks[layer].mlp.W_out[index]
    token = option_tokens(model, PROMPT.text).id_of("B")

    def log_p(resid: torch.Tensor) -> float:
        return model.unembed(model.ln_final(resid[None, None]))[0, 0].log_softmax(-1)[token].item()

    found = score(model, PROMPT, "log-probability")[layer, index].item()
    assert found == pytest.approx(log_p(before + added) - log_p(before), abs=1e-5)


def test_contrastive_scores_sum_to_the_change_of_the_margin(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    letters = option_tokens(model, PROMPT.text)

    def margin() -> float:
        logs = model(to_tokens(model, PROMPT.text)[None])[0, -1].log_softmax(-1)[list(letters.ids)]
        return (logs[1] - logs[[0, 2, 3]].max()).item()

    scores, whole = score(model, PROMPT, "contrastive"), margin()
    with suppress(model, [Neuron(2, i) for i in range(48)]):
        assert scores[2].sum().item() == pytest.approx(whole - margin(), rel=0.15)


@pytest.mark.usefixtures("own")
def test_scores_that_cannot_be_are_refused(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(
        ValueError, match="unknown scoring function 'qrnca'; there are random, activation, activation-absolute, ablation"
    ):
        score(model_of("llama"), PROMPT, "qrnca")
    register("flat", "Flat", "a user")(lambda asked: torch.ones(1, 1))
    with pytest.raises(AttributionError, match=r"flat: scores of shape \(1, 1\)"):
        score(model_of("llama"), PROMPT, "flat")
    register("hole", "Hole", "a user")(lambda asked: torch.full((3, 48), float("nan")))
    with pytest.raises(AttributionError, match="hole: NaN or infinite scores for the prompt 'Which"):
        score(model_of("llama"), PROMPT, "hole")


def test_restricting_to_some_queries_computes_ica_anew() -> None:
    part = LOCATED.restrict(["q1", "q2", "q4", "q5"])
    rows = part.scored.set_index(["query", "layer", "neuron"])
    assert rows.loc[("q1", 1, 2), "ica"] == pytest.approx(log(4 / 3))
    with pytest.raises(KeyError, match="no query 'q9'"):
        LOCATED.restrict(["q9"])


@pytest.fixture
def evidence(model_of: Callable[[str], Any], short_queries: QuerySet, located_of: Callable[[str], QRNeurons]) -> Evidence:
    return Evidence(model_of("llama"), short_queries, located_of("llama"))


def top_scores(key: str, evidence: Evidence) -> Sets:
    """As many of the highest scores as QRNCA has neurons, literally."""
    found = {}
    for query in evidence.queries:
        total = torch.stack([score(evidence.model, prompt, key) for prompt in query.prompts]).sum(0)
        flat = total.flatten().topk(len(evidence.located.for_query(query.id))).indices.tolist()
        found[query.id] = NeuronSet.of(*[divmod(i, total.shape[1]) for i in flat])
    return found


def top_rows(key: str, located: QRNeurons) -> Sets:
    """The paper's rule of each variant, literally: sort, take v, then drop common neurons where the method does."""
    prompts = located.queries.set_index("query")["prompts"]
    found = {}
    for query in located.queries["query"]:
        rows = located.scored[located.scored["query"] == query]
        if key.startswith("knowledge-neuron"):
            rows = rows[2 * rows["templates"] >= prompts[query]]
        by = ["na"] if key in ("knowledge-neuron", "knowledge-neuron-without-common", "without-ica") else ["naica", "na"]
        rows = rows.sort_values([*by, "layer", "neuron"], ascending=[False] * len(by) + [True, True]).head(
            located.config.top
        )
        best = NeuronSet.of(*rows[["layer", "neuron"]].itertuples(index=False, name=None))
        found[query] = best if key in ("with-common", "knowledge-neuron") else best - located.common_set
    return found


def test_methods_give_the_neurons_of_their_literal_rules(evidence: Evidence) -> None:
    located = evidence.located
    ours = {query: located.for_query(query) for query in located.queries["query"]}
    assert any(ours.values())
    for key, method in METHODS.items():
        found = find_neurons(key, evidence)
        if key == "random-layers":  # it is drawn layer by layer, and comes in the order of the neurons that it stands for
            drawn = random_sets(ours, located.model.d_mlp)
            assert {q: sorted(s) for q, s in found.items()} == {q: sorted(s) for q, s in drawn.items()}
        else:
            assert found == (top_scores(key, evidence) if method.scores else top_rows(key, located)), key
    top = attribute(evidence.model, evidence.queries["q0"].prompts[0].text, " A", steps=3).neurons(1)
    assert next(iter(top)) in set(find_neurons("with-common", evidence)["q0"]) | set(located.common_set)


def test_rankings_and_cuts_are_of_the_queries_asked_for(evidence: Evidence, short_queries: QuerySet) -> None:
    part = Evidence(evidence.model, QuerySet(short_queries.queries[:2]), evidence.located)
    for key in ("qrnca", "random-layers", "activation"):
        ranked = rank_neurons(key, part)
        assert list(ranked) == ["q0", "q1"]
        assert find_neurons(key, part, at_most(7)) == {query: found.top(7) for query, found in ranked.items()}
    assert len(rank_neurons("activation", part)["q1"]) == 3 * 48
    equal = find_at_equal_counts(["knowledge-neuron", "random", "qrnca"], part, at_most(30))
    counts = [[len(found) for found in sets.values()] for sets in equal.values()]
    shortest = [min(30, *(len(rank_neurons(key, part)[query]) for key in equal)) for query in ("q0", "q1")]
    assert counts == [shortest] * 3
    assert equal["random"]["q0"] == rank_neurons("random", part)["q0"].top(shortest[0])
    for use in (rank_neurons, find_neurons):
        with pytest.raises(ValueError, match="unknown method 'magic'; there are random"):
            use("magic", part)


def test_unknown_methods_are_refused_before_any_is_used(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(evidence: Evidence) -> Any:
        raise AssertionError("it is used")

    monkeypatch.setitem(METHODS, "qrnca", replace(METHODS["qrnca"], rank=never))
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        find_at_equal_counts(["qrnca", "magic"], evidence, at_most(3))


@pytest.fixture
def own() -> Iterator[None]:
    """The registry is after the test what it was before."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("own", "unchecked")
def test_own_methods_rank_by_scores_or_as_they_please(evidence: Evidence) -> None:
    @register("size", "Size of the value vector", "a user")
    def size(asked: Asked) -> torch.Tensor:
        return torch.stack([block.mlp.W_out.detach().norm(dim=-1) for block in asked.model.blocks])

    @register_ranking("last", "Last QR neurons first", "a user")
    def last(evidence: Evidence) -> Iterator[tuple[str, Ranking]]:
        for query in evidence.queries:
            layer, neuron = np.array([(n.layer, n.index) for n in evidence.located.for_query(query.id)][::-1]).T
            yield query.id, Ranking(layer, neuron, -np.arange(len(layer), dtype=float))

    assert list(METHODS)[-2:] == ["size", "last"]
    ours = find_neurons("qrnca", evidence)
    assert find_neurons("last", evidence, at_most(1)) == {q: NeuronSet(s.neurons[-1:]) for q, s in ours.items()}
    assert {q: len(s) for q, s in find_neurons("size", evidence).items()} == {q: len(s) for q, s in ours.items()}
    for taken in ("size", "qrnca"):
        with pytest.raises(ValueError, match=f"the key '{taken}' is registered already"):
            register_ranking(taken, "Again", "a user")(last)
    with pytest.raises(TypeError, match=r"budget must be a rule, such as at_most\(20\) of qrnca_lens.methods, not 20"):
        find_neurons("last", evidence, 20)  # type: ignore[arg-type]


WRONG: dict[str, Callable[[Evidence], Any]] = {
    "gives no ranking for query 'q1'; it must rank all": lambda e: [("q0", Ranking.of_scores(torch.ones(3, 48)))],
    "gives 'q0'; it must give pairs of a query's id and its Ranking": lambda e: {"q0": 1},
    "outside the model for query 'q0': there are layers 0 to 2 of 48": lambda e: [
        ("q0", Ranking.of_scores(torch.ones(3, 49)))
    ],
    "for query 'q0': there are layers 0 to 2": lambda e: [("q0", Ranking.of_scores(torch.ones(4, 48)))],
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.usefixtures("own", "unchecked")
def test_own_rankings_that_cannot_be_are_refused(message: str, evidence: Evidence, short_queries: QuerySet) -> None:
    register_ranking("wrong", "Wrong", "a user")(WRONG[message])
    part = Evidence(evidence.model, QuerySet(short_queries.queries[:2]), evidence.located)
    with pytest.raises((TypeError, ValueError), match=f"method 'wrong' .*{message}"):
        rank_neurons("wrong", part)


def test_methods_are_given_the_queries_that_worked(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model, queries = model_of("llama"), QuerySet((LONG, *short_queries.queries))
    with pytest.warns(FailedQueriesWarning):
        located = locate(model, queries, QRNCAConfig(steps=3), progress=False)
    evidence = Evidence(model, queries, located)
    assert evidence.queries.queries == located.asked.queries == short_queries.queries
    for key in ("qrnca", "activation", "random-layers"):
        assert "long" not in find_neurons(key, evidence)
    with pytest.raises(KeyError, match="no query 'other'"):
        Evidence(model, QuerySet((Query("other", "g", LONG.prompts),)), located)
    part = located.restrict(["q0", "q1", "q2", "q3", "long"])
    assert (len(part.queries), list(part.failed["query"])) == (4, ["long"])
    assert located.restrict(["q0", "q1", "q2", "q3"]).failed.empty
