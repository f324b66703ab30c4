"""What stands in the traces of every figure, on hand-made results."""

from __future__ import annotations

from math import log

import numpy as np
import pandas as pd
import plotly.io
import pytest
from handmade import by_hand

from qrnca_lens.localization import overlap_rates
from qrnca_lens.localization.significance import TEST_COLUMNS
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.plots import localization as plots_localization

ONCE, OFTEN = log(6 / 2), log(6 / 4)
"""ica of a neuron in one of six clusters, and in three of them."""


def test_a_heatmap_has_a_panel_a_group() -> None:
    """In ten bins of one neuron: x has (0,1), (0,2) and (1,9), y has (0,1) from two queries and (1,3); the rest is empty."""
    before = plotly.io.templates.default
    figure = plots.heatmap(by_hand())
    x, y, z = figure.data
    assert plotly.io.templates.default == before
    assert (x.name, y.name, z.name) == ("x", "y", "z") == tuple(note.text for note in figure.layout.annotations)
    wanted = np.full((3, 10), np.nan)
    wanted[0, 1], wanted[0, 2], wanted[1, 9] = 4 / 6 * OFTEN, 1 / 2 * ONCE, 1 / 6 * ONCE
    assert np.allclose(np.asarray(x.z, dtype=float), wanted, equal_nan=True)
    assert list(x.x) == list(range(10))
    assert (x.customdata[0, 2].tolist(), x.text[0, 2], y.text[0, 1]) == ([1, 2], "b", "c")
    assert y.z[0, 1] == pytest.approx((3 / 4 + 2 / 5) * OFTEN)
    assert np.isnan(np.asarray(z.z, dtype=float)).all()
    cells = [np.nanquantile(np.asarray(panel.z, dtype=float), 0.99) for panel in (x, y)]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, pytest.approx(max(cells)))
    with pytest.raises(KeyError, match="no group 'w'"):
        plots.heatmap(by_hand(), ["w"])
    (alone,) = plots.heatmap(by_hand(), ["y"], bins=4).data
    assert (alone.name, list(alone.x), alone.z[0, 0]) == ("y", [0, 3, 6, 9], pytest.approx(y.z[0, 1]))


def test_layers_count_a_neuron_once_a_query() -> None:
    figure = plots.layers(by_hand())
    assert [(bar.name, list(bar.x), list(bar.y)) for bar in figure.data] == [
        ("x", [0, 1, 2], [2, 1, 0]),
        ("y", [0, 1, 2], [2, 1, 0]),
        ("z", [0, 1, 2], [0, 0, 0]),
    ]


def test_the_layer_distribution_shows_shares() -> None:
    lines = plots_localization.layer_distribution(by_hand()).data
    assert [(line.name, list(line.customdata)) for line in lines] == [("x", [2, 1, 0]), ("y", [2, 1, 0])]
    assert list(lines[0].y) == pytest.approx([2 / 3, 1 / 3, 0])


def test_the_overlap_matrix_shows_the_symmetric_rate() -> None:
    """Of x's three neurons and y's two they share one."""
    figure = plots_localization.overlap_matrix(by_hand())
    (matrix,) = figure.data
    wanted = [[1, 0.4, np.nan], [0.4, 1, np.nan], [np.nan] * 3]
    assert np.allclose(np.asarray(matrix.z, dtype=float), wanted, equal_nan=True)
    assert np.array_equal(matrix.customdata, overlap_rates(by_hand()).permuted.to_numpy())
    assert matrix.text[0][1] == "x<br>and y"
    assert "at 2 queries a group; 0.40 on average" in figure.layout.title.text
    assert list(figure.layout.xaxis.ticktext) == list(figure.layout.yaxis.ticktext) == ["x", "y", "z"]


def test_changes_show_all_queries_with_their_intervals() -> None:
    rows = [
        (0.0, "x", 5, -40.0, -55.0, -30.0, 1.0, -1.0, 4.0, 7.0, 6.0, 9.0),
        (0.0, "y", 6, -60.0, -65.0, -58.0, 2.0, 1.5, 9.0, 8.0, 5.0, 8.5),
        (2.0, "x", 5, 5.0, 1.0, 9.5, 0.0, -0.5, 0.25, 9.0, 8.0, 12.0),
        (2.0, "y", 6, 6.0, 2.0, 9.0, -3.0, -5.0, -2.5, 4.0, 2.0, 5.0),
    ]
    kinds = [f"{kind}{bound}" for kind in ("own", "same", "other") for bound in ("", "_low", "_high")]
    figure = plots.changes(pd.DataFrame(rows, columns=["factor", "group", "queries", *kinds]))
    assert [(bar.name, list(bar.y), list(bar.error_y.array), list(bar.error_y.arrayminus)) for bar in figure.data] == [
        ("own query", [-40, -60], [10, 2], [15, 5]),
        ("unrelated query, same letter", [1, 2], [3, 7], [2, 0.5]),
        ("unrelated query, other letter", [7, 8], [2, 0.5], [1, 3]),
        ("own query", [5, 6], [4.5, 3], [4, 4]),
        ("unrelated query, same letter", [0, -3], [0.25, 0.5], [0.5, 2]),
        ("unrelated query, other letter", [9, 4], [3, 1], [1, 2]),
    ]
    assert [bar.marker.color for bar in figure.data] == ["#D55E00", "#009E73", "#56B4E9"] * 2
    assert [note.text for note in figure.layout.annotations] == ["QR neurons x 0", "QR neurons x 2"]
    assert figure.data[0].customdata.tolist() == [[5], [6]] and list(figure.layout.xaxis.ticktext) == ["x", "y"]
    assert [bar.xaxis for bar in figure.data] == [*3 * ["x"], *3 * ["x2"]]


def test_the_permutation_figure_shows_observed_and_shuffled() -> None:
    frame = pd.DataFrame(
        [("x", "an index", 7, 0.5, 0.3, 0.1, 0.35, 0.01, 0.02), ("y", "an index", 8, 0.2, 0.25, 0.22, 0.4, 0.5, 0.6)],
        columns=TEST_COLUMNS,
    )
    figure = plots_localization.permutation(frame)
    shuffled, observed = figure.data
    assert (shuffled.name, observed.name) == ("shuffled labels: mean and 95 % interval", "observed")
    assert (list(shuffled.x), list(observed.x)) == ([0.3, 0.25], [0.5, 0.2])
    assert list(shuffled.error_x.array) == pytest.approx([0.05, 0.15])
    assert list(shuffled.error_x.arrayminus) == pytest.approx([0.2, 0.03])
    for trace in figure.data:
        assert trace.customdata.tolist() == [[0.1, 0.35, 0.01, 0.02, 7], [0.22, 0.4, 0.5, 0.6, 8]]
        assert list(trace.y) == [0, 1] and list(trace.hovertext) == ["x", "y"]
    assert list(figure.layout.yaxis.ticktext) == ["x", "y"]
