"""The tables of a measurement of many steps: each is kept as it is made, so that a call that ends goes on where it was."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.core.store import (
    SEALED,
    DamagedRunError,
    DamageWarning,
    field_of,
    read_record,
    read_table,
    usable,
    write_record,
    write_table,
)
from qrnca_lens.core.writing import check_target, own_folder

_RECORD = "tables.json"


class KeptTables:
    """Tables as NAME.parquet in a folder, beside a record (tables.json) with the checksum and the seconds of each.

    A table that is damaged or whose checksum is not known counts as not made, and is told in a DamageWarning. RunError for a
    folder that cannot be made or written into, and where the disk is full.
    """

    def __init__(self, folder: Path, *, written: int) -> None:
        """Of a folder in the format `written`."""
        self._folder, self._record = folder, folder / _RECORD
        self.steps: dict[str, dict[str, Any]] = {}
        """By table: `sha256`, and `seconds` that it took."""
        if self._record.is_file():
            try:
                self.steps = field_of(dict[str, dict[str, Any]], read_record(self._record), "tables", self._record)
            except DamagedRunError as error:
                warnings.warn(f"{error.what}; all tables beside it are made anew", DamageWarning, stacklevel=2)
        elif written < SEALED:
            self.steps = {path.stem: {} for path in folder.glob("*.parquet")}

    def table(self, name: str, made: Callable[[], pd.DataFrame], serves: Callable[[pd.DataFrame], bool]) -> pd.DataFrame:
        """The kept table if it `serves`, else the one that is made now, which is then kept."""
        kept = self.kept(name)
        if kept is not None and serves(kept):
            return kept
        with usable():
            check_target(own_folder(self._folder) / f"{name}.parquet")
        began = time.monotonic()
        return self.keep(name, made(), time.monotonic() - began)

    def kept(self, name: str) -> pd.DataFrame | None:
        """The kept table; None where there is none that is whole."""
        path, step = self._folder / f"{name}.parquet", self.steps.get(name)
        if not path.is_file():
            return None
        try:
            if step is None:
                raise DamagedRunError(f"{self._record}: no checksum of {path.name}")
            return read_table(path, sha256=step.get("sha256"))
        except DamagedRunError as error:
            warnings.warn(f"{error.what}; it is made anew", DamageWarning, stacklevel=2)
            return None

    def keep(self, name: str, table: pd.DataFrame, seconds: float = 0.0) -> pd.DataFrame:
        """Keep a table; as it is read again."""
        path = self._folder / f"{name}.parquet"
        with usable():
            own_folder(self._folder)
            sha256 = write_table(table, path)
            self.steps[name] = {"sha256": sha256, "seconds": round(seconds, 2)}
            write_record({"tables": self.steps}, self._record)
        return read_table(path, sha256=sha256)
