"""What selecting a group, a query or a neuron brings along, in Python and in the script that does without."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from selections import IN_SCRIPT, cases_of, python_says

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.views.components import script
from qrnca_lens.views.explorer.selection import catalog_of, completed, first
from qrnca_lens.views.explorer.state import Catalog, CatalogGroup, CatalogQuery, Selection, plain

ALL = "all groups"
At: TypeAlias = tuple[str, str, "int | None", "int | None"]
BY_HAND = Catalog(
    ALL,
    tuple(CatalogGroup(name, name, query, "") for name, query in ((ALL, "b"), ("x", "b"), ("y", "d"), ("z", "e"))),
    (
        CatalogQuery("a", "x", "", ((0, 1, 0.5), (0, 2, 0.4))),
        CatalogQuery("b", "x", "", ((1, 7, 0.9), (0, 2, 0.6))),
        CatalogQuery("c", "y", "", ((0, 2, 0.7),)),
        CatalogQuery("d", "y", "", ((0, 3, 0.8), (0, 2, 0.1))),
        CatalogQuery("e", "z", "", ()),
    ),
    {"L0.N1": ("a",), "L0.N2": ("c", "b"), "L1.N7": ("b",), "L0.N3": ("d",)},
    (0.0, 1.0),
    True,
)


@pytest.mark.parametrize(
    ("old", "change", "new"),
    [
        ((ALL, "a", 0, 1), {"group": "x"}, ("x", "a", 0, 1)),
        ((ALL, "a", 0, 2), {"group": "y"}, ("y", "d", 0, 3)),
        (("x", "a", 0, 2), {"group": "z"}, ("z", "e", None, None)),
        (("y", "d", 0, 2), {"group": ALL}, (ALL, "d", 0, 2)),
        (("x", "a", 0, 1), {"query": "d"}, ("y", "d", 0, 3)),
        ((ALL, "a", 0, 1), {"query": "d"}, (ALL, "d", 0, 3)),
        ((ALL, "a", 0, 2), {"query": "a"}, (ALL, "a", 0, 1)),
        (("x", "a", 0, 1), {"layer": 0, "neuron": 2}, ("x", "a", 0, 2)),
        (("z", "e", None, None), {"layer": 0, "neuron": 2}, ("y", "c", 0, 2)),
        ((ALL, "e", None, None), {"layer": 0, "neuron": 2}, (ALL, "c", 0, 2)),
        (("x", "a", 0, 1), {"layer": 1, "neuron": 7}, ("x", "b", 1, 7)),
        (("x", "a", 0, 1), {"layer": 5, "neuron": 5}, ("x", "a", 5, 5)),
        (("x", "a", 0, 1), {"layer": None, "neuron": None}, ("x", "a", None, None)),
        ((ALL, "a", 0, 1), {"group": "y", "layer": 0, "neuron": 2}, ("y", "d", 0, 2)),
        ((ALL, "a", 0, 1), {"group": "y", "layer": 1, "neuron": 7}, ("y", "d", 1, 7)),
        ((ALL, "a", 0, 1), {"query": "d", "layer": 1, "neuron": 7}, (ALL, "d", 1, 7)),
        (("x", "a", 0, 1), {"query": "d", "group": "y"}, ("y", "d", 0, 3)),
    ],
)
def test_a_change_brings_along_what_the_docs_say(old: At, change: dict[str, Any], new: At) -> None:
    before, after = (Selection(*at, scope="all", factor=0.0) for at in (old, new))
    assert completed(BY_HAND, before, change) == after
    with pytest.raises(ValueError, match=r"query 'a' is of group 'x', not of 'y'"):
        completed(BY_HAND, before, {"query": "a", "group": "y"})


def test_a_catalog_leads_to_where_naica_is_highest(run: tuple[Any, QRNeurons]) -> None:
    _, located = run
    catalog, table = catalog_of(located), located.table.sort_values("naica", ascending=False)
    best = table.iloc[0]
    assert first(catalog) == Selection(ALL, best["query"], int(best["layer"]), int(best["neuron"]))
    for group in catalog.groups[1:]:
        assert group.query == table[table["group"] == group.name]["query"].iloc[0]
    names = "L" + table["layer"].astype(str) + ".N" + table["neuron"].astype(str)
    for name, rows in table.groupby(names):
        assert catalog.neurons[str(name)] == tuple(rows.drop_duplicates("group")["query"])
    assert set(catalog.neurons) == set(names)
    assert any(len(places) > 1 for places in catalog.neurons.values())


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node; the browser tests ask the same of Chromium")
@pytest.mark.parametrize("kept", [{"top": 3}, {"top": 2, "per_group": 2}], ids=["open", "closed"])
def test_the_script_selects_as_python_does(kept: dict[str, int], run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    found = catalog_of(run[1], **kept)
    for catalog in (replace(found, open="per_group" not in kept), BY_HAND):
        asked = json.dumps([plain(catalog), cases_of(catalog)])
        (tmp_path / "asked.js").write_text(f"{script()}\nconsole.log(JSON.stringify(({IN_SCRIPT})({asked})));", "utf-8")
        node = subprocess.run(["node", str(tmp_path / "asked.js")], capture_output=True, check=True, encoding="utf-8")
        assert json.loads(node.stdout) == python_says(catalog)
