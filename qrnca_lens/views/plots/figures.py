"""Results to plotly figures; never calls a model. Every figure gets `TEMPLATE`; no global is touched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qrnca_lens.clustering import QRNeurons, check_located
from qrnca_lens.core.shown import LABEL, TITLE, plotly_label, plotly_whole
from qrnca_lens.core.values import check_columns, listed
from qrnca_lens.data import WORDING, Read
from qrnca_lens.data.query import check_read
from qrnca_lens.editing.statistics import CHANGE_COLUMNS
from qrnca_lens.localization import group_heatmap, layer_counts

# grey that reads on white and on black, transparent grounds, and the colour-blind-safe palette of Okabe and Ito (2008)
INK, GRID = "#7d8590", "rgba(125,133,144,0.25)"
SCALE = ["#9ecae1", "#4292c6", "#E69F00", "#D55E00"]  # no end of it vanishes in a white or a black page
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
_AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": INK, "ticks": "outside", "tickcolor": INK}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": PALETTE,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
    }
)


def heatmap(located: QRNeurons, groups: Sequence[str] | None = None, *, bins: int = 128) -> go.Figure:
    """One panel a group: layer x neuron index, colour = summed naica (paper, figure 5).

    KeyError for an unknown group, ValueError for none at all.
    """
    check_located(located)
    chosen = located.groups if groups is None else listed("groups", groups)
    if not chosen:
        raise ValueError("groups is empty; give at least one, or None for all")
    maps = [group_heatmap(located, group, bins=bins) for group in chosen]
    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    titles = [plotly_label(m.group, LABEL if columns == 1 else TITLE) for m in maps]
    # a few very strong cells would leave all others in one colour; the hover text has the true value
    brightest = max(float(np.quantile(m.values[m.neurons > 0], 0.99)) if m.neurons.any() else 0.0 for m in maps)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.24 / rows
    )
    for i, panel in enumerate(maps):
        hover = np.stack([panel.neurons, panel.best], axis=-1)
        figure.add_trace(
            go.Heatmap(
                z=np.where(panel.neurons > 0, panel.values, np.nan),
                x=panel.starts,
                customdata=hover,
                text=np.vectorize(plotly_whole, otypes=[object])(panel.query),
                coloraxis="coloraxis",
                name=plotly_label(panel.group),
                meta=plotly_whole(panel.group),
                hovertemplate=(
                    "layer %{y}, neurons from %{x}<br>%{customdata[0]} QR neurons, strongest: "
                    "neuron %{customdata[1]}, most in %{text}"
                    "<br>summed naica %{z:.3f}<br>%{meta}<extra></extra>"
                ),
            ),
            row=i // columns + 1,
            col=i % columns + 1,
        )
    figure.update_layout(
        template=TEMPLATE,
        title="Where the query-relevant neurons of each group sit",
        coloraxis={"colorscale": SCALE, "cmin": 0, "cmax": brightest, "colorbar": {"title": "summed naica"}},
        height=120 + rows * max(150, 14 * located.model.n_layers + 60),
    )
    figure.update_xaxes(title_text=f"neuron index (bins of {maps[0].width})", row=rows)
    figure.update_yaxes(title_text="layer", dtick=max(1, located.model.n_layers // 8), col=1)
    return figure


def layers(located: QRNeurons) -> go.Figure:
    """QR neurons by layer, one line of bars a group (paper, figure 2b)."""
    counts = layer_counts(located)
    figure = go.Figure(
        [
            go.Bar(
                x=list(counts.columns),
                y=row.tolist(),
                name=plotly_label(group),
                meta=plotly_whole(group),
                hovertemplate="layer %{x}: %{y} QR neurons<br>%{meta}<extra></extra>",
            )
            for group, row in counts.iterrows()
        ]
    )
    figure.update_layout(
        template=TEMPLATE,
        barmode="stack",
        title="QR neurons by layer",
        xaxis={"title": "layer", "dtick": max(1, located.model.n_layers // 8)},
        yaxis={"title": "QR neurons, counted once a query"},
        height=360,
    )
    return figure


_COLOURS = {"own": PALETTE[5], "same": PALETTE[2], "other": PALETTE[4]}


def changes(by_group: pd.DataFrame, read: Read = "letter") -> go.Figure:
    """Mean % change of P of the right option by group after suppressing and boosting, own and unrelated queries (figures 3,
    4).

    `by_group` is what `editing.statistics.group_changes` gives; whiskers are its 95 % intervals. `read`: what the answers of
    the queries are read from, `queries.read`.
    """
    what = "the table of editing.statistics.group_changes"
    check_columns("by_group", by_group, CHANGE_COLUMNS, what)
    if by_group.empty:
        raise ValueError(f"by_group must be {what}; it has no rows")
    words = WORDING[check_read(read)]
    names = {"own": "own query", "same": f"unrelated query, {words.same}", "other": f"unrelated query, {words.other}"}
    factors = list(dict.fromkeys(by_group["factor"]))
    figure = make_subplots(1, len(factors), subplot_titles=[f"QR neurons x {factor:g}" for factor in factors])
    for column, factor in enumerate(factors, 1):
        part = by_group[by_group["factor"] == factor]
        for kind, name in names.items():
            middle = part[kind].to_numpy()
            bar = go.Bar(
                x=list(range(len(part))),
                y=middle,
                name=name,
                legendgroup=kind,
                showlegend=column == 1,
                marker={"color": _COLOURS[kind]},
                customdata=part["queries"].to_numpy()[:, None],
                hovertext=[plotly_whole(group) for group in part["group"]],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": part[f"{kind}_high"].to_numpy() - middle,
                    "arrayminus": middle - part[f"{kind}_low"].to_numpy(),
                    "color": INK,
                },
                hovertemplate="%{hovertext}: %{y:.1f} % over %{customdata[0]} queries<extra>%{fullData.name}</extra>",
            )
            figure.add_trace(bar, row=1, col=column)
        figure.update_xaxes(named_axis(part["group"]), row=1, col=column)
    figure.update_layout(
        template=TEMPLATE, barmode="group", height=420, title=f"Change of {words.right} when the QR neurons are scaled"
    )
    figure.update_yaxes(title_text="mean change, %", col=1)
    return figure


def named_axis(names: Iterable[object]) -> dict[str, Any]:
    """The ticks of an axis whose positions 0, 1, 2 … stand for `names`.

    Plotly would read names that look like numbers or dates as such, and two that look the same as one.
    """
    labels = [plotly_label(name) for name in names]
    return {
        "type": "linear",
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": labels,
        "zeroline": False,
    }
