"""What a model does with questions, before neurons are looked for."""

from __future__ import annotations

from qrnca_lens.data import QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.models import HookedModel, check_hooked
from qrnca_lens.runs.answering import Check
from qrnca_lens.runs.prompts import check_prompts


def check(model: HookedModel, queries: QuerySet) -> Check:
    """How the untouched model answers the queries: accuracy against chance, P of the options, and which it prefers.

    Every prompt is read once, and `locate` after it does not read it again. Queries with a prompt that the model cannot take
    stand in `failed` of the result and count nowhere else. Raises ValueError for a set without queries and ModelError for a
    model that cannot be used.
    """
    check_hooked(model)
    check_query_set(queries)
    if not len(queries):
        raise ValueError(f"{queries.name}: there is no query to check; give at least one")
    checked = check_prompts(model, queries)
    return Check.of(str(model.cfg.model_name), checked.readings, checked.failed)
