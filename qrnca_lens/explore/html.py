"""The pieces of HTML that all views are made of: tables, headings, the style, and what a notebook gets."""

from __future__ import annotations

import html
import sys
from collections.abc import Sequence
from importlib.resources import files

import pandas as pd

from qrnca_lens.explore.components import MOUNT, library
from qrnca_lens.neurons import Neuron


class View:
    """A result that shows itself in a notebook; `to_html` is the same as a fragment for a page of one's own."""

    def to_html(self) -> str:
        """The view as an HTML fragment. It needs `style()`; with `components.library()` its token views become live."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return notebook_html(self.to_html())


def style() -> str:
    """The style sheet of all views, confined to elements of class "qrnca"."""
    return files("qrnca_lens.explore").joinpath("explorer.css").read_text("utf-8")


_SENT: set[str] = set()


def notebook_html(body: str) -> str:
    """`body` for a notebook's output cell.

    The script of CircuitsVis goes into the first output of a kernel alone; later ones use it, and show their static
    rendering where it is missing. Colab keeps every output in a frame of its own, so there every output has it.
    """
    first = "library" not in _SENT or "google.colab" in sys.modules
    _SENT.add("library")
    script = f"<script>{library()}</script>" if first else ""
    return f'<style>{style()}</style>{script}<div class="qrnca">{body}</div><script>{MOUNT}window.qrncaMount();</script>'


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return f"<section><h3>{text(title)}</h3>{''.join(parts)}</section>"


def text(value: object) -> str:
    """Any value, escaped."""
    return html.escape(str(value))


def note(words: str) -> str:
    """A line of explanation."""
    return f'<p class="qrnca-note">{text(words)}</p>'


def neuron_button(neuron: Neuron) -> str:
    """The name of a neuron; in the explorer a click on it selects it."""
    return f'<button type="button" data-layer="{neuron.layer}" data-neuron="{neuron.index}">{neuron}</button>'


def table(frame: pd.DataFrame, raw: Sequence[str] = ()) -> str:
    """A table with every cell escaped, but for those of the columns `raw`, which are HTML already."""
    head = "".join(f"<th>{text(name)}</th>" for name in frame.columns)
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{value if name in raw else text(_shown(value))}</td>" for name, value in row.items())
        + "</tr>"
        for row in frame.to_dict("records")
    )
    return f'<div class="qrnca-scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
