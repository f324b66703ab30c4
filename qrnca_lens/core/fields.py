"""Values read from JSON as what they were written from: plain types, dicts, tuples and choices, dataclasses of such."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeAlias, Union, get_args, get_origin, get_type_hints

_WORDS = {str: "a text", int: "a whole number", float: "a number", dict: "an object", list: "a list", NoneType: "null"}


class MismatchError(ValueError):
    """A value that is not what was written; `place` is where in the whole it stands, put together on the way out."""

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.place = ""

    def at(self, place: str) -> MismatchError:
        """The same, seen from one level further out."""
        self.place = f"{place}{self.place}"
        return self

    def __str__(self) -> str:
        return f"{self.place}: {self.args[0]}"


Reading: TypeAlias = Callable[[Any], Any]
"""From a value of JSON to what it was written from. MismatchError for one that is nothing such."""


@lru_cache(maxsize=256)
def reading_of(kind: Any) -> Reading:
    """How values of a type are read: made once a type, since a run has hundreds of thousands of values."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if is_dataclass(kind):
        return _dataclass_reading(kind)
    if origin in (Union, UnionType):
        inner, optional = reading_of(next(part for part in parts if part is not NoneType)), NoneType in parts
        return lambda value: None if optional and value is None else inner(value)
    if origin is Literal:
        return lambda value: value if value in parts else _refuse(kind, value)
    if origin is tuple:
        return _tuple_reading(kind, reading_of(parts[0]))
    if origin is dict:
        return _dict_reading(kind, None if parts[1] is Any else reading_of(parts[1]))
    if origin is float:
        return lambda value: float(value) if type(value) in (float, int) else _refuse(kind, value)
    return lambda value: value if type(value) is origin else _refuse(kind, value)


def _tuple_reading(kind: Any, inner: Reading) -> Reading:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            _refuse(kind, value)
        found = []
        try:
            for item in value:
                found.append(inner(item))
        except MismatchError as error:
            raise error.at(f"[{len(found)}]") from None
        return tuple(found)

    return read


def _dict_reading(kind: Any, inner: Reading | None) -> Reading:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse(kind, value)
        if inner is None:
            return value
        found = {}
        for key, item in value.items():
            try:
                found[key] = inner(item)
            except MismatchError as error:
                raise error.at(f", {key}") from None
        return found

    return read


def _dataclass_reading(kind: Any) -> Reading:
    readings = {name: reading_of(hint) for name, hint in get_type_hints(kind).items()}

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            _refuse(dict, value)
        for problem, names in (("missing", readings.keys() - value.keys()), ("unknown", value.keys() - readings.keys())):
            if names:
                raise MismatchError(f"{problem} field {min(names)!r}")
        fields = {}
        for name, reading in readings.items():
            try:
                fields[name] = reading(value[name])
            except MismatchError as error:
                raise error.at(f", {name}") from None
        try:
            return kind(**fields)
        except (ValueError, TypeError) as error:
            raise MismatchError(str(error)) from None

    return read


def _refuse(kind: Any, value: Any) -> NoReturn:
    choices = " or ".join(map(repr, get_args(kind))) if get_origin(kind) is Literal else str(kind)
    wanted = _WORDS.get(list if get_origin(kind) is tuple else get_origin(kind) or kind, choices)
    raise MismatchError(f"expected {wanted}, found {_WORDS.get(type(value), repr(value))}")
