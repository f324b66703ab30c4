"""The unrelated prompts that edits are compared on: who may be one, and how often."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from handmade import planted_queries

from qrnca_lens.data import QuerySet, load_queries
from qrnca_lens.editing.partners import Place, partners_of, shown_places


def uses(queries: QuerySet, kind: str, seed: int = 0) -> list[int]:
    """How often each prompt is a partner, after checking that it may be."""
    by_id, found = {query.id: query for query in queries}, Counter[Place]()
    for query, partners in partners_of(queries, seed).items():
        own, chosen = by_id[query], getattr(partners, kind)
        assert len(chosen) == len(own.prompts)
        for place, partner in enumerate(chosen):
            assert partner is not None and partner[1] == place
            other = by_id[partner[0]]
            assert other.group != own.group and other.unit != own.unit
            assert (other.prompts[place].letter == own.prompts[place].letter) == (kind == "same")
            found[partner] += 1
    return [found[query.id, place] for query in queries for place in range(len(query.prompts))]


@pytest.mark.parametrize("kind", ["same", "other"])
@pytest.mark.parametrize("source", ["atlas/domains", "atlas/languages"])
def test_prompts_are_used_about_equally_often(source: str, kind: str) -> None:
    """Six groups; in the languages six queries share a fact."""
    counts = uses(load_queries(source), kind)
    assert max(counts) - min(counts) <= 2
    assert sum(count == 1 for count in counts) > 0.98 * len(counts)


@pytest.mark.parametrize("kind", ["same", "other"])
def test_a_large_group_shares_out_the_small_ones(kind: str) -> None:
    """Of 160 queries 120 are in x and find partners among the other 40 alone, about 3 times each; those find theirs in x."""
    queries = planted_queries(["ABCD"[i % 4] for i in range(160)], ["a"])
    queries = QuerySet(tuple(replace(query, group="xxxy"[i // 4 % 4]) for i, query in enumerate(queries)))
    counts = uses(queries, kind)
    large = [count for query, count in zip(queries, counts, strict=True) if query.group == "x"]
    small = [count for query, count in zip(queries, counts, strict=True) if query.group == "y"]
    assert (sum(large), sum(small)) == (40, 120)
    assert max(large) == 1 and max(small) - min(small) <= (0 if kind == "same" else 2)


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    queries = load_queries("atlas/languages").sample(10)
    found = partners_of(queries, 3)
    assert partners_of(QuerySet(queries.queries[::-1]), 3) == found != partners_of(queries, 4)


def test_a_prompt_without_a_partner() -> None:
    """b0 has the only A of the other group, at place 0; at place 1 nothing there has B's letter, and c0 has one place."""
    a = planted_queries(["AB"], "x", first="a")
    b = planted_queries(["AC"], "y", first="b")
    c = planted_queries(["D"], "y", first="c")
    found = partners_of(QuerySet((*a, *b, *c)), 0)
    assert found["a0"].same == (("b0", 0), None)
    assert found["a0"].other == (("c0", 0), ("b0", 1))
    assert (found["c0"].same, found["c0"].other) == ((None,), (("a0", 0),))
    assert json.loads(shown_places(found["a0"].same)) == [["b0", 0], None]
    fact = QuerySet(tuple(replace(query, fact="one") for query in (*a, *b)))
    assert partners_of(fact, 0)["a0"] == replace(found["a0"], same=(None, None), other=(None, None))
