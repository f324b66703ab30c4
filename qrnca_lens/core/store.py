"""Files of a run: text, JSON and parquet, each written completely or not at all, and known again by its checksum.

A record (a JSON object) carries the SHA-256 of its values; that of a table stands in the record beside it. Touches no model.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from qrnca_lens._version import __version__
from qrnca_lens.core.fields import MismatchError, reading_of
from qrnca_lens.core.values import given_path
from qrnca_lens.core.writing import check_folder, whole_file

FORMAT = 3
"""The format of the records that this version writes (manifest.json, header.json, study.json).

1 has no number in them, 1 and 2 have no checksums.
"""
SEALED = 3
"""The first format whose files have checksums."""
_AGAIN = "make the call that wrote the folder once more: what is whole is kept, the rest is computed anew"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what stands in it and what to do."""


class DamagedRunError(RunError):
    """A file of a run that is missing or not as it was written; `what` says which. The call that wrote the folder mends it
    where it can."""

    @property
    def what(self) -> str:
        """The fault, without the remedy."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.what}; {_AGAIN}"


class DamageWarning(UserWarning):
    """Files of a run that were damaged, and are made anew."""


def run_place(folder: str | os.PathLike[str]) -> Path:
    """The path of a run's folder. RunError, with nothing left behind, where none can be made (`writing.check_folder`)."""
    with usable():
        path = given_path("folder", folder)
        check_folder(path)
    return path


@contextmanager
def usable() -> Iterator[None]:
    """Say as a RunError what makes a file or folder of a run unusable: a place where nothing can be, or a full disk."""
    try:
        yield
    except (OSError, ValueError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        remedy = "make room there and make the same call again: what is kept is whole, and it goes on"
        told = f"{error}; {remedy if full else 'choose another folder'}"
        raise RunError(told if full or error.args[1:] else f"{error}") from None


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text; readers see the old file or the new one, never a part."""
    _write(text.encode("utf-8"), path)


def write_json(value: Any, path: Path) -> str:
    """Write strict JSON, keys in the order given; the SHA-256 of the file. ValueError for NaN and infinity, which JSON does
    not have."""
    return _write((json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"), path)


def write_record(values: dict[str, Any], path: Path) -> None:
    """Write a JSON object that says in which `FORMAT` it is, with the SHA-256 of its values."""
    write_json({"format": FORMAT, "sha256": _digest(values), **values}, path)


def read_json(path: Path, sha256: str | None = None) -> Any:
    """Read strict JSON; DamagedRunError if the file is missing or damaged, or has another checksum than `sha256`."""
    try:
        return json.loads(_read(path, sha256).decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path}: no JSON ({error})") from None


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote, with its "format", without its checksum.

    DamagedRunError for another structure or another checksum, RunError for a format of a newer version.
    """
    values = dict(value_of(dict[str, Any], read_json(path), str(path)))
    written, digest = value_of(int, values.pop("format", 1), f"{path}: format"), values.pop("sha256", None)
    if not 1 <= written <= FORMAT:
        raise RunError(
            f"{path}: format {written}, which another version of qrnca_lens wrote; {__version__} reads formats 1 to "
            f"{FORMAT}. Upgrade qrnca_lens, or choose another folder"
        )
    if written >= SEALED and digest != _digest(values):
        raise DamagedRunError(f"{path}: its values are not those of its checksum")
    return {**values, "format": written}


class Checksums:
    """The SHA-256 that a record has of each file beside it; None for every file where its format has none."""

    def __init__(self, record: dict[str, Any], path: Path) -> None:
        """Of a record read from `path`. DamagedRunError where it should have checksums and has none."""
        self.known = record["format"] >= SEALED
        self._path = path
        self._files = field_of(dict[str, str], record, "files", path) if self.known else {}

    def of(self, file: Path) -> str | None:
        """The checksum of one file. DamagedRunError where the record should name it and does not."""
        if self.known and file.name not in self._files:
            raise DamagedRunError(f"{self._path}: no checksum of {file.name}")
        return self._files.get(file.name)


def field_of(kind: Any, record: dict[str, Any], name: str, path: Path) -> Any:
    """One field of a record read from `path`, as `value_of` gives it. DamagedRunError if it is missing."""
    if name not in record:
        raise DamagedRunError(f"{path}: field {name!r} is missing")
    return value_of(kind, record[name], f"{path}: {name}")


def value_of(kind: Any, value: Any, where: str) -> Any:
    """A value read from JSON as what it was written from: a plain type, a dict, tuple or choice, a dataclass of such.

    DamagedRunError names the place (`where`, a file or a place in it, and the field) of a field that is missing, unknown or
    of another type, or of values that a dataclass refuses.
    """
    try:
        return reading_of(kind)(value)
    except MismatchError as error:
        raise DamagedRunError(f"{where}{error}") from None


def write_table(table: pd.DataFrame, path: Path) -> str:
    """Write a table as parquet; the SHA-256 of the file."""
    return _write(table.to_parquet(None, index=False), path)


def read_table(path: Path, columns: Sequence[str] = (), sha256: str | None = None) -> pd.DataFrame:
    """Read a parquet table; DamagedRunError if it is missing, damaged, without one of `columns` or has another checksum."""
    data = _read(path, sha256)
    try:
        table = pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"{path}: no table ({error})") from None
    for name in columns:
        if name not in table.columns:
            found = ", ".join(map(str, table.columns)) or "no columns"
            raise DamagedRunError(f"{path}: column {name!r} is missing (it has {found})")
    return table


def check_file(path: Path, sha256: str | None) -> None:
    """Whether a file is there, with this checksum; one of a folder without checksums (None) may be missing. DamagedRunError
    if not."""
    if sha256 is not None:
        _read(path, sha256)


def check_column(table: pd.DataFrame, name: str, kind: type, path: Path, *, below: int | float = math.inf) -> None:
    """Whether a column read from `path` holds texts (str), whole numbers from 0 (int) or finite numbers (float).

    Numbers must be under `below`. RunError that names file, column and the first value that does not fit.
    """
    column = table[name]
    if kind is str:
        if pd.api.types.infer_dtype(column, skipna=False) in ("string", "empty"):
            return
        fits = column.map(lambda value: isinstance(value, str))
    elif column.dtype.kind in ("iu" if kind is int else "iuf"):
        fits = column.notna() & np.isfinite(column) & (column < below) & ((column >= 0) | (kind is float))
    else:
        fits = column.map(lambda _: False)
    if not fits.all():
        wanted = {str: "a text", int: f"a whole number from 0, below {below:g}", float: "a finite number"}[kind]
        found = column[~fits].tolist()[0]
        raise DamagedRunError(f"{path}: column {name!r}: expected {wanted}, found {found!r}")


def check_once(table: pd.DataFrame, names: list[str], path: Path) -> None:
    """Whether the values of some columns read from `path` stand together in one row each. RunError that names a second."""
    twice = table[table.duplicated(names)]
    if len(twice):
        found = ", ".join(map(repr, twice[names].head(1).to_dict("records")[0].values()))
        where = ", ".join(map(repr, names))
        raise DamagedRunError(f"{path}: column {where}: {found} stands there twice")


def _digest(values: dict[str, Any]) -> str:
    """The SHA-256 of a record's values, whatever their order and the layout of the file."""
    plain = json.loads(json.dumps(values, allow_nan=False))  # as it is read again, keys of other types than text too
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _write(data: bytes, path: Path) -> str:
    with whole_file(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, sha256: str | None) -> bytes:
    """The bytes of a file. DamagedRunError where there is none or it has another checksum than the one given, if any."""
    if not path.is_file():
        raise DamagedRunError(f"{path.parent}: no {path.name} there; this is not a finished run folder")
    with usable():
        data = path.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedRunError(f"{path}: not the bytes that were written (another checksum)")
    return data


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
