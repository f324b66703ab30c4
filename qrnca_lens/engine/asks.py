"""What the engine is asked: some tokens, the positions at which neurons are scaled, where logits are read, and for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from qrnca_lens.core.shapes import Tokens
from qrnca_lens.core.values import WrongKindError, told, whole_number

Objective = Callable[[torch.Tensor], torch.Tensor]
"""From the logits [..., read, token] at the last `reads` positions to the number [...] that is attributed."""

Positions = Literal["last", "all"] | int | Sequence[tuple[int, int]]
"""What is scaled: the last position, all of them, one, or spans (start, stop) counted as Python's slices are."""

_REMEDY = "give 'last', 'all', a position or spans (start, stop)"


@dataclass(frozen=True)
class Ask:
    """One prompt, the positions at which an MLP is scaled (rising), and an objective over its last `reads` positions.

    `size`: what completeness gaps of the objective are measured by; None is its value of the untouched model.
    """

    tokens: Tokens
    objective: Objective
    scaled: tuple[int, ...]
    reads: int = 1
    size: float | None = None

    @property
    def start(self) -> int:
        """The first position whose values change or are read: what lies before it stands still."""
        return min(self.scaled[0], len(self.tokens) - self.reads)

    @property
    def width(self) -> int:
        """How many positions its suffix has, from the start to the end of the prompt."""
        return len(self.tokens) - self.start


def asked(
    tokens: Tokens, objective: Objective, positions: Positions = "last", reads: int = 1, size: float | None = None
) -> Ask:
    """An `Ask` of these positions; "last" is the last position of the prompt, the first one from which logits are read."""
    return Ask(tokens, objective, _where(positions, len(tokens), reads), reads, size)


def _where(positions: Positions, length: int, reads: int) -> tuple[int, ...]:
    if isinstance(positions, str) and positions == "last":
        return (length - reads,)
    if isinstance(positions, str) and positions == "all":
        return tuple(range(length))
    return chosen_positions(positions, length)


def chosen_positions(positions: int | Sequence[tuple[int, int]], length: int) -> tuple[int, ...]:
    """The positions, rising and each once, of a position or of spans (start, stop) in a prompt of `length` tokens.

    Negative ones count from the end. Raises ValueError for a position outside the prompt, for an empty or reversed span and
    for none at all, TypeError for what is no whole number or pair.
    """
    found: set[int] = set()
    for span in spans_of(positions):
        start, stop = (length if end is None else end + length if end < 0 else end for end in span)
        if not 0 <= start < stop <= length:
            shown = tuple(length if end is None else end for end in span)
            raise ValueError(f"the span {shown} does not lie in a prompt of {length} tokens, or is empty; {_REMEDY}")
        found.update(range(start, stop))
    return tuple(sorted(found))


def check_positions(positions: Positions) -> None:
    """Whether positions can be some, whatever the prompt. Raises what `spans_of` raises, and ValueError for a span that is
    empty in any prompt."""
    if isinstance(positions, str) and positions in ("last", "all"):
        return
    for start, stop in spans_of(positions):
        if stop is not None and (start < 0) == (stop < 0) and start >= stop:
            raise ValueError(f"the span {(start, stop)} is empty; {_REMEDY}")


def spans_of(positions: int | Sequence[tuple[int, int]]) -> list[tuple[int, int | None]]:
    """A position or spans as spans (start, stop) of Python's own numbers, a stop of None being the end of the prompt.

    Raises ValueError for none at all, TypeError for what is no whole number or pair.
    """
    if isinstance(positions, str):
        raise ValueError(f"positions {positions!r} are none; {_REMEDY}")
    if not isinstance(positions, Sequence) or isinstance(positions, bytes):
        one = whole_number("position", positions)
        return [(one, one + 1 if one != -1 else None)]
    for span in positions:
        if not isinstance(span, Sequence) or isinstance(span, str) or len(span) != 2:
            raise WrongKindError(f"a span is a pair (start, stop), not {told(span)}; {_REMEDY}")
    if not positions:
        raise ValueError(f"no positions are given; {_REMEDY}")
    return [(whole_number("start", start), whole_number("stop", stop)) for start, stop in positions]


def probability_of(target: int) -> Objective:
    """P(target) at the last position, the softmax taken in float32 over the whole vocabulary."""
    return lambda logits: logits[..., -1, :].float().softmax(-1)[..., target]


def log_probability_of(target: int) -> Objective:
    """log P(target) at the last position, in nats, as `probability_of`."""
    return lambda logits: logits[..., -1, :].float().log_softmax(-1)[..., target]
