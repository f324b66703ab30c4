"""Batches that fit: what is too large for the memory is halved, and the work goes on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Found = TypeVar("Found")
QUERIES_TOGETHER = 8
"""How many queries' prompts run as one batch; what memory cannot hold of them is halved."""
_TOLD = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _TOLD)


def free_again() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_batches(items: Sequence[Item], together: int, run: Callable[[Sequence[Item]], list[Found]]) -> Iterator[list[Found]]:
    """What `run` gives for `together` items after the other, in their order.

    Where memory runs out the batch is halved, also for those that follow; a single item that does not fit raises.
    """
    start, size = 0, together
    while start < len(items):
        try:
            found = run(items[start : start + size])
        except Exception as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            found = None
        if found is None:  # outside of the handler, whose traceback keeps tensors alive
            size = max(1, min(size, len(items) - start) // 2)
            free_again()
            continue
        yield found
        start += size
