"""How every command of `qrnca` ends on an error that names its remedy: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that name their remedy end the command with that text and exit code 1; all others keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. A command with a run folder goes on from here when it is given again.")
        raise typer.Exit(130) from None
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        from qrnca_lens.store import RunError  # it loads pandas

        if isinstance(error, RuntimeError) and not isinstance(error, RunError):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() of a KeyError adds quotes
        Console(stderr=True).print(f"Error: {text}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
