"""Where a long command's work is done, and `qrnca status`, which looks at it from another terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qrnca_lens.cli.errors import plain_errors
from qrnca_lens.core.terminal import say

if TYPE_CHECKING:
    from qrnca_lens.runs.executing import Engine as AnyEngine

Engine = Annotated[str, typer.Option("--engine", help="local, or ray: on every GPU, or CPU, of a Ray cluster")]
Address = Annotated[str | None, typer.Option("--address", help="of the Ray cluster; default: one on this machine")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="of Ray; default: one a GPU, else one a CPU")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="end at the first query that fails")]


def check_engine(engine: str, address: str | None, workers: int | None) -> None:
    """ValueError for an unknown engine, and for options of Ray without it."""
    if engine not in ("local", "ray"):
        raise ValueError(f"--engine must be local or ray, not {engine!r}")
    if engine == "local" and (address is not None or workers is not None):
        raise ValueError("--address and --workers are about Ray; give --engine ray too")


@contextmanager
def engine_for(model: Any, engine: str, address: str | None, workers: int | None) -> Iterator[AnyEngine]:
    """The engine of these options."""
    if engine == "local":
        yield "local"
        return
    with import_module("qrnca_lens.runs.ray_executor").RayExecutor(model, address=address, workers=workers) as executor:
        yield executor


def status(
    folder: Annotated[Path, typer.Argument(help="of locate, reproduce or transfer")],
) -> None:
    """Say what a run folder holds: what is done, failed or running, and the time left."""
    with plain_errors():
        from qrnca_lens.runs.status import last_lines, status_of

        say(status_of(folder))
    for line in last_lines(folder):
        say(f"  {line}")
