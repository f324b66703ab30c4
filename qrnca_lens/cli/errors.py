"""How every command of `qrnca` ends on an error that names its remedy: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from qrnca_lens.core.packages import told
from qrnca_lens.core.terminal import say
from qrnca_lens.core.values import WrongKindError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors that name their remedy end the command with that text and exit code 1; all others keep their traceback.

    Of type errors, only what a user gave is such a one (`WrongKindError`): any other is a fault of the program.
    """
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted. A command with a run folder goes on from here when it is given again.", error=True)
        raise typer.Exit(130) from None
    except ModuleNotFoundError as error:
        _end(told(error))
    except MemoryError as error:
        _end(_no_memory(error))
    except EOFError as error:
        _end(f"a file or an input ends too early{_detail(error)}; make or download it again")
    except (ValueError, KeyError, OSError, RuntimeError, WrongKindError) as error:
        if _is_full(error):
            _end(_no_memory(error))
        if not _names_its_remedy(error):
            raise
        _end(error.args[0] if isinstance(error, KeyError) and error.args else error)  # str() of a KeyError adds quotes


def _names_its_remedy(error: Exception) -> bool:
    from qrnca_lens.attribution import AttributionError  # both load heavy packages
    from qrnca_lens.core.store import RunError

    return not isinstance(error, RuntimeError) or isinstance(error, (RunError, AttributionError))


def _is_full(error: Exception) -> bool:
    """Whether torch found no memory: on a GPU it has an error of its own, on a CPU words."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )


def _no_memory(error: BaseException) -> str:
    return f"not enough memory{_detail(error)}; take fewer or shorter questions, a smaller model or another device"


def _detail(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return first and f" ({first})"


def _end(words: object) -> NoReturn:
    say(f"Error: {words}", style="red", error=True)
    raise typer.Exit(1) from None
