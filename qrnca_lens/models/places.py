"""Where a model lies: what a user's name or path stands for, refused with a remedy before anything is read."""

from __future__ import annotations

import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from qrnca_lens.core.values import given_path
from qrnca_lens.models.adapters import base_of
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.gguf_files import check_gguf, is_gguf
from qrnca_lens.models.sources import FAILURES, Source, failures, reason_of

ATLAS_FOLDER = Path(__file__).parents[1] / "atlas" / "weights"
_HUB_SECONDS = 5.0
_ADAPTER_FILES = ("adapter_*", "*token*", "*.jinja", "vocab.*", "merges.txt")


def find_source(name_or_folder: str | os.PathLike[str]) -> Source:
    """The folder, file or hub name to load from. ModelError where there is none, at once."""
    text = (
        os.fspath(name_or_folder) if isinstance(name_or_folder, str) else str(given_path("name_or_folder", name_or_folder))
    )
    if text == "atlas":
        return Source(str(ATLAS_FOLDER), "atlas")
    path = Path(text).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if is_gguf(path):
        return Source(str(path), path.name, gguf=check_gguf(path))
    if path.exists():
        raise ModelError(f"{path}: this is a file; give the folder that holds config.json and the weights, or a GGUF file")
    local = path.is_absolute() or text.startswith((".", "~"))
    if path.suffix.lower() == ".gguf":
        return _gguf_elsewhere(text, path, local)
    if local or text.count("/") > 1:
        raise ModelError(f"{path}: no such folder; give a Hugging Face model folder, a GGUF file, a hub name or 'atlas'")
    return _on_hub(text)


def _in_folder(path: Path) -> Source:
    if (path / "adapter_config.json").is_file():
        return _adapted(path, path.resolve().name)
    if not (path / "config.json").is_file():
        files = sorted(file.name for file in path.glob("*.gguf"))
        if files:
            raise _gguf_only(str(path), files)
        raise ModelError(f"{path}: no config.json in this folder; give a folder written by save_pretrained, or a GGUF file")
    return Source(str(path), path.name)


def _gguf_only(place: str, files: list[str]) -> ModelError:
    return ModelError(f"{place}: holds no config.json but GGUF files; give one of them: " + _each(place, files))


def _each(place: str, files: list[str], most: int = 8) -> str:
    more = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(f"{place.rstrip('/')}/{file}" for file in files[:most]) + more


def _gguf_elsewhere(text: str, path: Path, local: bool) -> Source:
    """A GGUF file of the hub, "owner/model/file.gguf", downloaded; ModelError for what is no such name, or not there."""
    owner, _, inner = text.partition("/")
    model, _, file = inner.partition("/")
    if local or not file or Path(owner).exists():
        near = sorted(found.name for found in path.parent.glob("*.gguf")) if path.parent.is_dir() else []
        there = f"; there is {_each(str(path.parent), near)}" if near else ""
        raise ModelError(
            f"{path}: no such file{there}; check the path, or give a file of the hub as 'owner/model/file.gguf'"
        )
    with failures(
        f"{text!r}: neither a file here nor to be had from the Hugging Face hub", "check the name and your access"
    ):
        found = Path(hf_hub_download(f"{owner}/{model}", file, etag_timeout=_HUB_SECONDS))
    return Source(str(found), found.name, gguf=check_gguf(found))


def _adapted(folder: Path, name: str) -> Source:
    """The base model of a PEFT adapter, which is merged into it once it is read."""
    base = base_of(folder)
    place = folder / base if (folder / base).is_dir() else Path(base).expanduser()
    write = "write the folder or hub name of the plain model as base_model_name_or_path in adapter_config.json"
    what = "a GGUF file, whose weights are rounded" if is_gguf(place) else "an adapter itself"
    if is_gguf(place) or (place / "adapter_config.json").is_file() or base == name:
        raise ModelError(f"{folder}: the base model {base!r} of this PEFT adapter is {what}; {write}")
    try:
        found = find_source(place if place.is_dir() else base)
    except ModelError as error:
        raise ModelError(
            f"{folder}: the base model {base!r} of this PEFT adapter cannot be used ({error}); {write}"
        ) from error
    if found.adapter is not None:
        raise ModelError(f"{folder}: the base model {base!r} of this PEFT adapter is {what}; {write}")
    return replace(found, name=name, adapter=folder)


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
            return Source(name, name, cached=True)
        raise ModelError(
            f"{missing} that is in the cache, and the hub could not be asked ({reason_of(error)}); {advice}"
        ) from None
    names = {file.rfilename for file in files}
    if "config.json" in names:
        return Source(name, name)
    if "adapter_config.json" in names:
        with failures(f"{name}: its adapter cannot be downloaded", advice):
            return _adapted(Path(snapshot_download(name, allow_patterns=list(_ADAPTER_FILES))), name)
    packed = sorted(file for file in names if file.endswith(".gguf"))
    if packed:
        raise _gguf_only(name, packed)
    return Source(name, name)
