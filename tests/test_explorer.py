"""The explorer, the static page and the pieces of HTML they are made of."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hostile import HOSTILE, TAGS, Tags, check_html, hostile_queries

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.store import RunError
from qrnca_lens.data import QuerySet
from qrnca_lens.editing import scale
from qrnca_lens.models import to_tokens
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.views import Explorer, circuit, drawing, neuron, show, write_explorer
from qrnca_lens.views import html as pieces
from qrnca_lens.views.components import attention_patterns, coloured_tokens, component, library
from qrnca_lens.views.explorer.page import EFFECT_QUERIES
from qrnca_lens.views.explorer.selection import catalog_of
from qrnca_lens.views.explorer.session import RUNS, Session


def test_views_escape_what_they_show_and_ask_no_network(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model, queries = model_of("llama"), hostile_queries()
    located = locate(model, queries, QRNCAConfig(steps=2), progress=False)

    def refuse(*_: object) -> None:
        raise AssertionError("a view went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    name = f"q0{HOSTILE}"
    first = next(iter(located.for_query(name)), Neuron(1, 1))
    card = neuron(model, first.layer, first.index, located=located)
    explorer = Explorer(model, queries, located)
    fragments = [view.to_html() for view in (show(model, located, name), card, circuit(model, located, name, first))]
    fragments += [
        explorer.view["query"],
        explorer.view["card"],
        explorer.view["circuit"],
        *(group["map"] for group in explorer.catalog["groups"]),
    ]
    for body in fragments:
        check_html(body)
    for view in (card, show(model, located, name)):
        shown = view._repr_html_().replace(library(), "")
        assert shown.count("</script") == shown.count("<script")
    page = write_explorer(model, located, tmp_path / "page.html", progress=False).read_text("utf-8")
    own = page.replace(library(), "")
    assert len(page) - len(own) == len(library()), "the script of CircuitsVis stands in the page once"
    assert own.count("</script") == own.count("<script")
    assert Tags(own).tags <= TAGS


def test_the_script_goes_into_the_first_output_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_SENT", set())
    assert library() in pieces.notebook_html("<p>1</p>")
    assert library() not in pieces.notebook_html("<p>2</p>")
    assert "sourceMappingURL" not in library()
    assert "</script" not in library()


def test_components_carry_their_numbers() -> None:
    made = coloured_tokens(["a", HOSTILE], np.array([0.5, -1.0]))
    assert "<img" not in made
    assert 'data-component="ColoredTokens"' in made
    assert "rgba(230,159,0,0.38)" in made
    listed = attention_patterns(["x", "y"], np.array([[[1.0, 0.0], [0.25, 0.75]]]), ["L0H1"])
    assert "y 0.75, x 0.25" in listed
    with pytest.raises(ValueError):
        component("ColoredTokens", "", values=[float("nan")])


def test_the_explorer_follows_python(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    model, located = run
    explorer = Explorer(model, short_queries, located)
    first = located.table.nlargest(1, "naica").iloc[0]
    assert (explorer.selected["query"], explorer.neuron) == (
        first["query"],
        Neuron(int(first["layer"]), int(first["neuron"])),
    )
    assert type(explorer.selected["layer"]) is int
    second = list(located.for_query("q3"))[1]
    explorer.selected = {"query": "q3", "layer": second.layer, "neuron": second.index, "factor": 0, "scope": "neuron"}
    assert explorer.neuron == second
    assert f"<h2>{second}</h2>" in explorer.view["card"]
    for scope, neurons in (("neuron", NeuronSet((second,))), ("all", located.for_query("q3"))):
        explorer.selected = {"scope": scope}
        with scale(model, neurons, 0.0):
            p = letter_probabilities(model, short_queries["q3"].prompts[:1])[0]
        assert list(explorer.letters.values()) == pytest.approx(p.tolist(), abs=1e-5)
    explorer.selected = {"query": "q7"}
    assert explorer.neuron == next(iter(located.for_query("q7")))
    explorer.selected = {"group": "g2"}
    assert located.asked[explorer.selected["query"]].group == "g2"
    strongest = located.table[located.table["group"] == "g2"]["naica"].max()
    mine = located.table[located.table["query"] == explorer.selected["query"]].iloc[0]
    assert mine["naica"] == strongest and explorer.neuron == Neuron(int(mine["layer"]), int(mine["neuron"]))
    explorer.selected = {"query": "q3"}
    assert explorer.selected["group"] == "g0"
    assert explorer.selected["scope"] == "all", "what is not changed stays"
    stranger = next(Neuron(0, i) for i in range(48) if Neuron(0, i) not in located.for_query("q3"))
    explorer.selected = {"layer": 0, "neuron": stranger.index}
    assert f"<h2>{stranger}</h2>" in explorer.view["card"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": "q12"}, "the nearest is 'q11'|the nearest is 'q1'|the nearest is 'q2'"),
        ({"group": "g9"}, "no group 'g9'; there are all groups, g0, g1, g2"),
        ({"layer": 0, "neuron": 48}, "outside the model"),
        ({"factor": 0.3}, "factor must be one of 0, 0.25"),
        ({"scope": "both"}, "scope must be 'neuron' or 'all'"),
        ({"layer": 1.9, "neuron": 3}, "a neuron's layer must be a whole number, not 1.9"),
        ({"layer": "1", "neuron": 3}, "a neuron's layer must be a whole number, not '1'"),
        ({"layer": 1, "neuron": None}, "a neuron's index must be a whole number, not None"),
        ({"query": "q1", "layer": 1}, "give layer and neuron together"),
        ({"query": "q1", "group": "g0"}, "query 'q1' is of group 'g1', not of 'g0'"),
        ({"querry": "q3"}, "nothing called .*querry.* can be selected; only group, query"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_the_explorer_refuses_what_does_not_exist(
    change: dict[str, Any], message: str, run: tuple[Any, QRNeurons], short_queries: QuerySet
) -> None:
    explorer = Explorer(run[0], short_queries, run[1])
    before = dict(explorer.selected)
    with pytest.raises((KeyError, TypeError, ValueError), match=message):
        explorer.selected = change
    assert explorer.selected == before


def test_the_explorer_needs_the_runs_queries(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    with pytest.raises(RunError, match=r"query 'q1' of the run is not in short with the same prompts"):
        Explorer(run[0], short_queries.keep(["q0"]), run[1])


def test_a_query_without_neurons_is_told_so(run: tuple[Any, QRNeurons], short_queries: QuerySet) -> None:
    model, located = run
    clusters = located.clusters[located.clusters["query"] != "q5"].reset_index(drop=True)
    without = QRNeurons(clusters, located.queries, located.config, located.model, {}, located.asked)
    explorer = Explorer(model, short_queries, without)
    explorer.selected = {"query": "q5", "layer": None, "neuron": None}
    assert "no QR neurons" in explorer.view["card"]
    assert explorer.neuron is None
    assert isinstance(show(model, without, "q5").to_html(), str)
    assert isinstance(show(model, without, "q5").to_frame(), pd.DataFrame)
    with pytest.raises(ValueError, match=r"no QR neurons; give the neurons"):
        circuit(model, without, "q5")


def test_a_page_keeps_queries_that_have_neurons(run: tuple[Any, QRNeurons], tmp_path: Any) -> None:
    model, located = run
    without = {"q0", "q1", "q4", "q7", "q10"}  # the first of g0, and all of g1
    clusters = located.clusters[~located.clusters["query"].isin(without)].reset_index(drop=True)
    partly = QRNeurons(clusters, located.queries, located.config, located.model, {}, located.asked)
    catalog = catalog_of(partly, top=2, per_group=1)
    assert [group.name for group in catalog.groups] == ["all groups", "g0", "g2"]
    assert [query.id for query in catalog.queries] == ["q2", "q3"]
    assert all(1 <= len(query.neurons) <= 2 for query in catalog.queries)
    with pytest.raises(IsADirectoryError, match=r"is a folder; give the name"):
        write_explorer(model, partly, tmp_path)
    with pytest.raises(ValueError, match=r"top must be at least 1, not 0"):
        write_explorer(model, partly, tmp_path / "page.html", top=0)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Counts the runs of the model over texts, in the one number of the list; its end alone is none."""
    runs = [0]

    def count(_: object, given: object, options: dict[str, Any]) -> None:
        runs[0] += "start_at_layer" not in options

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield runs
    finally:
        hook.remove()


def test_a_page_runs_the_model_once_for_all_circuits_of_a_query(run: tuple[Any, QRNeurons], tmp_path: Any) -> None:
    model, located = run
    catalog = catalog_of(located, top=3, per_group=2)
    neurons = {(layer, index) for query in catalog.queries for layer, index, _ in query.neurons}
    lengths = {len(to_tokens(model, prompt.text)) for query in located.asked for prompt in query.prompts}
    measured = located.clusters.groupby(["layer", "neuron"]).size().clip(upper=EFFECT_QUERIES)
    with counted(model) as runs:
        write_explorer(model, located, tmp_path / "page.html", top=3, per_group=2, progress=False)
    queries, pairs = len(catalog.queries), sum(len(query.neurons) for query in catalog.queries)
    assert (queries, pairs) == (6, 18)
    circuits, doses, examples = queries, queries, len(neurons)  # a dose-response reads its text once for all factors
    assert runs == [len(lengths) + circuits + doses + examples + sum(int(measured[pair]) for pair in neurons)]


def test_what_was_shown_is_kept_and_the_oldest_run_forgotten(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    explorer = Explorer(model, located.asked, located)
    session = Session(model, located)
    one, two = list(located.for_query("q3"))[:2]
    stranger = next(Neuron(0, i) for i in range(48) if Neuron(0, i) not in located.for_query("q3"))
    for place in (one, two, stranger):
        explorer.selected = {"query": "q3", "layer": place.layer, "neuron": place.index}
    shown = explorer.view
    with counted(model) as runs:
        for place in (two, one, stranger):
            explorer.selected = {"query": "q3", "layer": place.layer, "neuron": place.index}
        assert (runs, explorer.view) == ([0], shown)
        for query in located.asked.queries[: RUNS + 1]:
            session.circuit(query.id, one)
        assert runs == [RUNS + 1]
        session.circuit(located.asked.queries[RUNS].id, two)
        assert runs == [RUNS + 1]
        session.circuit(located.asked.queries[0].id, two)
        assert runs == [RUNS + 2]


def test_charts_with_many_series_and_with_negative_sizes() -> None:
    many = drawing.histogram({f"group {i}": np.arange(3.0) for i in range(12)}, x_title="x")
    fills = re.findall(r'<span><svg[^>]*><rect[^>]*(fill="[^>]*")/>', many)
    assert len(fills) == len(set(fills)) == 12
    assert "j" not in re.findall(r' r="([^"]*)"', drawing.dots([(0, 1, -0.2, "a"), (1, 2, 0.4, "b")], 2, 8))[0]
