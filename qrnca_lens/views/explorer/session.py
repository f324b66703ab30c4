"""What the explorer shows for a selection; the widget and the static page both ask here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.values import number
from qrnca_lens.data import ALL_GROUPS
from qrnca_lens.models import HookedModel, ModelError
from qrnca_lens.views import html
from qrnca_lens.views.card_numbers import effect_of, effects_table
from qrnca_lens.views.circuits import AskedPrompt, ask, circuit_of
from qrnca_lens.views.explorer.activity import Activity
from qrnca_lens.views.explorer.selection import catalog_of, completed
from qrnca_lens.views.explorer.state import Catalog, Curve, Curves, Selection, View
from qrnca_lens.views.neuron_card import NeuronCard, neuron
from qrnca_lens.views.query_view import FACTORS, QueryView, dose_response, look
from qrnca_lens.views.runs import model_of

SELECTION = ("group", "query", "layer", "neuron", "scope", "factor")
CARDS, QUERIES, CIRCUITS, CURVES, EFFECTS, RUNS = 256, 256, 128, 2048, 16384, 2
_HEADS = 3  # attention maps of the explorer; `circuit` on its own shows more


class Session:
    """A run, its model, and what every prompt gives (`Activity`): P of the options, activations of neurons in the clusters.

    What was asked for last is kept, so that going back costs nothing: `CARDS` cards of neurons, `QUERIES` views of queries,
    for pairs of a neuron and a query `CIRCUITS`, `CURVES` and `EFFECTS`, and for `RUNS` queries the model's one run that the
    circuits of all neurons are drawn from. `catalog`: what can be selected; without it, everything.
    """

    def __init__(self, model: HookedModel | None, located: QRNeurons, catalog: Catalog | None = None) -> None:
        self.model, self.located = model_of(model, located), located
        self.catalog = catalog or catalog_of(located)
        self._activity = Activity(self.model, located, self._likely())
        self.query = lru_cache(QUERIES)(self._query)
        self.circuit = lru_cache(CIRCUITS)(self._circuit)
        self.curve = lru_cache(CURVES)(self._curve)
        self._kept_card = lru_cache(CARDS)(self._card)
        self._kept_effect = lru_cache(EFFECTS)(self._effect)
        self._kept_run = lru_cache(RUNS)(self._run)

    def changed(self, old: Selection, change: Mapping[str, Any]) -> Selection:
        """`old` with `change` and what that brings along (see `selection.completed`), if everything in it exists.

        KeyError for an unknown part, query or group, TypeError for a neuron that is no pair of whole numbers or a factor
        that is no number, ValueError for half a neuron or one outside the model, a query of another group, a scope or a
        factor that is not on offer.
        """
        unknown = set(change) - set(SELECTION)
        if unknown:
            raise KeyError(f"nothing called {min(unknown)!r} can be selected; only {', '.join(SELECTION)}")
        if len({"layer", "neuron"} & set(change)) == 1:
            raise ValueError("give layer and neuron together: one of them alone is no neuron")
        given = dict(change)
        if "query" in given:
            self.located.check_query(given["query"])
        if given.get("group", ALL_GROUPS) not in (ALL_GROUPS, *self.located.groups):
            raise KeyError(f"no group {given['group']!r}; there are {ALL_GROUPS}, {', '.join(self.located.groups)}")
        if (given.get("layer"), given.get("neuron")) != (None, None):
            chosen = Neuron(given["layer"], given["neuron"])
            NeuronSet((chosen,)).check_inside(self.located.model.n_layers, self.located.model.d_mlp)
            given.update(layer=chosen.layer, neuron=chosen.index)
        if given.get("scope", "all") not in ("neuron", "all"):
            raise ValueError(f"scope must be 'neuron' or 'all', not {given['scope']!r}")
        if "factor" in given:
            given["factor"] = number("factor", given["factor"])
            if given["factor"] not in FACTORS:
                on_offer = ", ".join(f"{factor:g}" for factor in FACTORS)
                raise ValueError(f"factor must be one of {on_offer}, not {given['factor']:g}")
        return completed(self.catalog, old, given)

    def view(self, selected: Selection) -> View:
        """What is shown of a selection."""
        about, text = self.query(selected.query)
        chosen = selected.chosen
        card = feeds = html.note("No neuron is chosen." if len(about.neurons) else "This query has no QR neurons.")
        if chosen:
            card, feeds = self.card(chosen, [selected.query]), self.circuit(selected.query, chosen)
        curves = Curves(about.curve().to_numpy().tolist(), self.curve(selected.query, chosen))
        return View(selected.place, text, list(about.asked.labels), about.right, card, feeds, curves)

    def card(self, chosen: Neuron, effects_on: Sequence[str]) -> str:
        """The HTML of a neuron's card with its effect on these queries."""
        card, queries = self._kept_card(chosen), [self.located.asked[query] for query in effects_on]
        effects = effects_table(queries, [self._kept_effect(chosen, query) for query in effects_on], card.scores)
        return replace(card, effects=effects).to_html()

    def best_queries(self, chosen: Neuron, count: int) -> list[str]:
        """The queries where the neuron ranks highest, or has the highest attribution."""
        return list(self._kept_card(chosen).scores["query"].head(count))

    def _query(self, query_id: str) -> tuple[QueryView, str]:
        """The view of a query's first prompt and its HTML."""
        found = look(self.model, self.located, self.located.asked[query_id], self._activity.options[query_id])
        return found, found.to_html()

    def _card(self, chosen: Neuron) -> NeuronCard:
        """The card without effects."""
        activity = self._activity.of(chosen, lambda: self._near(chosen))
        return neuron(self.model, chosen.layer, chosen.index, located=self.located, effects_on=(), activity=activity)

    def _likely(self) -> Iterator[Neuron]:
        """The neurons that can be looked at, those that are looked at most likely first.

        What a page can show are the neurons of its catalog; otherwise the QR neurons by summed naica, then the others that
        are in clusters.
        """
        if not self.catalog.open:
            rows = ((layer, index) for query in self.catalog.queries for layer, index, _ in query.neurons)
            yield from NeuronSet.of(*rows)
            return
        ranked = NeuronSet.from_frame(self.located.ranked)
        yield from ranked
        yield from NeuronSet.from_frame(self.located.clusters[["layer", "neuron"]].drop_duplicates()) - ranked

    def _near(self, chosen: Neuron) -> NeuronSet:
        """The QR neurons of the query that a neuron brings along."""
        places = self.catalog.neurons.get(str(chosen), ())
        return self.located.for_query(places[0]) if places else NeuronSet()

    def _effect(self, chosen: Neuron, query_id: str) -> list[float]:
        return effect_of(self.model, chosen, self.located.asked[query_id])

    def _run(self, query_id: str) -> AskedPrompt:
        return ask(self.model, self.located.asked[query_id], 0, self.located.model.n_layers - 1)

    def _circuit(self, query_id: str, chosen: Neuron) -> str:
        """The HTML of a neuron's circuit, or why there is none (an architecture whose contributions do not add up)."""
        try:
            return circuit_of(self._kept_run(query_id), NeuronSet((chosen,))).to_html(chosen, heads=_HEADS)
        except ModelError as error:
            return html.note(str(error))

    def _curve(self, query_id: str, chosen: Neuron | None) -> Curve:
        """P of the options over `FACTORS` with one neuron scaled; with none, the untouched model's all along."""
        about, _ = self.query(query_id)
        if chosen is None:
            return [about.curve().loc[1.0].tolist()] * len(FACTORS)
        if str(chosen) in set(about.dose["edit"]):
            return about.curve(chosen).to_numpy().tolist()
        found = dose_response(self.model, about.asked, [(str(chosen), NeuronSet((chosen,)))])
        return found[list(about.asked.names)].to_numpy().tolist()
