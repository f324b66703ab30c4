"""What the explorer shows for a selection; the widget and the static page both ask here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, cast

from qrnca_lens.attribution.letters import letters_and_activations
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.shown import visible
from qrnca_lens.core.values import number
from qrnca_lens.data import ALL_GROUPS, LETTERS
from qrnca_lens.localization import group_heatmap
from qrnca_lens.models import HookedModel, ModelError
from qrnca_lens.views import drawing, html
from qrnca_lens.views.card_numbers import effects_of
from qrnca_lens.views.circuits import circuit
from qrnca_lens.views.neuron_card import NeuronCard, neuron
from qrnca_lens.views.query_view import FACTORS, QueryView, dose_response, look
from qrnca_lens.views.runs import model_of

SELECTION = ("group", "query", "layer", "neuron", "scope", "factor")
_HEADS = 3  # attention maps of the explorer; `circuit` on its own shows more
_QUESTION = 90


class Session:
    """A run, its model, and what every prompt gives: P of the letters, activations of all neurons in the clusters."""

    def __init__(self, model: HookedModel, located: QRNeurons) -> None:
        self.model, self.located = model_of(located, model), located
        neurons = NeuronSet.from_frame(located.clusters[["layer", "neuron"]].drop_duplicates())
        self._columns = {n: k for k, n in enumerate(sorted(neurons))}
        prompts = [prompt for query in located.asked for prompt in query.prompts]
        p, self._activity = letters_and_activations(self.model, prompts, neurons)
        parts = p.split([len(query.prompts) for query in located.asked])
        self._letters = {query.id: part for query, part in zip(located.asked, parts, strict=True)}
        self._cards: dict[Neuron, NeuronCard] = {}
        self._queries: dict[str, tuple[QueryView, str]] = {}

    def catalog(self, *, top: int | None = None, per_group: int | None = None) -> dict[str, Any]:
        """Groups, queries with their neurons and naica, a map a group, the slider's factors; labels are to be shown.

        `top` and `per_group` keep the strongest neurons of a query and the first queries of a group that have any; then
        the neurons that are not kept cannot be asked for.
        """
        queries, shown = [], Counter[str]()
        for query in self.located.asked:
            rows = self.located.table[self.located.table["query"] == query.id].head(top or len(self.located.table))
            if per_group is not None and (rows.empty or shown[query.group] == per_group):
                continue
            shown[query.group] += 1
            found = rows[["layer", "neuron", "naica"]].itertuples(index=False, name=None)
            question = query.question or query.prompts[0].text
            short = question if len(question) <= _QUESTION else f"{question[:_QUESTION]}…"
            neurons = [[int(layer), int(index), float(naica)] for layer, index, naica in found]
            queries.append(
                {"id": query.id, "group": query.group, "label": visible(f"{query.id}: {short}"), "neurons": neurons}
            )
        groups = [group for group in self.located.groups if shown[group]]
        return {
            "all": ALL_GROUPS,
            "groups": groups,
            "groupLabels": [visible(group) for group in groups],
            "queries": queries,
            "maps": {name: self._map(None if name == ALL_GROUPS else name) for name in (ALL_GROUPS, *groups)},
            "factors": list(FACTORS),
            "anyNeuron": per_group is None,
        }

    def first(self, queries: Collection[str] | None = None) -> dict[str, Any]:
        """The selection to begin with: the neuron and query (of `queries`; None: of all) with the highest naica."""
        return {"group": ALL_GROUPS, **self._strongest(queries), "scope": "neuron", "factor": 1.0}

    def _strongest(self, queries: Collection[str] | None) -> dict[str, Any]:
        among = list(self.located.queries["query"]) if queries is None else list(queries)
        rows = self.located.table[self.located.table["query"].isin(among)]
        best = next(rows.nlargest(1, "naica")[["query", "layer", "neuron"]].itertuples(index=False, name=None), None)
        query, layer, index = best or (among[0], None, None)
        return {"query": str(query), "layer": layer, "neuron": index}

    def changed(self, old: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        """The selection `old` with `change`, completed and with plain numbers, if everything in it exists.

        A group alone brings its strongest query along, a query alone its best neuron and its group. KeyError for an unknown
        part, query or group, TypeError for a neuron that is no pair of whole numbers or a factor that is no number,
        ValueError for half a neuron or one outside the model, a query of another group, a scope or a factor that is not on
        offer.
        """
        unknown = set(change) - set(SELECTION)
        if unknown:
            raise KeyError(f"nothing called {min(unknown)!r} can be selected; only {', '.join(SELECTION)}")
        if len({"layer", "neuron"} & set(change)) == 1:
            raise ValueError("give layer and neuron together: one of them alone is no neuron")
        selected = {**old, **change}
        self.located.check_query(selected["query"])
        if selected["group"] not in (ALL_GROUPS, *self.located.groups):
            raise KeyError(f"no group {selected['group']!r}; there are {ALL_GROUPS}, {', '.join(self.located.groups)}")
        selected = self._completed(selected, change)
        chosen = chosen_neuron(selected)
        if chosen:
            NeuronSet((chosen,)).check_inside(self.located.model.n_layers, self.located.model.d_mlp)
            selected = {**selected, "layer": chosen.layer, "neuron": chosen.index}
        if selected["scope"] not in ("neuron", "all"):
            raise ValueError(f"scope must be 'neuron' or 'all', not {selected['scope']!r}")
        factor = number("factor", selected["factor"])
        if factor not in FACTORS:
            raise ValueError(f"factor must be one of {', '.join(f'{f:g}' for f in FACTORS)}, not {factor:g}")
        return {**selected, "factor": factor}

    def _completed(self, selected: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
        if "query" in change and not {"layer", "neuron"} & set(change):
            selected = {**selected, **self._strongest([selected["query"]])}
        group = self.located.asked[selected["query"]].group
        if selected["group"] in (ALL_GROUPS, group):
            return selected
        if "query" not in change:
            mine = [query.id for query in self.located.asked if query.group == selected["group"]]
            return {**selected, **self._strongest(mine), **{k: v for k, v in change.items() if k in ("layer", "neuron")}}
        if "group" not in change:
            return {**selected, "group": group}
        raise ValueError(f"query {selected['query']!r} is of group {group!r}, not of {selected['group']!r}")

    def view(self, query_id: str, chosen: Neuron | None) -> dict[str, Any]:
        """What the widget shows: HTML of query, card and circuit, and P of the letters over `FACTORS` for the slider."""
        about, text = self.query(query_id)
        card = feeds = html.note("No neuron is chosen." if len(about.neurons) else "This query has no QR neurons.")
        if chosen:
            card, feeds = self.card(chosen, [query_id]), self.circuit(query_id, chosen)
        return {
            "of": {"query": query_id, "layer": chosen and chosen.layer, "neuron": chosen and chosen.index},
            "query": text,
            "right": about.right,
            "card": card,
            "circuit": feeds,
            "curves": {"all": about.curve().to_numpy().tolist(), "neuron": self.curve(about, chosen)},
        }

    def query(self, query_id: str) -> tuple[QueryView, str]:
        """The view of a query's first prompt and its HTML, kept once computed."""
        if query_id not in self._queries:
            found = look(self.model, self.located, self.located.asked[query_id], self._letters[query_id])
            self._queries[query_id] = (found, found.to_html())
        return self._queries[query_id]

    def card(self, chosen: Neuron, effects_on: Sequence[str]) -> str:
        """The HTML of a neuron's card with its effect on these queries."""
        card, queries = self._card(chosen), [self.located.asked[query] for query in effects_on]
        return replace(card, effects=effects_of(self.model, chosen, queries, card.scores)).to_html()

    def best_queries(self, chosen: Neuron, count: int) -> list[str]:
        """The queries where the neuron ranks highest, or has the highest attribution."""
        return list(self._card(chosen).scores["query"].head(count))

    def _card(self, chosen: Neuron) -> NeuronCard:
        """The card without effects, kept once computed."""
        if chosen not in self._cards:
            known = self._columns.get(chosen)
            activity = None if known is None else self._activity[:, known].numpy()
            self._cards[chosen] = neuron(
                self.model, chosen.layer, chosen.index, located=self.located, effects_on=(), activity=activity
            )
        return self._cards[chosen]

    def circuit(self, query_id: str, chosen: Neuron) -> str:
        """The HTML of a neuron's circuit, or why there is none (an architecture whose contributions do not add up)."""
        try:
            return circuit(self.model, self.located, query_id, chosen).to_html(chosen, heads=_HEADS)
        except ModelError as error:
            return html.note(str(error))

    def curve(self, about: QueryView, chosen: Neuron | None) -> list[list[float]]:
        """P of the letters over `FACTORS` with one neuron scaled; with none, the untouched model's all along."""
        if chosen is None:
            return [about.curve().loc[1.0].tolist()] * len(FACTORS)
        if str(chosen) in set(about.dose["edit"]):
            return about.curve(chosen).to_numpy().tolist()
        text = about.query.prompts[about.prompt].text
        found = dose_response(self.model, text, [(str(chosen), NeuronSet((chosen,)))])
        return found[list(LETTERS)].to_numpy().tolist()

    def _map(self, group: str | None) -> str:
        return drawing.grid(group_heatmap(self.located, group))


def chosen_neuron(selected: dict[str, Any]) -> Neuron | None:
    """The neuron of a selection; None if it has none. TypeError for half a neuron."""
    layer, index = selected["layer"], selected["neuron"]
    if layer is None and index is None:
        return None
    return Neuron(cast(int, layer), cast(int, index))
