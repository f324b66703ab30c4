"""TransformerLens configurations from a Hugging Face config, by architecture and never by a model's name.

TransformerLens 3.9 guesses the architecture from the name or the path on several of its own routes (a folder called "llama"
holds a Llama for it); here `config.json` decides. A configuration that this table cannot express is None, and `load_model`
uses a bridge. What the table says is checked at every load: the logits must equal those of the Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from transformers import PretrainedConfig

Fields = dict[str, Any]


def hooked_fields(config: PretrainedConfig) -> Fields | None:
    """The fields of a HookedTransformerConfig, or None if no HookedTransformer can stand for this model."""
    architecture = _architecture(config)
    if architecture not in _FIELDS:
        return None
    fields = _FIELDS[architecture](config)
    return None if fields is None else {**fields, "original_architecture": architecture, "init_weights": False}


def convert_weights(hf_model: Any, cfg: Any) -> dict[str, Any]:
    """TransformerLens's own conversion of the weights of a model that `hooked_fields` knows."""
    kind = _CONVERSIONS[cfg.original_architecture]
    # not at the top: TransformerLens 4 has neither HookedTransformers nor these
    module = import_module(f"transformer_lens.pretrained.weight_conversions.{kind}")
    return getattr(module, f"convert_{kind}_weights")(hf_model, cfg)


def _architecture(config: PretrainedConfig) -> str:
    return (config.architectures or [""])[0]


def _rotary(config: PretrainedConfig) -> Fields | None:
    """The rotary part; None for a scaling that HookedTransformer does not have."""
    rope: Fields = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    base = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    fields = {"positional_embedding_type": "rotary", "rotary_base": base, "rotary_adjacent_pairs": False}
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        return fields | {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    return fields if kind == "default" else None


def _gated(config: PretrainedConfig) -> Fields | None:
    """Llama, Mistral, Qwen2, Qwen3, Gemma: RMSNorm, rotary positions, a gated MLP."""
    rotary = _rotary(config)
    if rotary is None:
        return None
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    grouped = config.num_key_value_heads != config.num_attention_heads
    return (
        rotary
        | _windows(config)
        | {
            "d_model": config.hidden_size,
            "d_head": d_head,
            "n_heads": config.num_attention_heads,
            "n_key_value_heads": config.num_key_value_heads if grouped else None,
            "d_mlp": config.intermediate_size,
            "n_layers": config.num_hidden_layers,
            "n_ctx": config.max_position_embeddings,
            "eps": config.rms_norm_eps,
            "d_vocab": config.vocab_size,
            "act_fn": config.hidden_act,
            "rotary_dim": d_head,
            "normalization_type": "RMS",
            "final_rms": True,
            "gated_mlp": True,
        }
    )


def _windows(config: PretrainedConfig) -> Fields:
    """The sliding window, for the layers that have one."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    if not window or "sliding_attention" not in kinds:
        return {}
    types = ["local" if kind == "sliding_attention" else "global" for kind in kinds]
    return {"use_local_attn": True, "window_size": window, "attn_types": types}


def _always_grouped(config: PretrainedConfig) -> Fields | None:
    """Mistral and Qwen2, whose weight conversions name keys and values as grouped ones whatever their number."""
    fields = _gated(config)
    return None if fields is None else fields | {"n_key_value_heads": config.num_key_value_heads}


def _qwen3(config: PretrainedConfig) -> Fields | None:
    fields = _gated(config)
    return None if fields is None else fields | {"use_qk_norm": True}


def _gemma(config: PretrainedConfig) -> Fields | None:
    fields = _always_grouped(config)
    activation = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu": "gelu_pytorch_tanh"}.get(config.hidden_act)
    return None if fields is None or activation is None else fields | {"act_fn": activation}


def _gpt2(config: PretrainedConfig) -> Fields:
    return {
        "d_model": config.n_embd,
        "d_head": config.n_embd // config.n_head,
        "n_heads": config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_layers": config.n_layer,
        "n_ctx": config.n_positions,
        "eps": config.layer_norm_epsilon,
        "d_vocab": config.vocab_size,
        "act_fn": config.activation_function,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def _neox(config: PretrainedConfig) -> Fields | None:
    rotary = _rotary(config)
    if rotary is None:
        return None
    d_head = config.hidden_size // config.num_attention_heads
    rope: Fields = dict(getattr(config, "rope_parameters", None) or {})
    share = rope.get("partial_rotary_factor", getattr(config, "rotary_pct", 1.0))
    return rotary | {
        "d_model": config.hidden_size,
        "d_head": d_head,
        "n_heads": config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.layer_norm_eps,
        "d_vocab": config.vocab_size,
        "act_fn": config.hidden_act,
        "rotary_dim": round(share * d_head),
        "parallel_attn_mlp": config.use_parallel_residual,
        "normalization_type": "LN",
    }


_FIELDS: dict[str, Callable[[Any], Fields | None]] = {
    "LlamaForCausalLM": _gated,
    "MistralForCausalLM": _always_grouped,
    "Qwen2ForCausalLM": _always_grouped,
    "Qwen3ForCausalLM": _qwen3,
    "GemmaForCausalLM": _gemma,
    "GPT2LMHeadModel": _gpt2,
    "GPTNeoXForCausalLM": _neox,
}
_CONVERSIONS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "neox",
}
"""TransformerLens's conversion of the weights: weight_conversions.llama.convert_llama_weights, and so on."""
