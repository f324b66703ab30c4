"""Loading: a name or a folder becomes a HookedTransformer (or a bridge), raw weights, checked against Hugging Face."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from qrnca_lens.core.values import told
from qrnca_lens.models.adapters import merged
from qrnca_lens.models.checks import check_hooked
from qrnca_lens.models.configs import convert_weights, hooked_fields
from qrnca_lens.models.devices import devices_of, put_on
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel, HookedTransformer, HookedTransformerConfig
from qrnca_lens.models.origin import remember
from qrnca_lens.models.places import find_source
from qrnca_lens.models.reader import adds_bos
from qrnca_lens.models.sources import (
    FAILURES,
    Source,
    failures,
    read_config,
    read_tokenizer,
    read_weights,
    reason_of,
)

_log = logging.getLogger(__name__)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_PROBE_LENGTH = 32
_OTHER, _FINER = "give a model of another architecture", "load it in float32, or give a model of another architecture"


def load_model(
    name_or_folder: str | os.PathLike[str], *, device: str | None = None, dtype: torch.dtype | None = None
) -> HookedModel:
    """A hooked model with raw (unprocessed) weights, in evaluation mode, without gradients on its parameters.

    `name_or_folder`: "atlas" (the shipped model), a local Hugging Face folder, a name on the Hugging Face hub, or a GGUF
    file, here ("model.gguf") or on the hub ("owner/model/model.gguf"), which is dequantised. A PEFT adapter, in a folder or
    on the hub, is merged into its base model.
    `device`: "cuda" where there is one, else "cpu"; "cuda:0,cuda:1" spreads the layers of a HookedTransformer over GPUs in
    a row, so that one that fits none of them fits. `dtype`: torch.float32 (default) or torch.bfloat16; float16 is
    refused, because gradients underflow in it. The result is a HookedTransformer where TransformerLens has one for the
    architecture and its logits equal those of the Hugging Face model, else a TransformerBridge whose logits do.

    Raises ModelError, which names the remedy, for what is not there, is no dense causal language model, needs code of its
    own, does not fit its configuration, or gives other logits than `transformers` in either form.
    """
    dtype = torch.float32 if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or dtype not in _TOLERANCE:
        raise ModelError(f"dtype {told(dtype)} is not supported; use torch.float32 or torch.bfloat16")
    places = devices_of(device)
    source = find_source(name_or_folder)
    with _plain_torch():
        config = read_config(source)
        tokenizer = read_tokenizer(source)
        hf_model = read_weights(source, config, dtype)
        if source.adapter is not None:
            hf_model = merged(hf_model, source.adapter)
        with failures(
            f"{source.place}: {type(hf_model).__name__} cannot be run", _OTHER if dtype == torch.float32 else _FINER
        ):
            probe = _Probe(source.place, hf_model, dtype)
            model = _hooked_transformer(hf_model, config, tokenizer, probe) or _bridge(source, hf_model, tokenizer, probe)
            model.cfg.model_name = source.name
            model.eval().requires_grad_(False)
            check_hooked(model)
    remember(model, source, name_or_folder, dtype)
    return put_on(model, places)


@contextmanager
def _plain_torch() -> Iterator[None]:
    """PyTorch's usual state, whatever the session has set: weights that take gradients, buffers in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)


class _Probe:
    """Random tokens and the logits of transformers on them, taken before a bridge takes the model over."""

    def __init__(self, place: str, hf_model: Any, dtype: torch.dtype) -> None:
        text, generator = hf_model.config, torch.Generator().manual_seed(0)
        length = min(_PROBE_LENGTH, getattr(text, "max_position_embeddings", None) or _PROBE_LENGTH)
        self.tokens = torch.randint(0, text.vocab_size, (1, length), generator=generator)
        self.dtype = dtype
        other = torch.cat([self.tokens[:, :-1], (self.tokens[:, -1:] + 1) % text.vocab_size], dim=1)
        with torch.no_grad():
            self.logits, changed = (hf_model(tokens).logits.float() for tokens in (self.tokens, other))
        if not self.logits.isfinite().all():
            bad = [name for name, weight in hf_model.named_parameters() if not weight.isfinite().all()]
            raise ModelError(
                f"{place}: the logits of transformers are no numbers"
                + (f", because the weight {bad[0]!r} holds NaN or infinite values" if bad else "")
                + "; load the model from intact files"
                + ("" if dtype == torch.float32 else ", or in float32")
            )
        if (changed - self.logits)[:, :-1].abs().max() > _TOLERANCE[dtype] * self.logits.abs().max():
            raise ModelError(
                f"{place}: {type(hf_model).__name__} reads the tokens that follow, too; QRNCA needs a causal model, which "
                "predicts each token from those before it"
            )

    @torch.no_grad()
    def off(self, model: HookedModel) -> float:
        """The largest difference between the model's logits and those of transformers, as a share of the largest logit."""
        largest = self.logits.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        return ((model(self.tokens).float() - self.logits).abs().max() / largest).item()

    def holds(self, off: float) -> bool:
        """Whether that is within the rounding of the dtype."""
        return off <= _TOLERANCE[self.dtype]


def _hooked_transformer(
    hf_model: Any, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, probe: _Probe
) -> HookedModel | None:
    """The model as a HookedTransformer; None where there is none or where it would compute something else."""
    if HookedTransformer is None or HookedTransformerConfig is None:
        return None
    fields = hooked_fields(config)
    if fields is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(HookedTransformerConfig.from_dict({**fields, "dtype": probe.dtype, "device": "cpu"}))
    model.load_state_dict(_unshared(convert_weights(hf_model, model.cfg), probe.dtype), strict=False, assign=True)
    _set_tokenizer(model, tokenizer)
    off = probe.off(model)
    if probe.holds(off):
        return model
    _log.warning(
        "%s: the HookedTransformer's logits are off by %.2g of the largest; using a TransformerBridge",
        config.model_type,
        off,
    )
    return None


def _unshared(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights of one dtype of which no two share memory: tied embeddings would change together when one is folded."""
    seen: set[int] = set()
    made = {}
    for name, weight in weights.items():
        lies = weight.untyped_storage().data_ptr()
        made[name] = (weight.clone() if lies in seen else weight).to(dtype if weight.is_floating_point() else weight.dtype)
        seen.add(lies)
    return made


def _bridge(source: Source, hf_model: Any, tokenizer: PreTrainedTokenizerBase, probe: _Probe) -> HookedModel:
    """The model as a TransformerBridge. ModelError where TransformerLens has none, or one that computes something else."""
    try:
        # a copy, because the bridge gives the tokenizer that it gets a BOS of its own: it reads it once more from its
        # folder, which a GGUF has not, unless the tokenizer says that this was done
        own = copy.deepcopy(tokenizer)
        own.init_kwargs["add_bos_token"] = True
        model: Any = TransformerBridge.boot_transformers(
            source.place, hf_model=hf_model, tokenizer=own, dtype=probe.dtype, device="cpu"
        )
        _set_tokenizer(model, tokenizer)
        model.cfg.d_vocab = hf_model.config.vocab_size  # the bridge takes the tokenizer's number, which can be smaller
        off = probe.off(model)
    except FAILURES as error:
        raise ModelError(
            f"{source.place}: TransformerLens cannot take {type(hf_model).__name__}, neither as HookedTransformer nor as "
            f"bridge ({reason_of(error)}); {_OTHER if probe.dtype == torch.float32 else _FINER}"
        ) from error
    if not probe.holds(off):
        raise ModelError(
            f"{source.place}: the bridge of TransformerLens for {type(hf_model).__name__} gives other logits than "
            f"transformers (off by {off:.1%} of the largest logit), so every number would be wrong; give a model of another "
            "architecture"
        )
    if not _caches_rightly(model, probe.tokens):
        model.adapter.supports_kv_cache = False  # `generate` then runs the whole text for every new token
    return model


def _set_tokenizer(model: HookedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """TransformerLens prepends a BOS of its own accord: its text methods must do what the tokenizer does, no more."""
    # a bridge's public setter would give the tokenizer a BOS again, so its field is set
    setattr(model, "_tokenizer" if isinstance(model, TransformerBridge) else "tokenizer", tokenizer)
    model.cfg.tokenizer_prepends_bos = model.cfg.default_prepend_bos = adds_bos(tokenizer)


@torch.no_grad()
def _caches_rightly(model: HookedModel, tokens: torch.Tensor) -> bool:
    """Whether a bridge's `generate` gives, for the second new token, the logits that the whole text gives.

    Releases of transformers and TransformerLens that name the cache differently lose it, and the text with it.
    """
    seen: list[torch.Tensor] = []

    def keep(logits: torch.Tensor, hook: Any) -> None:
        seen.append(logits[0, -1])

    try:
        with model.hooks(fwd_hooks=[("unembed.hook_out", keep)]):
            made = model.generate(tokens[:, :-2], max_new_tokens=2, do_sample=False, stop_at_eos=False, verbose=False)
    except FAILURES:
        return False  # not every bridge generates; nothing but `generate` needs the cache
    whole = model(made[:, :-1])[0, -1].float()
    return bool((seen[-1].float() - whole).abs().max() <= _TOLERANCE[seen[-1].dtype] * whole.abs().max())
