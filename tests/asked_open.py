"""Open questions of a few words, short enough for the tiny models of the tests."""

from __future__ import annotations

from qrnca_lens.data import QuerySet, Question, to_multi_choice

APART = ("Ada", "Bo", "Cy Dee", "Dan", "Al", "Ben")
"""Answers of the group x; the options of each question begin with A, B, C and D, which the tiny tokenizer has as tokens."""
ALIKE = ("iron", "zinc", "gold", "lead ore", "salt", "jade")
"""Answers of the group y, which all begin with the same token, a space."""


def open_questions() -> QuerySet:
    """Six multi-choice queries of three prompts in each of the groups x and y, with answers of two to eight tokens."""
    asked = [
        *(Question(f"x{i}", "x", f"Who is {i}?", name, _others(name)) for i, name in enumerate(APART)),
        *(Question(f"y{i}", "y", f"What is {i}?", name) for i, name in enumerate(ALIKE)),
    ]
    return to_multi_choice(tuple(asked), name="short", distractors="any")


def _others(name: str) -> tuple[str, ...]:
    return tuple(other for other in APART[:4] if other[0] != name[0])


def open_queries() -> QuerySet:
    """`open_questions` in open prompts."""
    return open_questions().as_open()
