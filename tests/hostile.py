"""Texts that would do something if they were not taken for text, and what tells whether they did."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from qrnca_lens.clustering import NeuronClusters, QRNeurons
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.editing.statistics import group_changes
from qrnca_lens.localization import overlap_test
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.plots import localization as plots_localization

LINK = "<a href=//h.invalid>x</a>"
HOSTILE = f'</script><img src=x onerror=hacked()>&"<marquee>{LINK}</extra> %{{meta}} $x$ [/b] \x1b]0;x\x07'
TAGS = {
    *("b", "body", "button", "circle", "details", "div", "figcaption", "figure", "g", "h1", "h2", "h3", "head", "html"),
    *("li", "line", "link", "meta", "p", "path", "polyline", "pre", "rect", "script", "section", "span", "style"),
    *("summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "ul"),
}


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes = set[str](), set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def check_html(page: str) -> None:
    """Only the package's own tags, no address, no handler, no control character."""
    found = Tags(page)
    assert found.tags <= TAGS
    assert not {"src", "href"} & found.attributes or found.tags >= {"head"}
    assert not any(attribute.startswith("on") for attribute in found.attributes)
    assert page.count("</script") == page.count("<script")
    assert "\x1b" not in page


def hostile_queries(text: str = HOSTILE, prompt: str = HOSTILE) -> QuerySet:
    """Eight queries in two groups, every text of theirs being `text` and a number; a prompt's text is `prompt` and one.

    The options are short, so that they stand in prompts that fit the tiny models.
    """

    def prompts(i: int) -> tuple[Prompt, ...]:
        options = [tuple(f"<u>{(k - j) % 4}" for k in range(4)) for j in range(2)]  # the right one moves on by one letter
        texts = ["\n".join((f"{prompt}{7 * i + j}", *options[j], ":")) for j in range(2)]
        return tuple(Prompt(texts[j], "ABCD"[(i + j) % 4], f"t{text}", options[j]) for j in range(2))

    return QuerySet(tuple(Query(f"q{i}{text}", f"g{i % 2}{text}", prompts(i), text) for i in range(8)), "hostile")


def figures_of(located: QRNeurons, clusters: NeuronClusters) -> dict[str, go.Figure]:
    """A figure of every function that makes one."""
    group, layer = located.groups[0], int(located.table["layer"].iloc[0])
    rows = [(q, located.asked[q].group) for q in located.queries["query"]]
    effects = pd.DataFrame(rows, columns=["query", "group"]).assign(factor=0.0, prompts=3, p_before=0.5, p_after=0.2)
    effects = effects.assign(unit=effects["query"], same_prompts=3, p_same_before=0.5, p_same_after=0.4)
    effects = effects.assign(other_prompts=3, p_other_before=0.5, p_other_after=0.4)
    p = [name for name in effects if name.startswith("p_")]
    effects = effects.assign(**{f"log_{name}": np.log(effects[name]) for name in p})
    return {
        "heatmap": plots.heatmap(located),
        "layers": plots.layers(located),
        "changes": plots.changes(group_changes(effects)),
        "overlap_matrix": plots_localization.overlap_matrix(located),
        "layer_distribution": plots_localization.layer_distribution(located),
        "permutation": plots_localization.permutation(overlap_test(located, 9).assign(statistic=HOSTILE)),
        "neuron_clusters": plots_localization.neuron_clusters(clusters),
        "layer_zoom": plots_localization.layer_zoom(located, group, layer),
    }
