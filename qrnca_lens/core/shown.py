"""A user's text where it is shown: on a terminal, in HTML, in a plotly figure. Text stays text, whatever is in it.

Control characters, half surrogates, line separators and marks that reorder a line (bidi embeddings, overrides, isolates)
are shown as escapes: a terminal would obey them, a page would hide them or show the line in another order.
"""

from __future__ import annotations

import html
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

TITLE, LABEL, LINE = 24, 40, 80
"""The most characters of a title beside others in a figure, of a label there, and of a line of a hover text."""
_LONG = 24
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
_REORDER = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_PLOTLY = str.maketrans({"$": "&#36;", "{": "&#123;"})
_NO_MATH = "tex2jax_ignore mathjax_ignore"
"""The classes that keep a notebook's MathJax from taking `$5 or $6` for a formula."""


def visible(value: object) -> str:
    """The text of `value` in one line, what cannot be seen as escapes: line breaks as `\\n`, ESC as `\\x1b`."""
    text = str(value)
    return text if text.isprintable() else "".join(_escape(c) if _is_hidden(c) else c for c in text)


def visible_lines(value: object) -> str:
    """`visible`, but line breaks and tabs stay what they are."""
    return "".join(_escape(c) if c not in "\n\t" and _is_hidden(c) else c for c in str(value))


def _is_hidden(character: str) -> bool:
    return character in _REORDER or unicodedata.category(character) in _HIDDEN


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(value: object, most: int) -> str:
    """The text of `value`, cut to `most` characters; the last of them is then an ellipsis."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def escaped(value: object) -> str:
    """Any value as HTML text, or as the value of an attribute in quotes."""
    return html.escape(visible_lines(value))


def table(frame: pd.DataFrame, raw: Sequence[str] = ()) -> str:
    """An HTML table without the index; every cell is escaped, but for those of the columns `raw`, which are HTML already.

    Floats have four digits; None and NaN are empty cells. A long text has the class `long`, so that it can be wrapped.
    """
    names = [str(name) for name in frame.columns]
    head = "".join(f"<th>{escaped(name)}</th>" for name in names)
    rows = "".join(
        f"<tr>{''.join(_cell(value, name in raw) for name, value in zip(names, row, strict=True))}</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(value: object, is_html: bool) -> str:
    if is_html:
        return f"<td>{value}</td>"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "<td></td>"
    text = escaped(f"{value:.4g}" if isinstance(value, float) else value)
    return f'<td class="long">{text}</td>' if len(text) > _LONG else f"<td>{text}</td>"


def notebook(words: str, *frames: pd.DataFrame) -> str:
    """What a result's `_repr_html_` gives: a paragraph and tables, none of it HTML or a formula."""
    shown = "".join(f'<div style="overflow-x: auto">{table(frame)}</div>' for frame in frames)
    return f'<div class="{_NO_MATH}"><p style="overflow-wrap: anywhere">{escaped(words)}</p>{shown}</div>'


def without_math(body: str) -> str:
    """HTML in which a notebook sees no formulas."""
    return f'<div class="{_NO_MATH}">{body}</div>'


def plotly_label(value: object, most: int = LABEL) -> str:
    """A text for a title, tick, legend entry or annotation of a plotly figure, in one line of at most `most` characters.

    Plotly takes tags (`<a href>`), entities, `%{…}` and `$…$` for its own language; here none of them is left.
    """
    return _for_plotly(shortened(visible(value), most))


def plotly_whole(value: object) -> str:
    """A text for a plotly hover label: `plotly_label` without the cut, in lines of at most `LINE` characters."""
    return "<br>".join(_for_plotly(line) for line in textwrap.wrap(visible(value), LINE, drop_whitespace=False))


def _for_plotly(text: str) -> str:
    return html.escape(text, quote=False).translate(_PLOTLY)
