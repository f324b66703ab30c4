"""The Jupyter explorer: groups, queries and neurons, a heatmap to click, a card, a circuit, a slider with live options."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import anywidget
import traitlets

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.store import RunError
from qrnca_lens.data import QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.models import HookedModel
from qrnca_lens.views import html
from qrnca_lens.views.components import MOUNT, library, script
from qrnca_lens.views.explorer.selection import first
from qrnca_lens.views.explorer.session import Session
from qrnca_lens.views.explorer.state import Selection, plain
from qrnca_lens.views.runs import check_run


@lru_cache(maxsize=1)
def _module() -> str:
    face = "export default { render({ model, el }) { mount(el, model); } };"
    return f"{library()}{MOUNT}\n{script()}\n{face}"


class Explorer(anywidget.AnyWidget):
    """Pick a group, a query and a neuron; see the neuron's card, its circuit and what scaling it does to the options.

    Everything stays in step with Python: `selected` is a dictionary with group, query, layer, neuron, scope ("neuron" or
    "all": what the slider scales) and factor. It can be set, in part too: a group brings its strongest query along, a query
    its best neuron, a neuron the query where it counts most (docs/explore.md says it exactly). `letters` are the
    probabilities shown, of the options by their letters or, after open prompts, by their texts (`Prompt.labels`). Nothing is
    fetched from the network. Raises RunError if the run was made with another model or other queries.
    """

    _esm = traitlets.Unicode(_module()).tag(sync=True)
    _css = traitlets.Unicode(html.style()).tag(sync=True)
    catalog = traitlets.Dict().tag(sync=True)
    selected = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, model: HookedModel, queries: QuerySet, located: QRNeurons) -> None:
        _check_queries(queries, located)
        self._session = Session(model, located)
        began = first(self._session.catalog)
        super().__init__(catalog=plain(self._session.catalog), selected=plain(began), view=plain(self._session.view(began)))

    @traitlets.validate("selected")
    def _check(self, proposal: Any) -> dict[str, Any]:
        old = Selection(**self.selected) if self.selected else first(self._session.catalog)
        return plain(self._session.changed(old, proposal["value"]))

    @traitlets.observe("selected")
    def _follow(self, change: Any) -> None:
        new = Selection(**change["new"])
        if change["old"] and Selection(**change["old"]).place != new.place:
            self.view = plain(self._session.view(new))

    @property
    def neuron(self) -> Neuron | None:
        """The selected neuron; None for a query without QR neurons."""
        return Selection(**self.selected).chosen

    @property
    def letters(self) -> dict[str, float]:
        """P of every option as shown: the selected query's prompt with the selected neurons scaled."""
        at = self.catalog["factors"].index(self.selected["factor"])
        return dict(zip(self.view["letters"], self.view["curves"][self.selected["scope"]][at], strict=True))


def _check_queries(queries: QuerySet, located: QRNeurons) -> None:
    check_query_set(queries)
    check_run(located)
    known = {query.id: query for query in queries}
    for query in located.asked:
        if query.id not in known or [p.text for p in known[query.id].prompts] != [p.text for p in query.prompts]:
            raise RunError(
                f"query {query.id!r} of the run is not in {queries.name} with the same prompts; give the run's queries"
            )
