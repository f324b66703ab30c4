"""The log of a long call in its folder: a line for each thing that happens, with the time, for whoever looks later."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from qrnca_lens.core.shown import visible

JOURNAL = "log.txt"


class Journal:
    """Lines with their time at the end of a folder's log.txt; nowhere without a folder.

    A line that cannot be written is lost, and nothing else.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = folder and folder / JOURNAL

    def say(self, text: str) -> None:
        """Add a line."""
        if self._path is None or self._path.is_symlink():
            return
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{now}  {visible(text)}\n")
