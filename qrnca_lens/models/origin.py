"""Where a loaded model came from, as the records of runs name it."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

from qrnca_lens.models.adapters import adapter_weights
from qrnca_lens.models.gguf_files import sha256_of
from qrnca_lens.models.hooked import HookedModel
from qrnca_lens.models.sources import Source

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


def remember(model: HookedModel, source: Source) -> None:
    """Note where the model was read from; the file is hashed here, once a load."""
    if source.gguf is not None:
        _ORIGINS[model] = {"file": source.gguf.path.name, "sha256": sha256_of(source.gguf.path)}
    elif source.adapter is not None:
        base = Path(source.place).name if Path(source.place).is_dir() else source.place
        _ORIGINS[model] = {"adapter": source.name, "sha256": sha256_of(adapter_weights(source.adapter)), "base": base}
