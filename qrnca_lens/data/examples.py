"""Solved questions before a question (few-shot prompts): which of the set they are, and how they are written."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.texts import labelled_options

if TYPE_CHECKING:  # query.py imports this module
    from qrnca_lens.data.query import Prompt, Query

_BETWEEN = "\n\n"
_PLACES = 16  # of a query on a circle


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
    for group in groups.values():
        if count >= len({query.unit for query in group}):  # before a circle is drawn for each example
            raise _Examples(group, 0, seed).too_few(group[0], count)
    drawers = {name: _Examples(group, count, seed) for name, group in groups.items()}
    drawn = {query.id: drawers[query.group].of(query) for query in queries}
    return tuple(
        replace(query, prompts=tuple(_after(prompt, i, query, drawn[query.id]) for i, prompt in enumerate(query.prompts)))
        for query in queries
    )


class _Examples:
    """Draws solved questions of a group for any of its queries.

    For each example in turn all queries of the group stand on a circle of their own, each at several places by `seed`, turn
    and id, so that all are taken about equally often; the asked query has a place on it too, and the first query after it
    that fits is taken. So the order of the set is of no
    account, and taking queries away changes only prompts whose examples are among them.
    """

    def __init__(self, group: Sequence[Query], count: int, seed: int) -> None:
        self._seed = seed
        self._circles = [
            sorted((_place(seed, turn, f"taken {i}", q.id), q.id, q) for q in group for i in range(_PLACES))
            for turn in range(count)
        ]
        self._group = group

    def of(self, query: Query) -> tuple[Query, ...]:
        """Those for one query, each of another unit than it and the others, with at least as many prompts. DataError where
        there are too few."""
        found: dict[str, Query] = {}
        for turn, circle in enumerate(self._circles):
            begin = bisect(circle, (_place(self._seed, turn, "asked", query.id),))
            after = (circle[(begin + step) % len(circle)][-1] for step in range(len(circle)))
            fitting = (one for one in after if self._fits(one, query) and one.unit not in found)
            taken = next(fitting, None)
            if taken is None:
                raise self.too_few(query, len(self._circles))
            found[taken.unit] = taken
        return tuple(found.values())

    def _fits(self, one: Query, query: Query) -> bool:
        return one.unit != query.unit and len(one.prompts) >= len(query.prompts)

    def too_few(self, query: Query, count: int) -> DataError:
        """The error where `count` examples are asked for and there are fewer for this query."""
        most = len({one.unit for one in self._group if self._fits(one, query)})
        return DataError(
            f"query {query.id!r}: {count} examples are asked for, but group {query.group!r} has only {most} "
            f"other questions of as many prompts; ask for at most {most}, or take the examples before you take a sample"
        )


def _place(seed: int, turn: int, what: str, query: str) -> bytes:
    return hashlib.sha256(repr((seed, turn, what, query)).encode()).digest()


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
