"""The pieces of HTML that all views are made of: tables, headings, the style, and what a notebook gets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files

import pandas as pd

from qrnca_lens.core import shown
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.views.components import MOUNT, library


class View:
    """A result that shows itself in a notebook; `to_html` is the same as a fragment for a page of one's own."""

    def to_html(self) -> str:
        """The view as an HTML fragment. It needs `style()`; with `components.library()` its token views become live."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return notebook_html(self.to_html())


def style() -> str:
    """The style sheet of all views, confined to elements of class "qrnca"."""
    return files("qrnca_lens.views").joinpath("explorer.css").read_text("utf-8")


_SENT: set[str] = set()


def notebook_html(body: str) -> str:
    """`body` for a notebook's output cell.

    The script of CircuitsVis goes into the first output of a kernel alone; later ones use it, and show their static
    rendering where it is missing. Colab keeps every output in a frame of its own, so there every output has it.
    """
    first = "library" not in _SENT or "google.colab" in sys.modules
    _SENT.add("library")
    script = f"<script>{library()}</script>" if first else ""
    view = shown.without_math(f'<div class="qrnca">{body}</div>')
    return f"<style>{style()}</style>{script}{view}<script>{MOUNT}window.qrncaMount();</script>"


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return f"<section><h3>{shown.escaped(title)}</h3>{''.join(parts)}</section>"


def note(words: str) -> str:
    """A line of explanation."""
    return f'<p class="qrnca-note">{shown.escaped(words)}</p>'


def neuron_button(neuron: Neuron) -> str:
    """The name of a neuron; in the explorer a click on it selects it."""
    return f'<button type="button" data-layer="{neuron.layer}" data-neuron="{neuron.index}">{neuron}</button>'


def table(frame: pd.DataFrame, raw: Sequence[str] = ()) -> str:
    """`shown.table` that scrolls where it is wider than its place."""
    return f'<div class="qrnca-scroll">{shown.table(frame, raw)}</div>'
