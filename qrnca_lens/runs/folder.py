"""The run folder of `locate`: what is computed is kept query by query, so that a run goes on, smaller or larger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from filelock import FileLock, Timeout

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.gaps import PromptGaps, gap_table, read_gaps
from qrnca_lens.clustering.qr_neurons import QUERY_COLUMNS, TABLE_COLUMNS, ModelShape, read_clusters, read_queries
from qrnca_lens.core.claims import claim_in, claimed_config, differences, refuse_another
from qrnca_lens.core.store import RunError, field_of, usable, write_record, write_table
from qrnca_lens.core.writing import check_target, own_folder
from qrnca_lens.data import Query, QuerySet

_FLUSH_SECONDS = 5.0
_LOCK = ".lock"
_Tables: TypeAlias = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]
"""The clusters, the rows and the gaps of some queries."""


@dataclass(frozen=True)
class RunIdentity:
    """What must be equal for one run to go on from another: the configuration, the model, its reader, each query as asked.

    `reader` is `Reader.record`; the class of the tokenizer in it may be another, as transformers renames them.
    `default_site` is what a folder of format 1 means by a site of null.
    """

    config: dict[str, Any]
    model: dict[str, Any]
    reader: dict[str, Any]
    queries: QuerySet
    default_site: str

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The SHA-256 of every query by its id: group, prompt texts and letters."""
        return {query.id: QuerySet((query,)).fingerprint for query in self.queries}

    def record(self, asked: dict[str, str]) -> dict[str, Any]:
        """What the manifest holds of it, with the fingerprints of all queries that were asked so far."""
        return {"config": self.config, "model": self.model, "reader": self.reader, "queries": asked}


class RunFolder:
    """The growing state of one locate call, in memory and, with a path, in parts on disk.

    A query counts as done once a queries part holds it; its clusters and gaps parts are written before. A finished folder
    (with header.json) is only read if it holds all that is asked for; else its tables become a part, and it is unfinished
    again.
    """

    def __init__(self, path: Path | None, identity: RunIdentity, origin: Mapping[str, Any]) -> None:
        self._path, self._identity, self._origin = path, identity, origin
        self._clusters: list[pd.DataFrame] = []
        self._queries: list[tuple[str, str, int, float, float]] = []
        self._gaps: list[PromptGaps] = []
        self._kept: list[_Tables] = []
        self._flushed = time.monotonic()
        self.done: set[str] = set()
        self.finished: QRNeurons | None = None
        """The folder's result, if it holds every query that is asked for, or why it failed."""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Read what the folder holds; one that is to be written belongs to this call alone until the block ends.

        RunError for a folder of another run, with other files or in which another call works, for damage, for a newer
        format and for one that cannot be written into.
        """
        with ExitStack() as stack:
            if self._path is not None:
                self._known(self._path)
                if self.finished is None:
                    self._path.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_alone_in(self._path))
                    self._go_on(self._path)
            yield

    def add(self, query: Query, cluster: pd.DataFrame, gaps: Sequence[PromptGaps]) -> None:
        """Take in one query, with what its integrals miss at each prompt; on disk at the latest some seconds later."""
        self._clusters.append(cluster.assign(query=query.id, group=query.group))
        probability = sum(prompt.probability for prompt in gaps) / len(gaps)
        worst = max(abs(gap) for prompt in gaps for gap in prompt.gaps)
        self._queries.append((query.id, query.group, len(query.prompts), probability, worst))
        self._gaps += gaps
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the block, what was computed is on disk afterwards."""
        try:
            yield
        finally:
            self._flush()

    def tables(self, queries: Sequence[str]) -> _Tables:
        """The clusters, the rows and the gaps of these queries, all done, in their order."""
        position = {query: i for i, query in enumerate(queries)}
        clusters, rows, gaps = (
            table[table["query"].isin(position)].sort_values(
                "query", key=lambda ids: ids.map(position), kind="stable", ignore_index=True
            )
            for table in (pd.concat(tables, ignore_index=True) for tables in zip(*self._kept, strict=True))
        )
        return clusters[TABLE_COLUMNS], rows[QUERY_COLUMNS], gaps

    def finish(self, located: QRNeurons) -> None:
        """Write the result beside the parts, the header last, then drop the parts unless they hold other queries too."""
        if self._path is not None:
            located.write_into(self._path)
            if self.done <= set(located.queries["query"]):
                shutil.rmtree(self._path / "parts")

    def _known(self, path: Path) -> tuple[dict[str, Any], dict[str, str], QRNeurons | None] | None:
        """The record of the run that the folder holds, its queries and its result, which is taken if it is `finished`."""
        manifest = path / "manifest.json"
        record = claim_in(manifest, "run", _LOCK)
        if record is None:
            return None
        finished = QRNeurons.load(path) if (path / "header.json").is_file() else None
        asked = self._check(record, manifest, finished)
        if finished is not None and self._holds(finished):
            self._take(finished.clusters, finished.queries, finished.gaps)
            self.finished = finished
        return record, asked, finished

    def _go_on(self, path: Path) -> None:
        """Make the folder ready for more; what stands in it is read anew, now that no other call writes."""
        known, identity, manifest = self._known(path), self._identity, path / "manifest.json"
        if self.finished is not None:
            return
        finished = None
        if known is not None:
            record, asked, finished = known
            self._parts(path)
            self._record(record, {**asked, **identity.fingerprints}, manifest)
        else:
            write_record({**identity.record(identity.fingerprints), **self._origin}, manifest)
            self._parts(path)
        for part in sorted((path / "parts").glob("queries-*.parquet")):
            clusters, gaps = (part.with_name(part.name.replace("queries", name)) for name in ("clusters", "gaps"))
            shape = ModelShape(**identity.model)
            self._take(read_clusters(clusters, shape), read_queries(part), read_gaps(gaps, shape.n_layers))
        if finished is not None:
            self._reopen(finished, path)

    def _parts(self, path: Path) -> None:
        with usable():
            check_target(own_folder(path / "parts") / "queries.parquet")

    def _check(self, record: dict[str, Any], path: Path, finished: QRNeurons | None) -> dict[str, str]:
        """The fingerprints of the recorded run's queries by id. RunError if it is another run than this one."""
        config = claimed_config(record, path, self._identity.default_site)
        model = field_of(dict[str, Any], record, "model", path)
        ours = self._identity.fingerprints
        if record["format"] > 1:
            asked = field_of(dict[str, str], record, "queries", path)
        elif finished is not None:
            asked = {query.id: QuerySet((query,)).fingerprint for query in finished.asked}
        else:  # one fingerprint for all of them
            whole = {"count": len(ours), "sha256": self._identity.queries.fingerprint}
            theirs = field_of(dict[str, Any], record, "queries", path)
            refuse_another(path.parent, "run", differences({"queries": whole}, {"queries": theirs}))
            asked = ours
        # a folder of a time before readers were recorded does not tell
        reader = field_of(dict[str, Any], record, "reader", path) if "reader" in record else self._identity.reader
        here = {"config": self._identity.config, "model": self._identity.model, "reader": self._identity.reader}
        there = {"config": config, "model": model, "reader": {**reader, "tokenizer": self._identity.reader["tokenizer"]}}
        changed = differences(here, there)
        changed += [
            f"query {query!r}: other prompts, letters or group here than in the folder"
            for query, fingerprint in ours.items()
            if asked.get(query, fingerprint) != fingerprint
        ]
        refuse_another(path.parent, "run", changed)
        return asked

    def _holds(self, finished: QRNeurons) -> bool:
        known = {*finished.queries["query"], *finished.failed["query"]}
        return known >= {query.id for query in self._identity.queries}

    def _record(self, record: dict[str, Any], asked: dict[str, str], manifest: Path) -> None:
        """Bring an older call's manifest up to this one: the queries asked so far, the versions that worked on it."""
        found = {**record, **self._identity.record(asked)}
        if record.get("versions") != self._origin["versions"]:
            again = field_of(tuple[dict[str, Any], ...], {"resumed_with": [], **record}, "resumed_with", manifest)
            found["resumed_with"] = [*again, self._origin["versions"]]
        if found != record:
            write_record({name: value for name, value in found.items() if name != "format"}, manifest)

    def _take(self, clusters: pd.DataFrame, queries: pd.DataFrame, gaps: pd.DataFrame) -> None:
        """Keep the rows of queries that are not done yet."""
        new = queries[~queries["query"].isin(self.done)]
        self._kept.append((clusters[clusters["query"].isin(new["query"])], new, gaps[gaps["query"].isin(new["query"])]))
        self.done.update(new["query"])

    def _reopen(self, finished: QRNeurons, path: Path) -> None:
        """Make an unfinished run of a finished one: its tables become a part before the header goes."""
        if not self.done.issuperset(finished.queries["query"]):
            tables = finished.clusters, finished.queries, finished.gaps
            self._write(*tables)
            self._take(*tables)
        (path / "header.json").unlink()

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._queries:
            tables = (
                pd.concat(self._clusters, ignore_index=True),
                pd.DataFrame(self._queries, columns=QUERY_COLUMNS),
                gap_table(self._gaps),
            )
            self._write(*tables)
            self._take(*tables)
            self._clusters, self._queries, self._gaps = [], [], []

    def _write(self, clusters: pd.DataFrame, queries: pd.DataFrame, gaps: pd.DataFrame) -> None:
        if self._path is not None:
            parts = self._path / "parts"
            number = len(list(parts.glob("queries-*.parquet")))
            write_table(clusters, parts / f"clusters-{number:05d}.parquet")
            write_table(gaps, parts / f"gaps-{number:05d}.parquet")
            write_table(queries, parts / f"queries-{number:05d}.parquet")


@contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    """The folder for this call alone. The system frees it when the process ends, however it ends."""
    lock = FileLock(path / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{path}: another call works in this folder; wait until it has ended, or choose another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes it when it is released
            (path / _LOCK).unlink(missing_ok=True)
        lock.release()
