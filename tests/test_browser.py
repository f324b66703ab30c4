"""The pages in a real headless Chromium: no error, no request, clicks and sliders do what they say (make test-browser)."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Watched, letters, set_factor
from hostile import figures_of, hostile_queries
from selections import IN_SCRIPT, cases_of, python_says

from qrnca_lens.clustering import QRNCAConfig, QRNeurons, cluster_neurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.data import Prompt, Query, QuerySet, load_queries
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study import Subject, reproduce
from qrnca_lens.study.demo import run_demo
from qrnca_lens.study.report import write_report
from qrnca_lens.study.reproduction import Sample
from qrnca_lens.views import Explorer, circuit, neuron, show, write_explorer
from qrnca_lens.views.components import attention_patterns, coloured_tokens
from qrnca_lens.views.explorer.selection import catalog_of
from qrnca_lens.views.explorer.state import plain
from qrnca_lens.views.html import notebook_html, style
from qrnca_lens.views.report import Section, write_page

pytestmark = pytest.mark.browser
ALL_LIVE = "document.querySelector('[data-mounted]') && !document.querySelector('[data-component]:not([data-mounted])')"
ICON = "<link rel='icon' href='data:,'>"
BAD = "</script><img src=x onerror=window.hacked=1><a href=javascript:hacked=1>x</a>%{meta} $x$ </extra>"
ODD = "\x1b[31m \u202e red"
OVERDRAWN = "[...document.querySelectorAll('td, th')].filter(c => c.scrollWidth > c.clientWidth + 2).map(c => c.textContent)"
HOSTILE = "</script><img src=http://example.invalid/x onerror=window.hacked=1> <b>"


@pytest.fixture(scope="module")
def run(atlas: Any) -> Any:
    return locate(atlas, load_queries("atlas/domains").sample(2), progress=False)


@pytest.fixture(scope="module")
def explorer_page(atlas: Any, run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explorer(atlas, run, tmp_path_factory.mktemp("page") / "explorer.html", top=2, per_group=1, progress=False)


def data_of(page: Any) -> dict[str, Any]:
    """What an explorer's page holds, once it has been unpacked."""
    page.wait_for_selector('[data-part="card"] h2')
    return json.loads(gzip.decompress(b64decode(page.locator("#data").text_content())))


def test_the_explorer_page_shows_the_neuron_that_is_clicked(
    explorer_page: Path, watched: Watched, atlas: Any, run: Any
) -> None:
    page = watched.open(explorer_page)
    data = data_of(page)
    query = data["selected"]["query"]
    about = next(q for q in data["catalog"]["queries"] if q["id"] == query)
    first, second = (f"L{layer}.N{index}" for layer, index, _ in about["neurons"][:2])
    assert page.locator('[data-part="card"] h2').inner_text() == first
    page.locator(f'[data-part="query"] button:text-is("{second}")').click()
    assert page.locator('[data-part="card"] h2').inner_text() == second
    cell = next(
        cell
        for cell in page.locator('[data-role="map"] .qrnca-cell').all()
        if cell.get_attribute("aria-label") in {*data["cards"]} - {first, second}
    )
    name = cell.get_attribute("aria-label")
    cell.dispatch_event("click")
    assert page.locator('[data-part="card"] h2').inner_text() == name
    assert page.locator('[data-role="neuron"]').input_value() == name
    chosen = page.locator('[data-role="query"]').input_value()
    assert name in {str(n) for n in run.for_query(chosen)}
    view = show(atlas, run, query)
    page.locator('[data-role="query"]').select_option(query)
    for scope, edit in (("all", "all QR neurons"), ("neuron", first)):
        page.locator(f'input[value="{scope}"]').check()
        for factor in (0.0, 1.0, 2.5):
            set_factor(page, factor)
            told = view.curve(edit).loc[factor].to_dict()
            assert letters(page) == pytest.approx({k: round(v, 4) for k, v in told.items()}, abs=1.5e-4)
    page.wait_for_function(ALL_LIVE)
    watched.check()


def test_the_script_selects_as_python_does(explorer_page: Path, watched: Watched, run: Any) -> None:
    page = watched.open(explorer_page)
    data_of(page)
    closed = catalog_of(run, top=2, per_group=1)
    for catalog in (closed, replace(closed, open=True)):
        assert page.evaluate(IN_SCRIPT, [plain(catalog), cases_of(catalog)]) == python_says(catalog)
    watched.check()


def test_a_neuron_that_is_not_kept_is_told_so(explorer_page: Path, watched: Watched) -> None:
    page = watched.open(explorer_page)
    kept = set(data_of(page)["cards"])
    before = page.locator('[data-part="card"] h2').inner_text()
    for cell in page.locator('[data-role="map"] .qrnca-cell').all():
        layer, index = cell.get_attribute("data-layer"), cell.get_attribute("data-neuron")
        if f"L{layer}.N{index}" not in kept:
            cell.dispatch_event("click")
            break
    assert f"ql.neuron(model, {layer}, {index}, located=located)" in page.locator('[data-role="message"]').inner_text()
    assert page.locator('[data-part="card"] h2').inner_text() == before
    told = page.locator("button[data-neuron]").evaluate_all(
        "all => all.map(b => [b.dataset.layer, b.dataset.neuron, b.disabled])"
    )
    assert {f"L{layer}.N{index}" in kept for layer, index, disabled in told if not disabled} == {True}
    assert any(disabled for *_, disabled in told)
    page.locator('[data-role="group"]').select_option("physics")
    assert page.locator('[data-role="query"]').input_value().startswith("phys")
    watched.check()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_demo(tmp_path_factory.mktemp("demo")).page


def test_the_report_of_the_demo_loads(report: Path, watched: Watched) -> None:
    page = watched.open(report)
    assert page.locator(".js-plotly-plot").count() == 2
    watched.check()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, atlas: Any, short_queries: QuerySet) -> Path:
    few = Sample(extended=1, collateral=1, permutations=20, draws=3, probe_draws=1)
    short = Subject("short", short_queries, (short_queries,))
    found = reproduce(atlas, [short], tmp_path_factory.mktemp("study"), sample=few, progress=False)
    return write_report(found)


def test_the_report_of_a_study_loads(study: Path, watched: Watched) -> None:
    page = watched.open(study)
    figures = sorted((study.parent / "figures").glob("*.html"))
    assert page.locator(".js-plotly-plot").count() == len(figures) > 5
    watched.check()
    for figure in figures:
        page = watched.open(figure)
        assert page.locator(".js-plotly-plot .main-svg").count() > 0
        watched.check()


def test_a_group_without_neurons_is_not_offered(watched: Watched, run: Any, atlas: Any, tmp_path: Path) -> None:
    clusters = run.clusters[run.clusters["group"] != "physics"].reset_index(drop=True)
    partly = QRNeurons(clusters, run.queries, run.config, run.model, {}, run.asked)
    page = watched.open(write_explorer(atlas, partly, tmp_path / "page.html", top=1, per_group=1, progress=False))
    page.wait_for_selector('[data-part="card"] h2')
    offered = page.locator('[data-role="group"] option').all_inner_texts()
    assert offered == ["all groups", *(group for group in run.groups if group != "physics")]
    for group in offered:
        page.locator('[data-role="group"]').select_option(group)
    watched.check()


def test_hostile_texts_stay_texts(watched: Watched, model_of: Any, tmp_path: Path) -> None:
    model = model_of("llama")
    queries = QuerySet(
        tuple(
            Query(f"q{i}", f"g{i % 2}<i>", (Prompt(f"{HOSTILE} {i}\nAnswer:", "ABCD"[i % 4]),), f"{HOSTILE} {i}", "a")
            for i in range(8)
        )
    )
    located = locate(model, queries, progress=False)
    page = watched.open(write_explorer(model, located, tmp_path / "page.html", progress=False))
    assert HOSTILE in page.locator('[data-part="query"] pre').inner_text()
    assert page.evaluate("window.hacked") is None
    watched.check()


@pytest.mark.parametrize("text", [BAD, "w" * 600, ODD], ids=["hostile", "long", "odd"])
def test_no_name_runs_links_or_widens_a_page(
    watched: Watched, text: str, model_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model, groups, ids, questions and options of that name: the explorer, a report of every figure, outputs."""
    monkeypatch.setattr("qrnca_lens.views.html._SENT", set())
    model = model_of("llama")
    located = locate(model, hostile_queries(text, "Which?"), QRNCAConfig(steps=2), progress=False)
    located = replace(located, model=replace(located.model, name=text))
    clusters = cluster_neurons(located, min_queries=1, bootstraps=0, k=2)
    query = located.queries["query"][0]
    chosen = next(iter(located.for_query(query)), Neuron(1, 1))
    results = [located, clusters, show(model, located, query), circuit(model, located, query, chosen)]
    results.append(neuron(model, chosen.layer, chosen.index, located=located))
    cells = "".join(result._repr_html_() for result in results)
    (tmp_path / "cells.html").write_text(f"<!doctype html><meta charset='utf-8'>{ICON}{cells}", "utf-8")
    sections = [Section(text, f"{text} {text}", text), Section(text, "", located.per_query().assign(**{text: text}))]
    sections += [Section(name, "", figure) for name, figure in figures_of(located, clusters).items()]
    write_page(tmp_path / "report.html", text, sections)
    write_explorer(model, located, tmp_path / "explorer.html", progress=False)
    for name, ready in (("report", ".main-svg"), ("cells", "[data-mounted]"), ("explorer", '[data-part="card"] h2')):
        page = watched.open(tmp_path / f"{name}.html")
        page.wait_for_selector(ready, state="attached")
        page.wait_for_timeout(500)
        assert page.evaluate("window.hacked") is None
        assert page.evaluate(OVERDRAWN) == [], f"{name}: a text is drawn over other cells"
        told = page.locator("option").all_inner_texts() + page.locator("td, th").all_inner_texts()
        assert not {"\x1b", "\u202e"} & set("".join(told))
        assert page.locator("[href]:not(link), marquee, img, iframe").count() == 0, f"{name}: a text became a tag"
        watched.check()
    page = watched.open(tmp_path / "report.html")
    for figure in page.locator(".js-plotly-plot").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".nsewdrag").first.hover(force=True)
        page.wait_for_timeout(100)
    assert page.locator("[href]:not(link)").count() == 0, "a hover text became a link"
    watched.check()


def test_tokens_that_are_html_stay_texts(watched: Watched, tmp_path: Path, monkeypatch: Any) -> None:
    """Single tokens, which the tokenizer has not cut into harmless pieces; <s> is how Llama's texts begin."""
    monkeypatch.setattr("qrnca_lens.views.html._SENT", set())
    tokens = ["<s>", "<img/src='http://example.invalid/x'>", "<iframe/srcdoc='<script>parent.hacked=1</script>'>", "a&b"]
    patterns = np.tril(np.full((2, 4, 4), 0.25))
    views = coloured_tokens(tokens, np.linspace(-1, 1, 4)) + attention_patterns(tokens, patterns, ["L0H0", "L0H1"])
    path = tmp_path / "tokens.html"
    icon = "<link rel='icon' href='data:,'>"
    path.write_text(f"<!doctype html><meta charset='utf-8'>{icon}{notebook_html(views)}", "utf-8")
    page = watched.open(path)
    page.wait_for_function(ALL_LIVE)
    page.wait_for_timeout(300)
    shown = page.locator('[data-component="ColoredTokens"]').inner_text()
    assert all(token in shown for token in tokens)
    assert page.evaluate("window.hacked") is None
    assert page.locator("iframe").count() == 0
    watched.check()


def test_notebook_outputs_work_on_their_own(
    watched: Watched, atlas: Any, run: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """The outputs of three cells in one page, as a notebook shows them."""
    monkeypatch.setattr("qrnca_lens.views.html._SENT", set())
    query = run.queries["query"][0]
    chosen = next(iter(run.for_query(query)))
    card = neuron(atlas, chosen.layer, chosen.index, located=run)
    outputs = [view._repr_html_() for view in (show(atlas, run, query), card, circuit(atlas, run, query))]
    path = tmp_path / "cells.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'><link rel='icon' href='data:,'>{''.join(outputs)}", "utf-8")
    page = watched.open(path)
    assert page.locator("[data-component]").count() > 4
    page.wait_for_function(ALL_LIVE)
    watched.check()


def test_the_widget_talks_to_its_model(watched: Watched, atlas: Any, run: Any, tmp_path: Path) -> None:
    """The widget's module in a page, with a stand-in for Jupyter's model; Python answers what the clicks ask."""
    explorer = Explorer(atlas, run.asked, run)
    state = json.dumps({name: getattr(explorer, name) for name in ("catalog", "selected", "view")}).replace("<", "\\u003c")
    module = explorer._esm.replace("</script", "<\\/script")
    stand_in = (
        "class Model { constructor(s) { this.s = s; this.h = {}; this.sent = []; } get(k) { return this.s[k]; }"
        "set(k, v) { this.s[k] = v; this.h['change:' + k]?.(); } on(e, f) { this.h[e] = f; }"
        "save_changes() { this.sent.push(this.s.selected); } }"
    )
    path = tmp_path / "widget.html"
    path.write_text(
        f"<!doctype html><meta charset='utf-8'><link rel='icon' href='data:,'><style>{style()}</style><div id='here'></div>"
        f"<script type='text/plain' id='module'>{module}</script><script type='module'>{stand_in}"
        "const text = document.getElementById('module').textContent.replaceAll('<\\\\/script', '</' + 'script');"
        "const source = URL.createObjectURL(new Blob([text], {type: 'text/javascript'}));"
        "const widget = (await import(source)).default;"
        f"window.model = new Model({state}); widget.render({{model, el: document.getElementById('here')}});</script>",
        "utf-8",
    )
    page = watched.open(path)
    page.wait_for_selector('[data-part="card"] h2')
    other = list(run.for_query(explorer.selected["query"]))[1]
    page.locator(f'[data-part="query"] button:text-is("{other}")').click()
    sent = page.evaluate("model.sent.at(-1)")
    explorer.selected = sent
    assert explorer.neuron == other
    page.evaluate("view => model.set('view', view)", explorer.view)
    assert page.locator('[data-part="card"] h2').inner_text() == str(other)
    set_factor(page, 0.0)
    explorer.selected = page.evaluate("model.sent.at(-1)")
    assert letters(page) == pytest.approx({k: round(v, 4) for k, v in explorer.letters.items()}, abs=1.5e-4)
    # and the other way: what Python selects is what the page shows
    explorer.selected = {"scope": "all", "factor": 0.25}
    page.evaluate("selected => model.set('selected', selected)", explorer.selected)
    assert letters(page) == pytest.approx({k: round(v, 4) for k, v in explorer.letters.items()}, abs=1.5e-4)
    assert page.locator('[data-role="times"]').inner_text() == "0.25"
    assert page.locator('input[value="all"]').is_checked()
    third = list(run.for_query(explorer.selected["query"]))[2]
    explorer.selected = {"layer": third.layer, "neuron": third.index}
    page.evaluate("selected => model.set('selected', selected)", explorer.selected)
    assert page.locator(".qrnca-busy").count() == 1, "the view of the other neuron is still to come"
    page.evaluate("view => model.set('view', view)", explorer.view)
    assert page.locator(".qrnca-busy").count() == 0
    assert page.locator('[data-part="card"] h2').inner_text() == str(third)
    watched.check()
