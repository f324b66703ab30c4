"""What scaling a query's neurons does to its own answer and to those of unrelated queries (paper, section 4.2)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.attribution.options import edited_options
from qrnca_lens.attribution.targets import is_right
from qrnca_lens.core.neurons import NeuronSet, check_sets
from qrnca_lens.core.values import items, number, seed_number
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.editing.partners import Partners, Place, partners_of, shown_places
from qrnca_lens.engine.asks import Positions, check_positions
from qrnca_lens.engine.edits import Edit
from qrnca_lens.engine.executors import Executor, LocalExecutor, check_executor, in_order
from qrnca_lens.models import HookedModel, check_hooked

SUPPRESS, BOOST = 0.0, 2.0
_TOGETHER = 32  # prompts of a piece that is read elsewhere
Sets = Mapping[str, NeuronSet]
COLUMNS = [
    "method",
    "factor",
    "query",
    "group",
    "unit",
    "neurons",
    "prompts",
    "p_before",
    "p_after",
    "log_p_before",
    "log_p_after",
    "right_before",
    "wrong_to_right",
    "right_to_wrong",
    "p_same_before",
    "p_same_after",
    "log_p_same_before",
    "log_p_same_after",
    "same_prompts",
    "p_other_before",
    "p_other_after",
    "log_p_other_before",
    "log_p_other_after",
    "other_prompts",
    "same_partners",
    "other_partners",
]


@dataclass(frozen=True)
class _Edit:
    """One row to run: which method's neurons of which query, and the factor."""

    method: str
    owner: str
    factor: float


@dataclass(frozen=True)
class _Answer:
    """P of the right option, and whether it is the likeliest."""

    p: float
    right: bool


_Read = Mapping[tuple[_Edit | None, Place], _Answer]
"""What was read on each prompt, untouched (None) and with each edit that concerns it."""


def edit_effects(
    model: HookedModel,
    queries: QuerySet,
    methods: Mapping[str, Sets],
    *,
    factors: Sequence[float] = (SUPPRESS, BOOST),
    seed: int = 0,
    positions: Positions = "last",
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Scale each query's own neurons, as each method gives them; one row a (method, factor, query) with COLUMNS.

    `queries` of a run are its `located.asked`, without those that failed. `methods` maps a method's name to its neurons by
    query id. `positions` are scaled: "last" (the paper), "all", a position or spans. p_before and p_after are means of
    P(right letter) over a query's prompts, log_p_… of its logarithm in nats; right_before, wrong_to_right and right_to_wrong
    count prompts (the answer is the likeliest of the four letters).

    Each prompt is compared with two prompts of unrelated queries at the same place (`partners_of`): one with the same right
    letter, on which an effect on the letter shows (p_same_…), and one with another, on which only an effect on all answers
    does (p_other_…). Their P is that of their own right letter, averaged over those of the query's prompts that have such a
    partner: same_prompts and other_prompts tell how many, NaN stands for none, same_partners and other_partners name them.

    On open prompts P is that of the right answer's text, the geometric mean over its tokens, so that log_p_… is the mean of
    log P over them; "last" is the own last position of each, and the answer is the likeliest of the four texts. There
    p_same_… is of another query of the same group, on which an effect on the group shows, and p_other_… of one of another.
    All methods and factors meet the same partners. An empty set changes nothing. Every prompt runs once for all edits that
    concern it; an `executor` does it in pieces, elsewhere. Raises ValueError for an unknown query id, a neuron outside the
    model or queries of a single group.
    """
    check_hooked(model)
    check_query_set(queries)
    check_sets("methods", methods)
    check_positions(positions)
    if executor is not None:
        check_executor(executor)
    given, seed = items("factors", factors, "a list of numbers, such as [0, 2]"), seed_number(seed)
    factors = [number("factor", factor) for factor in given]
    if len(queries.groups) < 2:
        raise ValueError("unrelated queries come from other groups; give queries of at least two groups")
    by_id = {query.id: query for query in queries}
    for method, sets in methods.items():
        unknown = [query for query in sets if query not in by_id]
        if unknown:
            raise ValueError(f"method {method!r} has neurons for {unknown[0]!r}, which is not among the queries")
    partners = partners_of(queries, seed)
    edits = [_Edit(method, owner, factor) for method, sets in methods.items() for factor in factors for owner in sets]
    wanted: dict[Place, list[_Edit]] = defaultdict(list)
    for edit in edits:
        of = partners[edit.owner]
        for place in (*_places(by_id[edit.owner]), *of.same, *of.other):
            if place:
                wanted[place].append(edit)
    read = _run(model, by_id, wanted, methods, positions, executor)
    rows = [_row(edit, by_id[edit.owner], len(methods[edit.method][edit.owner]), partners, read) for edit in edits]
    return pd.DataFrame(rows, columns=COLUMNS)


def _places(query: Query) -> list[Place]:
    return [(query.id, place) for place in range(len(query.prompts))]


def _run(
    model: HookedModel,
    queries: Mapping[str, Query],
    wanted: Mapping[Place, Sequence[_Edit]],
    methods: Mapping[str, Sets],
    positions: Positions,
    executor: Executor | None,
) -> _Read:
    prompts = {place: queries[place[0]].prompts[place[1]] for place in wanted}
    edits = [[(methods[edit.method][edit.owner], edit.factor) for edit in of_place] for of_place in wanted.values()]
    asked = list(prompts.values())
    size = max(1, len(asked)) if executor is None else _TOGETHER
    pieces = [
        _Piece(tuple(asked[start : start + size]), tuple(map(tuple, edits[start : start + size])), positions)
        for start in range(0, len(asked), size)
    ]
    letters = [found for part in in_order(executor or LocalExecutor(model), _read_piece, pieces) for found in part]
    read: dict[tuple[_Edit | None, Place], _Answer] = {}
    for (place, prompt), found in zip(prompts.items(), letters, strict=True):
        p, right = found[:, prompt.right].tolist(), is_right(found, prompt.right).tolist()
        for row, edit in enumerate((None, *wanted[place])):
            read[edit, place] = _Answer(p[row], right[row])
    return read


@dataclass(frozen=True)
class _Piece:
    """Prompts that are read together, each with its edits."""

    prompts: tuple[Prompt, ...]
    edits: tuple[tuple[Edit, ...], ...]
    positions: Positions


def _read_piece(model: HookedModel, piece: _Piece) -> list[Float[torch.Tensor, "row option"]]:
    return edited_options(model, piece.prompts, piece.edits, positions=piece.positions)


def _row(edit: _Edit, query: Query, neurons: int, partners: Mapping[str, Partners], read: _Read) -> tuple[object, ...]:
    own, of = _places(query), partners[query.id]
    turns = [(read[None, place].right, read[edit, place].right) for place in own]
    right = sum(was for was, _ in turns), sum(now > was for was, now in turns), sum(was > now for was, now in turns)
    head = (edit.method, edit.factor, query.id, query.group, query.unit, neurons, len(own))
    same, other = ([place for place in places if place] for places in (of.same, of.other))
    compared = (*_both(edit, same, read), len(same), *_both(edit, other, read), len(other))
    return (*head, *_both(edit, own, read), *right, *compared, shown_places(of.same), shown_places(of.other))


def _both(edit: _Edit, places: Sequence[Place], read: _Read) -> tuple[float, ...]:
    return *_means(edit, places, read), *_log_means(edit, places, read)


def _means(edit: _Edit, places: Sequence[Place], read: _Read) -> tuple[float, float]:
    """Mean P of the right option over some prompts, before and after an edit; NaN for none."""
    if not places:
        return math.nan, math.nan
    before, after = (sum(read[key, place].p for place in places) / len(places) for key in (None, edit))
    return before, after


def _log_means(edit: _Edit, places: Sequence[Place], read: _Read) -> tuple[float, float]:
    """The mean of log P, as `_means`."""
    if not places:
        return math.nan, math.nan
    logs = [[_log(read[key, place].p) for place in places] for key in (None, edit)]
    before, after = (sum(of_key) / len(places) for of_key in logs)
    return before, after


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf
