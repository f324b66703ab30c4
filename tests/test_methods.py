from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import pandas as pd
import pytest
import torch
from runs import LONG
from test_clustering import CONFIG, GROUPS, clusters

from qrnca_lens.attribution import AttributionError, attribute
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons
from qrnca_lens.clustering.selection import knowledge_neurons, qrnca, with_common, without_ica
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.editing import suppress
from qrnca_lens.methods import BASELINES, Asked, ablate_each, register, score
from qrnca_lens.methods.registry import Evidence, find_neurons, methods
from qrnca_lens.models import to_tokens
from qrnca_lens.runs.pipeline import FailedQueriesWarning, locate

PROMPT = Prompt("Which letter is right?\nAnswer:", "B")


def p_right(model: Any) -> float:
    logits = model(to_tokens(model, PROMPT.text)[None])[0, -1]
    return logits.softmax(-1)[option_tokens(model, PROMPT.text).id_of("B")].item()


def test_exact_ablation_is_the_effect_of_the_intervention(model_of: Callable[[str], Any]) -> None:
    for family in ("llama", "gpt2", "opt"):
        model = model_of(family)
        scores = score("ablation", model, PROMPT)
        untouched = p_right(model)
        for layer, index in ((0, 5), (1, 47), (2, 0)):
            with suppress(model, Neuron(layer, index)):
                assert scores[layer, index].item() == pytest.approx(untouched - p_right(model), abs=1e-6)
    asked = Asked(model_of("llama"), PROMPT, option_tokens(model_of("llama"), PROMPT.text))
    few = ablate_each(asked, NeuronSet.of((2, 0), (0, 5)))
    everything = score("ablation", model_of("llama"), PROMPT)
    assert torch.allclose(few, torch.stack([everything[2, 0], everything[0, 5]]), atol=1e-7)


def test_activation_is_what_w_out_multiplies(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    _, cache = model.run_with_cache(to_tokens(model, PROMPT.text)[None])
    assert torch.equal(score("activation", model, PROMPT)[1], cache["blocks.1.mlp.hook_post"][0, -1])


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
    assert torch.allclose(score("gradient", model, PROMPT)[layer], wanted, atol=1e-7)


def test_log_probability_increase_by_hand(model_of: Callable[[str], Any]) -> None:
    model, layer, index = model_of("llama"), 2, 11
    _, cache = model.run_with_cache(to_tokens(model, PROMPT.text)[None])
    before = cache["blocks.2.hook_resid_mid"][0, -1]
    added = cache["blocks.2.mlp.hook_post"][0, -1, index] * model.blocks[layer].mlp.W_out[index]
    token = option_tokens(model, PROMPT.text).id_of("B")

    def log_p(resid: torch.Tensor) -> float:
        return model.unembed(model.ln_final(resid[None, None]))[0, 0].log_softmax(-1)[token].item()

    found = score("log-probability", model, PROMPT)[layer, index].item()
    assert found == pytest.approx(log_p(before + added) - log_p(before), abs=1e-5)


def test_contrastive_scores_sum_to_the_change_of_the_margin(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    letters = option_tokens(model, PROMPT.text)

    def margin() -> float:
        logs = model(to_tokens(model, PROMPT.text)[None])[0, -1].log_softmax(-1)[list(letters.ids)]
        return (logs[1] - logs[[0, 2, 3]].max()).item()

    scores, whole = score("contrastive", model, PROMPT), margin()
    with suppress(model, [Neuron(2, i) for i in range(48)]):
        assert scores[2].sum().item() == pytest.approx(whole - margin(), rel=0.15)


def test_scores_that_cannot_be_are_refused(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="unknown scoring function 'magic'; there are ablation, activation"):
        score("magic", model_of("llama"), PROMPT)
    try:
        register("own", "Own", "a user")(lambda asked: torch.ones(asked.model.cfg.n_layers, asked.model.cfg.d_mlp))
        assert "own" in methods()
        with pytest.raises(ValueError, match="the key 'own' is registered already"):
            register("own", "Own", "a user")(lambda asked: torch.ones(1, 1))
        register("flat", "Flat", "a user")(lambda asked: torch.ones(1, 1))
        with pytest.raises(AttributionError, match=r"flat: scores of shape \(1, 1\)"):
            score("flat", model_of("llama"), PROMPT)
    finally:
        BASELINES.pop("own", None)
        BASELINES.pop("flat", None)


@pytest.fixture
def by_hand() -> QRNeurons:
    prompts = [1, 2, 1, 1, 1]
    queries = pd.DataFrame(
        {"query": list(GROUPS), "group": list(GROUPS.values()), "prompts": prompts, "probability": 0.5, "gap": 0.0}
    )
    return QRNeurons(clusters(), queries, CONFIG, ModelShape("by hand", 2, 3, "0"))


def test_variants_by_hand(by_hand: QRNeurons) -> None:
    """The worked example of test_clustering: q1 has na 0.5, 0.2, 0.3 for neurons 00, 02, 12; 00 is common."""
    assert qrnca(by_hand)["q1"] == NeuronSet.of((1, 2))
    assert with_common(by_hand)["q1"] == NeuronSet.of((1, 2), (0, 0))
    assert without_ica(by_hand)["q2"] == NeuronSet.of((1, 2))  # na 0.4 and 1/3; the second is common
    assert knowledge_neurons(by_hand)["q1"] == NeuronSet.of((0, 0), (1, 2))
    # q2 has two templates, so one is half of them: all three neurons count, the best two are kept
    assert knowledge_neurons(by_hand)["q2"] == NeuronSet.of((1, 2), (0, 0))
    assert qrnca(by_hand)["q5"] == with_common(by_hand)["q5"] == knowledge_neurons(by_hand)["q5"] == NeuronSet()


def test_knowledge_neurons_need_half_of_the_templates(by_hand: QRNeurons) -> None:
    three = by_hand.queries.assign(prompts=3)
    found = knowledge_neurons(QRNeurons(by_hand.clusters, three, CONFIG, by_hand.model))
    assert found["q2"] == NeuronSet.of((1, 2))  # the only one that two templates share
    assert found["q1"] == NeuronSet()


def test_restricting_to_some_queries_computes_ica_anew(by_hand: QRNeurons) -> None:
    part = by_hand.restrict(["q1", "q2", "q4", "q5"])
    rows = part.scored.set_index(["query", "layer", "neuron"])
    assert rows.loc[("q1", 1, 2), "ica"] == pytest.approx(log(4 / 3))
    with pytest.raises(KeyError, match="no query 'q9'"):
        by_hand.restrict(["q9"])


def test_every_method_gives_every_query_as_many_neurons_as_qrnca(
    model_of: Callable[[str], Any], short_queries: QuerySet
) -> None:
    model = model_of("llama")
    located = locate(model, short_queries, QRNCAConfig(steps=3), progress=False)
    evidence = Evidence(model, short_queries, located)
    ours = find_neurons("qrnca", evidence)
    for key in methods():
        found = find_neurons(key, evidence)
        assert list(found) == [q.id for q in short_queries]
        if key not in ("knowledge-neuron", "without-ica", "with-common"):
            assert {q: len(n) for q, n in found.items()} == {q: len(n) for q, n in ours.items()}, key
    part = Evidence(model, QuerySet(short_queries.queries[:2]), located)
    assert [list(find_neurons(key, part)) for key in ("qrnca", "random-layers", "activation")] == [["q0", "q1"]] * 3
    top = attribute(model, short_queries["q0"].prompts[0].text, " A", steps=3).neurons(1)
    assert next(iter(top)) in set(find_neurons("with-common", evidence)["q0"]) | set(located.common_set)
    with pytest.raises(ValueError, match="unknown method 'magic'; there are random"):
        find_neurons("magic", evidence)


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
