"""One process at a time writes in a folder; the next is told who does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qrnca_lens.core.store import RunError, read_record, usable, write_record

LOCK = ".lock"
"""What the names of the files of a lock begin with."""
_OWNER = f"{LOCK}.json"
_PATIENCE = 0.5  # seconds: one that only looks whether the folder is busy has the lock for a moment
_TRIES, _PAUSE = 20, 0.05


def left_by_the_dead(folder: Path) -> bool:
    """Whether there are files of a lock that nobody has."""
    return (folder / LOCK).exists() and not is_busy(folder)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder for this call alone, until the block ends. The system frees it when the process ends, however it ends, so
    that what a killed one leaves is taken over.

    RunError, with the other's process id, host and time of start, where another call works in it, in this process or in
    another; and where no file can be made.
    """
    lock = FileLock(folder / LOCK, timeout=_PATIENCE)
    with usable():
        try:
            lock.acquire()
        except Timeout:
            raise _busy(folder) from None
    try:
        with suppress(OSError):  # a disk that is full: the next is not told who works here
            write_record(_self(), folder / _OWNER)
        yield
    finally:
        (folder / _OWNER).unlink(missing_ok=True)
        with suppress(PermissionError):  # Windows removes it when it is released
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def refuse_busy(folder: Path) -> None:
    """RunError where another call works in a folder at this moment."""
    if is_busy(folder):
        raise _busy(folder)


def is_busy(folder: Path) -> bool:
    """Whether a call works in a folder."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def owner_of(folder: Path) -> str:
    """Who works in a folder that is busy: "process 7 on host, since 2026-01-01T12:00:00+00:00"."""
    for _ in range(_TRIES):  # it says so a moment after it has the folder
        with suppress(RunError):
            owner = read_record(folder / _OWNER)
            return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"
        time.sleep(_PAUSE)
    return "another process, which did not say who it is"


def _busy(folder: Path) -> RunError:
    return RunError(
        f"{folder}: another call works in this folder ({owner_of(folder)}); wait until it has ended, stop it, or choose "
        "another folder"
    )


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().astimezone().isoformat("T", "seconds")}
