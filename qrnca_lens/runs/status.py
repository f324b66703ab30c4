"""What stands in the folder of a long call, seen from another terminal without the model: done, failed, running, left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from qrnca_lens.core.alone import is_busy, owner_of
from qrnca_lens.core.journal import JOURNAL
from qrnca_lens.core.store import RunError, read_record
from qrnca_lens.core.values import given_path

State: TypeAlias = Literal["finished", "running", "stopped"]
_LINES = 5


@dataclass(frozen=True)
class RunStatus:
    """A run folder of `locate`: how many queries were asked, are done, failed (those are tried again by the next call), the
    seconds that the done ones took, and what the others take at that pace (None where nothing is done yet)."""

    folder: Path
    state: State
    owner: str
    queries: int
    done: int
    failed: int
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds that the queries that are not done will take."""
        missing = max(0, self.queries - self.done - self.failed)
        if self.state == "finished" or not missing:
            return 0.0
        return self.seconds / self.done * missing if self.done and self.seconds else None

    def __str__(self) -> str:
        told = f"{self.folder}: {self.state}"
        told += f" ({self.owner})" if self.owner else ""
        told += f"; {self.done} of {self.queries} queries done, {self.failed} failed, in {duration(self.seconds)}"
        if self.state == "finished":
            return told
        return f"{told}; {'time left unknown' if self.left is None else f'about {duration(self.left)} left'}"


@dataclass(frozen=True)
class StudyStatus:
    """A folder of `reproduce` or `transfer`: its runs, and the tables that are kept, by name with the seconds they took."""

    folder: Path
    state: State
    owner: str
    runs: tuple[RunStatus, ...]
    tables: dict[str, float]

    def __str__(self) -> str:
        told = f"{self.folder}: {self.state}" + (f" ({self.owner})" if self.owner else "")
        kept = ", ".join(f"{name} ({duration(seconds)})" for name, seconds in self.tables.items())
        return "\n".join([told, *(f"  {run}" for run in self.runs), f"  tables: {kept or 'none yet'}"])


def status_of(folder: str | os.PathLike[str]) -> RunStatus | StudyStatus:
    """What a folder of `locate`, `reproduce` or `transfer` holds at this moment. RunError for any other."""
    path = given_path("folder", folder)
    if (path / "study.json").is_file() or (path / "letter").is_dir():
        return _study(path)
    if (path / "manifest.json").is_file():
        return _run(path)
    raise RunError(f"{path}: no manifest.json or study.json there; give a folder that locate, reproduce or transfer wrote")


def is_finished(folder: str | os.PathLike[str], queries: Iterable[str]) -> bool:
    """Whether the folder says that it is a finished run in which these queries were asked, by their ids: `locate` then reads
    no prompt, unless it finds the folder damaged or another run's."""
    path = Path(folder)
    asked = [record.get("queries", {}) for record in _records([path / "manifest.json"])]
    return (path / "header.json").is_file() and bool(asked) and asked[0].keys() >= set(queries)


def last_lines(folder: str | os.PathLike[str], lines: int = _LINES) -> list[str]:
    """The last lines of a folder's log."""
    with suppress(OSError):
        return (Path(folder) / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return []


def duration(seconds: float) -> str:
    """Seconds in words: "2 hours"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 else "a second"


def _run(path: Path) -> RunStatus:
    asked = read_record(path / "manifest.json").get("queries", {})
    done: set[str] = set()
    failed: set[str] = set()
    seconds = 0.0
    for part in _records(path.glob("parts/*/part.json")):
        done |= part.get("queries", {}).keys()
        failed |= {one["query"] for one in part.get("failed", [])}
        seconds += part.get("seconds", 0.0)
    state: State = "running" if is_busy(path) else "stopped"
    for header in _records([path / "header.json"]):
        about, failures = header.get("about", {}), {one["query"] for one in header.get("failed", [])}
        done, failed = asked.keys() - failures, failures
        seconds, state = about.get("seconds", seconds), "running" if state == "running" else "finished"
    owner = owner_of(path) if state == "running" else ""
    return RunStatus(path, state, owner, len(asked), len(done), len(failed - done), float(seconds))


def _study(path: Path) -> StudyStatus:
    runs = tuple(_run(there.parent) for there in sorted(path.rglob("manifest.json")) if there.parent != path)
    tables = {
        f"{there.parent.name}/{name}" if there.parent != path else name: float(step.get("seconds", 0.0))
        for there in sorted(path.rglob("tables.json"))
        for record in _records([there])
        for name, step in record.get("tables", {}).items()
    }
    busy = is_busy(path)
    ended = any((path / name).is_file() for name in ("results.json", "transfer.json"))
    state: State = "running" if busy else "finished" if ended else "stopped"
    return StudyStatus(path, state, owner_of(path) if busy else "", runs, tables)


def _records(paths: Iterator[Path] | list[Path]) -> Iterator[dict[str, Any]]:
    """The records that are there and whole: one may be in the making."""
    for path in sorted(paths):
        with suppress(RunError):
            yield read_record(path)
