"""Text stays text: every `_repr_html_`, figure and page with texts that would do something."""

from __future__ import annotations

import html
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hostile import HOSTILE, LINK, check_html, figures_of, hostile_queries

import qrnca_lens
from qrnca_lens.attribution import attribute
from qrnca_lens.clustering import NeuronClusters, QRNCAConfig, QRNeurons, cluster_neurons
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.shown import escaped, plotly_label, plotly_whole, table, visible, visible_lines
from qrnca_lens.localization import overlap_rates
from qrnca_lens.methods import Ranking
from qrnca_lens.runs.checking import check
from qrnca_lens.runs.forecast import Estimate
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study.forecast import TablesEstimate
from qrnca_lens.study.transfer.result import Transfer
from qrnca_lens.views import circuit, neuron, show
from qrnca_lens.views.components import library
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.plots import localization as plots_localization
from qrnca_lens.views.report import Section, write_page


@pytest.fixture(scope="module")
def located(model_of: Callable[[str], Any]) -> QRNeurons:
    """A run in which the model's name, the groups, ids, questions, prompts, templates and options are hostile."""
    found = locate(model_of("llama"), hostile_queries(), QRNCAConfig(steps=2), progress=False)
    return replace(found, model=replace(found.model, name=HOSTILE))


@pytest.fixture(scope="module")
def clusters(located: QRNeurons) -> NeuronClusters:
    return cluster_neurons(located, min_queries=1, bootstraps=2, k=2)


def texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a figure with the name of its attribute."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from texts(part, key)
    elif hasattr(value, "tolist"):
        yield from texts(value.tolist(), name)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts(part, name)


def test_every_figure_takes_texts_for_texts(located: QRNeurons, clusters: NeuronClusters) -> None:
    made = figures_of(located, clusters)
    makers = {
        name
        for module in (plots, plots_localization)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_")
        and function.__module__ == module.__name__
        and "Figure" in function.__annotations__["return"]
    }
    assert set(made) == makers
    for name, figure in made.items():
        shown = list(texts(figure.to_plotly_json()))
        assert any("/script" in text for _, text in shown), f"{name} shows no hostile text: the test tests nothing"
        for key, text in shown:
            assert not re.findall(r"</?(?!br>|extra>|sub>)[a-zA-Z]", text), (name, text)
            assert "\x1b" not in text
            if key not in ("hovertemplate", "texttemplate"):
                assert "%{" not in text and "$" not in text and "extra>" not in text, (name, key, text)
            assert key not in ("ticktext", "name", "title") or len(html.unescape(text)) <= 90, (name, key, text)
        whole = [html.unescape(text.replace("<br>", "")) for _, text in shown]
        assert name == "layer_zoom" or any(visible(HOSTILE) in text for text in whole), (
            f"{name} tells the whole text nowhere"
        )


def test_every_result_takes_texts_for_texts(
    model_of: Callable[[str], Any], located: QRNeurons, clusters: NeuronClusters
) -> None:
    model, original = model_of("llama"), replace(located)
    query = located.queries["query"].iloc[0]
    chosen = next(iter(located.for_query(query)), Neuron(1, 1))
    prompt = located.asked[query].prompts[0].text
    made = [
        located,
        overlap_rates(located),
        clusters,
        replace(attribute(model, prompt, 5, steps=2), target=HOSTILE),
        show(model, original, query),
        neuron(model, chosen.layer, chosen.index, located=located),
        circuit(model, located, query, chosen),
        replace(check(model, located.asked), model=HOSTILE),
    ]
    # the first three hold no texts; tests/test_transfer_path.py shows the fourth
    others = {Estimate, TablesEstimate, Ranking, Transfer}
    assert {type(result) for result in made} == set(results_that_show_themselves()) - others
    for result in made:
        page = result._repr_html_().replace(library(), "")
        check_html(page)
        assert "marquee" in html.unescape(page)
        assert 'class="tex2jax_ignore mathjax_ignore"' in page, "a notebook would set $…$ as a formula"


def results_that_show_themselves() -> Iterator[type]:
    """Every class of the package with a `_repr_html_` of its own or of `View`, but for `View` and widgets."""
    for module in pkgutil.walk_packages(qrnca_lens.__path__, "qrnca_lens."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = kind.__module__ == module.name and kind.__name__ != "View"
            if own and "qrnca_lens" in getattr(getattr(kind, "_repr_html_", None), "__module__", ""):
                yield kind


def test_a_page_shows_hostile_names_tables_and_figures(located: QRNeurons, clusters: NeuronClusters, tmp_path: Path) -> None:
    sections = [Section(HOSTILE, f"{HOSTILE}\n\n{HOSTILE}", HOSTILE), Section(HOSTILE, "", located.queries)]
    sections += [Section(name, "", figure) for name, figure in figures_of(located, clusters).items()]
    text = write_page(tmp_path / "page.html", HOSTILE, sections).read_text("utf-8")
    own = re.sub(r"(?s)<script.*?</script>", "", text)
    check_html(own)
    assert LINK not in text and html.escape(LINK) in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("a\x9bb\x7f\x00", r"a\x9bb\x7f\x00"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("a\nb\r\u2028", r"a\nb\r\u2028"),
        ("half \ud800", r"half \ud800"),
        ("Zürich 日本語 العربية 👩\u200d🔬", "Zürich 日本語 العربية 👩\u200d🔬"),
        ("[red]x[/red] \\frac", "[red]x[/red] \\frac"),
    ],
)
def test_what_cannot_be_seen_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible_lines(f"{text}\n\t") == shown.replace("\\n", "\n") + "\n\t"
    assert html.unescape(escaped(text)) == visible_lines(text)


def test_figures_shorten_labels_and_tell_the_whole() -> None:
    word = "x" * 600
    assert plotly_label(word) == "x" * 39 + "…"
    assert plotly_whole(word).replace("<br>", "") == word
    assert max(map(len, plotly_whole(word).split("<br>"))) == 80
    assert plotly_whole("") == plotly_label("") == ""
    assert plotly_label("<b>&amp; %{x} $y$") == "&lt;b&gt;&amp;amp; %&#123;x} &#36;y&#36;"


def test_a_group_called_like_a_number_or_a_date_is_a_group_of_its_own() -> None:
    axis = plots.named_axis(["2", "10", "2020-01-01", "10 "])
    assert (axis["type"], axis["tickvals"]) == ("linear", [0, 1, 2, 3])
    assert axis["ticktext"] == ["2", "10", "2020-01-01", "10 "]


def test_a_table_escapes_cells_and_heads_but_raw_ones() -> None:
    frame = pd.DataFrame({"<i>": ["<b>", None], "raw": ["<b>x</b>", ""], "value": [0.123456, float("nan")]})
    shown = table(frame, raw=["raw"])
    assert shown.count("<b>") == 1 and "<th>&lt;i&gt;</th>" in shown
    assert "<td>0.1235</td>" in shown and shown.count("<td></td>") == 3


def test_titles_beside_one_another_are_short_and_whole_in_the_hover(run: tuple[Any, QRNeurons]) -> None:
    located = run[1]
    long = located.queries.assign(group=located.queries["group"] + "w" * 60)
    clusters = located.clusters.assign(group=located.clusters["group"] + "w" * 60)
    several = plots.heatmap(replace(located, queries=long, clusters=clusters))
    alone = plots.heatmap(replace(located, queries=long, clusters=clusters), [long["group"][0]])
    assert {len(note.text) for note in several.layout.annotations} == {24}
    assert {len(note.text) for note in alone.layout.annotations} == {40}
    assert several.data[0].meta == long["group"][0]
