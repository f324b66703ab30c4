"""How a result lies in a folder: parquet tables, the queries with their prompts, and a header with the checksum of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.clustering.config import QRNCAConfig
from qrnca_lens.clustering.gaps import read_gaps
from qrnca_lens.clustering.tables import QUERY_COLUMNS, TABLE_COLUMNS, Failure, ModelShape
from qrnca_lens.core.store import (
    Checksums,
    DamagedRunError,
    check_column,
    check_file,
    check_once,
    field_of,
    read_json,
    read_record,
    read_table,
    value_of,
    write_json,
    write_record,
    write_table,
)
from qrnca_lens.data import QuerySet

HEADER = "header.json"
"""The file of a result that is written last, and with which it is whole."""
_ASKED = "asked.json"
_DERIVED = ("qr_neurons.parquet", "common_neurons.parquet")


@dataclass(frozen=True)
class SavedTables:
    """The tables of which all others are made."""

    clusters: pd.DataFrame
    queries: pd.DataFrame
    gaps: pd.DataFrame

    def write(self, folder: Path) -> dict[str, str]:
        """Write them into a folder; the checksums by file."""
        return write_tables(folder, {"clusters": self.clusters, "queries": self.queries, "gaps": self.gaps})

    @classmethod
    def read(cls, folder: Path, model: ModelShape, sums: Checksums) -> SavedTables:
        """What `write` wrote. DamagedRunError for a file that is not, with the column where it cannot be such a table."""
        clusters = read_clusters(folder / "clusters.parquet", model, sums)
        queries = read_queries(folder / "queries.parquet", sums)
        gaps = read_gaps(folder / "gaps.parquet", model.n_layers, sums)
        if not {*queries["query"]}.issuperset([*clusters["query"].unique(), *gaps["query"].unique()]):
            raise DamagedRunError(f"{folder}: its tables name different queries")
        return cls(clusters, queries, gaps)


@dataclass(frozen=True)
class Saved:
    """A result as it was saved: the fields of `QRNeurons`, of which it is made again."""

    tables: SavedTables
    config: QRNCAConfig
    model: ModelShape
    about: dict[str, Any]
    asked: QuerySet
    failed: tuple[Failure, ...]

    def write(self, folder: Path, derived: Mapping[str, pd.DataFrame]) -> None:
        """Write all into an existing folder with the tables derived of it, the header last: with it the result is whole."""
        files = {**self.tables.write(folder), **write_tables(folder, derived)}
        files[_ASKED] = write_json(self.asked.to_dict(), folder / _ASKED)
        header = {"config": asdict(self.config), "model": asdict(self.model), "about": self.about}
        write_record({**header, "failed": [asdict(one) for one in self.failed], "files": files}, folder / HEADER)

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """What `write` wrote. DamagedRunError for a file that is missing or not as it was written, RunError for a newer
        format.

        In folders of format 1 (before `format` stood in the header) a site of None is the model's default.
        """
        file = folder / HEADER
        header = read_record(file)
        sums = Checksums(header, file)
        failed = field_of(tuple[Failure, ...], header, "failed", file) if header["format"] > 1 else ()
        # a run of a time before answers could be read is about letters
        header["config"] = {"read": "letter", **field_of(dict[str, Any], header, "config", file)}
        config, model = field_of(QRNCAConfig, header, "config", file), field_of(ModelShape, header, "model", file)
        tables = SavedTables.read(folder, model, sums)
        asked = value_of(QuerySet, _asked_record(folder / _ASKED, sums), str(folder / _ASKED))
        if len(asked) and {*tables.queries["query"]} != {query.id for query in asked}:
            raise DamagedRunError(f"{folder}: its tables and {_ASKED} name different queries")
        for name in _DERIVED:
            check_file(folder / name, sums.of(folder / name))
        about = field_of(dict[str, Any], header, "about", file)
        _check_asked(asked, about, folder / _ASKED)
        return cls(tables, config, model, about, asked, failed)


def result_of(folder: Path, beside_model: dict[str, Any], model: ModelShape) -> bool:
    """Whether the header of a folder names this model, and the configuration and reader `beside_model`, whose tokenizer's
    class does not count."""
    try:
        header = read_record(folder / HEADER)
    except DamagedRunError:
        return False
    reader = {**header.get("about", {}).get("reader", {}), "tokenizer": ""}
    named = {"config": header.get("config"), "reader": reader}
    return named == beside_model and header.get("model") == asdict(model)


def whole_tables(folder: Path, model: ModelShape) -> SavedTables | None:
    """The tables of a result of which another file is damaged; None where it has no checksums, or not theirs."""
    try:
        sums = Checksums(read_record(folder / HEADER), folder / HEADER)
        return SavedTables.read(folder, model, sums) if sums.known else None
    except DamagedRunError:
        return None


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Write tables by name as NAME.parquet; the checksums by file."""
    return {f"{name}.parquet": write_table(table, folder / f"{name}.parquet") for name, table in tables.items()}


def read_clusters(path: Path, model: ModelShape, sums: Checksums) -> pd.DataFrame:
    """A table like `QRNeurons.clusters`. DamagedRunError for what cannot be one, with file and column."""
    table = read_table(path, TABLE_COLUMNS, sums.of(path))
    for name, size in (("layer", model.n_layers), ("neuron", model.d_mlp), ("templates", math.inf)):
        check_column(table, name, int, path, below=size)
    for name, kind in (("query", str), ("group", str), ("attribution", float)):
        check_column(table, name, kind, path)
    check_once(table, ["query", "layer", "neuron"], path)
    return table


def read_queries(path: Path, sums: Checksums) -> pd.DataFrame:
    """A table like `QRNeurons.queries`. DamagedRunError for what cannot be one, with file and column."""
    table = read_table(path, QUERY_COLUMNS, sums.of(path))
    for name, kind in (("query", str), ("group", str), ("prompts", int), ("probability", float), ("gap", float)):
        check_column(table, name, kind, path)
    check_once(table, ["query"], path)
    return table


def _asked_record(path: Path, sums: Checksums) -> Any:
    """What the file of a run's queries holds; those of a time before they could name their fact, or be open, do neither."""
    record = read_json(path, sums.of(path))
    queries = record.get("queries") if isinstance(record, dict) else None
    for query in queries if isinstance(queries, list) else []:
        if isinstance(query, dict):
            query.setdefault("fact", "")
            for prompt in query.get("prompts") or ():
                if isinstance(prompt, dict):
                    prompt.setdefault("read", "letter")
                    prompt.setdefault("rendering", "plain")
    return record


def _check_asked(asked: QuerySet, about: dict[str, Any], path: Path) -> None:
    """DamagedRunError for other prompts than the header names. Where some are left out nobody can tell."""
    told = about.get("queries")
    if isinstance(told, dict) and told.get("count") == len(asked) and told.get("sha256") != asked.fingerprint:
        raise DamagedRunError(f"{path}: its prompts are not those of queries.sha256 in header.json")
