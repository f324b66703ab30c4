"""Methods at their own sizes and in pairs at equal counts, against one measurement at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import QuerySet
from qrnca_lens.editing.effects import COLUMNS as EFFECT_COLUMNS
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.study import comparison
from qrnca_lens.study.comparison import COLUMNS, compared_effects


def neurons(*indices: int) -> NeuronSet:
    return NeuronSet.of(*((1, index) for index in indices))


def sets_of(queries: QuerySet) -> dict[str, dict[str, NeuronSet]]:
    """QRNCA has 3, 2, 1, 0 and again 3 neurons; the one rival more of each, the other fewer and for the first query none."""
    ids = [query.id for query in queries]
    ours = {query: neurons(*range(5, 8 - i % 4)) for i, query in enumerate(ids)}
    more = {query: neurons(*range(10, 14)) for query in ids}
    fewer = {query: neurons(*([] if i == 0 else [20, 21][: 1 + i % 2])) for i, query in enumerate(ids)}
    return {"qrnca": ours, "more": more, "fewer": fewer}


def test_pairs_are_measured_at_the_counts_of_the_shorter_set(
    model_of: Callable[[str], Any], short_queries: QuerySet
) -> None:
    model, sets = model_of("llama"), sets_of(short_queries)
    found = compared_effects(model, short_queries, sets, seed=3)
    assert list(found.columns) == COLUMNS and set(found["rival"]) == {"", "more", "fewer"}

    def against(rows: pd.DataFrame, wanted: dict[str, dict[str, NeuronSet]]) -> None:
        keys = ["method", "factor", "query"]
        one, other = (
            table.sort_values(keys).reset_index(drop=True)[EFFECT_COLUMNS]
            for table in (rows, edit_effects(model, short_queries, wanted, seed=3))
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-6)

    against(found[found["rival"] == ""], sets)
    for rival, first in (("more", 0), ("fewer", 1)):
        pair = found[found["rival"] == rival]
        counts = {query: min(len(sets["qrnca"][query]), len(sets[rival][query])) for query in sets["qrnca"]}
        kept = [query for query, count in counts.items() if count]
        assert len(kept) < len(short_queries) and pair["query"].drop_duplicates().tolist()[0] == f"q{first}"
        cut = {m: {q: NeuronSet(sets[m][q].neurons[: counts[q]]) for q in kept} for m in ("qrnca", rival)}
        against(pair, cut)


def test_equal_sets_are_measured_once(
    model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*args: Any, **rest: Any) -> pd.DataFrame:
        asked.append(sum(len(of) for of in args[2].values()))
        return edit_effects(*args, **rest)

    monkeypatch.setattr(comparison, "edit_effects", counted)
    sets = sets_of(short_queries)
    same = {"qrnca": sets["qrnca"], "more": sets["qrnca"]}
    found = compared_effects(model_of("llama"), short_queries, same)
    assert asked == [2 * len(short_queries)]
    assert (found["rival"] == "more").sum() == 2 * 2 * sum(len(of) > 0 for of in sets["qrnca"].values())


def test_no_query_with_neurons_of_both_leaves_no_pair(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    ids = [query.id for query in short_queries]
    sets = {"qrnca": {query: neurons(1) for query in ids}, "none": {query: NeuronSet() for query in ids}}
    found = compared_effects(model_of("llama"), short_queries, sets)
    assert set(found["rival"]) == {""} and len(found) == 2 * 2 * len(ids)
