"""PEFT adapters: merged into their base model by the sum that defines them, or an error that says what to do."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer

from qrnca_lens.models import ModelError, load_model, to_tokens
from qrnca_lens.models.origin import origin_of

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the package peft is not installed")
RANK, ALPHA = 2, 3.0


def write_adapter(base: Path | str, folder: Path, **fields: Any) -> Path:
    """A LoRA adapter of rank 2 on the up and down projections of layer 1 of a tiny Llama, written without peft."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": ALPHA,
        "target_modules": ["up_proj", "down_proj"], "layers_to_transform": [1], "inference_mode": True, "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    generator = torch.Generator().manual_seed(3)
    shapes = {"up_proj": (48, 32), "down_proj": (32, 48)}
    weights = {}
    for name, (rows, columns) in shapes.items():
        stem = f"base_model.model.model.layers.1.mlp.{name}"
        weights[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
        weights[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def adapter(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return write_adapter(folder_of("llama"), tmp_path / "adapter")


@pytest.fixture
def as_if_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if peft were installed: what is refused before it is asked for anything."""
    monkeypatch.setattr("qrnca_lens.models.adapters.find_spec", lambda name: True)


@needs_peft
def test_an_adapter_is_merged_by_the_sum_that_defines_it(adapter: Path, folder_of: Callable[[str], Path]) -> None:
    base, model = load_model(folder_of("llama"), device="cpu"), load_model(adapter, device="cpu")
    made = load_file(adapter / "adapter_model.safetensors")
    for name, mine in (("up_proj", "W_in"), ("down_proj", "W_out")):
        low, high = (made[f"base_model.model.model.layers.1.mlp.{name}.lora_{part}.weight"] for part in "AB")
        wanted = getattr(base.blocks[1].mlp, mine) + (ALPHA / RANK * high @ low).T
        assert torch.allclose(getattr(model.blocks[1].mlp, mine), wanted, atol=1e-5)
        assert torch.equal(getattr(model.blocks[0].mlp, mine), getattr(base.blocks[0].mlp, mine))
    assert torch.equal(model.W_E, base.W_E)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.cfg.model_name == "adapter"
    found = origin_of(model)
    assert (found["adapter"], found["base"], len(found["sha256"])) == ("adapter", folder_of("llama").name, 64)


@needs_peft
def test_the_tokenizer_is_the_adapters_where_it_has_one(adapter: Path, folder_of: Callable[[str], Path]) -> None:
    assert to_tokens(load_model(adapter, device="cpu"), "A").tolist()[0] == 0  # the base's puts a BOS
    tiny_tokenizer(bos=False).save_pretrained(adapter)
    assert to_tokens(load_model(adapter, device="cpu"), "A").tolist()[0] != 0


@needs_peft
def test_a_base_beside_the_adapter_or_within_it_is_found(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = write_adapter("base", tmp_path / "adapter")
    shutil.copytree(folder_of("llama"), folder / "base")
    assert load_model(folder, device="cpu").cfg.model_name == "adapter"


@needs_peft
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: {key: value for key, value in w.items() if "lora_A" not in key}, "missing: .*lora_A"),
        (lambda w: {**w, "base_model.model.model.layers.1.mlp.gate_proj.lora_A.weight": torch.ones(2, 32)}, "unexpected: "),
        (
            lambda w: {key: value[:, :1].contiguous() if "lora_B" in key else value for key, value in w.items()},
            "size mismatch",
        ),
    ],
)
def test_weights_that_do_not_fit_the_base_are_refused(change: Any, named: str, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelError, match=f"the adapter cannot be merged into its base model .*{named}"):
        load_model(adapter, device="cpu")


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", None])
def test_adapters_that_are_no_change_of_weights(kind: str | None, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = write_adapter(folder_of("llama"), tmp_path / "other", peft_type=kind)
    with pytest.raises(ModelError, match=f"an? PEFT adapter of the kind {kind!r}, which is no change of weights"):
        load_model(folder)


@pytest.mark.usefixtures("as_if_there")
def test_bases_that_cannot_be_used(adapter: Path, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    missing = write_adapter("/nowhere/base", tmp_path / "missing")
    with pytest.raises(
        ModelError, match=r"the base model '/nowhere/base' of this PEFT adapter cannot be used \(.*no such folder"
    ):
        load_model(missing)
    with pytest.raises(ModelError, match="names no base model; write its folder or hub name as base_model_name_or_path"):
        load_model(write_adapter("", tmp_path / "none"))
    with pytest.raises(ModelError, match=r"the base model .* of this PEFT adapter is an adapter itself"):
        load_model(write_adapter(adapter, tmp_path / "twice"))
    with pytest.raises(ModelError, match=r"the base model '\.' of this PEFT adapter is an adapter itself"):
        load_model(write_adapter(".", tmp_path / "round"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"the base model .* is a GGUF file, whose weights are rounded"):
        load_model(write_adapter(tmp_path / "m.gguf", tmp_path / "rounded"))
    (adapter / "adapter_config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be used \(it is no object\)"):
        load_model(adapter)
    bare = write_adapter(folder_of("llama"), tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"an adapter_config\.json without weights"):
        load_model(bare)


@pytest.mark.usefixtures("as_if_there")
def test_an_adapter_on_an_enlarged_vocabulary_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.embed_tokens.weight": torch.zeros(322, 32)}, path)
    with pytest.raises(ModelError, match=r"on a vocabulary of 322 tokens .*, its base model has 320; resize"):
        load_model(adapter, device="cpu")


def test_without_peft_the_command_is_told(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrnca_lens.models.adapters.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r'pip install "qrnca_lens\[peft\]", or merge it where peft is: python -c "from peft'
    ):
        load_model(adapter)
