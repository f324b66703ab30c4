"""How every command of `qrnca` ends on an error that names its remedy: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from qrnca_lens.packages import told
from qrnca_lens.terminal import say


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that name their remedy end the command with that text and exit code 1; all others keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted. A command with a run folder goes on from here when it is given again.", error=True)
        raise typer.Exit(130) from None
    except ModuleNotFoundError as error:
        _end(told(error))
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        if not _names_its_remedy(error):
            raise
        _end(error.args[0] if isinstance(error, KeyError) and error.args else error)  # str() of a KeyError adds quotes


def _names_its_remedy(error: Exception) -> bool:
    from qrnca_lens.attribution import AttributionError  # both load heavy packages
    from qrnca_lens.store import RunError

    return not isinstance(error, RuntimeError) or isinstance(error, (RunError, AttributionError))


def _end(words: object) -> NoReturn:
    say(f"Error: {words}", style="red", error=True)
    raise typer.Exit(1) from None
