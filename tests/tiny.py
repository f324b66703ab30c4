"""Tiny random checkpoints in Hugging Face format, one per family, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CORPUS = ["Question: which letter is right? A. one B. two C. three D. four Answer: A B C D", "(A) (B) (C) (D) Options"]
_SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 320, "max_position_embeddings": 128}
GATED = _SIZE | {"num_attention_heads": 4, "intermediate_size": 48}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GATED, num_key_value_heads=4),
    "llama3": LlamaConfig(
        **GATED,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": MistralConfig(**GATED, num_key_value_heads=2, sliding_window=None),
    "mistral-window": MistralConfig(**GATED, num_key_value_heads=2, sliding_window=16),
    "qwen2": Qwen2Config(**GATED, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(
        **GATED, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**GATED, num_key_value_heads=2, head_dim=8),
    "gemma": GemmaConfig(**GATED, num_key_value_heads=1, head_dim=16),
    "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=80, vocab_size=320, n_positions=128),
    "gpt-neox": GPTNeoXConfig(**GATED, rotary_pct=0.5),
    "opt": OPTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        ffn_dim=48,
        num_attention_heads=4,
        vocab_size=320,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
    ),
    "phi": PhiConfig(**GATED),
    "llama-bias": LlamaConfig(**GATED, num_key_value_heads=4, mlp_bias=True),
    "mpt": MptConfig(d_model=32, n_heads=4, n_layers=3, vocab_size=320, max_seq_len=128),
    "gemma2": Gemma2Config(**GATED, num_key_value_heads=2, head_dim=8),
    "olmo2": Olmo2Config(**GATED, num_key_value_heads=4),
    "gemma3": Gemma3TextConfig(**GATED, num_key_value_heads=2, head_dim=8, sliding_window=16),
    "granite": GraniteConfig(
        **GATED, num_key_value_heads=2, residual_multiplier=0.4, logits_scaling=3.0, embedding_multiplier=2.0
    ),
    "exaone4": Exaone4Config(**GATED, num_key_value_heads=2),
    "glm4": Glm4Config(**GATED, num_key_value_heads=2, head_dim=8, pad_token_id=2),
    "cohere": CohereConfig(**GATED, num_key_value_heads=2),
    "bert": BertConfig(**GATED, type_vocab_size=2),
}
ENGINE_FAMILIES = (
    "llama",
    "llama3",
    "mistral",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "gemma",
    "gpt2",
    "gpt-neox",
)


def tiny_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE; with `bos` it puts <s> before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE in the manner of Llama 2: "▁" for a space, one before every text, bytes for what it does not know."""
    words = ["A", "B", "C", "D", "▁", "▁A", "▁B", "▁C", "▁D", ":", "("]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", letter) for letter in "ABCD"]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def save_tiny(family: str, folder: Path, config: PretrainedConfig | None = None) -> Path:
    """Write a random checkpoint of the family (or of `config`), its weights large enough that every layer matters."""
    torch.manual_seed(len(family))
    config = config or CONFIGS[family]
    model = BertForMaskedLM(config) if family == "bert" else AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.25)
        elif "norm" in name or "ln_" in name:
            weight.data += 0.1 * torch.randn_like(weight)
        else:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    tiny_tokenizer(bos=family not in ("gpt2", "gpt-neox", "opt") and "qwen" not in family).save_pretrained(folder)
    return folder
