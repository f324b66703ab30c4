"""Where a loaded model came from, as the records of runs name it."""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from qrnca_lens.models.adapters import adapter_weights
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.gguf_files import sha256_of
from qrnca_lens.models.hooked import HookedModel
from qrnca_lens.models.sources import Source

_LOADED: WeakKeyDictionary[HookedModel, tuple[str, torch.dtype]] = WeakKeyDictionary()
_ORIGINS: WeakKeyDictionary[HookedModel, dict[str, str]] = WeakKeyDictionary()


def origin_of(model: HookedModel) -> dict[str, str]:
    """The file that `load_model` read the model from, and its SHA-256: `{"file": name, "sha256": hex digits}`.

    For a merged adapter "adapter", "sha256" (of the adapter's weights) and "base". Empty for other models, which are told
    apart by their name and the fingerprint of their weights alone.
    """
    return dict(_ORIGINS.get(model, {}))


def source_entry(model: HookedModel) -> dict[str, dict[str, str]]:
    """What a record holds of it: `{"source": origin_of(model)}`, or nothing."""
    return {"source": origin_of(model)} if model in _ORIGINS else {}


def loaded_from(model: HookedModel) -> tuple[str, torch.dtype]:
    """What `load_model` was given: the name, or the whole path of a folder or file, and the dtype, so that another process
    can load the same. ModelError for a model that came otherwise."""
    if model not in _LOADED:
        raise ModelError(
            f"{model.cfg.model_name}: other processes load a model themselves, and this one did not come from load_model, "
            "so they cannot; load it with load_model, or work in this process (engine='local')"
        )
    return _LOADED[model]


def remember(model: HookedModel, source: Source, given: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """Note where the model was read from and what `load_model` was given; the file is hashed here, once a load."""
    _LOADED[model] = (str(Path(given).absolute()) if Path(given).exists() else str(given), dtype)
    if source.gguf is not None:
        _ORIGINS[model] = {"file": source.gguf.path.name, "sha256": sha256_of(source.gguf.path)}
    elif source.adapter is not None:
        base = Path(source.place).name if Path(source.place).is_dir() else source.place
        _ORIGINS[model] = {"adapter": source.name, "sha256": sha256_of(adapter_weights(source.adapter)), "base": base}
