"""The measurement as plotly figures: what the four sets do, and of which kind neurons and effects are."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from qrnca_lens.study.transfer.both_ways import READS
from qrnca_lens.study.transfer.effects import PLACES, SETS
from qrnca_lens.study.transfer.kinds import NEURON_KINDS
from qrnca_lens.study.transfer.split import FOUND, FOUND_TOGETHER, PARTS, RANDOM, RANDOM_TOGETHER
from qrnca_lens.views.plots.figures import INK, PALETTE, TEMPLATE, named_axis

_COLOURS = {"own": PALETTE[5], "unrelated": PALETTE[2]}
_READ = {"letter": "P of the right letter", "answer": "P of the right answer's text"}
_FOUND, _RANDOM = PALETTE[0], PALETTE[6]


def effects_figure(effects: pd.DataFrame) -> go.Figure:
    """The change of P in % by each of the four sets, on the own question and an unrelated one, whiskers 95 % intervals.

    `effects` is `Transfer.effects`; one panel for the letter, one for the answer.
    """
    figure = make_subplots(1, len(READS), subplot_titles=[_READ[read] for read in READS], shared_yaxes=True)
    for column, read in enumerate(READS, 1):
        for on in PLACES:
            rows = effects[(effects["prompts"] == read) & (effects["on"] == on)].set_index("set").reindex(list(SETS))
            bar = _bar(rows, "percent", f"{on} question", _COLOURS[on], "%{y:.1f} %")
            figure.add_trace(bar.update(legendgroup=on, showlegend=column == 1), row=1, col=column)
        figure.update_xaxes(named_axis(SETS), automargin=True, row=1, col=column)
    figure.update_layout(template=TEMPLATE, barmode="group", height=420, title="Neurons found each way, suppressed")
    figure.update_yaxes(title_text="mean change, %", col=1)
    return figure


def split_figure(kinds: pd.DataFrame, parts: pd.DataFrame) -> go.Figure:
    """Of which kind the neurons found by letter are, and the parts of what they do together, beside random neurons.

    `kinds` and `parts` are those of a `Transfer`.
    """
    titles = ["neurons by kind", "parts of what a question's neurons do together"]
    figure = make_subplots(1, 2, subplot_titles=titles)
    for name, together, colour in ((FOUND, FOUND_TOGETHER, _FOUND), (RANDOM, RANDOM_TOGETHER, _RANDOM)):
        of_kind = kinds[kinds["neurons"] == name].set_index("kind").reindex(list(NEURON_KINDS))
        shares = of_kind.rename(columns={"low": "share_low", "high": "share_high"})
        of_part = parts[parts["neurons"] == together].set_index("part").reindex(list(PARTS))
        means = of_part.rename(columns={"low": "mean_low", "high": "mean_high"})
        words = "found by letter" if name == FOUND else "random, same layers"
        figure.add_trace(_bar(shares, "share", words, colour, "%{y:.1f} %").update(legendgroup=name), row=1, col=1)
        second = _bar(means, "mean", words, colour, "%{y:.3f} nats").update(legendgroup=name, showlegend=False)
        figure.add_trace(second, row=1, col=2)
    figure.update_xaxes(named_axis(NEURON_KINDS), automargin=True, row=1, col=1)
    figure.update_xaxes(named_axis(PARTS), automargin=True, row=1, col=2)
    figure.update_yaxes(title_text="share of neurons, %", row=1, col=1)
    figure.update_yaxes(title_text="fall of the right option, nats", row=1, col=2)
    figure.update_layout(template=TEMPLATE, barmode="group", height=420, title="Letter or content?")
    return figure


def _bar(rows: pd.DataFrame, name: str, words: str, colour: str, hover: str) -> go.Bar:
    middle = rows[name].to_numpy(dtype=float)
    return go.Bar(
        x=list(range(len(rows))),
        y=middle,
        name=words,
        marker={"color": colour},
        hovertext=[str(label) for label in rows.index],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": rows[f"{name}_high"].to_numpy(dtype=float) - middle,
            "arrayminus": middle - rows[f"{name}_low"].to_numpy(dtype=float),
            "color": INK,
        },
        hovertemplate=f"%{{hovertext}}: {hover}<extra>%{{fullData.name}}</extra>",
    )
