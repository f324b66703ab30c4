"""Solved questions before a question (few-shot prompts): which of the set they are, and how they are written."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.texts import labelled_options

if TYPE_CHECKING:  # query.py imports this module
    from qrnca_lens.data.query import Prompt, Query

_BETWEEN = "\n\n"


def with_solved(queries: Sequence[Query], count: int, seed: int) -> tuple[Query, ...]:
    """The queries with `count` solved ones before every prompt (`QuerySet.with_examples`); DataErrors come first."""
    for query in queries:
        for prompt in query.prompts:
            if prompt.rendering != "plain":
                raise DataError(
                    f"query {query.id!r}: its prompts are rendered with {prompt.rendering} already; take the examples from "
                    "plain prompts, once, and make the chat after them"
                )
    groups: dict[str, list[Query]] = defaultdict(list)
    for query in queries:
        groups[query.group].append(query)
    drawn = {query.id: examples_of(query, groups[query.group], count, seed) for query in queries}
    return tuple(
        replace(query, prompts=tuple(_after(prompt, i, query, drawn[query.id]) for i, prompt in enumerate(query.prompts)))
        for query in queries
    )


def examples_of(query: Query, group: Sequence[Query], count: int, seed: int) -> tuple[Query, ...]:
    """`count` queries of the query's `group`, each of another unit, that have at least as many prompts.

    Every pair of the asked query and another has a place in a random order, by `seed` and the two ids alone; the first of
    this order are taken, one a unit. So the order of the set is of no account, and taking queries away changes only prompts
    whose examples are among them. DataError where there are too few.
    """
    fitting = [other for other in group if other.unit != query.unit and len(other.prompts) >= len(query.prompts)]
    first: dict[str, Query] = {}
    for other in sorted(fitting, key=lambda other: _place(seed, query.id, other.id)):
        first.setdefault(other.unit, other)
    if len(first) < count:
        raise DataError(
            f"query {query.id!r}: {count} examples are asked for, but group {query.group!r} has only {len(first)} other "
            f"questions of as many prompts; ask for at most {len(first)}, or take the examples before you take a sample"
        )
    return tuple(first.values())[:count]


def _place(seed: int, asked: str, other: str) -> bytes:
    return hashlib.sha256(repr((seed, asked, other)).encode()).digest()


def _after(prompt: Prompt, place: int, query: Query, examples: Sequence[Query]) -> Prompt:
    """The prompt after the examples' prompts at the same place; its own options must still be the last that are shown."""
    solved = [example.prompts[place].solved for example in examples]
    text, where = _BETWEEN.join([*solved, prompt.text]), f"query {query.id!r}, prompt {place}, after its examples"
    if prompt.read == "letter" and labelled_options(text, where) != labelled_options(prompt.text, where):
        raise DataError(
            f"{where}: the options that the text shows last are not its own; label the options of all prompts of a group "
            "alike, A to D at the starts of lines"
        )
    return replace(prompt, text=text, rendering="examples")
