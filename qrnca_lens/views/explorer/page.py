"""The explorer as one self-contained page: all that it can be asked is computed beforehand, for each query's top neurons."""

from __future__ import annotations

import gzip
import json
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.shown import escaped
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.core.values import whole_number
from qrnca_lens.core.writing import check_target
from qrnca_lens.models import HookedModel
from qrnca_lens.views.components import MOUNT, library, script
from qrnca_lens.views.explorer.session import Session
from qrnca_lens.views.html import style
from qrnca_lens.views.report import write_shell

TOP, PER_GROUP, EFFECT_QUERIES = 3, 6, 8


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

    It keeps the `top` neurons of each query, for the first `per_group` queries of each group that have QR neurons; the maps
    show all. A card's effects are measured on the 8 queries where the neuron ranks highest. `model`: the run's own; only
    the shipped model can be left out. Raises ValueError for a `top` or `per_group` below 1, OSError for a place where no
    file can be written (IsADirectoryError for a folder), RunError for another model than the run's.
    """
    top, per_group = whole_number("top", top, at_least=1), whole_number("per_group", per_group, at_least=1)
    check_target(Path(out))
    session = Session(model, located)
    catalog = session.catalog(top=top, per_group=per_group)
    queries = catalog["queries"]
    if not queries:
        raise ValueError("no query of this run has QR neurons; there is nothing to explore")
    state = {"catalog": catalog, "selected": session.first([query["id"] for query in queries])}
    data = json.dumps({"state": state, "kept": _kept(session, queries, progress)}, ensure_ascii=True, allow_nan=False)
    packed = b64encode(gzip.compress(data.encode(), mtime=0)).decode()
    words = (
        f"{len(queries)} of {len(located.queries)} queries with their {top} strongest query-relevant neurons; the maps show "
        f"those of all queries. Model {located.model.name}."
    )
    body = (
        f'<p>{escaped(words)}</p><div id="explorer">This page needs JavaScript, and a browser of 2023 or later.</div>'
        f'<script type="text/plain" id="data">{packed}</script><script>{library()}{MOUNT}</script>'
        f'<script>{script()}openPage(document.getElementById("explorer"), document.getElementById("data"));</script>'
    )
    return write_shell(Path(out), "Neurons to explore", body, head=f"<style>{style()}</style>")


def _kept(session: Session, queries: list[dict[str, Any]], progress: bool) -> dict[str, Any]:
    """For every query its HTML and curves, for every neuron its card, for each pair the circuit."""
    cards: dict[str, str] = {}
    found: dict[str, Any] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("writing", total=len(queries))
        for query in queries:
            about, shown = session.query(query["id"])
            neurons: dict[str, Any] = {}
            for layer, index, _ in query["neurons"]:
                chosen, name = Neuron(layer, index), f"{layer}.{index}"
                if name not in cards:
                    cards[name] = session.card(chosen, session.best_queries(chosen, EFFECT_QUERIES))
                neurons[name] = {"circuit": session.circuit(query["id"], chosen), "curve": session.curve(about, chosen)}
            every = about.curve().to_numpy().tolist()
            names = list(about.asked.names)
            found[query["id"]] = {"html": shown, "letters": names, "right": about.right, "curve": every, "neurons": neurons}
            bar.advance(task)
    return {"queries": found, "cards": cards}
