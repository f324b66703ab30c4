"""When the rows cannot stand for the model: which errors lead to the plain path, and the warning that says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from qrnca_lens.engine.batches import is_out_of_memory
from qrnca_lens.engine.blocks import CannotCarryError
from qrnca_lens.engine.hooks import carries_hooks
from qrnca_lens.models import BusyModelError, HookedModel

Found = TypeVar("Found")
_TOLD: WeakKeyDictionary[HookedModel, set[str]] = WeakKeyDictionary()
NOT_ITS_OWN = "rows of single tokens do not give its own logits (its architecture, or a hook on it, does something else)"


class SlowPathWarning(UserWarning):
    """The shared-prefix engine does not fit this model (or a hook on it), and the plain path is used."""


def by_rows(model: HookedModel, run: Callable[[], Found]) -> tuple[Found | None, str]:
    """What `run` gives, and why rows may not stand for the model; None where they cannot: a hook of others fails on them, or
    they cannot stand for what is asked (a reason that is told once, and empty from then on). All other errors are raised.
    """
    carried = carries_hooks(model)
    try:
        return run(), NOT_ITS_OWN
    except CannotCarryError as error:
        told, reason = _TOLD.setdefault(model, set()), str(error)
        if reason in told:
            return None, ""
        told.add(reason)
        return None, f"{reason}; this is told once"
    except Exception as error:
        if not carried or isinstance(error, BusyModelError) or is_out_of_memory(error):
            raise
        return None, f"a hook on it fails on rows of single tokens ({type(error).__name__}: {error})"


def warn_slow(model: HookedModel, prompts: int, of: int, why: str, stacklevel: int) -> None:
    """Tell that the plain path is used for some prompts, and why; nothing without a reason."""
    if prompts and why:
        message = f"{model.cfg.model_name}: {why}; using the plain path for {prompts} of {of} prompts"
        warnings.warn(message, SlowPathWarning, stacklevel=stacklevel)
