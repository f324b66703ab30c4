"""The run folder of `locate`: what is computed is kept query by query, so that a run goes on, smaller or larger."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.gaps import PromptGaps, gap_table
from qrnca_lens.clustering.saving import HEADER, SavedTables, result_of, whole_tables
from qrnca_lens.clustering.tables import QUERY_COLUMNS, TABLE_COLUMNS, Failure, ModelShape
from qrnca_lens.core.alone import LOCK, alone_in, left_by_the_dead, refuse_busy
from qrnca_lens.core.claims import claim_in, claimed_config, differences, refuse_another
from qrnca_lens.core.journal import Journal
from qrnca_lens.core.store import SEALED, DamagedRunError, DamageWarning, RunError, field_of, usable, write_record
from qrnca_lens.core.writing import tidy
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.runs.parts import Part, Parts

_FLUSH_SECONDS = 5.0
MANIFEST = "manifest.json"
PARTS = "parts"


@dataclass(frozen=True)
class RunIdentity:
    """What must be equal for one run to go on from another: the configuration, the model, its reader, each query as asked.

    `reader` is `Reader.record`; the class of the tokenizer in it may be another, as transformers renames them.
    `default_site` is what a folder of format 1 means by a site of null. `name` is the model's; `shape` gives the rest, which
    takes a while, as all weights are hashed; `summed` tells much faster that they are the same (`weights_sum`). Either is
    called where it is needed, once.
    """

    config: dict[str, Any]
    name: str
    shape: Callable[[], ModelShape]
    summed: Callable[[], str]
    reader: dict[str, Any]
    queries: QuerySet
    default_site: str

    @cached_property
    def model(self) -> ModelShape:
        """The model's name, size and fingerprint."""
        return self.shape()

    @cached_property
    def weights(self) -> str:
        """The sum of the model's weights."""
        return self.summed()

    @property
    def beside_model(self) -> dict[str, Any]:
        """The configuration and the reader, which may have a tokenizer of another class."""
        return {"config": self.config, "reader": {**self.reader, "tokenizer": ""}}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The SHA-256 of every query by its id, of all that it says."""
        return {query.id: query.fingerprint for query in self.queries}

    @cached_property
    def older_fingerprints(self) -> dict[str, str]:
        """The same as folders of formats 1 and 2 have it: of group, prompt texts and letters alone."""
        return {query.id: QuerySet((query,)).fingerprint for query in self.queries}

    def record(self, asked: dict[str, str]) -> dict[str, Any]:
        """What the manifest holds of it, with the fingerprints of all queries that were asked so far."""
        model = asdict(self.model)
        return {"config": self.config, "model": model, "weights": self.weights, "reader": self.reader, "queries": asked}


@dataclass(frozen=True)
class _Known:
    """What a folder says of itself: the record of its manifest, the fingerprints of the queries that were asked, the result,
    where it is finished and whole."""

    record: dict[str, Any]
    asked: dict[str, str]
    finished: QRNeurons | None


class RunFolder:
    """The growing state of one locate call, in memory and, with a path, in parts on disk.

    A query counts as done once a part holds it. A finished folder (with header.json) is only read if it holds all that is
    asked for and is whole; else its tables become a part, and it is unfinished again.
    """

    def __init__(self, path: Path | None, identity: RunIdentity) -> None:
        self._path, self.identity = path, identity
        self._clusters: list[pd.DataFrame] = []
        self._queries: list[tuple[str, str, int, float, float]] = []
        self._gaps: list[PromptGaps] = []
        self._failed: list[Failure] = []
        self._kept: list[SavedTables] = []
        self._flushed = time.monotonic()
        self._parts: Parts | None = None
        self._record: dict[str, Any] = {}
        self.journal = Journal(None)
        self.done: set[str] = set()
        self.seconds = 0.0
        """What the queries in the parts took, in all calls."""

    def result(self) -> QRNeurons | None:
        """The folder's result, if it is finished, whole, of this run, and knows every query that is asked for.

        RunError for a folder of another run, with other files and of a newer format.
        """
        if self._path is None or not (self._path / HEADER).is_file():
            return None
        known = self._known(self._path, warn=False)
        if known is None or known.finished is None or not self._holds(known.finished):
            return None
        self._take(Part(_tables_of(known.finished)))
        self._tidy(self._path, known)
        return known.finished

    def _tidy(self, path: Path, known: _Known) -> None:
        """Remove what a call that was killed while it finished has left: parts of the result, its lock."""
        if known.finished is None or not ((path / PARTS).is_dir() or left_by_the_dead(path)):
            return
        with suppress(RunError), alone_in(path):  # one that may not be written into, or in which another works, stays
            if (path / PARTS).is_dir():
                parts = Parts(path / PARTS, self.identity.beside_model, known.finished.model, known.asked)
                parts.remove(known.finished.queries["query"].tolist())

    def refuse_busy(self) -> None:
        """RunError where another call works in the folder, before anything is done for one that would be refused later."""
        if self._path is not None:
            refuse_busy(self._path)

    @contextmanager
    def opened(self, origin: Mapping[str, Any]) -> Iterator[None]:
        """Read what the folder holds; it belongs to this call alone until the block ends, and what is computed in it is on
        disk however it ends. `origin` is what the manifest of a new run says beside its identity.

        RunError for a folder of another run, with other files or in which another call works, for a newer format, for one
        that cannot be written into, and where the disk is full. What is damaged is told in a DamageWarning.
        """
        with ExitStack() as stack:
            if self._path is not None:
                with usable():
                    self._path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone_in(self._path))
                self._go_on(self._path, origin)
            stack.callback(self.flush)
            self._flushed = time.monotonic()
            yield

    def add(self, query: Query, cluster: pd.DataFrame, gaps: Sequence[PromptGaps]) -> None:
        """Take in one query, with what its integrals miss at each prompt."""
        self._clusters.append(cluster.assign(query=query.id, group=query.group))
        probability = sum(prompt.probability for prompt in gaps) / len(gaps)
        worst = max(abs(gap) for prompt in gaps for gap in prompt.gaps)
        self._queries.append((query.id, query.group, len(query.prompts), probability, worst))
        self._gaps += gaps

    def failed(self, failure: Failure) -> None:
        """Note a query that failed."""
        self._failed.append(failure)
        self.journal.say(f"query {failure.query!r} failed at prompt {failure.prompt}: {failure.reason}")

    def settle(self) -> None:
        """Put on disk what was added, unless that was done a moment ago."""
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put on disk what was added."""
        taken, self._flushed = time.monotonic() - self._flushed, time.monotonic()
        if not self._queries:
            return
        clusters, queries = pd.concat(self._clusters, ignore_index=True), pd.DataFrame(self._queries, columns=QUERY_COLUMNS)
        self._keep(Part(SavedTables(clusters, queries, gap_table(self._gaps)), tuple(self._failed), round(taken, 2)))
        self._clusters, self._queries, self._gaps, self._failed = [], [], [], []

    def tables(self, queries: Sequence[str]) -> SavedTables:
        """The clusters, the rows and the gaps of these queries, all done, in their order."""
        position = {query: i for i, query in enumerate(queries)}
        kept = [(part.clusters, part.queries, part.gaps) for part in self._kept]
        clusters, rows, gaps = (
            table[table["query"].isin(position)].sort_values(
                "query", key=lambda ids: ids.map(position), kind="stable", ignore_index=True
            )
            for table in (pd.concat(tables, ignore_index=True) for tables in zip(*kept, strict=True))
        )
        return SavedTables(clusters[TABLE_COLUMNS], rows[QUERY_COLUMNS], gaps)

    def versions(self) -> dict[str, Any]:
        """The versions that the run was made with: `versions` of its first call and, if others followed, `resumed_with`."""
        return {name: self._record[name] for name in ("versions", "resumed_with") if name in self._record}

    def finish(self, located: QRNeurons) -> None:
        """Write the result beside the parts, the header last, then drop the parts unless they hold other queries too."""
        if self._path is not None and self._parts is not None:
            with usable():
                located.write_into(self._path)
            self._parts.remove(located.queries["query"].tolist())
            self.journal.say(f"finished: {len(located.queries)} queries located, {len(located.failed)} failed")

    def _known(self, path: Path, *, warn: bool = True) -> _Known | None:
        """What the folder says of itself, None for one without a manifest. RunError if it is another run."""
        try:
            record = claim_in(path / MANIFEST, "run", LOCK)
        except DamagedRunError as error:
            self._check_ours(path, error, warn)
            record = None
        if record is None:
            return None
        finished = None
        if (path / HEADER).is_file():
            try:
                finished = QRNeurons.load(path)
            except DamagedRunError as error:
                if warn:
                    warnings.warn(f"{error.what}; what it held is made anew", DamageWarning, stacklevel=2)
        return _Known(record, self._check(record, path / MANIFEST, finished), finished)

    def _go_on(self, path: Path, origin: Mapping[str, Any]) -> None:
        """Make the folder ready for more; what stands in it is read anew, now that no other call writes."""
        known, identity = self._known(path), self.identity
        with usable():
            tidy(path)
        asked = {**identity.fingerprints, **(known.asked if known else {})}
        self._parts = Parts(path / PARTS, identity.beside_model, identity.model, asked)
        if known is not None and known.record["format"] < SEALED and (path / PARTS).is_dir():
            self._parts.renew()
        self._record = _recorded(known, origin, path / MANIFEST)
        new = {**self._record, **identity.record(asked)}
        if known is None or new != {name: value for name, value in known.record.items() if name != "format"}:
            with usable():
                write_record(new, path / MANIFEST)
        self._parts.make()
        self.journal = Journal(path)
        for part in self._parts.read():
            self._take(part)
        if (path / HEADER).is_file():
            self._reopen(known.finished if known else None, path)
        done = sum(query.id in self.done for query in identity.queries)
        self.journal.say(f"locating {len(identity.queries)} queries, {done} of them done, with {origin['versions']}")

    def _check_ours(self, path: Path, error: DamagedRunError, warn: bool) -> None:
        """RunError for a damaged manifest in a folder where nothing else tells that it is of this run; else a warning."""
        identity = self.identity
        parts = Parts(path / PARTS, identity.beside_model, identity.model, identity.fingerprints)
        if not parts.any_of_this_run() and not result_of(path, identity.beside_model, identity.model):
            raise RunError(
                f"{error.what}, and nothing else in the folder tells that it is of this run; choose another folder, or "
                "delete this one"
            ) from None
        if warn:
            warnings.warn(f"{error.what}; it is made anew", DamageWarning, stacklevel=2)

    def _check(self, record: dict[str, Any], path: Path, finished: QRNeurons | None) -> dict[str, str]:
        """The fingerprints of the recorded run's queries by id, as this version has them. RunError if it is another run than
        this one."""
        identity, ours = self.identity, self.identity.fingerprints
        config = claimed_config(record, path, identity.default_site)
        model = field_of(dict[str, Any], record, "model", path)
        if record["format"] > 1:
            asked = field_of(dict[str, str], record, "queries", path)
        elif finished is not None:
            asked = {query.id: QuerySet((query,)).fingerprint for query in finished.asked}
        else:  # one fingerprint for all of them
            whole = {"count": len(ours), "sha256": identity.queries.fingerprint}
            theirs = field_of(dict[str, Any], record, "queries", path)
            refuse_another(path.parent, "run", differences({"queries": whole}, {"queries": theirs}))
            asked = identity.older_fingerprints
        # a folder of a time before readers were recorded does not tell
        reader = field_of(dict[str, Any], record, "reader", path) if "reader" in record else identity.reader
        same = record.get("weights") == identity.weights
        here = {
            "config": identity.config,
            "model": {**model, "name": identity.name} if same else asdict(identity.model),
            "reader": identity.reader,
        }
        there = {"config": config, "model": model, "reader": {**reader, "tokenizer": identity.reader["tokenizer"]}}
        changed = differences(here, there)
        changed += [
            f"query {query!r}: other prompts, letters, group, question, answer or fact here than in the folder"
            for query, fingerprint in ours.items()
            if (theirs := asked.get(query, fingerprint)) != fingerprint and theirs != identity.older_fingerprints[query]
        ]
        refuse_another(path.parent, "run", changed)
        return asked

    def _holds(self, finished: QRNeurons) -> bool:
        known = {*finished.queries["query"], *finished.failed["query"]}
        return known >= {query.id for query in self.identity.queries}

    def _keep(self, part: Part) -> None:
        if self._parts is not None:
            self._parts.write(part)
        self._take(part)

    def _take(self, part: Part) -> None:
        """Keep the rows of queries that are not done yet."""
        tables = part.tables
        new = tables.queries[np.array([query not in self.done for query in tables.queries["query"]], dtype=bool)]
        kept = [table[table["query"].isin(new["query"])] for table in (tables.clusters, tables.gaps)]
        self._kept.append(SavedTables(kept[0], new, kept[1]))
        self.done.update(new["query"])
        self.seconds += part.seconds

    def _reopen(self, finished: QRNeurons | None, path: Path) -> None:
        """Make an unfinished run of a finished one: its tables, as far as they are whole, become a part before the header
        goes."""
        tables = whole_tables(path, self.identity.model) if finished is None else _tables_of(finished)
        if tables is not None and not self.done.issuperset(tables.queries["query"]):
            seconds = 0.0 if finished is None else float(finished.about.get("seconds", 0.0))
            self._keep(Part(tables, seconds=max(0.0, seconds - self.seconds)))
        (path / HEADER).unlink()


def _tables_of(finished: QRNeurons) -> SavedTables:
    return SavedTables(finished.clusters, finished.queries, finished.gaps)


def _recorded(known: _Known | None, origin: Mapping[str, Any], manifest: Path) -> dict[str, Any]:
    """What the manifest says beside the identity: of the first call, with the versions of all."""
    if known is None:
        return dict(origin)
    record = {name: value for name, value in known.record.items() if name != "format"}
    again = field_of(tuple[dict[str, Any], ...], {"resumed_with": [], **record}, "resumed_with", manifest)
    if origin["versions"] not in (record.get("versions"), *again):
        record["resumed_with"] = [*again, origin["versions"]]
    return record
