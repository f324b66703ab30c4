"""From queries to QR neurons, with a run folder that survives interruption."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qrnca_lens._version import __version__
from qrnca_lens.attribution import attribute
from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons, make_cluster
from qrnca_lens.clustering.cluster import CLUSTER_COLUMNS
from qrnca_lens.clustering.refine import check_enough_queries
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.models import HookedModel, OptionTokens, check_hooked, check_site, mlp_width, option_tokens, to_tokens
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.store import RunError, differences, read_json, read_table, write_json, write_table
from qrnca_lens.terminal import Description

_FLUSH_SECONDS = 5.0
_QUERY_COLUMNS = ["query", "group", "prompts", "probability", "gap"]
_VERSIONS = ("transformer_lens", "transformers", "torch", "numpy", "pandas")


def locate(
    model: HookedModel,
    queries: QuerySet,
    config: QRNCAConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> QRNeurons:
    """Find the QR neurons of every query (paper, section 3).

    With `out`, the work is kept in that run folder as it is done: interrupted in any way and called again with the same
    model, queries and configuration it goes on where it was, and the result is the same. `QRNeurons.load(out)` reads it.
    Raises ValueError for too few queries, ModelError for prompts that the model cannot take, RunError for a folder that
    holds another run (the message lists what differs) or other files.
    """
    config = config or QRNCAConfig()
    check_hooked(model)
    check_site(model, config.site)
    check_enough_queries(len(queries), config.common_share)
    letters, decided = _check_prompts(model, queries)
    shape = ModelShape(str(model.cfg.model_name), model.cfg.n_layers, mlp_width(model), model_fingerprint(model))
    about = {
        "config": asdict(config),
        "model": asdict(shape),
        "queries": {"count": len(queries), "sha256": queries.fingerprint},
    }
    origin = {"name": queries.name, "made": list(queries.made), "letters": decided, "versions": _versions()}
    run = _Run(Path(out) if out is not None else None, about, origin)
    if run.finished():
        return QRNeurons.load(run.path)
    with progress_bar(progress) as bar:
        task = bar.add_task("locating", total=len(queries))
        with run.kept():
            for query in queries:
                if query.id not in run.done:
                    run.add(query, *_one_query(model, query, config, letters[query.id]))
                bar.advance(task)
    clusters, table = run.tables(queries)
    located = QRNeurons(clusters, table, config, shape, {"queries": about["queries"], **origin}, queries)
    run.finish(located)
    return located


def _one_query(
    model: HookedModel, query: Query, config: QRNCAConfig, letters: list[int]
) -> tuple[pd.DataFrame, float, float]:
    """The query's cluster, its mean P(right letter) and its largest completeness gap."""
    found = [
        attribute(model, prompt.text, letter, steps=config.steps, rule=config.rule, site=config.site)
        for prompt, letter in zip(query.prompts, letters, strict=True)
    ]
    cluster = make_cluster(query.id, query.group, [a.scores for a in found], config.threshold)
    gap = max(a.completeness_gap.abs().max().item() for a in found)
    return cluster.table, sum(a.probability for a in found) / len(found), gap


def _check_prompts(model: HookedModel, queries: QuerySet) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """The right letter's token of every prompt, and which tokens stand for the letters after how many prompts.

    Every prompt is looked at before anything is computed.
    """
    letters: dict[str, list[int]] = {}
    decided: Counter[OptionTokens] = Counter()
    for query in queries:
        for prompt in query.prompts:
            to_tokens(model, prompt.text)
            options = option_tokens(model.tokenizer, prompt.text)
            decided[options] += 1
            letters.setdefault(query.id, []).append(options.id_of(prompt.letter))
    return letters, [{**asdict(options), "prompts": count} for options, count in decided.items()]


class _Run:
    """The growing state of one locate call, in memory and, with a path, in parts on disk.

    A query counts as done once a queries part holds it; its clusters part is written before.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], origin: dict[str, Any]) -> None:
        self._path, self._about, self._origin = path, about, origin
        self._clusters: list[pd.DataFrame] = []
        self._queries: list[tuple[str, str, int, float, float]] = []
        self._kept: list[tuple[pd.DataFrame, pd.DataFrame]] = []
        self._flushed = time.monotonic()
        if path is not None:
            self._open(path)
        self.done = {query for _, queries in self._kept for query in queries["query"]}

    @property
    def path(self) -> Path:
        """The run folder; only asked for when there is one."""
        assert self._path is not None
        return self._path

    def finished(self) -> bool:
        """Whether the folder holds the whole result already."""
        return self._path is not None and (self._path / "header.json").is_file()

    def add(self, query: Query, cluster: pd.DataFrame, probability: float, gap: float) -> None:
        """Take in one query; on disk at the latest some seconds later."""
        self._clusters.append(cluster.assign(query=query.id, group=query.group))
        self._queries.append((query.id, query.group, len(query.prompts), probability, gap))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the block, what was computed is on disk afterwards."""
        try:
            yield
        finally:
            self._flush()

    def tables(self, queries: QuerySet) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The clusters and the queries, in the order of `queries`."""
        position = {query.id: i for i, query in enumerate(queries)}
        done = pd.concat([table for _, table in self._kept], ignore_index=True)
        clusters = pd.concat([table for table, _ in self._kept], ignore_index=True)
        clusters = clusters.sort_values("query", key=lambda ids: ids.map(position), kind="stable", ignore_index=True)
        done = done.sort_values("query", key=lambda ids: ids.map(position), kind="stable", ignore_index=True)
        return clusters[["query", "group", *CLUSTER_COLUMNS]], done

    def finish(self, located: QRNeurons) -> None:
        """Write the result beside the parts, the header last, then drop the parts."""
        if self._path is not None:
            located.write_into(self._path)
            shutil.rmtree(self._path / "parts")

    def _open(self, path: Path) -> None:
        if path.is_file():
            raise RunError(f"{path} is a file; give a folder for the run")
        manifest = path / "manifest.json"
        other: dict[str, Any] = {}
        if manifest.is_file():
            other = read_json(manifest)
            changed = differences(self._about, {key: other.get(key) for key in self._about})
            if changed:
                raise RunError(f"{path} holds another run; choose another folder. What differs:\n  " + "\n  ".join(changed))
        elif path.is_dir() and any(path.iterdir()):
            raise RunError(f"{path} holds other files; choose an empty folder for the run")
        if not self.finished():
            (path / "parts").mkdir(parents=True, exist_ok=True)
            if not manifest.is_file():
                write_json({**self._about, **self._origin}, manifest)
            elif other.get("versions") != self._origin["versions"]:
                again = [*other.get("resumed_with", []), self._origin["versions"]]
                write_json({**other, "resumed_with": again}, manifest)
            for part in sorted((path / "parts").glob("queries-*.parquet")):
                clusters = read_table(part.with_name(part.name.replace("queries", "clusters")))
                self._kept.append((clusters, read_table(part)))

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._queries:
            return
        clusters = pd.concat(self._clusters, ignore_index=True)
        queries = pd.DataFrame(self._queries, columns=_QUERY_COLUMNS)
        if self._path is not None:
            number = len(self._kept)
            write_table(clusters, self._path / "parts" / f"clusters-{number:05d}.parquet")
            write_table(queries, self._path / "parts" / f"queries-{number:05d}.parquet")
        self._kept.append((clusters, queries))
        self._clusters, self._queries = [], []


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"qrnca_lens": __version__, "python": platform.python_version(), **found}


def progress_bar(shown: bool) -> Progress:
    """A progress bar with time left, on stderr; silent if not `shown`."""
    return Progress(
        Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
