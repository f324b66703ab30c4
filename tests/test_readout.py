"""What a neuron adds to the residual stream and how the logits read it, against interventions on the model itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from qrnca_lens.attribution import attribute
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import LETTERS, Prompt
from qrnca_lens.engine.hooks import Hook
from qrnca_lens.methods import score
from qrnca_lens.models import HookedModel, ModelError, load_model, to_tokens
from qrnca_lens.models.hooked import HookedTransformer, HookedTransformerConfig
from qrnca_lens.readout.activity import activations
from qrnca_lens.readout.contributions import PromptRun, direct_writes
from qrnca_lens.readout.norms import norm_parts
from qrnca_lens.readout.promoted import promoted_tokens
from qrnca_lens.readout.residual import Readout, into_residual, logits_of
from qrnca_lens.study.direct import written_options

AFTER_MLP = ["gemma2", "gemma3", "glm4", "olmo2", "exaone4"]
FAMILIES = ["llama", "gemma", "granite", "cohere", *AFTER_MLP]
OTHERS = ["gpt2", "gpt-neox", "opt", "phi", "mpt", "qwen3", "llama-bias"]
PROMPT = Prompt("Question: which letter is right?\nAnswer:", "B")


@pytest.fixture(scope="module")
def read_of(model_of: Callable[[str], Any], folder_of: Callable[[str], Path]) -> Callable[[str], HookedModel]:
    """A tiny model; a bridge as TransformerLens makes it for Cohere, whose bridge is not transformers' model."""
    cohere = TransformerBridge.boot_transformers(str(folder_of("cohere")), device="cpu")
    return lambda family: cohere if family == "cohere" else model_of(family)


def only(keep: list[int]) -> Callable[..., torch.Tensor]:
    """A hook that zeroes all neurons but these at the last position."""

    def hook(post: torch.Tensor, hook: Any) -> torch.Tensor:
        kept = torch.zeros_like(post[:, -1])
        kept[:, keep] = post[:, -1, keep]
        return torch.cat([post[:, :-1], kept[:, None]], dim=1)

    return hook


def after_mlp(model: Any) -> str:
    """The name of the norm after the MLP; in OLMo 2 and Exaone 4 it depends on the release of TransformerLens."""
    return "ln2_post" if hasattr(model.blocks[0], "ln2_post") else "ln2"


def run(model: Any, family: str, layer: int, hooks: list[Hook], *, hold_end: bool = False) -> tuple[torch.Tensor, Any]:
    """Logits and cache with hooks, the scale of the norm after the MLP (and of the final norm) as without them."""
    tokens = to_tokens(model, PROMPT.text)[None]
    _, untouched = model.run_with_cache(tokens)
    held = [f"blocks.{layer}.{after_mlp(model)}.hook_scale"] if family in AFTER_MLP else []
    held += ["ln_final.hook_scale"] if hold_end else []
    holding = [(name, lambda scale, hook: untouched[hook.name].clone()) for name in held]
    with warnings.catch_warnings(), model.hooks(fwd_hooks=[*hooks, *holding]):
        warnings.simplefilter("ignore")  # a bridge warns that an edited scale leaves the native norm
        return model.run_with_cache(tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probability_is_what_setting_the_neuron_does_in_the_last_layer(
    family: str, read_of: Callable[[str], HookedModel]
) -> None:
    model, scores = read_of(family), score(read_of(family), PROMPT, "log-probability")
    token = option_tokens(model, PROMPT.text).id_of("B")
    without, _ = run(model, family, 2, [("blocks.2.mlp.hook_post", only([]))])
    for index in scores[2].abs().topk(3).indices.tolist():
        alone, _ = run(model, family, 2, [("blocks.2.mlp.hook_post", only([index]))])
        change = (alone[0, -1].log_softmax(-1) - without[0, -1].log_softmax(-1))[token].item()
        assert scores[2, index].item() == pytest.approx(change, rel=1e-3, abs=1e-5)
        assert abs(change) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_what_the_residual_stream_loses_without_the_neuron(
    family: str, read_of: Callable[[str], HookedModel]
) -> None:
    model, layer, index = read_of(family), 1, 7
    read = Readout(model, to_tokens(model, PROMPT.text)[None], [layer])
    told = read.added(layer, read.post(layer)[:, index, None] * model.blocks[layer].mlp.W_out[index])
    rest = [i for i in range(48) if i != index]
    _, before = run(model, family, layer, [])
    _, after = run(model, family, layer, [("blocks.1.mlp.hook_post", only(rest))])
    lost = (before["blocks.1.hook_resid_post"] - after["blocks.1.hook_resid_post"])[:, -1]
    assert torch.allclose(told, lost, atol=1e-5)
    assert lost.abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_writes_are_what_the_logits_lose_without_the_neuron(family: str, read_of: Callable[[str], HookedModel]) -> None:
    """In the last layer, the scale of the final norm held; logits before Gemma 2's soft cap."""
    model, index = read_of(family), 4
    options = option_tokens(model, PROMPT.text)
    writes = direct_writes(PromptRun(model, to_tokens(model, PROMPT.text), 2), NeuronSet.of((2, index), (0, 1)), options)
    before, _ = run(model, family, 2, [], hold_end=True)
    rest = [i for i in range(48) if i != index]
    after, _ = run(model, family, 2, [("blocks.2.mlp.hook_post", only(rest))], hold_end=True)
    if family == "gemma2":
        before, after = (30 * torch.atanh(logits.double() / 30) for logits in (before, after))
    lost = (before - after)[0, -1, list(options.ids)].tolist()
    assert writes["layer"].tolist() == [2, 0]
    assert writes[list(LETTERS)].iloc[0].tolist() == pytest.approx(lost, rel=1e-2, abs=1e-5)
    assert max(map(abs, lost)) > 1e-4


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_the_end_of_the_model_is_read_as_the_model_reads_it(family: str, read_of: Callable[[str], HookedModel]) -> None:
    model = read_of(family)
    read = Readout(model, to_tokens(model, PROMPT.text)[None], range(3))
    assert torch.allclose(read.logits, model(to_tokens(model, PROMPT.text)[None])[:, -1], atol=1e-5)
    assert torch.allclose(logits_of(model, read.final()), read.logits, atol=1e-4)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 100.0):  # the epsilon of the norm counts in small vectors
        vectors = size * torch.randn(5, 32, generator=generator)
        theirs = model.ln_final(vectors[:, None])[:, 0]
        assert torch.allclose(norm_parts(model, model.ln_final, vectors)(vectors), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "granite", "olmo2"])
def test_shares_reach_the_residual_stream_by_hand(family: str, model_of: Callable[[str], Any]) -> None:
    model, shares = model_of(family), torch.stack([torch.arange(32.0), torch.ones(32)])
    whole = torch.full((1, 32), -2.0)  # whose root mean square is 2
    wanted = shares * (0.4 if family == "granite" else 1.0)
    if family == "olmo2":
        wanted = shares / 2 * getattr(model.blocks[1], after_mlp(model)).w
    assert torch.allclose(into_residual(model, 1, shares, whole), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "olmo2"])
def test_direct_prediction_sends_neurons_through_the_norm_after_the_mlp(family: str, model_of: Callable[[str], Any]) -> None:
    """Of some sets, against one set and one prompt at a time over the whole vocabulary; each layer alone too."""
    model, prompts = model_of(family), [PROMPT, Prompt("Which?\nAnswer:", "A"), Prompt("Which is it?\nAnswer:", "A")]
    sets = {0: np.array([[3], [4], [5], [6]]), 1: np.array([[9], [1], [2], [8]]), 2: np.array([[5, 6], [7, 1], [2, 3]])}
    found = written_options(model, prompts, sets)
    assert {name: read.shape for name, read in found.items()} == {"0": (4, 3), "1": (4, 3), "2": (3, 3), "all": (3, 3)}
    for k, prompt in enumerate(prompts):
        _, cache = model.run_with_cache(to_tokens(model, prompt.text)[None])
        for i in range(3):
            shares = {}
            for layer, indices in sets.items():
                post = cache[f"blocks.{layer}.mlp.hook_post"][0, -1, indices[i]]
                share = post @ model.blocks[layer].mlp.W_out[indices[i]]
                if family in AFTER_MLP:
                    whole = cache[f"blocks.{layer}.mlp.hook_post"][0, -1] @ model.blocks[layer].mlp.W_out
                    share = share * cache[f"blocks.{layer}.hook_mlp_out"][0, -1] / whole
                shares[str(layer)] = share * (0.4 if family == "granite" else 1.0)
            for name, written in (shares | {"all": sum(shares.values())}).items():
                logits = model.unembed(model.ln_final(written[None, None]))[0, 0]
                ids = list(option_tokens(model, prompt.text).ids)
                assert found[name][i, k] == int(np.argmax(logits[ids].tolist()))
    assert len({letter for read in found.values() for letter in read.flatten().tolist()}) > 2


def test_what_cannot_be_read_is_refused(model_of: Callable[[str], Any], folder_of: Callable[[str], Path]) -> None:
    model = model_of("llama")
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda out, hook: 2 * out)]),
        pytest.raises(ModelError, match=r"layer 1 of llama: its MLP's output and the norm after it do not add up"),
    ):
        score(model, PROMPT, "log-probability")
    other = load_model(folder_of("granite"), device="cpu")
    other.blocks[0].residual_contribution_scale = 0.7
    with pytest.raises(ModelError, match="layer 0 of granite: its MLP's output"):
        score(other, PROMPT, "log-probability")
    other = TransformerBridge.boot_transformers(str(folder_of("cohere")), device="cpu")
    other.cfg.logit_scale = 1.0
    with pytest.raises(ModelError, match="cohere: final norm, unembedding and what is known to follow them"):
        direct_writes(
            PromptRun(other, to_tokens(other, PROMPT.text), 2), NeuronSet.of((2, 1)), option_tokens(other, PROMPT.text)
        )


@pytest.mark.transformer_lens_3
def test_a_model_without_a_final_norm_is_refused(model_of: Callable[[str], Any]) -> None:
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 320, "n_ctx": 64}
    model = HookedTransformer(
        HookedTransformerConfig(**shape, act_fn="gelu", normalization_type=None, device="cpu", default_prepend_bos=False)
    )
    model.tokenizer, model.cfg.tokenizer_prepends_bos = model_of("gpt2").tokenizer, False
    assert attribute(model, PROMPT.text, " A", steps=2).probability > 0
    for read in (lambda: promoted_tokens(model, Neuron(1, 3)), lambda: score(model, PROMPT, "log-probability")):
        with pytest.raises(ModelError, match="has no final norm, so no residual stream of it can be read as logits"):
            read()


def test_activations_are_what_w_out_multiplies(model_of: Callable[[str], Any], unchecked: None) -> None:
    model, prompts = model_of("llama"), [PROMPT, Prompt("Which letter is it?\nA longer one:", "A")]
    found = activations(model, prompts, NeuronSet.of((2, 5), (0, 9), (2, 1)))
    assert [*found.columns] == [(2, 5), (0, 9), (2, 1)] and found.columns.names == ["layer", "neuron"]
    for row, prompt in enumerate(prompts):
        _, cache = model.run_with_cache(to_tokens(model, prompt.text)[None])
        wanted = [cache[f"blocks.{layer}.mlp.hook_post"][0, -1, index].item() for layer, index in found.columns]
        assert found.loc[row].tolist() == pytest.approx(wanted, abs=1e-5)
    assert activations(model, prompts, Neuron(1, 3)).shape == (2, 1) and activations(model, [], Neuron(1, 3)).shape == (0, 1)
    with pytest.raises(TypeError, match=r"expected a list of Prompt.*query\.prompts"):
        activations(model, [PROMPT.text], Neuron(1, 3))  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"neuron L9\.N0 is outside the model"):
        activations(model, prompts, Neuron(9, 0))
