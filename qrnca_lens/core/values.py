"""Numbers and choices that a user gives, taken as what they are or refused: no fraction becomes whole, no `True` becomes 1.

Whole numbers and numbers of numpy and torch (also arrays and tensors of no dimension) become Python's own, so that what is
kept of them is plain. Every error names the thing and the value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any


class WrongKindError(TypeError):
    """What a user gave is of another kind than is needed; the message names both. Any other TypeError is a fault of code."""


LARGEST_SEED = 2**32 - 1
"""The largest seed that numpy's and scikit-learn's older generators take."""


def whole_number(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """`value` as an int. TypeError for what is no whole number (True, 2.0 and "2" too), ValueError out of range."""
    plain = _plain(value)
    try:
        found = None if isinstance(plain, bool) else operator.index(plain)
    except TypeError:
        found = None
    if found is None:
        raise WrongKindError(f"{name} must be a whole number, not {value!r}")
    if at_least is not None and at_most is not None and not at_least <= found <= at_most:
        raise ValueError(f"{name} must lie in {at_least} to {at_most}, not {found}")
    if at_least is not None and found < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {found}")
    if at_most is not None and found > at_most:
        raise ValueError(f"{name} must be at most {at_most}, not {found}")
    return found


def number(name: str, value: Any) -> float:
    """`value` as a finite float. TypeError for what is no real number (True, "2" and 2j too), ValueError for NaN and inf."""
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise WrongKindError(f"{name} must be a number, not {value!r}")
    try:
        found = float(plain)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return found


def seed_number(value: Any, name: str = "seed") -> int:
    """A seed: a whole number from 0 to `LARGEST_SEED`; errors as in `whole_number`."""
    return whole_number(name, value, at_least=0, at_most=LARGEST_SEED)


def yes_or_no(name: str, value: Any) -> bool:
    """`value` as a bool. TypeError for anything but True and False: "no" and 0 are neither."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return plain


def listed(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Several texts as a tuple. TypeError for a single one, whose characters would be taken for the texts."""
    if isinstance(values, str):
        raise WrongKindError(f"{name} is a list of texts; give [{values!r}]")
    return tuple(values)


def _plain(value: Any) -> Any:
    """Numpy's and torch's numbers, arrays and tensors of no dimension as Python's; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
