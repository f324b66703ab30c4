"""What the explorer shows for a selection; the widget and the static page both ask here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import LETTERS
from qrnca_lens.explore import drawing
from qrnca_lens.explore.circuit import circuit
from qrnca_lens.explore.neuron_card import NeuronCard, neuron
from qrnca_lens.explore.query_view import FACTORS, QueryView, dose_response, look
from qrnca_lens.explore.runs import asked_query, model_of
from qrnca_lens.localization import group_heatmap
from qrnca_lens.models import HookedModel
from qrnca_lens.models.letters import letters_and_activations
from qrnca_lens.neurons import Neuron, NeuronSet

ALL_GROUPS = "all groups"
_EFFECT_QUERIES = 1  # fewer than a card on its own measures, so that a click is answered at once
_QUESTION = 90


class Session:
    """A run, its model, and what every prompt gives: P of the letters, activations of the QR and common neurons."""

    def __init__(self, model: HookedModel, located: QRNeurons) -> None:
        self.model, self.located = model_of(located, model), located
        asked_query(located, located.queries["query"][0])
        pairs = located.table[["layer", "neuron"]].drop_duplicates()
        neurons = NeuronSet.of(*pairs.itertuples(index=False, name=None)) | located.common_set
        self._columns = {n: k for k, n in enumerate(sorted(neurons))}
        prompts = [prompt for query in located.asked for prompt in query.prompts]
        p, self._activity = letters_and_activations(self.model, prompts, neurons)
        parts = p.split([len(query.prompts) for query in located.asked])
        self._letters = {query.id: part for query, part in zip(located.asked, parts, strict=True)}
        self._cards: dict[Neuron, str] = {}
        self._queries: dict[str, tuple[QueryView, str]] = {}

    def catalog(self, *, top: int | None = None, any_neuron: bool = True) -> dict[str, Any]:
        """Groups, queries with their (at most `top`) neurons and naica, a map a group, the slider's factors."""
        queries = []
        for query in self.located.asked:
            rows = self.located.table[self.located.table["query"] == query.id].head(top or len(self.located.table))
            found = rows[["layer", "neuron", "naica"]].itertuples(index=False, name=None)
            question = query.question or query.prompts[0].text
            short = question if len(question) <= _QUESTION else f"{question[:_QUESTION]}…"
            neurons = [[int(layer), int(index), float(naica)] for layer, index, naica in found]
            queries.append({"id": query.id, "group": query.group, "question": short, "neurons": neurons})
        groups = list(self.located.groups)
        return {
            "all": ALL_GROUPS,
            "groups": groups,
            "queries": queries,
            "maps": {name: self._map(None if name == ALL_GROUPS else name) for name in (ALL_GROUPS, *groups)},
            "factors": list(FACTORS),
            "anyNeuron": any_neuron,
        }

    def first(self, queries: Collection[str] | None = None) -> dict[str, Any]:
        """The selection to begin with: the neuron and query (of `queries`; None: of all) with the highest naica."""
        rows = self.located.table
        rows = rows if queries is None else rows[rows["query"].isin(list(queries))]
        best = next(rows.nlargest(1, "naica")[["query", "layer", "neuron"]].itertuples(index=False, name=None), None)
        query, layer, index = best or (self.located.queries["query"][0], None, None)
        return {
            "group": ALL_GROUPS,
            "query": str(query),
            "layer": layer,
            "neuron": index,
            "scope": "neuron",
            "factor": 1.0,
        }

    def checked(self, selected: dict[str, Any]) -> dict[str, Any]:
        """`selected`, if everything in it exists; else a KeyError or ValueError that says what there is."""
        self.located.check_query(selected["query"])
        if selected["group"] not in (ALL_GROUPS, *self.located.groups):
            raise KeyError(f"no group {selected['group']!r}; there are {ALL_GROUPS}, {', '.join(self.located.groups)}")
        if selected["layer"] is not None:
            chosen = NeuronSet.of((selected["layer"], selected["neuron"]))
            chosen.check_inside(self.located.model.n_layers, self.located.model.d_mlp)
        if selected["scope"] not in ("neuron", "all"):
            raise ValueError(f"scope must be 'neuron' or 'all', not {selected['scope']!r}")
        if selected["factor"] not in FACTORS:
            raise ValueError(f"factor must be one of {', '.join(f'{f:g}' for f in FACTORS)}, not {selected['factor']}")
        return selected

    def view(self, query_id: str, chosen: Neuron | None) -> dict[str, Any]:
        """The HTML of query, card and circuit, and the letters' probabilities over `FACTORS` for the slider."""
        about, text = self._query(query_id)
        every = about.curve().to_numpy().tolist()
        made = {"query": text, "right": about.right}
        if chosen is None:
            none = "<p>This query has no QR neurons.</p>"
            untouched = [every[FACTORS.index(1.0)]] * len(FACTORS)
            return {**made, "card": none, "circuit": none, "curves": {"all": every, "neuron": untouched}}
        shown = circuit(self.model, self.located, query_id, chosen).to_html(chosen, patterns=False)
        curves = {"all": every, "neuron": self._curve(about, chosen)}
        return {**made, "card": self.card(chosen), "circuit": shown, "curves": curves}

    def card(self, chosen: Neuron) -> str:
        """The HTML of a neuron's card, kept once computed."""
        if chosen not in self._cards:
            self._cards[chosen] = self._card(chosen).to_html()
        return self._cards[chosen]

    def _card(self, chosen: Neuron) -> NeuronCard:
        known = self._columns.get(chosen)
        activity = None if known is None else self._activity[:, known].numpy()
        return neuron(
            self.model, chosen.layer, chosen.index, located=self.located, activity=activity, effect_queries=_EFFECT_QUERIES
        )

    def _curve(self, about: QueryView, chosen: Neuron) -> list[list[float]]:
        if str(chosen) in set(about.dose["edit"]):
            return about.curve(chosen).to_numpy().tolist()
        text = about.query.prompts[about.prompt].text
        found = dose_response(self.model, text, [(str(chosen), NeuronSet((chosen,)))])
        return found[list(LETTERS)].to_numpy().tolist()

    def _query(self, query_id: str) -> tuple[QueryView, str]:
        """The view of a query's first prompt and its HTML, kept once computed."""
        if query_id not in self._queries:
            found = look(self.model, self.located, self.located.asked[query_id], self._letters[query_id])
            self._queries[query_id] = (found, found.to_html())
        return self._queries[query_id]

    def _map(self, group: str | None) -> str:
        return drawing.grid(group_heatmap(self.located, group))
