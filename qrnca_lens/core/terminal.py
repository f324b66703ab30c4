"""What goes to the terminal: text as text. Brackets are no markup, `:name:` is no emoji, nothing is cut off, and what a
terminal would obey is shown as an escape.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from qrnca_lens.core.shown import visible, visible_lines


def say(text: object = "", *, style: str = "", error: bool = False) -> None:
    """Print a text of one or more lines, in one `style` of rich; with `error` on stderr."""
    console = Console(stderr=error)
    console.print(_text(console, visible_lines(text), style), soft_wrap=True)


def say_table(
    title: str, columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[object]], *, error: bool = False
) -> None:
    """Print a table; a column is its name and whether its cells stand on the right. With `error` on stderr."""
    console = Console(stderr=error)
    shown = Table(title=_text(console, visible(title), "italic"), title_justify="left")
    for name, right in columns:
        shown.add_column(_text(console, visible(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_text(console, visible(cell)) for cell in row))
    console.print(shown)


def _text(console: Console, text: str, style: str = "") -> Text:
    """A piece for the console, with escapes for what its encoding does not have."""
    return Text(text.encode(console.encoding, "backslashreplace").decode(console.encoding), style)


class Description(ProgressColumn):
    """The description of a task in a progress bar, as text."""

    def render(self, task: Task) -> Text:
        """The description in one line."""
        return Text(visible(task.description))


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


class _Stderr(logging.StreamHandler):
    """To the stderr of the moment: a program may have put another in place of the first, and closed that."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def plain_log() -> None:
    """Send warnings, those of the module `warnings` too, to stderr as text, without the line of code they come from."""
    handler = _Stderr()
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    warnings.formatwarning = _told


def _told(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    return f"{category.__name__}: {message}"


def progress_bar(shown: bool) -> Progress:
    """A progress bar with time left, on stderr; silent if not `shown`."""
    return Progress(
        Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
