"""What `load_model` reads: configuration, tokenizer and weights of a folder, the hub or a GGUF, each refused with a remedy.

Code that comes with a model is never run, nothing is installed, and weights that do not fit their configuration are refused:
transformers would fill the gaps with random numbers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.gguf_files import GgufFile

FAILURES: tuple[type[Exception], ...] = (
    EOFError,
    MemoryError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    AssertionError,
    pickle.PickleError,
    SafetensorError,
    StrictDataclassError,
    # the hub's HTTP library differs between releases (requests, httpx); what it raises is a base of the hub's own error
    *(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"),
)
"""What transformers, its files and a TransformerBridge raise on a model that they cannot take."""

_LONGEST = 300  # characters of another library's message
_POSITIVE = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "hidden_size", "n_embd", "d_model", "intermediate_size"),
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("max_position_embeddings", "n_positions", "max_seq_len"),
)
_QUANTISED = ("quantize_config.json", "quant_config.json")
"""Where GPTQ and AWQ leave their settings when config.json does not hold them."""
_PACKED = re.compile(r"\.(qweight|qzeros|scales|g_idx|absmax|quant_map|quant_state\.[\w.]+|weight_packed|SCB)$")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_UNSAFE = ("weights_only", "trust_remote_code")
_WHOLE = "give the folder or the hub name of the model that the file was made from"
_AGAIN = "mend it, copy it anew, or save the model again with save_pretrained"
_CODE = "code that comes with a model (auto_map) is not run: give a model of an architecture that transformers has itself"
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.\d+\.(attn|attn\.attention|attention)\.(bias|masked_bias)|position_ids)$")


@dataclass(frozen=True)
class Source:
    """Where a model lies: a folder, a hub name or a GGUF file, and what its `cfg.model_name` becomes.

    `cached`: the hub cannot be reached, its files are those of the cache. `gguf`: the head of the file, if it is one.
    `adapter`: the folder of a PEFT adapter that is merged into the model at `place`.
    """

    place: str
    name: str
    cached: bool = False
    gguf: GgufFile | None = None
    adapter: Path | None = None

    @property
    def root(self) -> str:
        """What readers of transformers open; for a GGUF an empty folder, so that nothing beside the file is read."""
        return self.place if self.gguf is None else _empty_folder()

    @property
    def reading(self) -> dict[str, Any]:
        """What every reader of transformers is told."""
        told = {"trust_remote_code": False, "local_files_only": self.cached}
        return told if self.gguf is None else {**told, "gguf_file": str(self.gguf.path.absolute())}

    @property
    def settings(self) -> str:
        """What the messages call the place of the configuration."""
        return "config.json" if self.gguf is None else "the head of the GGUF file"

    @property
    def remedy(self) -> str:
        """What helps against files that cannot be used."""
        return _AGAIN if self.gguf is None else _WHOLE


@cache
def _kept_empty() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="qrnca_lens-")


def _empty_folder() -> str:
    return _kept_empty().name


def read_config(source: Source) -> PretrainedConfig:
    """The configuration of a dense, unquantised, causal language model, `architectures` filled in. ModelError for others."""
    place, unusable = source.place, f"{source.place}: {source.settings} cannot be used"
    with failures(unusable, source.remedy):
        raw, _ = PretrainedConfig.get_config_dict(source.root, **source.reading)
        if not isinstance(raw, Mapping) or not isinstance(raw.get("model_type"), str):
            raise ValueError("it names no model_type")
    _check_numbers(source, raw)
    _check_plain(place, raw)
    if _counts_experts(raw):
        raise ModelError(
            f"{place}: a mixture-of-experts model ({raw['model_type']}), whose neurons lie in experts: that is not "
            "supported; give a dense model"
        )
    with failures(unusable, _CODE if "auto_map" in raw else source.remedy):
        if source.gguf is None:
            config = AutoConfig.from_pretrained(place, **source.reading)
        else:
            scaled = source.gguf.rope  # transformers does not read it from a GGUF
            config = AutoConfig.for_model(**({**raw, "rope_scaling": scaled} if scaled else raw))
    if config.get_text_config() is not config:
        raise ModelError(
            f"{place}: {config.model_type} reads more than text; save its language model on its own "
            "(load the model with transformers, then model.language_model or the text-only class, and save_pretrained)"
        )
    _check_causal(place, config)
    return config


def _check_plain(place: str, raw: Mapping[str, Any]) -> None:
    """Refuse weights that are quantised: what config.json says of it, or a file that GPTQ and AWQ write beside it."""
    said = raw.get("quantization_config", raw.get("compression_config"))
    beside = next((name for name in _QUANTISED if (Path(place) / name).is_file()), None)
    if isinstance(said, Mapping):
        raise _quantised(place, said.get("quant_method", "an unnamed method"))
    if beside is not None:
        raise _quantised(place, f"there is a {beside}")


def _quantised(place: str, how: str) -> ModelError:
    return ModelError(
        f"{place}: the weights are quantised ({how}), and attribution needs gradients through them; give the model "
        "that was quantised, or dequantise it and save that with save_pretrained"
    )


def _counts_experts(raw: Mapping[str, Any]) -> bool:
    """Whether a configuration, or a part of it, counts experts."""
    here = any(isinstance(raw.get(key), (int, float)) and raw[key] > 0 for key in _EXPERTS)
    return here or any(_counts_experts(part) for part in raw.values() if isinstance(part, Mapping))


def _check_numbers(source: Source, raw: Mapping[str, Any]) -> None:
    for key in _POSITIVE:
        value = raw.get(key)
        if value is None or isinstance(value, (list, dict)):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{source.place}: {source.settings}: {key} must be a whole number of at least 1, not {value!r}")


def _check_causal(place: str, config: PretrainedConfig) -> None:
    """Fill in `architectures` by the model type where a configuration has none, and refuse what is no causal model."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    named = known if isinstance(known, str) else (known or [None])[0]
    if not config.architectures and named:
        config.architectures = [named]
    if isinstance(config.architectures, str):
        config.architectures = [config.architectures]
    architecture = (config.architectures or [f"a model of the type {config.model_type!r}"])[0]
    if config.is_encoder_decoder or architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ModelError(
            f"{place}: {architecture} is not a causal (decoder-only) language model; "
            "QRNCA needs one that predicts the next token, such as Llama, Mistral, Qwen2, Gemma or GPT-2"
        )


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, with a padding token: TransformerLens's text methods need one. ModelError."""
    own = source.adapter is not None and any(source.adapter.glob("tokenizer*.json"))
    place = str(source.adapter) if own else source.place
    remedy = "save it beside the weights (tokenizer.save_pretrained)" if source.gguf is None else _WHOLE
    with failures(f"{place}: no usable tokenizer there", remedy):
        tokenizer = AutoTokenizer.from_pretrained(place if own else source.root, **source.reading)
        if not tokenizer.encode("A"):
            raise ValueError("it makes no token of 'A'")
    if source.gguf is not None:
        tokenizer.name_or_path = place
    if tokenizer.pad_token_id is None:
        others = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token, tokenizer.convert_ids_to_tokens(0))
        tokenizer.pad_token = next(str(token) for token in others if token is not None)
    return tokenizer


def read_weights(source: Source, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """The model of transformers, every weight of which comes from the files. ModelError names those that do not fit."""
    with quiet(), failures(f"{source.place}: the weights cannot be read", source.remedy):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.root,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **source.reading,
        )
    model, about = loaded
    _check_fit(source, about)
    if source.gguf is not None:
        _check_all_read(source.gguf, model)
        _forget_gguf(source, model)
    return model.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers: what matters in them is told in errors."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    bar = reading.tqdm  # the bar of dequantising, which no switch of transformers reaches
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    reading.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reading.tqdm = bar
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def _check_all_read(gguf: GgufFile, model: Any) -> None:
    """Tensors of a GGUF that transformers does not know are left out by it without a word."""
    read = sum(weight.numel() for weight in model.parameters())
    if read != gguf.size:
        raise ModelError(
            f"{gguf.path}: the file holds {gguf.size:,} values, of which transformers takes {read:,} for a "
            f"{type(model).__name__}: it does not know all tensors of this file; {_WHOLE}"
        )


def _forget_gguf(source: Source, model: Any) -> None:
    """The weights are plain ones now: nothing says any more that they were quantised, so that the model can be saved."""
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
    model.config.__dict__.pop("quantization_config", None)
    model.config._name_or_path = source.place


def _check_fit(source: Source, about: Mapping[str, Any]) -> None:
    packed = next((key for key in sorted(about["unexpected_keys"]) if _PACKED.search(key)), None)
    if packed is not None:
        raise _quantised(source.place, f"there is a weight {packed}")
    missing = sorted(about["missing_keys"])
    unexpected = sorted(key for key in about["unexpected_keys"] if not _BUFFERS.search(key))
    shapes = sorted(
        f"{key} {tuple(there)} in the files, {tuple(wanted)} in {source.settings}"
        for key, there, wanted in about["mismatched_keys"]
    )
    found = [
        f"{name}: {_listed(keys)}"
        for name, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if found:
        remedy = (
            "save the whole model again with save_pretrained (a wrapped model's inner one: model.module, or "
            "merge_and_unload() of an adapter)"
        )
        raise ModelError(
            f"{source.place}: the weights do not fit {source.settings} ({'; '.join(found)}); "
            f"{remedy if source.gguf is None else _WHOLE}"
        )


def _listed(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


@contextmanager
def failures(what: str, remedy: str) -> Iterator[None]:
    """What fails in the block, as a ModelError with its reason and a remedy."""
    try:
        yield
    except FAILURES as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{what} ({reason_of(error)}); {remedy}") from error


def reason_of(error: BaseException) -> str:
    """What a library says, in one line and shortened, unless it recommends to load unsafely."""
    text = str(error)
    if any(word in text for word in _UNSAFE):
        return "it is damaged, or more than plain weights and settings, or needs code of its own, which is never run"
    if "Available architectures" in text:
        return "TransformerLens knows no such architecture"
    line = " ".join(text.split())
    told = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
    return f"{type(error).__name__}: {told}" if isinstance(error, LookupError) or not told else told
