"""One self-contained HTML page: plotly's script is in it once, nothing is fetched. Knows figures and tables, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from qrnca_lens.core.shown import escaped, table
from qrnca_lens.core.store import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --ground: #ffffff; --rule: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --ground: #0d1117; --rule: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto; padding: 1.5rem;
  max-width: 70rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0.5rem 0; } .scroll { overflow-x: auto; }
th, td { border-bottom: 1px solid var(--rule); padding: 0.25rem 0.75rem; text-align: right; vertical-align: top;
  max-width: 32rem; overflow-wrap: break-word; }
th:first-child, td:first-child { text-align: left; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } p.note { opacity: 0.8; } pre { white-space: pre-wrap; }
"""


@dataclass(frozen=True)
class Section:
    """A heading, plain text (escaped; blank lines part paragraphs), and then a figure, a table or a preformatted text."""

    title: str
    text: str = ""
    content: go.Figure | pd.DataFrame | str | None = None


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page and return its path. It makes no network request and works from a file."""
    body = "\n".join(_section(section, f"figure-{i}") for i, section in enumerate(sections))
    needs_plotly = any(isinstance(section.content, go.Figure) for section in sections)
    script = f"<script>{get_plotlyjs()}</script>" if needs_plotly else ""
    return write_shell(path, title, body, head=script)


def write_shell(path: Path, title: str, body: str, *, head: str = "") -> Path:
    """Write a page with the common style around `body` and `head`, which are HTML already; returns its path."""
    name = escaped(title)
    write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style>{head}</head><body><h1>{name}</h1>\n{body}\n</body></html>\n",
        path,
    )
    return path


def _section(section: Section, figure_id: str) -> str:
    paragraphs = "".join(f"<p>{escaped(part)}</p>" for part in section.text.split("\n\n") if part.strip())
    content = section.content
    if isinstance(content, go.Figure):
        shown = content.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=figure_id,
            config={"responsive": True, "displaylogo": False},
        )
    elif isinstance(content, pd.DataFrame):
        shown = f'<div class="scroll">{table(content)}</div>'
    else:
        shown = f"<pre>{escaped(content)}</pre>" if content else ""
    return f"<section><h2>{escaped(section.title)}</h2>{paragraphs}{shown}</section>"
