"""Files of a run: text, JSON and parquet, each written completely or not at all. Touches no model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from qrnca_lens._version import __version__
from qrnca_lens.core.writing import check_folder, whole_file

FORMAT = 2
"""The format of the records that this version writes (manifest.json, header.json, study.json); 1 has no number in them."""

_WORDS = {str: "a text", int: "a whole number", float: "a number", dict: "an object", list: "a list", NoneType: "null"}


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what stands in it and what to do."""


def run_place(folder: str | os.PathLike[str]) -> Path:
    """The path of a run's folder. RunError, with nothing left behind, where none can be made (`writing.check_folder`)."""
    path = Path(folder)
    with usable():
        check_folder(path)
    return path


@contextmanager
def usable() -> Iterator[None]:
    """Say as a RunError what makes a file or folder of a run unusable."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise RunError(f"{error}" if error.args[1:] == () else f"{error}; choose another folder") from None


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text; readers see the old file or the new one, never a part."""
    data = text.encode("utf-8")
    with whole_file(path) as file:
        file.write(data)


def write_json(value: Any, path: Path) -> None:
    """Write strict JSON, keys in the order given. ValueError for NaN and infinity, which JSON does not have."""
    write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_record(values: dict[str, Any], path: Path) -> None:
    """Write a JSON object that says in which `FORMAT` it is."""
    write_json({"format": FORMAT, **values}, path)


def read_json(path: Path) -> Any:
    """Read strict JSON; RunError if the file is missing or damaged."""
    _check_there(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error}); delete the run folder and start again") from None


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote, with its "format". RunError for another structure or a format of a newer version."""
    values = value_of(dict[str, Any], read_json(path), str(path))
    written = value_of(int, values.get("format", 1), f"{path}: format")
    if not 1 <= written <= FORMAT:
        raise RunError(
            f"{path}: format {written}, which another version of qrnca_lens wrote; {__version__} reads formats 1 to "
            f"{FORMAT}. Upgrade qrnca_lens, or choose another folder"
        )
    return {**values, "format": written}


def field_of(kind: Any, record: dict[str, Any], name: str, path: Path) -> Any:
    """One field of a record read from `path`, as `value_of` gives it. RunError if it is missing."""
    if name not in record:
        raise RunError(f"{path}: field {name!r} is missing; the file is damaged, start again in another folder")
    return value_of(kind, record[name], f"{path}: {name}")


def value_of(kind: Any, value: Any, where: str) -> Any:
    """A value read from JSON as what it was written from: a plain type, a dict, tuple or choice, a dataclass of such.

    RunError names the place (`where`, a file or a place in it, and the field) of a field that is missing, unknown or of
    another type, or of values that a dataclass refuses.
    """
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if is_dataclass(kind):
        return _dataclass_of(kind, value, where)
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        return value_of(next(part for part in parts if part is not NoneType), value, where)
    if origin is Literal:
        return value if value in parts else _refuse(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(value_of(parts[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return (
            value if parts[1] is Any else {key: value_of(parts[1], item, f"{where}, {key}") for key, item in value.items()}
        )
    if origin is float and type(value) is int:
        return float(value)
    return value if type(value) is origin else _refuse(kind, value, where)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet."""
    with whole_file(path) as file:
        table.to_parquet(file, index=False)


def read_table(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a parquet table; RunError if it is missing, damaged or without one of `columns`."""
    _check_there(path)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error}); delete the run folder and start again") from None
    for name in columns:
        if name not in table.columns:
            found = ", ".join(map(str, table.columns)) or "no columns"
            raise RunError(f"{path}: column {name!r} is missing (it has {found}); start again in another folder")
    return table


def check_column(table: pd.DataFrame, name: str, kind: type, path: Path, *, below: int | float = math.inf) -> None:
    """Whether a column read from `path` holds texts (str), whole numbers from 0 (int) or finite numbers (float).

    Numbers must be under `below`. RunError that names file, column and the first value that does not fit.
    """
    column = table[name]
    if kind is str:
        fits = column.map(lambda value: isinstance(value, str))
    elif column.dtype.kind in ("iu" if kind is int else "iuf"):
        fits = column.notna() & np.isfinite(column) & (column < below) & ((column >= 0) | (kind is float))
    else:
        fits = column.map(lambda _: False)
    if not fits.all():
        wanted = {str: "a text", int: f"a whole number from 0, below {below:g}", float: "a finite number"}[kind]
        found = column[~fits].tolist()[0]
        raise RunError(f"{path}: column {name!r}: expected {wanted}, found {found!r}; it is damaged, start again elsewhere")


def check_once(table: pd.DataFrame, names: list[str], path: Path) -> None:
    """Whether the values of some columns read from `path` stand together in one row each. RunError that names a second."""
    twice = table[table.duplicated(names)]
    if len(twice):
        found = ", ".join(map(repr, twice[names].head(1).to_dict("records")[0].values()))
        where = ", ".join(map(repr, names))
        raise RunError(f"{path}: column {where}: {found} stands there twice; it is damaged, start again elsewhere")


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise RunError(f"{path.parent}: no {path.name} there; this is not a finished run folder")


def _dataclass_of(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(dict, value, where)
    hints = _hints(kind)
    for problem, names in (("missing", hints.keys() - value.keys()), ("unknown", value.keys() - hints.keys())):
        if names:
            raise RunError(
                f"{where}: {problem} field {min(names)!r}; the file is damaged or of another version of qrnca_lens"
            )
    fields = {name: value_of(hint, value[name], f"{where}, {name}") for name, hint in hints.items()}
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise RunError(f"{where}: {error}") from None


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _refuse(kind: Any, value: Any, where: str) -> NoReturn:
    choices = " or ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else str(kind)
    wanted = _WORDS.get(list if get_origin(kind) is tuple else get_origin(kind) or kind, choices)
    raise RunError(f"{where}: expected {wanted}, found {_WORDS.get(type(value), repr(value))}; the file is damaged")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
