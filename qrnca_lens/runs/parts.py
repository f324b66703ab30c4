"""The parts of an unfinished run: folders with the tables of a few queries, which appear whole and have checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from qrnca_lens.clustering.gaps import read_gaps
from qrnca_lens.clustering.saving import SavedTables, read_clusters, read_queries
from qrnca_lens.clustering.tables import Failure, ModelShape
from qrnca_lens.core.store import (
    Checksums,
    DamagedRunError,
    DamageWarning,
    RunError,
    field_of,
    read_record,
    usable,
    write_record,
)
from qrnca_lens.core.writing import check_target, own_folder, tidy, whole_folder

_RECORD = "part.json"


@dataclass(frozen=True)
class Part:
    """What one part holds: the tables, the queries that failed meanwhile, and the seconds that it took."""

    tables: SavedTables
    failed: tuple[Failure, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Parts:
    """The folder of a run's parts, 00000, 00001, … Parts of another run or with other queries than `asked` (fingerprints by
    id) are no parts of this one."""

    folder: Path
    identity: dict[str, Any]
    model: ModelShape
    asked: dict[str, str] = field(repr=False)

    def make(self) -> None:
        """Make the folder and remove what a killed process left in the making. RunError where nothing can be written."""
        with usable():
            check_target(own_folder(self.folder) / _RECORD)
            tidy(self.folder)

    def write(self, part: Part) -> None:
        """Keep one more part. RunError where it cannot be written; then nothing of it is left."""
        with usable(), whole_folder(self.folder / f"{next(self._numbers):05d}") as made:
            files = part.tables.write(made)
            queries = {query: self.asked[query] for query in part.tables.queries["query"]}
            record = {"run": self._run, "queries": queries, "seconds": part.seconds, "files": files}
            write_record({**record, "failed": [asdict(one) for one in part.failed]}, made / _RECORD)

    def read(self) -> Iterator[Part]:
        """All parts, in their order. Damaged ones and those of another run are told in a DamageWarning and removed."""
        for there in sorted(self.folder.iterdir()):
            if there.name.isdigit() and there.is_dir():
                try:
                    yield self._part(there)
                except DamagedRunError as error:
                    warnings.warn(f"{error.what}; the queries of this part are computed anew", DamageWarning, stacklevel=2)
                    shutil.rmtree(there)
            else:
                warnings.warn(f"{there}: not of this run; it is left alone", DamageWarning, stacklevel=2)

    def any_of_this_run(self) -> bool:
        """Whether one of them says that it is of this run."""
        for file in self.folder.glob(f"*/{_RECORD}"):
            with suppress(DamagedRunError):
                if read_record(file).get("run") == self._run:
                    return True
        return False

    def renew(self) -> None:
        """Make sealed parts of those that an older version wrote: three files each, without checksums."""
        old = sorted(self.folder.glob("queries-*.parquet"))
        for queries in old:
            files = {
                name: queries.with_name(queries.name.replace("queries", name)) for name in ("clusters", "queries", "gaps")
            }
            try:
                self.write(Part(self._unsealed(files)))
            except DamagedRunError as error:
                warnings.warn(f"{error.what}; the queries of this part are computed anew", DamageWarning, stacklevel=2)
            for file in files.values():
                file.unlink(missing_ok=True)

    def remove(self, queries: Collection[str]) -> None:
        """Remove the parts that hold none but these queries, and the folder unless something else is in it."""
        tidy(self.folder)
        for there in [there for there in self.folder.iterdir() if there.name.isdigit() and there.is_dir()]:
            with suppress(RunError):  # a newer one
                try:
                    held = read_record(there / _RECORD).get("queries", {})
                except DamagedRunError:  # one that is of no use, such as one whose removal was cut off
                    held = {}
                if set(queries).issuperset(held):
                    shutil.rmtree(there)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _part(self, folder: Path) -> Part:
        file = folder / _RECORD
        record = read_record(file)
        if field_of(str, record, "run", file) != self._run:
            raise DamagedRunError(f"{folder}: a part of another run")
        queries = field_of(dict[str, str], record, "queries", file)
        for query, fingerprint in queries.items():
            if self.asked.get(query) != fingerprint:
                raise DamagedRunError(f"{folder}: a part with another query {query!r}")
        tables = SavedTables.read(folder, self.model, Checksums(record, file))
        if list(tables.queries["query"]) != list(queries):
            raise DamagedRunError(f"{folder}: its tables hold other queries than {_RECORD} names")
        failed = field_of(tuple[Failure, ...], record, "failed", file)
        return Part(tables, failed, field_of(float, record, "seconds", file))

    @cached_property
    def _numbers(self) -> Iterator[int]:
        """Those of the parts to come: the folder, which can hold thousands, is looked through once."""
        taken = [int(there.name) for there in self.folder.iterdir() if there.name.isdigit()]
        return count(max(taken, default=-1) + 1)

    @cached_property
    def _run(self) -> str:
        """What tells the parts of this run from those of others: a hash of what makes it."""
        identity = json.dumps([self.identity, asdict(self.model)], sort_keys=True)
        return hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16]

    def _unsealed(self, files: Mapping[str, Path]) -> SavedTables:
        sums = Checksums({"format": 2}, files["queries"])
        clusters, queries = read_clusters(files["clusters"], self.model, sums), read_queries(files["queries"], sums)
        for query in queries["query"]:
            if query not in self.asked:
                raise DamagedRunError(f"{files['queries']}: query {query!r} was not asked")
        return SavedTables(clusters, queries, read_gaps(files["gaps"], self.model.n_layers, sums))
