"""Small charts as SVG text: they need no script, so they show in every notebook, in the explorer and in a plain file.

Every mark has its exact value in a tooltip. Ink is the page's own colour, so that light and dark both work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import SupportsFloat

import numpy as np

from qrnca_lens.core.shown import escaped
from qrnca_lens.localization import Heatmap
from qrnca_lens.views.plots.figures import PALETTE

_LEFT, _BOTTOM, _TOP, _RIGHT = 46, 34, 12, 20
POSITIVE, NEGATIVE = PALETTE[1], PALETTE[0]


def lines(
    series: Mapping[str, Sequence[float]],
    x: Sequence[float],
    *,
    x_title: str,
    y_title: str,
    strong: str = "",
    top: float = 1.0,
) -> str:
    """One line a series over `x`, y from 0 to `top`; the series named `strong` is drawn thicker, each has a legend entry."""
    width, height = 440, 230
    across, up = _scale(min(x), max(x), _LEFT, width - _RIGHT), _scale(0, top, height - _BOTTOM, _TOP)
    heights, marks = (0.0, 0.5, 1.0) if top == 1 else (0.0, top), []
    for i, (name, values) in enumerate(series.items()):
        colour, thick = PALETTE[i % len(PALETTE)], 3 if name == strong else 1.5
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, values, strict=True))
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
        marks += [
            f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="4" fill="{colour}" fill-opacity="0.25">'
            f"<title>{escaped(name)}: {escaped(x_title)} {a:g}, {escaped(y_title)} {b:.4g}</title></circle>"
            for a, b in zip(x, values, strict=True)
        ]
    axes = _axes(width, height, [(across(v), f"{v:g}") for v in _ticks(x)], [(up(v), f"{v:.2g}") for v in heights])
    return _svg(width, height, axes + "".join(marks), x_title, y_title) + _legend(series)


def histogram(values: Mapping[str, np.ndarray], *, x_title: str, bins: int = 30) -> str:
    """Counts by bin, one colour a group, stacked; the line at 0 parts the two signs."""
    width, height = 440, 230
    everything = np.concatenate([np.asarray(v, dtype=float) for v in values.values()])
    low, high = min(float(everything.min()), 0.0), max(float(everything.max()), 0.0)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = {name: np.histogram(v, edges)[0] for name, v in values.items()}
    most = max(int(np.sum(list(counts.values()), axis=0).max()), 1)
    across, up = _scale(edges[0], edges[-1], _LEFT, width - _RIGHT), _scale(0, most, height - _BOTTOM, _TOP)
    marks, below = [], np.zeros(bins)
    for i, (name, count) in enumerate(counts.items()):
        for k in np.flatnonzero(count):
            top, bottom = up(below[k] + count[k]), up(below[k])
            marks.append(
                f'<rect x="{across(edges[k]):.1f}" y="{top:.1f}" width="{across(edges[1]) - across(edges[0]) - 0.5:.1f}" '
                f'height="{bottom - top:.1f}" {_fill(i)}><title>{escaped(name)}: {count[k]} '
                f"prompts from {edges[k]:.3g} to {edges[k + 1]:.3g}</title></rect>"
            )
        below += count
    zero = f'<line x1="{across(0):.1f}" x2="{across(0):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" class="qrnca-zero"/>'
    ticks = [(across(v), f"{v:.3g}") for v in sorted({float(edges[0]), 0.0, float(edges[-1])})]
    axes = _axes(width, height, ticks, [(up(0), "0"), (up(most), str(most))])
    return _svg(width, height, axes + "".join(marks) + zero, x_title, "prompts") + _legend(counts)


def bars(rows: Sequence[tuple[str, float, str]], *, title: str) -> str:
    """Horizontal bars from a zero line: (label, value, tooltip) by row; orange above zero, blue below."""
    step, label, width = 18, 130, 440
    top = max((abs(value) for _, value, _ in rows), default=1.0) or 1.0
    least = min(0.0, min((value for _, value, _ in rows), default=0.0)) / top
    most = max(0.0, max((value for _, value, _ in rows), default=1.0)) / top
    across = _scale(least, most if most > least else 1, label + 56, width - 52)
    marks = []
    for i, (name, value, tip) in enumerate(rows):
        x0, x1 = sorted((across(0), across(value / top)))
        at, anchor = (x1 + 4, "start") if value >= 0 else (x0 - 4, "end")
        y, colour = i * step, POSITIVE if value >= 0 else NEGATIVE
        marks += [
            f"<g><title>{escaped(tip)}</title>",
            f'<text x="{label}" y="{y + 13}" text-anchor="end">{escaped(name)}</text>',
            f'<rect x="{x0:.1f}" y="{y + 3}" width="{max(x1 - x0, 0.5):.1f}" height="{step - 5}" fill="{colour}"/>',
            f'<text x="{at:.1f}" y="{y + 13}" text-anchor="{anchor}">{value:.3g}</text></g>',
        ]
    height = step * len(rows) + 4
    return (
        f'<figure><figcaption>{escaped(title)}</figcaption><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img">{"".join(marks)}</svg></figure>'
    )


def grid(shown: Heatmap) -> str:
    """A map layer x neuron bins, layer 0 at the bottom. Each filled cell carries its layer and its strongest neuron."""
    values, starts, best, counts = shown.values, shown.starts, shown.best, shown.neurons
    layers, columns = values.shape
    width, row = 900, max(8, min(34, 360 // layers))
    height = layers * row + _BOTTOM + _TOP
    cell = (width - _LEFT - _RIGHT) / columns
    filled = values[counts > 0]
    top = float(np.quantile(filled, 0.99)) if filled.size else 1.0
    marks = []
    for layer, k in np.argwhere(counts > 0).tolist():
        y = _TOP + (layers - 1 - layer) * row
        share = min(1.0, values[layer, k] / top) if top else 1.0
        tip = (
            f"layer {layer}, neurons from {starts[k]}: {counts[layer, k]} QR neurons, strongest L{layer}.N{best[layer, k]}, "
            f"most in {shown.query[layer, k]}; summed naica {values[layer, k]:.4f} ({shown.group})"
        )
        marks.append(
            f'<rect class="qrnca-cell" data-layer="{layer}" data-neuron="{best[layer, k]}" x="{_LEFT + k * cell:.2f}" '
            f'y="{y}" width="{cell:.2f}" height="{row - 1}" fill="{PALETTE[5]}" fill-opacity="{0.25 + 0.75 * share:.2f}" '
            f'tabindex="0" role="button" aria-label="L{layer}.N{best[layer, k]}"><title>{escaped(tip)}</title></rect>'
        )
    every = max(1, layers // 8)
    up = [(_TOP + (layers - 0.5 - layer) * row, str(layer)) for layer in range(0, layers, every)]
    across = [(_LEFT + k * cell, str(starts[k])) for k in range(0, columns, max(1, columns // 8))]
    axes = _axes(width, height, across, up)
    return _svg(width, height, axes + "".join(marks), "neuron index", "layer")


def dots(marks: Sequence[tuple[int, int, float, str]], n_layers: int, d_mlp: int) -> str:
    """Single neurons on a map layer x index: (layer, index, size, tooltip); a larger size is a larger dot."""
    width, row = 900, max(8, min(26, 240 // n_layers))
    height = n_layers * row + _BOTTOM + _TOP
    across, up = _scale(0, d_mlp, _LEFT, width - _RIGHT), _scale(-0.5, n_layers - 0.5, height - _BOTTOM, _TOP)
    top = max([0.0, *(size for *_, size, _ in marks)]) or 1.0
    shown = "".join(
        f'<circle class="qrnca-cell" data-layer="{layer}" data-neuron="{index}" cx="{across(index):.1f}" '
        f'cy="{up(layer):.1f}" r="{3 + 7 * max(0.0, size / top) ** 0.5:.1f}" fill="{PALETTE[5]}" fill-opacity="0.6">'
        f"<title>{escaped(tip)}</title></circle>"
        for layer, index, size, tip in marks
    )
    every = max(1, n_layers // 8)
    axes = _axes(
        width,
        height,
        [(across(v), f"{v:.0f}") for v in _ticks([0.0, float(d_mlp)])],
        [(up(layer), str(layer)) for layer in range(0, n_layers, every)],
    )
    return _svg(width, height, axes + shown, "neuron index", "layer")


def _fill(i: int) -> str:
    """The colour of series `i`; those beyond the palette take its colours again, pale."""
    return f'fill="{PALETTE[i % len(PALETTE)]}" fill-opacity="{1 if i < len(PALETTE) else 0.45}"'


def _legend(names: Iterable[str]) -> str:
    entries = "".join(
        f'<span><svg viewBox="0 0 1 1"><rect width="1" height="1" {_fill(i)}/></svg>{escaped(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<p class="qrnca-legend">{entries}</p>'


def _scale(low: SupportsFloat, high: SupportsFloat, start: int, end: int) -> Callable[[SupportsFloat], float]:
    """From values to pixels."""
    first, span = float(low), float(high) - float(low) or 1.0
    return lambda value: start + (float(value) - first) / span * (end - start)


def _ticks(x: Sequence[float]) -> list[float]:
    low, high = float(min(x)), float(max(x))
    return [low + (high - low) * i / 4 for i in range(5)]


def _axes(width: int, height: int, across: Sequence[tuple[float, str]], up: Sequence[tuple[float, str]]) -> str:
    base = height - _BOTTOM
    parts = [
        f'<path d="M{_LEFT} {_TOP}V{base}H{width - _RIGHT}" class="qrnca-axis"/>',
        *[f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle">{escaped(name)}</text>' for x, name in across],
        *[f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{escaped(name)}</text>' for y, name in up],
    ]
    return "".join(parts)


def _svg(width: int, height: int, content: str, x_title: str, y_title: str) -> str:
    middle = (height - _BOTTOM + _TOP) / 2
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{content}'
        f'<text x="{(width + _LEFT) / 2}" y="{height - 4}" text-anchor="middle">{escaped(x_title)}</text>'
        f'<text x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">{escaped(y_title)}</text>'
        "</svg>"
    )
