"""Tiny checkpoints written as GGUF files the way llama.cpp's converter lays them out, unquantised or in Q8_0."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
    "gemma2": "gemma2",
    "mixtral": "llama",
}


def write_gguf(folder: Path, path: Path, *, quantised: bool = False, without: tuple[str, ...] = (), **extra: Any) -> Path:
    """The checkpoint in a folder as a GGUF file.

    `without`: "tokenizer", or names of tensors to leave out. `extra`: settings (dots as two underscores) and, as
    arrays, tensors that are added.
    """
    config = AutoConfig.from_pretrained(folder)
    name = _ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, name)
    _settings(writer, config)
    if "tokenizer" not in without:
        _tokenizer(writer, folder)
    for key, value in extra.items():
        key = key.replace("__", ".")
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    for key, weight in _weights(folder, config).items():
        if key not in without:
            small = quantised and weight.ndim == 2 and weight.shape[1] % 32 == 0
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quantize(weight, kind) if small else weight, raw_dtype=kind if small else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _settings(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_type("model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = json.loads((folder / "tokenizer.json").read_text())
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece in tokenizer.all_special_tokens else 1 for piece in pieces])
    writer.add_token_merges([" ".join(pair) for pair in made["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(tokenizer.encode("A")[0] == tokenizer.bos_token_id)
    writer.add_chat_template(TEMPLATE)


def _weights(folder: Path, config: Any) -> dict[str, np.ndarray]:
    """The weights by llama.cpp's names, laid out as its converter leaves them."""
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == _ARCHITECTURES[config.model_type])
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    made = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.numpy()
        stem, _, ending = key.rpartition(".")
        if config.model_type == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            weight = _interleaved(weight, heads)
        if config.model_type == "gpt2" and stem.endswith(("c_attn", "c_proj", "c_fc")) and weight.ndim == 2:
            weight = weight.T
        if config.model_type == "gemma2" and "norm" in stem:
            weight = weight + 1
        made[f"{names.get_name(stem)}.{ending}"] = np.ascontiguousarray(weight)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        made["rope_freqs.weight"] = llama3_divisors(config.hidden_size // config.num_attention_heads, rope)
    return made


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of each head, which rotary positions turn together, row by row."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(d_head: int, rope: dict[str, Any]) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3: by how much each frequency is divided."""
    trained, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(d_head // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * i / d_head)
        if wave < trained / high:
            divisors.append(1.0)
        elif wave > trained / low:
            divisors.append(rope["factor"])
        else:
            smooth = (trained / wave - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)
