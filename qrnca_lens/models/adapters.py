"""PEFT adapters: which base model one is for, and the base model with the adapter merged into its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open

from qrnca_lens.core.packages import load
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.sources import failures, quiet

_MERGEABLE = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "HRA", "FOURIERFT", "LN_TUNING", "RANDLORA")
"""The kinds of adapters that are a change of the weights, and nothing else."""
_MERGE = (
    "python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{0}').merge_and_unload()"
    ".save_pretrained('{0}-merged')\", beside which the tokenizer belongs"
)
_VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")


def base_of(folder: Path) -> str:
    """The name of the base model that an adapter's folder names. ModelError, with the remedy, where it cannot be merged."""
    with failures(f"{folder}: adapter_config.json cannot be used", "copy it anew, or save the adapter again"):
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if not isinstance(config, Mapping):
            raise ValueError("it is no object")
    kind, base = config.get("peft_type"), config.get("base_model_name_or_path")
    if kind not in _MERGEABLE:
        raise ModelError(
            f"{folder}: holds a PEFT adapter of the kind {kind!r}, which is no change of weights that can be merged into "
            "them; give a model without it, or train an adapter of another kind (LoRA)"
        )
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{folder}: holds a PEFT adapter that names no base model; write its folder or hub name as "
            "base_model_name_or_path in adapter_config.json"
        )
    adapter_weights(folder)
    if find_spec("peft") is None:
        raise ModelError(
            f"{folder}: holds a PEFT adapter, which is merged with the package peft, and that is not installed; "
            f'pip install "qrnca_lens[peft]", or merge it where peft is: {_MERGE.format(folder)}, and give the '
            "folder of the merged model"
        )
    return base


def adapter_weights(folder: Path) -> Path:
    """The file that holds the adapter's weights. ModelError where there is none."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"{folder}: an adapter_config.json without weights (adapter_model.safetensors); copy the adapter anew")


def merged(hf_model: Any, folder: Path) -> Any:
    """The model of transformers with the adapter merged into its weights. ModelError where they do not fit each other."""
    _check_vocabulary(folder, hf_model.config.vocab_size)
    peft = load("peft")
    with (
        quiet(),
        failures(f"{folder}: the adapter cannot be merged into its base model", "name the base model it was made on"),
    ):
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = peft.PeftModel(hf_model, config)
        found = adapted.load_adapter(str(folder), "default")
        # all weights of the base are "missing" from the adapter's file, except those that it has
        missing = [key for key in found.missing_keys if ".default" in key]
        if missing or found.unexpected_keys:
            raise ValueError(f"missing: {missing[:3]}, unexpected: {list(found.unexpected_keys)[:3]}")
        model = adapted.merge_and_unload()
    return model.eval().requires_grad_(False)


def _check_vocabulary(folder: Path, tokens: int) -> None:
    """An adapter that was made on an enlarged vocabulary carries embeddings that its base has no room for."""
    path = adapter_weights(folder)
    if path.suffix != ".safetensors":
        return
    with failures(f"{path}: the adapter's weights cannot be read", "copy the adapter anew"), safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys() if key.endswith(_VOCABULARY)}  # noqa: SIM118
    for key, shape in shapes.items():
        if shape[0] != tokens:
            raise ModelError(
                f"{folder}: the adapter was made on a vocabulary of {shape[0]:,} tokens ({key}), its base model has "
                f"{tokens:,}; resize the base's (resize_token_embeddings), merge the adapter there, save_pretrained, and "
                "give that folder"
            )
