"""Every change of one thing that a catalog allows, and what the Python of the explorer makes of it."""

from __future__ import annotations

from typing import Any

from qrnca_lens.core.neurons import Neuron
from qrnca_lens.views.explorer.selection import completed
from qrnca_lens.views.explorer.state import Catalog, Selection, plain

STRANGER = (0, 0)
IN_SCRIPT = "([catalog, cases]) => cases.map(([selected, change]) => completed(catalog, selected, change))"


def cases_of(catalog: Catalog) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every selection there can be (with one neuron of another query, an unknown one and none) and every change of it."""
    pairs = {(layer, index) for query in catalog.queries for layer, index, _ in query.neurons}
    assert STRANGER not in pairs
    selections = [
        plain(Selection(group, query.id, *place))
        for query in catalog.queries
        for group in (catalog.all, query.group)
        for place in (*[neuron[:2] for neuron in query.neurons], min(pairs), STRANGER, (None, None))
    ]
    changes: list[dict[str, Any]] = [{"scope": "all"}, {"factor": 4.0}, {"layer": None, "neuron": None}]
    changes += [{"group": group.name} for group in catalog.groups] + [{"query": query.id} for query in catalog.queries]
    changes += [{"layer": layer, "neuron": index} for layer, index in (*sorted(pairs), STRANGER)]
    return [(selected, change) for selected in selections for change in changes]


def python_says(catalog: Catalog) -> list[dict[str, Any] | None]:
    """What each of `cases_of` leads to; None for a neuron that is not kept."""
    return [_says(catalog, selected, change) for selected, change in cases_of(catalog)]


def _says(catalog: Catalog, selected: dict[str, Any], change: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return plain(completed(catalog, Selection(**selected), change))
    except KeyError:
        chosen = Neuron(change["layer"], change["neuron"])
        assert not catalog.open and str(chosen) not in catalog.neurons
        return None
