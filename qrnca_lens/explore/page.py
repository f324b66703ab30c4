"""The explorer as one self-contained page: all that it can be asked is computed beforehand, for each query's top neurons."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.explore.components import MOUNT, library
from qrnca_lens.explore.explorer import script
from qrnca_lens.explore.html import style, text
from qrnca_lens.explore.query_view import FACTORS
from qrnca_lens.explore.session import Session
from qrnca_lens.models import HookedModel
from qrnca_lens.neurons import Neuron
from qrnca_lens.pipeline import progress_bar
from qrnca_lens.report import write_shell

TOP, PER_GROUP = 3, 6


def write_explorer(
    located: QRNeurons,
    out: str | os.PathLike[str],
    model: HookedModel | None = None,
    *,
    top: int = TOP,
    per_group: int = PER_GROUP,
    progress: bool = True,
) -> Path:
    """Write the explorer of a run as a page that works from a file, without Python and without the network.

    It keeps the `top` neurons of each query, for the first `per_group` queries of each group; the maps show all. `model`:
    the run's own; only the shipped model can be left out. Raises ValueError for a `top` or `per_group` below 1, RunError
    for another model than the run's.
    """
    if top < 1 or per_group < 1:
        raise ValueError(f"top and per_group must be at least 1, not {top} and {per_group}")
    session = Session(model, located)
    catalog = session.catalog(top=top, any_neuron=False)
    shown: dict[str, int] = {}
    queries = []
    for query in catalog["queries"]:
        shown[query["group"]] = shown.get(query["group"], 0) + 1
        if shown[query["group"]] <= per_group and query["neurons"]:
            queries.append(query)
    if not queries:
        raise ValueError("no query of this run has QR neurons; there is nothing to explore")
    catalog["queries"] = queries
    selected = session.first([query["id"] for query in queries])
    kept = _kept(session, queries, progress)
    data = json.dumps(
        {"state": {"catalog": catalog, "selected": selected}, "kept": kept}, ensure_ascii=True, allow_nan=False
    )
    words = (
        f"{len(queries)} of {len(located.queries)} queries with their {top} strongest query-relevant neurons; the maps show "
        f"those of all queries. Model {located.model.name}."
    )
    # "<" can end a script element or begin a comment in it; in JSON it can always be written as an escape
    data = data.replace("<", "\\u003c")
    body = (
        f'<p>{text(words)}</p><div id="explorer"></div><script type="application/json" id="data">{data}</script>'
        f"<script>{library()}{MOUNT}</script>"
        f'<script>{script()}const {{ state, kept }} = JSON.parse(document.getElementById("data").textContent);'
        'mount(document.getElementById("explorer"), new PageStore(state, kept));</script>'
    )
    return write_shell(Path(out), "Neurons to explore", body, head=f"<style>{style()}</style>")


def _kept(session: Session, queries: list[dict[str, Any]], progress: bool) -> dict[str, Any]:
    """For every query its HTML and curves, for every neuron its card, for each pair the circuit."""
    cards: dict[str, str] = {}
    found: dict[str, Any] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("writing", total=len(queries))
        for query in queries:
            neurons: dict[str, Any] = {}
            for layer, index, _ in query["neurons"]:
                view = session.view(query["id"], Neuron(layer, index))
                cards[f"{layer}.{index}"] = view["card"]
                neurons[f"{layer}.{index}"] = {"circuit": view["circuit"], "curve": view["curves"]["neuron"]}
                every = view["curves"]["all"]
                untouched = [every[FACTORS.index(1.0)]] * len(FACTORS)
                found[query["id"]] = {
                    "html": view["query"], "right": view["right"], "curve": every, "flat": untouched, "neurons": neurons
                }  # fmt: skip
            bar.advance(task)
    return {"queries": found, "cards": cards}
