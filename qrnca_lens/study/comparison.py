"""Every method at its own size and, pair by pair, QRNCA and another method at equal counts: two tables, measured in one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pandas as pd

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import QuerySet
from qrnca_lens.editing.effects import COLUMNS as EFFECT_COLUMNS
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.engine.executors import Executor
from qrnca_lens.methods import Sets
from qrnca_lens.models import HookedModel

OURS = "qrnca"
"""The method that each of the others is paired with."""
COLUMNS = ["rival", *EFFECT_COLUMNS]


def compared_effects(
    model: HookedModel, queries: QuerySet, own: Mapping[str, Sets], *, seed: int = 0, executor: Executor | None = None
) -> pd.DataFrame:
    """`edit_effects` with a column `rival`: "" for every method's own sets (`own`, by method and query, best first); then,
    for each method but QRNCA, its rows and those of QRNCA with both sets cut to the length of the shorter one.

    Pairs have the queries for which both methods have a neuron: elsewhere there is nothing to compare. Equal sets of a
    method are measured once. Raises what `edit_effects` does; KeyError for a query that a method lacks.
    """
    wanted = [("", method, query, len(found)) for method, sets in own.items() for query, found in sets.items()]
    for rival in (method for method in own if method != OURS):
        counts = {query: min(len(found), len(own[rival][query])) for query, found in own[OURS].items()}
        wanted += [(rival, method, query, n) for method in (rival, OURS) for query, n in counts.items() if n]
    sets: dict[tuple[str, int], dict[str, NeuronSet]] = defaultdict(dict)
    for _, method, query, count in wanted:
        sets[method, count][query] = NeuronSet(own[method][query].neurons[:count])
    names = {f"{method}, {count}": method for method, count in sets}
    measured = edit_effects(model, queries, dict(zip(names, sets.values(), strict=True)), seed=seed, executor=executor)
    measured = measured.assign(method=measured["method"].map(names))
    keys = pd.DataFrame(wanted, columns=["rival", "method", "query", "neurons"])
    return keys.merge(measured, on=["method", "query", "neurons"], validate="many_to_many")[COLUMNS]
