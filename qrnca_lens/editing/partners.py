"""Which prompts of other queries an edit is compared on, two for each prompt.

For prompts that ask for a letter they are of other groups: one with the same right letter, and one with another. For open
prompts, which have no letter, one is of the same group and one of another.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from qrnca_lens.data import Query, QuerySet

Place: TypeAlias = tuple[str, int]
"""A prompt: the id of its query, and its place among the query's prompts."""


@dataclass(frozen=True)
class Partners:
    """For each prompt of a query a prompt of another query at the same place, or None where there is none."""

    same: tuple[Place | None, ...]
    """Those with the same right letter; of an open prompt those of the same group."""
    other: tuple[Place | None, ...]
    """Those with another right letter; of an open prompt those of another group."""


def shown_places(places: Sequence[Place | None]) -> str:
    """Partners as JSON: for each prompt [query id, place], or null."""
    return json.dumps(places, ensure_ascii=False)


def partners_of(queries: QuerySet, seed: int) -> dict[str, Partners]:
    """The partners of every query's prompts, by query id.

    Partners are of another group (but `same` of an open prompt) and another unit (`Query.unit`, so never the same fact in
    another language) and stand at the same place among their query's prompts: where all queries are rendered by the same
    templates, the same template.
    Each prompt in turn, in an order drawn with `seed`, gets the prompt used least so far among those that it may have. So
    prompts are used about equally often wherever the groups allow it. The draw does not depend on the order of the queries.
    """
    drawers = _Drawer(queries, seed, "same"), _Drawer(queries, seed, "other")
    order = sorted(queries, key=lambda query: query.id)
    random.Random(f"{seed}/partners").shuffle(order)
    found = {}
    for query in order:
        found[query.id] = Partners(
            tuple(drawers[0].draw(query, place, same=True) for place in range(len(query.prompts))),
            tuple(drawers[1].draw(query, place, same=False) for place in range(len(query.prompts))),
        )
    return {query.id: found[query.id] for query in queries}


class _Drawer:
    """The prompts of a set by place and right letter, each with how often it was drawn."""

    def __init__(self, queries: QuerySet, seed: int, kind: str) -> None:
        members: dict[tuple[int, tuple[str, ...]], dict[int | str, list[Query]]] = defaultdict(lambda: defaultdict(list))
        for query in sorted(queries, key=lambda query: query.id):
            for place, prompt in enumerate(query.prompts):
                members[place, prompt.names][_kind(query, place)].append(query)
        rng = random.Random(f"{seed}/{kind}")
        self._cells = {
            key: {kind: _Cell(found, rng) for kind, found in sorted(of_key.items())}
            for key, of_key in sorted(members.items())
        }

    def draw(self, query: Query, place: int, *, same: bool) -> Place | None:
        prompt = query.prompts[place]
        cells, mine = self._cells[place, prompt.names], _kind(query, place)
        if same:
            allowed: Iterable[_Cell] = [cells[mine]]
        else:
            others = [cell for kind, cell in cells.items() if kind != mine]
            allowed = sorted(others, key=lambda cell: cell.first(query.group))
        within = same and prompt.read == "answer"
        drawn = next((one for cell in allowed if (one := cell.draw(query, same_group=within))), None)
        return (drawn, place) if drawn else None


def _kind(query: Query, place: int) -> int | str:
    """What partners share or do not: the right letter, or of an open prompt the group."""
    prompt = query.prompts[place]
    return prompt.right if prompt.read == "letter" else query.group


_Entry: TypeAlias = tuple[int, int, str, str]
"""How often it was drawn, its turn among those drawn as often, the query's id and its unit."""


class _Cell:
    """Queries of one kind at one place, by group; a heap a group, and one of the groups' first entries."""

    def __init__(self, queries: list[Query], rng: random.Random) -> None:
        shuffled = rng.sample(queries, len(queries))
        self._members: dict[str, list[_Entry]] = defaultdict(list)
        for turn, query in enumerate(shuffled):
            self._members[query.group].append((0, turn, query.id, query.unit))
        self._firsts = [(*members[0][:2], group) for group, members in self._members.items()]
        heapify(self._firsts)

    def first(self, group: str) -> tuple[float, int]:
        """How often the least drawn query of another group was drawn, and its turn; infinitely often where there is none."""
        best = self._firsts[:1] if self._firsts[0][-1] != group else self._firsts[1:3]  # a heap's second is one of these
        return min(((float(times), turn) for times, turn, _ in best), default=(math.inf, 0))

    def draw(self, query: Query, *, same_group: bool) -> str | None:
        """The id of the least drawn query of another group (or of the same one) and another unit; None if there is none."""
        passed, found = [], None
        while self._firsts and found is None:
            *_, group = heappop(self._firsts)
            passed.append(group)
            if (group == query.group) == same_group:
                found = _take(self._members[group], query.unit)
        for group in passed:
            heappush(self._firsts, (*self._members[group][0][:2], group))
        return found


def _take(members: list[_Entry], unit: str) -> str | None:
    """The first of a heap that is of another unit; it goes back as drawn once more."""
    passed, found = [], None
    while members and found is None:
        entry = heappop(members)
        if entry[3] == unit:
            passed.append(entry)
        else:
            times, turn, found, its_unit = entry
            passed.append((times + 1, turn, found, its_unit))
    for entry in passed:
        heappush(members, entry)
    return found
