"""Loading: a name or a folder becomes a HookedTransformer (or a bridge), raw weights, checked against Hugging Face."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformer_lens import HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from qrnca_lens.models.configs import convert_weights, hooked_fields
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel, HookedTransformer

_log = logging.getLogger(__name__)
ATLAS_FOLDER = Path(__file__).parent / "atlas" / "weights"
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_PROBE_LENGTH = 12


def load_model(
    name_or_folder: str | os.PathLike[str], *, device: str | None = None, dtype: torch.dtype | None = None
) -> HookedModel:
    """A hooked model with raw (unprocessed) weights, in evaluation mode, without gradients on its parameters.

    `name_or_folder`: "atlas" (the shipped model), a local Hugging Face folder, or a name on the Hugging Face hub.
    `device`: "cuda" where there is one, else "cpu". `dtype`: torch.float32 (default) or torch.bfloat16; float16 is
    refused, because gradients underflow in it. The result is a HookedTransformer where TransformerLens has one for the
    architecture and its logits equal those of the Hugging Face model, else a TransformerBridge. Raises ModelError.
    """
    dtype = dtype or torch.float32
    if dtype not in _TOLERANCE:
        raise ModelError(f"dtype {dtype} is not supported; use torch.float32 or torch.bfloat16")
    source = _source(name_or_folder)
    config = _causal_config(source)
    tokenizer = _tokenizer(source)
    hf_model = _weights(source, dtype)
    model = _hooked_transformer(hf_model, config, tokenizer, dtype) or _bridge(source, hf_model, tokenizer, dtype)
    model.cfg.model_name = (
        Path(source).name if Path(source).is_dir() and source != str(ATLAS_FOLDER) else str(name_or_folder)
    )
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type != "cpu":
        model = model.to(place)
    return model.eval().requires_grad_(False)


def _source(name_or_folder: str | os.PathLike[str]) -> str:
    """The folder or hub name to load from."""
    text = os.fspath(name_or_folder)
    if text == "atlas":
        return str(ATLAS_FOLDER)
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in this folder; give a folder written by save_pretrained")
        return str(path)
    if path.exists():
        raise ModelError(f"{path}: this is a file; give the folder that holds config.json and the weights")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        raise ModelError(f"{path}: no such folder; give a Hugging Face model folder, a hub name or 'atlas'")
    return text


def _causal_config(source: str) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source!r}: neither a folder here nor a model that the Hugging Face hub could deliver "
            f"({_first_line(error)}); give a local folder, check the name and your access, or use 'atlas'"
        ) from error
    architecture = (config.architectures or ["unknown"])[0]
    if config.is_encoder_decoder or architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ModelError(
            f"{source}: {architecture} is not a causal (decoder-only) language model; "
            "QRNCA needs one that predicts the next token, such as Llama, Mistral, Qwen2, Gemma or GPT-2"
        )
    return config


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    advice = f"{source}: no usable tokenizer there; save it beside the weights (tokenizer.save_pretrained)"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if not tokenizer.encode("A"):
            raise ModelError(advice)
    except (OSError, TypeError, AttributeError, ImportError, KeyError, ValueError) as error:
        raise ModelError(advice) from error
    return tokenizer


def _weights(source: str, dtype: torch.dtype) -> Any:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source}: the weights cannot be read ({_first_line(error)})") from error
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    return model.eval().requires_grad_(False)


def _hooked_transformer(
    hf_model: Any, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> HookedModel | None:
    """The model as a HookedTransformer; None where there is none or where it would compute something else."""
    fields = hooked_fields(config) if HookedTransformer is not None else None
    if fields is None or HookedTransformer is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(HookedTransformerConfig.from_dict({**fields, "dtype": dtype, "device": "cpu"}))
    model.load_state_dict(convert_weights(hf_model, model.cfg), strict=False, assign=True)
    _set_tokenizer(model, tokenizer)
    if _same_logits(model, hf_model, dtype):
        return model
    _log.warning("%s: HookedTransformer disagrees with transformers; using a TransformerBridge", config.model_type)
    return None


def _bridge(source: str, hf_model: Any, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> HookedModel:
    try:
        # a copy, because the bridge gives the tokenizer that it gets a BOS of its own
        copied = copy.deepcopy(tokenizer)
        model = TransformerBridge.boot_transformers(source, hf_model=hf_model, tokenizer=copied, dtype=dtype, device="cpu")
    except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{source}: TransformerLens knows no such architecture, neither as HookedTransformer nor as bridge "
            f"({_first_line(error)})"
        ) from error
    _set_tokenizer(model, tokenizer)
    model.cfg.d_vocab = hf_model.config.vocab_size  # the bridge takes the tokenizer's number, which can be smaller
    return model


def _set_tokenizer(model: HookedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """TransformerLens prepends a BOS of its own accord: its text methods must do what the tokenizer does, no more."""
    # a bridge's public setter would give the tokenizer a BOS again, so its field is set
    setattr(model, "_tokenizer" if isinstance(model, TransformerBridge) else "tokenizer", tokenizer)
    begins = tokenizer.bos_token_id is not None and tokenizer.encode("A")[0] == tokenizer.bos_token_id
    model.cfg.tokenizer_prepends_bos = model.cfg.default_prepend_bos = begins


@torch.no_grad()
def _same_logits(model: HookedModel, hf_model: Any, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, hf_model.config.vocab_size, (1, _PROBE_LENGTH), generator=generator)
    ours, theirs = model(ids).float(), hf_model(ids).logits.float()
    return bool((ours - theirs).abs().max() <= _TOLERANCE[dtype] * theirs.abs().max())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
