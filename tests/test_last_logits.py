"""Logits at the last positions: the model's own, and no others are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import CONFIGS

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.rules import quadrature
from qrnca_lens.data import Prompt
from qrnca_lens.editing import suppress
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.engine.asks import asked, probability_of
from qrnca_lens.engine.integral import PathTask
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.models import check_site, site_hook

TOKENS = torch.randint(3, 200, (3, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)


@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in ("bert", "cohere")])
@torch.no_grad()
def test_they_are_those_of_the_whole_pass(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    name, whole = site_hook(model, 1, "post"), model(TOKENS, attention_mask=MASK)
    found, kept = last_logits(model, TOKENS, MASK, {name, "no.such.hook"}, reads=2)
    assert torch.allclose(found, whole[:, -2:], atol=1e-5)
    assert {key: value.shape[:2] for key, value in kept.items()} == {name: TOKENS.shape}
    with suppress(model, [Neuron(1, i) for i in range(0, 48, 2)]):
        edited = model(TOKENS, attention_mask=MASK)
        assert not torch.allclose(edited[:, -1:], whole[:, -1:], atol=1e-3)
        assert torch.allclose(last_logits(model, TOKENS, MASK)[0], edited[:, -1:], atol=1e-5)
    assert torch.equal(model(TOKENS, attention_mask=MASK), whole)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_no_other_positions_reach_the_vocabulary(family: str, model_of: Callable[[str], Any]) -> None:
    model, seen = model_of(family), []
    task = PathTask(model, check_site(model, None), quadrature("right", 1).with_ends())
    handle = model.unembed.register_forward_hook(lambda module, given, logits: seen.append(logits.shape[1]))
    try:
        last_activations(model, ["Answer:", "Question: which?"], NeuronSet.of((0, 1)))
        letter_probabilities(model, [Prompt("Answer:", "A")])
        integrate_plainly(task, asked(TOKENS[0], probability_of(5)))
    finally:
        handle.remove()
    assert seen
    assert set(seen) == {1}


@torch.no_grad()
def test_a_hook_at_the_unembedding_of_a_bridge_sees_what_it_did(model_of: Callable[[str], Any]) -> None:
    model, seen = model_of("opt"), []
    with model.hooks(fwd_hooks=[("unembed.hook_in", lambda tensor, hook: seen.append(tensor.shape[1]))]):
        found, _ = last_logits(model, TOKENS, MASK)
    assert seen == [20]
    assert found.shape[1] == 1
