"""The explorer as one self-contained page: all that it can be asked is computed beforehand, for each query's top neurons.

What a query takes (its view, and the circuits, curves and cards of its neurons) does not depend on how many others there
are, so the page keeps as many as fit into its size, evenly over the groups, and tells what it leaves out.
"""

from __future__ import annotations

import gzip
import json
import os
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.shown import escaped
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.core.values import given_path, whole_number, yes_or_no
from qrnca_lens.core.writing import check_target
from qrnca_lens.models import HookedModel
from qrnca_lens.views.components import MOUNT, library, script
from qrnca_lens.views.explorer.selection import catalog_of, first, part_of
from qrnca_lens.views.explorer.session import Session
from qrnca_lens.views.explorer.state import Catalog, CatalogQuery, KeptNeuron, KeptQuery, Page, plain
from qrnca_lens.views.html import style
from qrnca_lens.views.report import write_shell
from qrnca_lens.views.runs import check_run

TOP, PER_GROUP, EFFECT_QUERIES = 3, 6, 8
MOST_BYTES, MOST_TEXT = 9_500_000, 50_000_000
"""How large a page of several queries may become, and its data when they are unpacked: a browser reads those in a second."""


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
    show all. Where that would be more than 10 MB, or 50 MB unpacked, it keeps fewer: the first query of each group, then the
    second of each, as far as they fit. The page says how many queries and groups it leaves out. A card's effects are
    measured on the 8 queries where the neuron ranks highest. `model`: the run's own; None stands for the shipped model.

    Raises ValueError for a `top` or `per_group` below 1, OSError for a place where no file can be written
    (IsADirectoryError for a folder), RunError for another model than the run's.
    """
    top, per_group = whole_number("top", top, at_least=1), whole_number("per_group", per_group, at_least=1)
    out, progress = given_path("out", out), yes_or_no("progress", progress)
    check_target(out)
    check_run(located)
    catalog = catalog_of(located, top=top, per_group=per_group)
    if not catalog.queries:
        raise ValueError("no query of this run has QR neurons; there is nothing to explore")
    code = f"<script>{library()}{MOUNT}</script>"
    page = _page(Session(model, located, catalog), _Room(MOST_BYTES - len(code), MOST_TEXT), progress)
    packed = _packed(json.dumps(plain(page), ensure_ascii=True, allow_nan=False))
    kept = len(page.catalog.queries)
    words = (
        f"{kept} of {len(located.queries)} queries with their {top} strongest query-relevant neurons; the "
        f"maps show those of all queries. Model {located.model.name}."
    )
    body = (
        f"<p>{escaped(words)}</p>{_left_out(located, page.catalog, len(catalog.queries) - kept, per_group)}"
        '<div id="explorer">This page needs JavaScript, and a browser of 2023 or later.</div>'
        f'<script type="text/plain" id="data">{packed}</script>{code}'
        f'<script>{script()}openPage(document.getElementById("explorer"), document.getElementById("data"));</script>'
    )
    return write_shell(out, "Neurons to explore", body, head=f"<style>{style()}</style>")


class _Room:
    """What is left of the size of a page: bytes of its data as they are packed, and characters as they are read."""

    def __init__(self, packed: int, text: int) -> None:
        self._packed, self._text = packed, text

    def holds(self, part: Any) -> bool:
        """Whether one more part of the data fits, which then is taken off."""
        data = json.dumps(part)
        self._packed, self._text = self._packed - len(_packed(data, level=6)), self._text - len(data)
        return self._packed >= 0 and self._text >= 0


def _page(session: Session, room: _Room, progress: bool) -> Page:
    """The queries that there is room for, and every neuron of theirs, as the widget would show it."""
    catalog, cards, kept = session.catalog, dict[str, str](), dict[str, KeptQuery]()
    maps = {group.name: group.map for group in catalog.groups}
    room.holds(maps.pop(catalog.all))
    with progress_bar(progress) as bar:
        task = bar.add_task("writing", total=len(catalog.queries))
        for query in _in_rounds(catalog.queries):
            found, new = _kept(session, query, cards)
            if not room.holds([asdict(query), asdict(found), new, maps.pop(query.group, "")]) and kept:
                break
            cards |= new
            kept[query.id] = found
            bar.advance(task)
        bar.update(task, completed=len(catalog.queries))
    part = part_of(catalog, kept.keys())
    return Page(part, first(part), {query.id: kept[query.id] for query in part.queries}, cards)


def _kept(session: Session, query: CatalogQuery, cards: dict[str, str]) -> tuple[KeptQuery, dict[str, str]]:
    """What is kept of a query, and of the cards of its neurons those that are not among `cards`."""
    about, shown = session.query(query.id)
    neurons: dict[str, KeptNeuron] = {}
    new: dict[str, str] = {}
    for layer, index, _ in query.neurons:
        chosen = Neuron(layer, index)
        if str(chosen) not in cards:
            new[str(chosen)] = session.card(chosen, session.best_queries(chosen, EFFECT_QUERIES))
        neurons[str(chosen)] = KeptNeuron(session.circuit(query.id, chosen), session.curve(query.id, chosen))
    curve, names = about.curve().to_numpy().tolist(), list(about.asked.labels)
    return KeptQuery(shown, names, about.right, curve, neurons), new


def _in_rounds(queries: Sequence[CatalogQuery]) -> list[CatalogQuery]:
    """The first query of each group, then the second of each, and so on."""
    seen, turns = Counter[str](), list[int]()
    for query in queries:
        turns.append(seen[query.group])
        seen[query.group] += 1
    return [queries[i] for i in sorted(range(len(queries)), key=turns.__getitem__)]


def _packed(data: str, *, level: int = 9) -> str:
    """JSON as it stands in the page: base64 of gzip."""
    return b64encode(gzip.compress(data.encode(), level, mtime=0)).decode()


def _left_out(located: QRNeurons, kept: Catalog, did_not_fit: int, per_group: int) -> str:
    """What the page lacks, and where it is to be seen."""
    lacking = len(located.queries) - len(kept.queries)
    if not lacking:
        return ""
    groups = len(located.groups) + 1 - len(kept.groups)
    told = f"Not in this page: {lacking} queries"
    told += f", among them all of {groups} group{'s' * (groups > 1)}" if groups else ""
    told += f". It keeps the first {per_group} queries with QR neurons of each group"
    told += f", but for {did_not_fit} with which it would be too large (10 MB) or slow to open" if did_not_fit else ""
    words = (
        f"{told}. In Python, ql.Explorer(model, queries, located) shows every query and every neuron, and "
        "ql.show(model, located, query_id) any one query; located.restrict([...]) makes a run of chosen queries, for a page "
        "of those."
    )
    return f'<p class="qrnca-note">{escaped(words)}</p>'
