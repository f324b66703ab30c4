from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons
from qrnca_lens.localization import group_heatmap, layer_counts
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.report import Section, write_page


def result(n_layers: int = 2, d_mlp: int = 10, extra: tuple[tuple[str, str, int, int, float], ...] = ()) -> QRNeurons:
    """Four queries in two groups, each with neurons of its own, and `extra` rows of their clusters."""
    rows = [
        ("a", "x", 0, 1, 4.0),
        ("a", "x", 1, 9, 1.0),
        ("b", "x", 0, 2, 1.0),
        ("c", "y", 1, 0, 3.0),
        ("d", "y", 1, 3, 2.0),
        *extra,
    ]
    clusters = pd.DataFrame(rows, columns=["query", "group", "layer", "neuron", "attribution"]).assign(templates=1)
    queries = pd.DataFrame({"query": list("abcd"), "group": list("xxyy"), "prompts": 1, "probability": 0.5, "gap": 0.0})
    return QRNeurons(clusters, queries, QRNCAConfig(), ModelShape("tiny", n_layers, d_mlp, "0"))


def test_a_heatmap_sums_naica_into_bins() -> None:
    located, ica = result(), np.log(4 / 2)
    fine = group_heatmap(located, "x")
    assert fine.values.shape == (2, 10)
    assert fine.values[0, 1] == pytest.approx(0.8 * ica)
    coarse = group_heatmap(located, "x", bins=4)
    assert (coarse.width, coarse.starts) == (3, [0, 3, 6, 9])
    assert coarse.values[0, 0] == pytest.approx((0.8 + 1.0) * ica)
    assert (coarse.neurons[0, 0], coarse.best[0, 0], coarse.best[1, 3], coarse.best[1, 0]) == (2, 2, 9, -1)
    assert (coarse.query[0, 0], coarse.query[1, 0]) == ("b", "")
    everything = group_heatmap(located)
    assert everything.values.sum() == pytest.approx(located.table["naica"].sum())
    with pytest.raises(KeyError, match="no group 'z' in this result; there are x, y"):
        group_heatmap(located, "z")
    with pytest.raises(ValueError, match="bins must be at least 1"):
        group_heatmap(located, bins=0)


def test_a_cell_names_the_query_where_its_strongest_neuron_counts_most() -> None:
    found = result(extra=(("a", "x", 1, 3, 1.0),))
    shared = QRNeurons(found.clusters, found.queries, QRNCAConfig(common_share=1.0), found.model)
    naica = shared.table[(shared.table["layer"] == 1) & (shared.table["neuron"] == 3)].set_index("query")["naica"]
    assert naica["d"] > naica["a"] > 0
    assert (group_heatmap(shared).query[1, 3], group_heatmap(shared, "x").query[1, 3]) == ("d", "a")


def test_a_large_model_stays_small_in_the_browser() -> None:
    assert group_heatmap(result(32, 11008)).values.shape == (32, 128)


def test_layer_counts() -> None:
    assert layer_counts(result()).to_dict("index") == {"x": {0: 2, 1: 1}, "y": {0: 0, 1: 2}}


def test_a_page_is_self_contained_and_escapes_what_it_shows(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    table = pd.DataFrame({"text": [hostile], "value": [0.123456789]})
    figure = go.Figure(go.Bar(x=[hostile], y=[1]), layout={"template": plots.TEMPLATE})
    page = write_page(
        tmp_path / "deep" / "page.html",
        hostile,
        [
            Section(hostile, f"{hostile}\n\nsecond"),
            Section("f", "", figure),
            Section("t", "", table),
            Section("p", "", hostile),
        ],
    )
    text = page.read_text("utf-8")
    own = re.sub(r"(?s)<script>/\*\*.*?</script>", "", text, count=1)  # without plotly's own code
    assert len(own) < len(text) / 2
    assert "<img" not in own
    assert own.count("</script>") == own.count("<script")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert "<p>second</p>" in own
    assert "0.1235" in own
    assert text.count("plotly.js v") == 1
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["page.html"]
