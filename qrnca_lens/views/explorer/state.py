"""What passes between the explorer's Python and its script. `plain` alone makes dictionaries of it, for JSON and the widget.

The fields are named as explorer.js reads them. HTML in them is escaped already, labels are to be shown as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from qrnca_lens.core.neurons import Neuron

Scope = Literal["neuron", "all"]
"""What the slider scales: the selected neuron, or all QR neurons of the selected query."""
Curve: TypeAlias = list[list[float]]
"""P of every option for every factor of the slider: [factor][option]."""


@dataclass(frozen=True)
class Place:
    """What a view is of: a query and a neuron; `layer` and `neuron` (its index) are None together where there is none."""

    query: str
    layer: int | None
    neuron: int | None


@dataclass(frozen=True)
class Selection:
    """What is selected: a `Place`, the group it is seen in, what the slider scales (`scope`) and by how much (`factor`).

    The query is one of the group, or the group is that of all groups.
    """

    group: str
    query: str
    layer: int | None
    neuron: int | None
    scope: Scope = "neuron"
    factor: float = 1.0

    @property
    def place(self) -> Place:
        """The part that decides what is shown; the rest only decides which of the shown numbers are in front."""
        return Place(self.query, self.layer, self.neuron)

    @property
    def chosen(self) -> Neuron | None:
        """The selected neuron."""
        return None if self.layer is None or self.neuron is None else Neuron(self.layer, self.neuron)


@dataclass(frozen=True)
class Curves:
    """The options' probabilities with all QR neurons of the query scaled, and with the selected neuron alone."""

    all: Curve
    neuron: Curve


@dataclass(frozen=True)
class View:
    """What the place `of` shows: HTML of query, card and circuit, the options' labels and the right one, the curves."""

    of: Place
    query: str
    letters: list[str]
    right: str
    card: str
    circuit: str
    curves: Curves


@dataclass(frozen=True)
class CatalogGroup:
    """A group: its name, the name as it is shown, the id of the query it brings along (the strongest), and its map (SVG)."""

    name: str
    label: str
    query: str
    map: str


@dataclass(frozen=True)
class CatalogQuery:
    """A query: id, group, its question as it is shown, and (layer, index, naica) of its neurons.

    The neurons stand best first: the first is the one that the query brings along.
    """

    id: str
    group: str
    label: str
    neurons: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Catalog:
    """Everything that can be selected.

    `all`: the name of the first group, which holds all queries. `neurons`: by name ("L3.N17"), the query that a neuron
    brings along in each group that has it (where its naica is highest), the highest of all first. `factors`: of the slider.
    `open`: whether a neuron that stands in no query can be selected; in a page without Python it cannot. `note`: what the
    probabilities beside the slider are; `relative`: whether their bars are full at the highest P of the view, not at 1.
    """

    all: str
    groups: tuple[CatalogGroup, ...]
    queries: tuple[CatalogQuery, ...]
    neurons: dict[str, tuple[str, ...]]
    factors: tuple[float, ...]
    open: bool
    note: str = ""
    relative: bool = False

    @cached_property
    def by_id(self) -> dict[str, CatalogQuery]:
        """The queries by their ids."""
        return {query.id: query for query in self.queries}

    @cached_property
    def by_name(self) -> dict[str, CatalogGroup]:
        """The groups by their names."""
        return {group.name: group for group in self.groups}

    def inside(self, group: str, query: str) -> bool:
        """Whether a query is looked at in a group."""
        return group in (self.all, self.by_id[query].group)


@dataclass(frozen=True)
class KeptNeuron:
    """What a page keeps of a neuron in a query: the circuit's HTML and the curve with the neuron alone scaled."""

    circuit: str
    curve: Curve


@dataclass(frozen=True)
class KeptQuery:
    """What a page keeps of a query: HTML, the options' labels and the right one, the curve of all neurons, its neurons by
    name."""

    html: str
    letters: list[str]
    right: str
    curve: Curve
    neurons: dict[str, KeptNeuron]


@dataclass(frozen=True)
class Page:
    """A page without Python: what can be selected, what is selected first, and all that is then shown.

    `queries`: by id. `cards`: the HTML of the neurons' cards, by name.
    """

    catalog: Catalog
    selected: Selection
    queries: dict[str, KeptQuery]
    cards: dict[str, str]


def plain(state: Selection | View | Catalog | Page) -> dict[str, Any]:
    """The state as dictionaries, lists and tuples of texts, numbers, booleans and None, nested as its fields are."""
    return asdict(state)
