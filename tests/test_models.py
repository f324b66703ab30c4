from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import CONFIGS, ENGINE_FAMILIES, save_tiny
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from qrnca_lens.attribution import AttributionError, attribute
from qrnca_lens.attribution.letters import letter_probabilities, option_tokens
from qrnca_lens.attribution.options import answers
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Prompt, QuerySet
from qrnca_lens.editing.collateral import neutral_loss
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.engine import finite
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.methods import score
from qrnca_lens.models import ModelError, load_model, site_hook, sites_of, to_tokens
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.models.hooked import HookedTransformer, dtype_of, is_hooked_transformer

FAMILIES = [name for name in CONFIGS if name not in ("bert", "cohere")]  # TransformerLens's Cohere gives other logits
TEXT = "Question: which letter is right?\nA. one B. two Answer:"


@pytest.fixture
def hf_of(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda family: AutoModelForCausalLM.from_pretrained(folder_of(family), attn_implementation="eager").eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_equal_transformers(
    family: str, model_of: Callable[[str], Any], hf_of: Callable[[str], Any], folder_of: Callable[[str], Path]
) -> None:
    model, hf = model_of(family), hf_of(family)
    assert is_hooked_transformer(model) == (HookedTransformer is not None and family in ENGINE_FAMILIES)
    ids = AutoTokenizer.from_pretrained(folder_of(family))(TEXT, return_tensors="pt").input_ids
    assert torch.equal(to_tokens(model, TEXT), ids[0])
    assert torch.equal(model.to_tokens(TEXT), ids)
    with torch.no_grad():
        ours, theirs = model(ids), hf(ids).logits
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_a_bridge_gives_the_same_logits(
    family: str, folder_of: Callable[[str], Path], model_of: Callable[[str], Any]
) -> None:
    bridge = TransformerBridge.boot_transformers(str(folder_of(family)), device="cpu")
    ids = to_tokens(model_of(family), TEXT)
    assert torch.equal(to_tokens(bridge, TEXT), ids)
    assert torch.allclose(bridge(ids[None]), model_of(family)(ids[None]), atol=1e-4)
    assert sites_of(bridge) == sites_of(model_of(family))


@pytest.mark.transformer_lens_3
def test_windows_are_those_of_each_layer(model_of: Callable[[str], Any]) -> None:
    assert model_of("qwen2-window").cfg.attn_types == ["global", "local", "local"]
    assert model_of("mistral-window").cfg.attn_types == ["local"] * 3
    assert not model_of("qwen2").cfg.use_local_attn


def _mlp_modules(hf: Any, family: str, layer: int) -> dict[str, tuple[Any, str]]:
    """For each site the Hugging Face module that has it, as its output ("out") or its input ("in")."""
    if family == "opt":
        block = hf.model.decoder.layers[layer]
        return {"pre": (block.fc1, "out"), "post": (block.fc2, "in")}
    if family == "gpt2":
        mlp = hf.transformer.h[layer].mlp
        return {"pre": (mlp.c_fc, "out"), "post": (mlp.c_proj, "in")}
    if family == "gpt-neox":
        mlp = hf.gpt_neox.layers[layer].mlp
        return {"pre": (mlp.dense_h_to_4h, "out"), "post": (mlp.dense_4h_to_h, "in")}
    mlp = hf.model.layers[layer].mlp
    return {"up": (mlp.up_proj, "out"), "gate": (mlp.gate_proj, "out"), "post": (mlp.down_proj, "in")}


@pytest.mark.parametrize("family", [*ENGINE_FAMILIES, "opt", "llama bridge"])
def test_sites_are_the_right_tensors_by_value(
    family: str, model_of: Callable[[str], Any], hf_of: Callable[[str], Any], folder_of: Callable[[str], Path]
) -> None:
    bridged, family = family.endswith(" bridge"), family.removesuffix(" bridge")
    model = TransformerBridge.boot_transformers(str(folder_of(family)), device="cpu") if bridged else model_of(family)
    hf, layer = hf_of(family), 1
    modules, seen = _mlp_modules(hf, family, layer), {}
    assert set(modules) == set(sites_of(model))
    for site, (module, side) in modules.items():
        if side == "in":
            module.register_forward_pre_hook(lambda _m, inputs, site=site: seen.update({site: inputs[0]}))
        else:
            module.register_forward_hook(lambda _m, _i, out, site=site: seen.update({site: out}))
    ids = to_tokens(model, TEXT)[None]
    with torch.no_grad():
        hf(ids)
        _, cache = model.run_with_cache(ids)
    for site in modules:
        ours = cache[site_hook(model, layer, site)]
        assert torch.allclose(ours, seen[site], atol=1e-4), site
    values = [cache[site_hook(model, layer, site)] for site in modules]
    assert all(not torch.allclose(a, b, atol=1e-2) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.transformer_lens_3
def test_the_architecture_is_read_from_the_config_not_the_path(tmp_path: Path) -> None:
    folder = save_tiny("mistral", tmp_path / "llama-gemma-gpt2-bert")
    assert load_model(folder, device="cpu").cfg.original_architecture == "MistralForCausalLM"


def test_a_hooked_transformer_that_disagrees_becomes_a_bridge(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrnca_lens.models import loading

    real = loading.hooked_fields
    monkeypatch.setattr(loading, "hooked_fields", lambda config: {**(real(config) or {}), "eps": 0.5})
    assert isinstance(load_model(folder_of("llama"), device="cpu"), TransformerBridge)


def test_a_rope_scaling_that_hooked_transformer_lacks_becomes_a_bridge(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    model, hf = load_model(folder, device="cpu"), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(20)[None]
    assert isinstance(model, TransformerBridge)
    assert torch.allclose(model(ids), hf(ids).logits, atol=1e-4)


def test_batched_letter_probabilities_equal_single_ones(model_of: Callable[[str], Any]) -> None:
    model = model_of("mistral")
    prompts = [Prompt(f"Which letter{' is it' * i}?\nAnswer:", "A") for i in (0, 2, 1, 2, 0, 5)]
    together = letter_probabilities(model, prompts, batch=2)
    alone = torch.cat([letter_probabilities(model, [p]) for p in prompts])
    assert torch.allclose(together, alone, rtol=1e-4)
    ids = to_tokens(model, prompts[1].text)
    wanted = model(ids[None])[0, -1].softmax(-1)[list(option_tokens(model, prompts[1].text).ids)]
    assert torch.allclose(together[1], wanted, rtol=1e-4)


def test_fingerprints_tell_weights_apart(model_of: Callable[[str], Any], folder_of: Callable[[str], Path]) -> None:
    again = load_model(folder_of("llama"), device="cpu")
    assert model_fingerprint(again) == model_fingerprint(model_of("llama")) != model_fingerprint(model_of("mistral"))
    again.blocks[2].mlp.W_out.data[0, 0] += 1
    assert model_fingerprint(again) != model_fingerprint(model_of("llama"))


def test_prompts_must_fit(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match="the prompt is empty"):
        to_tokens(model_of("llama"), "")
    with pytest.raises(ModelError, match="the model's context holds 128"):
        to_tokens(model_of("llama"), "word " * 200)


def test_bfloat16(folder_of: Callable[[str], Path]) -> None:
    model = load_model(folder_of("llama"), device="cpu", dtype=torch.bfloat16)
    assert dtype_of(model) == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "weight", "place"),
    [
        *(
            pytest.param(family, weight, place, marks=pytest.mark.transformer_lens_3)
            for family, weight, place in [
                ("llama", "blocks.1.mlp.W_in", "layer 1: the weight 'blocks.1.mlp.W_in'"),
                *(
                    ("gpt2", f"blocks.1.attn.{name}", f"layer 1: the weight 'blocks.1.attn.{name}'")
                    for name in ("W_Q", "b_Q", "W_K", "b_K")
                ),
                ("qwen2", "blocks.2.attn._W_K", "layer 2: the weight 'blocks.2.attn._W_K'"),
                ("gpt2", "embed.W_E", "the embedding: the weight 'embed.W_E'"),
                ("llama", "unembed.W_U", "the final norm or the unembedding: the weight 'unembed.W_U'"),
            ]
        ),
        ("olmo2", "blocks.2.mlp.out.weight", "layer 2: the weight 'blocks.2.mlp.down_proj.weight'"),
    ],
)
def test_nan_in_a_weight_is_named_and_answers_nothing(
    family: str,
    weight: str,
    place: str,
    folder_of: Callable[[str], Path],
    short_queries: QuerySet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model(folder_of(family), device="cpu")
    owner, name = weight.rsplit(".", 1)
    weights = getattr(model.get_submodule(owner), name)
    intact = weights.data.clone()
    before = answers(model, short_queries)
    weights.data[(-1,) * weights.dim()] = float("nan")
    ask: list[Callable[[], Any]] = [
        lambda: answers(model, short_queries),
        lambda: read_edited(model, [short_queries["q0"].prompts[0].text], [[]], [lambda logits: logits[:, -1]]),
        lambda: edit_effects(model, short_queries, {"m": {"q0": NeuronSet.of((0, 1))}}),
        lambda: neutral_loss(model, {"q0": NeuronSet.of((0, 1))}, 0.0, "Which letter is right?"),
        lambda: score(model, short_queries["q0"].prompts[0], "log-probability"),
    ]
    for call in ask:
        with pytest.raises(
            ModelError, match=f"logits after the prompt '.*right.*': {place} holds NaN or infinite values; load"
        ):
            call()
    with pytest.raises(AttributionError, match=f"scores for the prompt 'Which.*': {place} holds NaN"):
        attribute(model, short_queries["q0"].prompts[0].text, " A", steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(finite, "_find_fault", None)  # known by now
        with pytest.raises(ModelError, match=place):
            answers(model, short_queries)
    weights.data[:] = intact
    pd.testing.assert_frame_equal(answers(model, short_queries), before)


def test_numbers_that_cease_without_a_bad_weight(model_of: Callable[[str], Any]) -> None:
    model, prompt = model_of("llama"), Prompt("Which letter is right?\nAnswer:", "A")
    with (
        model.hooks(fwd_hooks=[("blocks.2.hook_mlp_out", lambda out, hook: out / 0)]),
        pytest.raises(ModelError, match="they begin in layer 2, whose weights are numbers; take off hooks and edits"),
    ):
        letter_probabilities(model, [prompt])
    far = (NeuronSet.of(*((2, i) for i in range(48))), 3e38)
    with pytest.raises(ModelError, match=r"own logits are numbers; scaling its neurons leaves the range"):
        read_edited(model, [prompt.text], [[far]], [lambda logits: logits[:, -1]])
