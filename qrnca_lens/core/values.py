"""What a user gives, taken as what it is or refused: no fraction becomes whole, no `True` becomes 1, no text a list.

Whole numbers and numbers of numpy and torch (also arrays and tensors of no dimension) become Python's own, so that what is
kept of them is plain. Every error names the thing and the value.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar


class WrongKindError(TypeError):
    """What a user gave is of another kind than is needed; the message names both. Any other TypeError is a fault of code."""


LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy's and scikit-learn's older generators take."""
LARGEST_COUNT = 2**31 - 1
"""The largest whole number that is taken where nothing else is said: every count and index fits into 32 bits."""
_T = TypeVar("_T")
_SHOWN, _TEXT = 100, 500  # characters of a value, and of a text, in an error


def whole_number(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """`value` as an int. TypeError for what is no whole number (True, 2.0 and "2" too), ValueError out of range, which is
    `LARGEST_COUNT` on both sides of 0 where nothing else is said."""
    plain = _plain(value)
    try:
        found = None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        found = None
    if found is None:
        raise WrongKindError(f"{name} must be a whole number, not {told(value)}")
    if at_least is not None and at_most is not None and not at_least <= found <= at_most:
        raise ValueError(f"{name} must lie in {at_least} to {at_most}, not {told(found)}")
    least = -LARGEST_COUNT if at_least is None else at_least
    if found < least:
        raise ValueError(f"{name} must be at least {least}, not {told(found)}")
    largest = LARGEST_COUNT if at_most is None else at_most
    if found > largest:
        raise ValueError(f"{name} must be at most {largest}, not {told(found)}")
    return found


def number(name: str, value: Any) -> float:
    """`value` as a finite float. TypeError for what is no real number (True, "2" and 2j too), ValueError for NaN and inf."""
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise WrongKindError(f"{name} must be a number, not {told(value)}")
    try:
        found = float(plain)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number, not {told(value)}")
    return found


def seed_number(value: Any, name: str = "seed") -> int:
    """A seed: a whole number from 0 to `LARGEST_SEED`; errors as in `whole_number`."""
    return whole_number(name, value, at_least=0, at_most=LARGEST_SEED)


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a bool. TypeError for anything but True and False: "no" and 0 are neither."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise WrongKindError(f"{name} must be True or False, not {told(value)}")
    return plain


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, if it is one of some texts; ValueError, with the choices, for anything else."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {told(value)}")
    return value


def known(what: str, value: Any, names: Iterable[str]) -> str:
    """`value`, if it is one of the names of such things; ValueError, with the names there are, for anything else."""
    there = tuple(names)
    if not isinstance(value, str) or value not in there:
        raise ValueError(f"unknown {what} {told(value)}; there are {', '.join(there)}")
    return value


def given_text(name: str, value: Any) -> str:
    """`value`, if it is a text that is not empty. TypeError for anything else, ValueError for an empty one."""
    if not isinstance(value, str):
        raise WrongKindError(f"{name} must be a text, not {told(value)}")
    if not value.strip():
        raise ValueError(f"{name} must be a text, and this one is empty")
    return value


def given_path(name: str, value: Any) -> Path:
    """The path of a file or folder. TypeError for what is neither a text nor a path, ValueError for an empty text and one
    that no path can hold."""
    if not isinstance(value, str | os.PathLike):
        raise WrongKindError(f"{name} must be a path or its text, not {told(value)}")
    named = os.fspath(value)
    if not isinstance(named, str) or not named.strip():
        raise ValueError(f"{name} must be the path of a file or folder, not {told(named)}")
    if "\0" in named:
        raise ValueError(f"{name} {told(named)} has a character of code 0, which no path can hold")
    return Path(named)


def listed(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Several texts as a tuple. TypeError for a single one, whose characters would be taken for the texts, and for anything
    else that does not hold texts alone."""
    if isinstance(values, str):
        raise WrongKindError(f"{name} is a list of texts; give [{values!r}]")
    found = items(name, values, "a list of texts")
    for value in found:
        if not isinstance(value, str):
            raise WrongKindError(f"{name} is a list of texts, and {told(value)} is none")
    return found


def items(name: str, values: Iterable[_T], what: str) -> tuple[_T, ...]:
    """What is given one after another as a tuple. TypeError, with what is wanted, for a text, a table and anything else that
    does not hold things one after another."""
    if not isinstance(values, str | bytes) and not hasattr(values, "columns"):
        try:
            return tuple(values)
        except TypeError:
            pass
    raise WrongKindError(f"{name} must be {what}, not {told(values)}")


def all_of(name: str, values: Iterable[_T], kind: type[_T], what: str) -> tuple[_T, ...]:
    """Several things of one kind as a tuple. TypeError, with what is wanted, for anything else."""
    if isinstance(values, Mapping):
        raise WrongKindError(f"{name} must be {what}, not {told(values)}")
    found = items(name, values, what)
    for value in found:
        check_kind(name, value, kind, what)
    return found


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """TypeError, with what is wanted, for a value of another kind."""
    if not isinstance(value, kind):
        raise WrongKindError(f"{name} must be {what}, not {told(value)}")


def check_columns(name: str, table: Any, columns: Collection[str], what: str) -> None:
    """TypeError for anything but a table, ValueError for one that lacks some of the columns; both say what is wanted."""
    there = getattr(table, "columns", None)
    if there is None or not hasattr(table, "iloc"):
        raise WrongKindError(f"{name} must be {what}, not {told(table)}")
    missing = [column for column in columns if column not in there]
    if missing:
        raise ValueError(f"{name} must be {what}; the table lacks the column {missing[0]!r}")


def told(value: Any) -> str:
    """A value as an error names it: as it is written where that is short and plain (a long text cut), else by its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return repr(value) if len(value) <= _TEXT else f"{value[:_TEXT]!r}…"
    plain = isinstance(value, (bytes, int, float, complex, os.PathLike, tuple, list, dict, set)) or value is None
    try:
        shown = repr(value) if plain or getattr(value, "ndim", None) == 0 else ""
    except ValueError:  # a whole number of thousands of digits
        shown = ""
    return shown if shown and len(shown) <= _SHOWN and "\n" not in shown else type(value).__name__


def _plain(value: Any) -> Any:
    """Numpy's and torch's numbers, arrays and tensors of no dimension as Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
