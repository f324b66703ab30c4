"""The explorer as one self-contained page: all that it can be asked is computed beforehand, for each query's top neurons."""

from __future__ import annotations

import gzip
import json
import os
from base64 import b64encode
from pathlib import Path

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.shown import escaped
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.core.values import given_path, whole_number, yes_or_no
from qrnca_lens.core.writing import check_target
from qrnca_lens.models import HookedModel
from qrnca_lens.views.components import MOUNT, library, script
from qrnca_lens.views.explorer.selection import catalog_of, first
from qrnca_lens.views.explorer.session import Session
from qrnca_lens.views.explorer.state import KeptNeuron, KeptQuery, Page, plain
from qrnca_lens.views.html import style
from qrnca_lens.views.report import write_shell
from qrnca_lens.views.runs import check_run

TOP, PER_GROUP, EFFECT_QUERIES = 3, 6, 8


def write_explorer(
    model: HookedModel | None,
    located: QRNeurons,
    out: str | os.PathLike[str],
    *,
    top: int = TOP,
    per_group: int = PER_GROUP,
    progress: bool = True,
) -> Path:
    """Write the explorer of a run as a page that works from a file, without Python and without the network.

    It keeps the `top` neurons of each query, for the first `per_group` queries of each group that have QR neurons; the maps
    show all. A card's effects are measured on the 8 queries where the neuron ranks highest. `model`: the run's own; None
    stands for the shipped model. Raises ValueError for a `top` or `per_group` below 1, OSError for a place where no
    file can be written (IsADirectoryError for a folder), RunError for another model than the run's.
    """
    top, per_group = whole_number("top", top, at_least=1), whole_number("per_group", per_group, at_least=1)
    out, progress = given_path("out", out), yes_or_no("progress", progress)
    check_target(out)
    check_run(located)
    catalog = catalog_of(located, top=top, per_group=per_group)
    if not catalog.queries:
        raise ValueError("no query of this run has QR neurons; there is nothing to explore")
    page = plain(_page(Session(model, located, catalog), progress))
    data = json.dumps(page, ensure_ascii=True, allow_nan=False)
    packed = b64encode(gzip.compress(data.encode(), mtime=0)).decode()
    words = (
        f"{len(catalog.queries)} of {len(located.queries)} queries with their {top} strongest query-relevant neurons; the "
        f"maps show those of all queries. Model {located.model.name}."
    )
    body = (
        f'<p>{escaped(words)}</p><div id="explorer">This page needs JavaScript, and a browser of 2023 or later.</div>'
        f'<script type="text/plain" id="data">{packed}</script><script>{library()}{MOUNT}</script>'
        f'<script>{script()}openPage(document.getElementById("explorer"), document.getElementById("data"));</script>'
    )
    return write_shell(out, "Neurons to explore", body, head=f"<style>{style()}</style>")


def _page(session: Session, progress: bool) -> Page:
    """Every query, and every neuron of it, as the widget would show it."""
    cards: dict[str, str] = {}
    kept: dict[str, KeptQuery] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("writing", total=len(session.catalog.queries))
        for query in session.catalog.queries:
            about, shown = session.query(query.id)
            neurons: dict[str, KeptNeuron] = {}
            for layer, index, _ in query.neurons:
                chosen = Neuron(layer, index)
                if str(chosen) not in cards:
                    cards[str(chosen)] = session.card(chosen, session.best_queries(chosen, EFFECT_QUERIES))
                neurons[str(chosen)] = KeptNeuron(session.circuit(query.id, chosen), session.curve(query.id, chosen))
            curve, names = about.curve().to_numpy().tolist(), list(about.asked.labels)
            kept[query.id] = KeptQuery(shown, names, about.right, curve, neurons)
            bar.advance(task)
    return Page(session.catalog, first(session.catalog), kept, cards)
