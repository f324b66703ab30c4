"""The two hooked model classes, and the rule that one thread at a time runs a model or hooks it.

The only place that knows that one of the classes can be missing: TransformerLens 4 has no HookedTransformer, there
`HOOKED_CLASSES` holds the bridge alone, and `load_model` returns bridges.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformer_lens.model_bridge import TransformerBridge

from qrnca_lens.core.values import WrongKindError
from qrnca_lens.models.errors import BusyModelError

HookedTransformer: type[Any] | None
HookedTransformerConfig: type[Any] | None
try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:  # TransformerLens 4 raises this, not AttributeError, for the names that it has removed
    HookedTransformer = HookedTransformerConfig = None
HOOKED_CLASSES: tuple[type[Any], ...] = tuple(c for c in (HookedTransformer, TransformerBridge) if c is not None)

if TYPE_CHECKING:

    class HookedModel(Protocol):
        """A HookedTransformer or a TransformerBridge: what both have and the package uses.

        `checks.check_hooked` refuses everything else when a function is called.
        """

        cfg: Any
        tokenizer: Any
        blocks: Any
        unembed: Any
        W_E: Any

        @property
        def hook_dict(self) -> dict[str, Any]:
            """The hook points by name."""
            ...

        def __call__(self, input: torch.Tensor, /, **options: Any) -> Any:
            """The logits [row, position, token], or the residual stream where `stop_at_layer` is given."""
            ...

        def hooks(self, *, fwd_hooks: list[Any]) -> AbstractContextManager[Any]:
            """Forward hooks while a block runs."""
            ...

        def run_with_cache(self, tokens: torch.Tensor, /, **options: Any) -> tuple[Any, Any]:
            """The logits and the activations at hook points."""
            ...

        def to_tokens(self, text: str | list[str], /, **options: Any) -> torch.Tensor:
            """The ids of texts."""
            ...

        def generate(self, tokens: torch.Tensor, /, **options: Any) -> Any:
            """A continuation of the tokens."""
            ...

        def eval(self) -> Any:
            """The model in evaluation mode."""
            ...

        def to(self, device: torch.device, /) -> Any:
            """The model on a device."""
            ...

        def parameters(self) -> Iterator[torch.nn.Parameter]:
            """All weights."""
            ...

        def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
            """All weights by name."""
            ...

        def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
            """All modules by name."""
            ...

        def named_children(self) -> Iterator[tuple[str, torch.nn.Module]]:
            """The modules directly below, by name."""
            ...

        def modules(self) -> Iterator[torch.nn.Module]:
            """All modules."""
            ...

else:
    HookedModel = Any
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


def as_bridge(model: HookedModel) -> Any:
    """A model that is known to be a bridge, with what HookedTransformers lack (`original_model`, `adapter`).

    TypeError for another one.
    """
    if not isinstance(model, TransformerBridge):
        raise WrongKindError(f"expected a TransformerBridge, found {type(model).__name__}")
    return model


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
