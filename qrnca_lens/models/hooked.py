"""The two hooked model classes, and the rule that one thread at a time runs a model or hooks it.

The only place that knows that one of the classes can be missing: TransformerLens 4 has no HookedTransformer, there
`HOOKED_CLASSES` holds the bridge alone, and `load_model` returns bridges.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge

from qrnca_lens.models.errors import BusyModelError

HookedTransformer: type[Any] | None
HookedTransformerConfig: type[Any] | None
try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:  # TransformerLens 4 raises this, not AttributeError, for the names that it has removed
    HookedTransformer = HookedTransformerConfig = None
HOOKED_CLASSES: tuple[type[Any], ...] = tuple(c for c in (HookedTransformer, TransformerBridge) if c is not None)
HookedModel: TypeAlias = Any
"""A HookedTransformer or a TransformerBridge; `checks.check_hooked` refuses everything else."""
PATIENCE = 60.0
"""How many seconds a thread waits for a model that another one uses, before a BusyModelError."""
_HOLDS: WeakKeyDictionary[HookedModel, _Hold] = WeakKeyDictionary()
_HOLDS_LOCK = threading.Lock()


class _Hold:
    """Which thread has a model, in how many nested blocks. Unlike an RLock it can be given back by any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: threading.Thread | None = None
        self._depth = 0

    def take(self, thread: threading.Thread) -> bool:
        """Whether the model became the thread's within `PATIENCE` seconds; one that has ended does not keep it."""
        with self._changed:
            if self._owner is not thread:
                if not self._changed.wait_for(lambda: self._owner is None or not self._owner.is_alive(), PATIENCE):
                    return False
                self._owner, self._depth = thread, 0
            self._depth += 1
            return True

    def give_back(self, thread: threading.Thread) -> None:
        """End one block of the thread that took the model."""
        with self._changed:
            if self._owner is thread:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._changed.notify()


def is_hooked_transformer(model: HookedModel) -> bool:
    """Whether the model is a HookedTransformer rather than a bridge."""
    return HookedTransformer is not None and isinstance(model, HookedTransformer)


def device_of(model: HookedModel) -> torch.device:
    """Where the model's parameters lie."""
    return next(iter(model.parameters())).device


def dtype_of(model: HookedModel) -> torch.dtype:
    """The dtype of the model's parameters."""
    return next(iter(model.parameters())).dtype


@contextmanager
def exclusive(model: HookedModel) -> Iterator[None]:
    """The model for this thread alone while the block runs; other threads that ask for it wait.

    Blocks of one thread nest. Raises BusyModelError after `PATIENCE` seconds, and at the end of a block that another
    thread leaves than the one that entered it; the model is free then.
    """
    with _HOLDS_LOCK:
        hold = _HOLDS.setdefault(model, _Hold())
    thread = threading.current_thread()
    if not hold.take(thread):
        raise BusyModelError(
            f"another thread has used {model.cfg.model_name} for {PATIENCE:g} s: it runs it, or holds it in an open block "
            "such as `with suppress(...)`; leave the block before you wait for this thread, or give it a model of its own"
        )
    try:
        yield
    finally:
        hold.give_back(thread)
    if threading.current_thread() is not thread:
        raise BusyModelError(
            f"a block on {model.cfg.model_name} was entered in thread {thread.name!r} and left in "
            f"{threading.current_thread().name!r}; its hooks are gone and the model is free. Enter and leave a block in one "
            "thread"
        )
