"""The rules of selecting: what a change brings along.

explorer.js has to follow them without Python. So all that can be decided beforehand stands in the catalog, and the function
`completed` there does the same look-ups in the same order as the one here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.shown import visible
from qrnca_lens.data import ALL_GROUPS, WORDING
from qrnca_lens.localization import group_heatmap
from qrnca_lens.views import drawing
from qrnca_lens.views.explorer.state import Catalog, CatalogGroup, CatalogQuery, Selection
from qrnca_lens.views.query_view import FACTORS

_QUESTION = 90
_WHERE = "after the query's prompt 0, which is shown below."
_BARS = " A full bar is the highest P over all factors."


def catalog_of(located: QRNeurons, *, top: int | None = None, per_group: int | None = None) -> Catalog:
    """All that can be selected in a run.

    With `top` and `per_group`, the strongest neurons of a query and the first queries of a group that have any; then the
    neurons that are not kept cannot be selected.
    """
    long = located.asked.read == "answer"
    queries, words = _queries(located, top, per_group), WORDING[located.asked.read]
    best, maps = _strongest(queries), {}
    for name in (ALL_GROUPS, *located.groups):
        if name in best:
            maps[name] = drawing.grid(group_heatmap(located, None if name == ALL_GROUPS else name))
    return Catalog(
        ALL_GROUPS,
        tuple(CatalogGroup(name, visible(name), best[name], shown) for name, shown in maps.items()),
        tuple(queries),
        _places(queries),
        FACTORS,
        top is None and per_group is None,
        f"P of the {words.option}s {_WHERE} {words.explained}{_BARS * long}".strip(),
        long,
    )


def part_of(catalog: Catalog, ids: Collection[str]) -> Catalog:
    """The catalog of some of its queries, with the groups that have any of them; the maps stay those of all queries."""
    queries = tuple(query for query in catalog.queries if query.id in ids)
    best = _strongest(queries)
    groups = tuple(replace(group, query=best[group.name]) for group in catalog.groups if group.name in best)
    return replace(catalog, groups=groups, queries=queries, neurons=_places(queries))


def first(catalog: Catalog) -> Selection:
    """What is selected to begin with: the strongest query of all and its best neuron."""
    query = catalog.by_id[catalog.by_name[catalog.all].query]
    return Selection(catalog.all, query.id, *_best(query))


def completed(catalog: Catalog, old: Selection, change: Mapping[str, Any]) -> Selection:
    """`old` with `change` (fields of `Selection`, layer and neuron together) and with what that brings along.

    - A group keeps the query if it is one of its own, else it brings its strongest query.
    - A neuron keeps the query if it is one of its neurons, else it brings the query where its naica is highest, of the group
      if one there has it; if none has it, the query stays.
    - A query brings its best neuron, whatever brought the query, unless the neuron is given.
    - The group follows the query, unless the group is given.

    KeyError for a neuron that the catalog does not have and that is not open, ValueError for a query and a group that do not
    belong together.
    """
    new = replace(old, **change)
    if "query" not in change:
        if not catalog.inside(new.group, new.query):
            new = replace(new, query=catalog.by_name[new.group].query)
        if "layer" in change:
            new = replace(new, query=_query_with(catalog, new, "group" in change))
    about = catalog.by_id[new.query]
    if "layer" not in change and ("query" in change or new.query != old.query):
        layer, neuron = _best(about)
        new = replace(new, layer=layer, neuron=neuron)
    if catalog.inside(new.group, new.query):
        return new
    if "group" in change:
        raise ValueError(f"query {new.query!r} is of group {about.group!r}, not of {new.group!r}")
    return replace(new, group=about.group)


def _query_with(catalog: Catalog, new: Selection, stays: bool) -> str:
    """The query that the selected neuron is looked at in; one of the selected group if the selection `stays` there."""
    if new.chosen is None or new.chosen in [Neuron(layer, index) for layer, index, _ in catalog.by_id[new.query].neurons]:
        return new.query
    places = catalog.neurons.get(str(new.chosen), ())
    if not places and not catalog.open:
        raise KeyError(f"neuron {new.chosen} is not kept")
    near = [query for query in places if catalog.inside(new.group, query)]
    return next(iter(near or (() if stays else places)), new.query)


def _queries(located: QRNeurons, top: int | None, per_group: int | None) -> list[CatalogQuery]:
    neurons: dict[str, list[tuple[int, int, float]]] = {query.id: [] for query in located.asked}
    for query_id, layer, index, naica in located.table[["query", "layer", "neuron", "naica"]].itertuples(index=False):
        neurons[query_id].append((int(layer), int(index), float(naica)))
    queries, shown = [], Counter[str]()
    for query in located.asked:
        kept = neurons[query.id][:top]
        if per_group is not None and (not kept or shown[query.group] == per_group):
            continue
        shown[query.group] += 1
        question = query.question or query.prompts[0].text
        short = question if len(question) <= _QUESTION else f"{question[:_QUESTION]}…"
        queries.append(CatalogQuery(query.id, query.group, visible(f"{query.id}: {short}"), tuple(kept)))
    return queries


def _strongest(queries: Iterable[CatalogQuery]) -> dict[str, str]:
    """By group, and for all groups, the id of the query whose best neuron has the highest naica; the first of equal ones."""
    found: dict[str, CatalogQuery] = {}
    for query in queries:
        for group in (ALL_GROUPS, query.group):
            if group not in found or _strength(query) > _strength(found[group]):
                found[group] = query
    return {group: query.id for group, query in found.items()}


def _strength(query: CatalogQuery) -> float:
    return query.neurons[0][2] if query.neurons else float("-inf")


def _best(query: CatalogQuery) -> tuple[int | None, int | None]:
    return query.neurons[0][:2] if query.neurons else (None, None)


def _places(queries: Sequence[CatalogQuery]) -> dict[str, tuple[str, ...]]:
    """`Catalog.neurons`."""
    found: dict[str, list[tuple[float, CatalogQuery]]] = {}
    for query in queries:
        for layer, index, naica in query.neurons:
            found.setdefault(str(Neuron(layer, index)), []).append((naica, query))
    places = {}
    for name, rows in found.items():
        best: dict[str, str] = {}
        for _, query in sorted(rows, key=lambda row: -row[0]):
            best.setdefault(query.group, query.id)
        places[name] = tuple(best.values())
    return places
