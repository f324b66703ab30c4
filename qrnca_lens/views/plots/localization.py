"""Figures of overlap, significance and neuron clusters; never calls a model. As in `plots`, no global is touched.

No figure holds more than `MOST_CELLS` values: what is larger is averaged or cut to its strongest part, as its title says.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy import sparse

from qrnca_lens.clustering import NeuronClusters, QRNeurons
from qrnca_lens.core.shown import plotly_label, plotly_whole
from qrnca_lens.core.values import whole_number
from qrnca_lens.localization import layer_counts, overlap_rates
from qrnca_lens.localization.significance import TEST_COLUMNS
from qrnca_lens.views.plots.figures import INK, PALETTE, TEMPLATE, named_axis

MOST_CELLS = 20_000
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
_NO_GRID = {"showgrid": False, "zeroline": False}


def overlap_matrix(located: QRNeurons) -> go.Figure:
    """Group x group: the symmetric overlap rate at equal sizes (`overlap_rates`), hover text with that of shuffled ones."""
    rates, names = overlap_rates(located), list(located.groups)
    whole = [plotly_whole(group) for group in names]
    figure = go.Figure(
        go.Heatmap(
            z=rates.rates.to_numpy(),
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            colorbar={"title": "rate"},
            texttemplate="%{z:.2f}",
            customdata=rates.permuted.to_numpy(),
            text=[[f"{row}<br>and {column}" for column in whole] for row in whole],
            hovertemplate="overlap %{z:.3f}, %{customdata:.3f} under shuffled labels<br>%{text}<extra></extra>",
        )
    )
    side = 220 + 48 * len(names)
    title = f"Overlap of the groups' QR neurons<br><sub>|A and B| / mean(|A|, |B|) at {rates.per_group} queries a group"
    figure.update_layout(
        template=TEMPLATE,
        title=f"{title}; {rates.mean:.2f} on average, {rates.permuted_mean:.2f} under shuffled labels</sub>",
        height=side,
    )
    ticks = named_axis(names) | _NO_GRID
    figure.update_xaxes(title_text="group", **ticks)
    figure.update_yaxes(title_text="group", autorange="reversed", automargin=True, **ticks)
    return figure


def layer_distribution(located: QRNeurons) -> go.Figure:
    """The share of each group's QR neurons in every layer, a line a group (paper, figure 2b as shares).

    A neuron counts once for every query it belongs to, as in `layer_counts`. A group without QR neurons has no line.
    """
    counts = layer_counts(located)
    figure = go.Figure()
    for i, group in enumerate(located.groups):
        row = counts.loc[group].to_numpy(dtype=float)
        if not row.sum():
            continue
        figure.add_trace(
            go.Scatter(
                x=list(counts.columns),
                y=row / row.sum(),
                name=plotly_label(group),
                meta=plotly_whole(group),
                mode="lines+markers",
                line={"color": PALETTE[i % len(PALETTE)], "dash": _DASHES[i // len(PALETTE) % len(_DASHES)]},
                marker={"symbol": _SYMBOLS[i % len(_SYMBOLS)]},
                customdata=row.astype(int),
                hovertemplate="layer %{x}: %{y:.1%}, %{customdata} QR neurons<br>%{meta}<extra></extra>",
            )
        )
    figure.update_layout(
        template=TEMPLATE,
        title="Where each group's QR neurons sit",
        xaxis={"title": "layer", "dtick": max(1, located.model.n_layers // 8)},
        yaxis={"title": "share of the group's QR neurons", "tickformat": ".0%", "rangemode": "tozero"},
        height=380,
    )
    return figure


def permutation(test_frame: pd.DataFrame) -> go.Figure:
    """Per group the observed statistic (dot) against its mean and 95 % interval under shuffled group labels (bar).

    `test_frame` comes from one of the tests in `localization.significance`. ValueError if it lacks one of their columns.
    """
    missing = [name for name in TEST_COLUMNS if name not in test_frame.columns]
    if missing or test_frame.empty:
        found = f"it lacks {', '.join(missing)}" if missing else "it is empty"
        raise ValueError(f"expected the frame of overlap_test, concentration_test or layer_test, but {found}")
    hover = test_frame[["low", "high", "p", "p_corrected", "queries"]].to_numpy(dtype=float)
    tail = "<br>p = %{customdata[2]:.4g}, after Holm %{customdata[3]:.4g}; %{customdata[4]:d} queries"
    tail += "<br>%{hovertext}<extra></extra>"
    above, below = test_frame["high"] - test_frame["permuted"], test_frame["permuted"] - test_frame["low"]
    bar = {"symmetric": False, "array": above.to_numpy(), "arrayminus": below.to_numpy(), "color": INK, "thickness": 3}
    names = test_frame["group"].tolist()
    look = {"mode": "markers", "y": list(range(len(names))), "customdata": hover}
    look["hovertext"] = [plotly_whole(group) for group in names]
    shuffled = go.Scatter(
        x=test_frame["permuted"],
        error_x=bar,
        name="shuffled labels: mean and 95 % interval",
        marker={"symbol": "line-ns-open", "size": 14, "color": INK},
        hovertemplate="shuffled: %{x:.4f}, 95 %: %{customdata[0]:.4f} to %{customdata[1]:.4f}" + tail,
        **look,
    )
    observed = go.Scatter(
        x=test_frame["observed"],
        name="observed",
        marker={"size": 12, "color": PALETTE[5]},
        hovertemplate="observed: %{x:.4f}, shuffled 95 %: %{customdata[0]:.4f} to %{customdata[1]:.4f}" + tail,
        **look,
    )
    figure = go.Figure([shuffled, observed])
    figure.update_layout(
        template=TEMPLATE,
        title="Observed against shuffled group labels",
        xaxis={"title": plotly_whole(test_frame["statistic"].iloc[0])},
        yaxis={"title": "group", "autorange": "reversed", "automargin": True, **named_axis(names)},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        margin={"t": 90},
        height=200 + 36 * len(test_frame),
    )
    return figure


def neuron_clusters(clusters: NeuronClusters) -> go.Figure:
    """Neurons (rows, by cluster) x queries (columns, by group), colour = naica scaled to unit length a neuron.

    Beyond `MOST_CELLS` cells neighbouring queries of a group are averaged, and each cluster keeps its most typical neurons.
    """
    shown, note = _reduced(clusters)
    (row_runs, rows), (column_runs, columns) = (
        (_runs(list(axis.get_level_values(0))), list(axis.get_level_values(1))) for axis in (shown.index, shown.columns)
    )
    figure = go.Figure(
        go.Heatmap(
            z=shown.to_numpy(),
            x=columns,
            y=rows,
            colorscale="Viridis",
            colorbar={"title": "scaled naica"},
            hovertemplate="%{y}<br>%{x}<br>scaled naica %{z:.3f}<extra></extra>",
        )
    )
    for _, start, _ in column_runs[1:]:
        figure.add_vline(x=start - 0.5, line={"color": INK, "width": 1})
    for _, start, _ in row_runs[1:]:
        figure.add_hline(y=start - 0.5, line={"color": INK, "width": 1})
    figure.update_layout(
        template=TEMPLATE,
        title=f"Neuron clusters and the queries they serve{note}",
        margin={"t": 80},
        height=max(360, min(900, 160 + 6 * len(rows))),
    )
    figure.update_xaxes(
        {"title": {"text": "queries, by group"}, "type": "category", **_NO_GRID, **_centred(column_runs, "")}
    )
    rows_axis = {"title": {"text": "neurons, by cluster"}, "type": "category", "autorange": "reversed"}
    figure.update_yaxes({**rows_axis, **_NO_GRID, **_centred(row_runs, "cluster ")})
    return figure


def layer_zoom(located: QRNeurons, group: str | None, layer: int, bins: int | None = None) -> go.Figure:
    """One layer of `heatmap` close up: naica summed over the group's queries (None: all) for every single neuron.

    `bins` cuts the neuron axis into at most that many bins of equal width; None shows each QR neuron on its own.
    KeyError for an unknown group, ValueError for a layer outside the model or `bins` below 1.
    """
    if group is not None:
        located.check_group(group)
    layer = whole_number("layer", layer, at_least=0, at_most=located.model.n_layers - 1)
    width = 1 if bins is None else located.model.bin_width(bins)
    rows = located.table[located.table["layer"] == layer]
    rows = rows if group is None else rows[rows["group"] == group]
    rows = rows.assign(start=rows["neuron"] // width * width)
    bars = rows.groupby("start", as_index=False).agg(
        naica=("naica", "sum"), neurons=("neuron", "nunique"), queries=("query", "nunique")
    )
    cut = len(bars) > MOST_CELLS
    bars = bars.nlargest(MOST_CELLS, "naica").sort_values("start")
    what = "neuron %{x}" if width == 1 else f"bin of {width} from neuron %{{customdata[2]}}, %{{customdata[0]}} QR neurons"
    figure = go.Figure(
        go.Bar(
            x=bars["start"] + (width - 1) / 2,
            y=bars["naica"],
            width=width,
            # the outline keeps a single neuron visible where an axis of thousands makes its bar thinner than a pixel
            marker={"color": PALETTE[0], "line": {"color": PALETTE[0], "width": 1.5}},
            customdata=bars[["neurons", "queries", "start"]].to_numpy(),
            hovertemplate=what + "<br>summed naica %{y:.4f} over %{customdata[1]} queries<extra></extra>",
        )
    )
    note = f" (the strongest {MOST_CELLS:,})" if cut else ""
    figure.update_layout(
        template=TEMPLATE,
        title=f"QR neurons of layer {layer}: {plotly_label('all groups' if group is None else group)}{note}",
        xaxis={
            "title": "neuron index" if width == 1 else f"neuron index (bins of {width})",
            "range": [-0.5, located.model.d_mlp - 0.5],
        },
        yaxis={"title": "summed naica"},
        height=360,
    )
    return figure


def _reduced(clusters: NeuronClusters) -> tuple[pd.DataFrame, str]:
    """The profiles, small enough for a figure, as (cluster, neuron) x (group, queries); and what was left out, in words."""
    profiles, table = clusters.profiles, clusters.table
    n_neurons, n_queries = profiles.shape
    groups, ids = ([str(name) for name in profiles.columns.get_level_values(i)] for i in (0, 1))
    width = max(1, -(-n_queries // max(100, MOST_CELLS // n_neurons)))
    bins = [
        (group, first, min(first + width, start + length))
        for group, start, length in _runs(groups)
        for first in range(start, start + length, width)
    ]
    rows = min(n_neurons, max(1, MOST_CELLS // len(bins)))
    # `table` has the most typical neurons of a cluster first, so that keeping the first of each keeps the best
    of_cluster = table.groupby("cluster")["neuron"]
    kept = np.sort(np.argsort((of_cluster.cumcount() / of_cluster.transform("size")).to_numpy(), kind="stable")[:rows])
    lengths = np.array([last - first for _, first, last in bins])
    whole = sparse.csr_array(profiles.sparse.to_coo() if _is_sparse(profiles) else profiles.to_numpy())
    to_bins = sparse.csr_array((np.ones(n_queries), (np.arange(n_queries), np.repeat(np.arange(len(bins)), lengths))))
    values = (whole[kept] @ to_bins).toarray() / lengths
    names = [(str(r.cluster), f"L{r.layer}.N{r.neuron}, cluster {r.cluster}") for r in table.iloc[kept].itertuples()]
    queries = [(g, plotly_whole(ids[a] + (f" to {ids[b - 1]}" if b - a > 1 else "") + f", {g}")) for g, a, b in bins]
    notes = [f"{len(bins)} means of up to {width} of {n_queries} queries"] if width > 1 else []
    notes += [f"the {rows} most typical of {n_neurons} neurons"] if rows < n_neurons else []
    shown = pd.DataFrame(values, index=pd.MultiIndex.from_tuples(names), columns=pd.MultiIndex.from_tuples(queries))
    return shown, f"<br><sub>{'; '.join(notes)}</sub>" if notes else ""


def _is_sparse(table: pd.DataFrame) -> bool:
    return all(isinstance(kind, pd.SparseDtype) for kind in table.dtypes)


def _runs(labels: list[str]) -> list[tuple[str, int, int]]:
    """Runs of equal neighbours: label, start, length."""
    starts = [i for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
    return [(labels[a], a, b - a) for a, b in zip(starts, [*starts[1:], len(labels)], strict=True)]


def _centred(runs: list[tuple[str, int, int]], prefix: str) -> dict[str, list]:
    """Axis ticks in the middle of every run."""
    return {
        "tickvals": [start + (length - 1) / 2 for _, start, length in runs],
        "ticktext": [plotly_label(f"{prefix}{label}") for label, _, _ in runs],
    }
