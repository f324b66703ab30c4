"""What `load_model` reads from a folder or the hub: configuration, tokenizer and weights, each refused with a remedy.

Code that comes with a model is never run, nothing is installed, and weights that do not fit their configuration are refused:
transformers would fill the gaps with random numbers.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from qrnca_lens.models.errors import ModelError

ATLAS_FOLDER = Path(__file__).parents[1] / "atlas" / "weights"
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

_HUB_SECONDS = 5.0
_LONGEST = 300  # characters of another library's message
_POSITIVE = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "hidden_size", "n_embd", "d_model", "intermediate_size"),
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("max_position_embeddings", "n_positions", "max_seq_len"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_UNSAFE = ("weights_only", "trust_remote_code")
_AGAIN = "mend it, copy it anew, or save the model again with save_pretrained"
_CODE = "code that comes with a model (auto_map) is not run: give a model of an architecture that transformers has itself"
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.\d+\.(attn|attn\.attention|attention)\.(bias|masked_bias)|position_ids)$")


@dataclass(frozen=True)
class Source:
    """A folder or hub name that holds a model; `cached`: the hub cannot be reached, its files are those of the cache."""

    place: str
    cached: bool = False

    @property
    def reading(self) -> dict[str, bool]:
        """What every reader of transformers is told."""
        return {"trust_remote_code": False, "local_files_only": self.cached}


def find_source(name_or_folder: str | os.PathLike[str]) -> Source:
    """The folder or hub name to load from. ModelError where there is none, at once."""
    text = os.fspath(name_or_folder)
    if text == "atlas":
        return Source(str(ATLAS_FOLDER))
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise _adapter(str(path))
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in this folder; give a folder written by save_pretrained")
        return Source(str(path))
    if path.exists():
        raise ModelError(f"{path}: this is a file; give the folder that holds config.json and the weights")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise ModelError(f"{path}: no such folder; give a Hugging Face model folder, a hub name or 'atlas'")
    return _on_hub(text)


def _on_hub(name: str) -> Source:
    """A model of the hub, asked for once and without the retries of a download."""
    if get_close_matches(name.lower(), ["atlas"], cutoff=0.7):
        raise ModelError(f"{name!r}: no such model; the shipped one is called 'atlas'")
    missing = f"{name!r}: neither a folder here nor a model of the Hugging Face hub"
    advice = "check the name and your access, give a local folder, or use 'atlas'"
    try:
        validate_repo_id(name)
    except ValueError:
        raise ModelError(f"{missing}, whose names are like 'owner/model'; {advice}") from None
    try:
        files = HfApi().model_info(name, timeout=_HUB_SECONDS).siblings or []
    except RepositoryNotFoundError:
        raise ModelError(f"{missing}; {advice}") from None
    except FAILURES as error:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return Source(name, cached=True)
        raise ModelError(
            f"{missing} that is in the cache, and the hub could not be asked ({reason_of(error)}); {advice}"
        ) from None
    names = {file.rfilename for file in files}
    if "adapter_config.json" in names and "config.json" not in names:
        raise _adapter(name)
    return Source(name)


def _adapter(place: str) -> ModelError:
    return ModelError(
        f"{place}: holds a PEFT adapter; load its base model with peft, call merge_and_unload() and save_pretrained(), and "
        "give the folder of the merged model"
    )


def read_config(source: Source) -> PretrainedConfig:
    """The configuration of a dense, unquantised, causal language model, `architectures` filled in. ModelError for others."""
    place = source.place
    with failures(f"{place}: config.json cannot be used", _AGAIN):
        raw, _ = PretrainedConfig.get_config_dict(place, local_files_only=source.cached)
        if not isinstance(raw, Mapping) or not isinstance(raw.get("model_type"), str):
            raise ValueError("it names no model_type")
    _check_numbers(place, raw)
    if isinstance(raw.get("quantization_config"), Mapping):
        method = raw["quantization_config"].get("quant_method", "an unnamed method")
        raise ModelError(
            f"{place}: the weights are quantised ({method}), and attribution needs gradients through them; give the model "
            "that was quantised, or dequantise it and save that with save_pretrained"
        )
    if _counts_experts(raw):
        raise ModelError(
            f"{place}: a mixture-of-experts model ({raw['model_type']}), whose neurons lie in experts: that is not "
            "supported; give a dense model"
        )
    with failures(f"{place}: config.json cannot be used", _CODE if "auto_map" in raw else _AGAIN):
        config = AutoConfig.from_pretrained(place, **source.reading)
    if config.get_text_config() is not config:
        raise ModelError(
            f"{place}: {config.model_type} reads more than text; save its language model on its own "
            "(load the model with transformers, then model.language_model or the text-only class, and save_pretrained)"
        )
    _check_causal(place, config)
    return config


def _counts_experts(raw: Mapping[str, Any]) -> bool:
    """Whether a configuration, or a part of it, counts experts."""
    here = any(isinstance(raw.get(key), (int, float)) and raw[key] > 0 for key in _EXPERTS)
    return here or any(_counts_experts(part) for part in raw.values() if isinstance(part, Mapping))


def _check_numbers(place: str, raw: Mapping[str, Any]) -> None:
    for key in _POSITIVE:
        value = raw.get(key)
        if value is None or isinstance(value, (list, dict)):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{place}: config.json: {key} must be a whole number of at least 1, not {value!r}")


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
    with failures(f"{source.place}: no usable tokenizer there", "save it beside the weights (tokenizer.save_pretrained)"):
        tokenizer = AutoTokenizer.from_pretrained(source.place, **source.reading)
        if not tokenizer.encode("A"):
            raise ValueError("it makes no token of 'A'")
    if tokenizer.pad_token_id is None:
        others = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token, tokenizer.convert_ids_to_tokens(0))
        tokenizer.pad_token = next(str(token) for token in others if token is not None)
    return tokenizer


def read_weights(source: Source, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    """The model of transformers, every weight of which comes from the files. ModelError names those that do not fit."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the keys is told in the error below
    try:
        with failures(f"{source.place}: the weights cannot be read", _AGAIN):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.place,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **source.reading,
            )
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
    model, about = loaded
    _check_fit(source.place, about)
    return model.eval().requires_grad_(False)


def _check_fit(place: str, about: Mapping[str, Any]) -> None:
    missing = sorted(about["missing_keys"])
    unexpected = sorted(key for key in about["unexpected_keys"] if not _BUFFERS.search(key))
    shapes = sorted(
        f"{key} {tuple(there)} in the files, {tuple(wanted)} in config.json"
        for key, there, wanted in about["mismatched_keys"]
    )
    found = [
        f"{name}: {_listed(keys)}"
        for name, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if found:
        raise ModelError(
            f"{place}: the weights do not fit config.json ({'; '.join(found)}); save the whole model again with "
            "save_pretrained (a wrapped model's inner one: model.module, or merge_and_unload() of an adapter)"
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
