"""What scaling a query's neurons does to its own answer and to those of unrelated queries (paper, section 4.2)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from qrnca_lens.attribution.letters import edited_letters
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import number, seed_number
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.engine.asks import Positions
from qrnca_lens.models import HookedModel, check_hooked

SUPPRESS, BOOST = 0.0, 2.0
Sets = Mapping[str, NeuronSet]
COLUMNS = [
    "method",
    "factor",
    "query",
    "group",
    "neurons",
    "unrelated",
    "prompts",
    "p_before",
    "p_after",
    "right_before",
    "wrong_to_right",
    "right_to_wrong",
    "p_unrelated_before",
    "p_unrelated_after",
]


@dataclass(frozen=True)
class _Edit:
    """One row to run: which method's neurons of which query, and the factor."""

    method: str
    owner: str
    factor: float


def edit_effects(
    model: HookedModel,
    queries: QuerySet,
    methods: Mapping[str, Sets],
    *,
    factors: Sequence[float] = (SUPPRESS, BOOST),
    seed: int = 0,
    positions: Positions = "last",
) -> pd.DataFrame:
    """Scale each query's own neurons, as each method gives them; one row a (method, factor, query) with COLUMNS.

    `queries` of a run are its `located.asked`, without those that failed. `methods` maps a method's name to its neurons by
    query id. `positions` are scaled: "last" (the paper), "all", a position or spans. Probabilities are means
    over a query's prompts; right_before, wrong_to_right and right_to_wrong count prompts (the answer is the likeliest of
    the four letters). The unrelated query is drawn from another group with `seed` and the query's id, so that all methods
    and factors meet the same one. An empty set changes nothing. Every prompt runs once for all edits that concern it.
    Raises ValueError for an unknown query id, a neuron outside the model or queries of a single group.
    """
    check_hooked(model)
    check_query_set(queries)
    factors, seed = [number("factor", factor) for factor in factors], seed_number(seed)
    if len(queries.groups) < 2:
        raise ValueError("unrelated queries come from other groups; give queries of at least two groups")
    known = {query.id for query in queries}
    for method, sets in methods.items():
        unknown = [query for query in sets if query not in known]
        if unknown:
            raise ValueError(f"method {method!r} has neurons for {unknown[0]!r}, which is not among the queries")
    partner = {query.id: unrelated(query, queries, seed) for query in queries}
    wanted: dict[str, list[_Edit]] = defaultdict(list)
    for method, sets in methods.items():
        for owner in sets:
            for factor in factors:
                for query in (owner, partner[owner]):
                    wanted[query].append(_Edit(method, owner, factor))
    before, after = {}, {}
    texts, edits = [], []
    for query in queries:
        if wanted[query.id]:
            texts += [prompt.text for prompt in query.prompts]
            edits += [[(methods[e.method][e.owner], e.factor) for e in wanted[query.id]]] * len(query.prompts)
    read = iter(edited_letters(model, texts, edits, positions=positions))
    for query in queries:
        if wanted[query.id]:
            found = torch.stack([next(read) for _ in query.prompts], dim=1)
            before[query.id] = found[0]
            after.update({(edit, query.id): p for edit, p in zip(wanted[query.id], found[1:], strict=True)})
    rows = []
    for method, sets in methods.items():
        for factor in factors:
            for owner in sets:
                edit, query, other = _Edit(method, owner, factor), queries[owner], queries[partner[owner]]
                own = _compare(query, before[query.id], after[edit, query.id])
                elsewhere = _compare(other, before[other.id], after[edit, other.id])
                head = (method, factor, owner, query.group, len(sets[owner]), other.id, len(query.prompts))
                rows.append((*head, *own, *elsewhere[:2]))
    return pd.DataFrame(rows, columns=COLUMNS)


def unrelated(query: Query, queries: QuerySet, seed: int) -> str:
    """The id of a query of another group, drawn with `seed` and the query's id."""
    return random.Random(f"{seed}/{query.id}").choice([other.id for other in queries if other.group != query.group])


def _compare(query: Query, before: torch.Tensor, after: torch.Tensor) -> tuple[float, float, int, int, int]:
    """p_before, p_after, right_before, wrong_to_right, right_to_wrong over a query's prompts; tensors [prompt, letter]."""
    right = torch.tensor([prompt.right for prompt in query.prompts])
    was, now = before.argmax(1) == right, after.argmax(1) == right
    p_before, p_after = (p.gather(1, right[:, None]).mean().item() for p in (before, after))
    return p_before, p_after, int(was.sum()), int((~was & now).sum()), int((was & ~now).sum())
