"""GGUF files: what their head says, and which of them are models that can be read whole; checked before anything is read.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Configuration, tokenizer and weights are
read by transformers (`sources.py`), which does not notice a file that ends too early or a tensor that it does not know.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qrnca_lens.core.packages import load
from qrnca_lens.models.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_FLOAT32 = 0
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_PART = 1 << 22  # bytes hashed at a time
_TRAINED = 8192
"""Positions that Llama 3 was trained on before its rotary frequencies were scaled."""


@dataclass(frozen=True)
class Tensor:
    """What the head of a file says of a tensor: its name, its number of values, their type, its place in the data."""

    name: str
    size: int
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """The head of a GGUF file: its settings (a list stands for its length) and tensors, and where the data begin."""

    path: Path
    settings: dict[str, Any]
    tensors: tuple[Tensor, ...]
    start: int

    @property
    def architecture(self) -> str:
        """The architecture as llama.cpp calls it."""
        return str(self.settings.get("general.architecture", ""))

    @property
    def size(self) -> int:
        """The number of values in all tensors that are weights."""
        return sum(tensor.size for tensor in self.tensors if tensor.name != "rope_freqs.weight")

    @cached_property
    def rope(self) -> dict[str, Any] | None:
        """The scaling of rotary positions as a configuration holds it, where it is that of Llama 3, else None.

        llama.cpp keeps no parameters of that scaling but what they come to: a tensor of divisors of the frequencies. They
        are taken back from it. ModelError for divisors that no such scaling gives.
        """
        tensor = next((tensor for tensor in self.tensors if tensor.name == "rope_freqs.weight"), None)
        if tensor is None:
            return None
        divisors = np.fromfile(self.path, "<f4", tensor.size, offset=self.start + tensor.offset)
        base = float(self.settings.get(f"{self.architecture}.rope.freq_base", 10000.0))
        waves = 2 * math.pi * base ** (np.arange(tensor.size) / tensor.size)
        factor = float(divisors.max())
        smooth = np.clip((_TRAINED / waves - 1) / 3, 0, 1)
        if tensor.kind != _FLOAT32 or not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
            raise ModelError(
                f"{self.path}: its rotary positions are scaled in a way that is not that of Llama 3; give the folder or the "
                "hub name of the model that the file was made from"
            )
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _TRAINED,
        }


def is_gguf(path: Path) -> bool:
    """Whether this is a file that is called a GGUF or begins as one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".gguf" or file.read(4) == _MAGIC


def check_gguf(path: Path) -> GgufFile:
    """The head of a file that holds a whole language model with its tokenizer. ModelError, with the remedy, for others."""
    for package, remedy in (("gguf", 'pip install "qrnca_lens[gguf]"'), ("accelerate", "pip install accelerate")):
        if find_spec(package) is None:
            raise ModelError(f"{path}: a GGUF file is read with the package {package}, which is not installed; {remedy}")
    found = _head(path)
    _check_kind(found)
    end = found.start + max((tensor.offset + _bytes(path, tensor) for tensor in found.tensors), default=0)
    if path.stat().st_size < end:
        raise _cut(path, f"it has {path.stat().st_size:,} bytes and needs {end:,}")
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def _cut(path: Path, why: str) -> ModelError:
    return ModelError(f"{path}: the file is cut off ({why}); download or copy it anew")


def _check_kind(found: GgufFile) -> None:
    path, settings = found.path, found.settings
    parts, split = settings.get("split.count", 1), _SPLIT.search(path.name)
    kind, name = settings.get("general.type", "model"), found.architecture
    if parts > 1 or split:
        count = parts if parts > 1 else int(split[2]) if split else 1
        raise ModelError(
            f"{path}: one of {count} parts of a model; join them with llama.cpp (llama-gguf-split --merge FIRST_PART "
            "WHOLE.gguf) and give the whole file"
        )
    if kind == "mmproj" or name == "clip":
        raise ModelError(
            f"{path}: this is the part of a model that reads images (a multimodal projector); give the file of its language "
            "model"
        )
    if kind != "model":
        raise ModelError(f"{path}: this GGUF holds no model but {kind!r}; give the file of the model")
    if "tokenizer.ggml.model" not in settings or "tokenizer.ggml.tokens" not in settings:
        raise ModelError(
            f"{path}: this GGUF holds no tokenizer; give one that llama.cpp's convert_hf_to_gguf.py made of the whole "
            "model, or the model's folder"
        )
    scaled = settings.get(f"{name}.rope.scaling.type", "none")
    if scaled != "none":
        raise ModelError(
            f"{path}: its positions are scaled ({scaled}), which transformers does not read from a GGUF; give the folder or "
            "the hub name of the model that the file was made from"
        )


def _bytes(path: Path, tensor: Tensor) -> int:
    gguf = load("gguf")
    try:
        values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        raise ModelError(
            f"{path}: the tensor {tensor.name} has a type ({tensor.kind}) that the package gguf does not know; "
            "pip install --upgrade gguf, or give a file with another quantisation"
        ) from None
    return tensor.size // values * size


def _head(path: Path) -> GgufFile:
    with path.open("rb") as file:
        first = file.read(4)
        if first != _MAGIC:
            raise ModelError(
                f"{path}: this is no GGUF file (it begins with {first!r}); download it anew, or give the folder of the model"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Head(data).read(path)
            except (struct.error, EOFError, UnicodeDecodeError, KeyError) as error:
                raise _cut(path, "its head is incomplete or damaged") from error


class _Head:
    """Reads what stands before the data. EOFError or struct.error where it ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4

    def read(self, path: Path) -> GgufFile:
        (version,) = self._numbers("I")
        if version not in _VERSIONS:
            raise ModelError(f"{path}: GGUF of version {version}, only 2 and 3 are read; convert the model anew")
        tensors, count = self._numbers("QQ")
        settings = {}
        for _ in range(count):
            key = self._text()
            settings[key] = self._value(*self._numbers("I"))
        found = tuple(self._tensor() for _ in range(tensors))
        grid = settings.get("general.alignment", 32)
        return GgufFile(path, settings, found, -(-self._at // grid) * grid)

    def _tensor(self) -> Tensor:
        name = self._text()
        (count,) = self._numbers("I")
        shape = self._numbers(f"{count}Q")
        return Tensor(name, math.prod(shape), *self._numbers("IQ"))

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._numbers(_NUMBERS[kind])[0]
        inner, count = self._numbers("IQ")
        for _ in range(count if inner in (_TEXT, _LIST) else 0):
            self._value(inner)
        if inner in _NUMBERS:
            self._skip(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
        return count

    def _numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode()

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise EOFError("it ends too early")
