"""The result of the method: the QR neurons of every query."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.clustering.config import QRNCAConfig
from qrnca_lens.clustering.gaps import GAP_COLUMNS, MISSED_SHARE, ROUGH_SHARE, above_share, count_prompts, gap_table, missed
from qrnca_lens.clustering.naica import NaicaProfiles
from qrnca_lens.clustering.refine import (
    check_enough_queries,
    common_neurons,
    drop_neurons,
    ranked_table,
    score_clusters,
    take_top,
)
from qrnca_lens.clustering.saving import Saved, SavedTables
from qrnca_lens.clustering.tables import FAILED_COLUMNS, Failure, ModelShape, failed_table
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import WrongKindError, check_columns, check_kind, given_path, listed, told, whole_number
from qrnca_lens.core.writing import check_folder, whole_folder
from qrnca_lens.data import QuerySet
from qrnca_lens.data.query import check_query_set

_NEEDED = {
    "clusters": ("query", "group", "layer", "neuron", "attribution"),
    "queries": ("query", "group"),
    "failed": FAILED_COLUMNS,
    "gaps": GAP_COLUMNS,
}


@dataclass(frozen=True)
class QRNeurons:
    """QR neurons by query, with all that leads to them.

    `clusters`: a row for every neuron of every cluster (query, group, layer, neuron, attribution, templates).
    `queries`: a row for every query (query, group, prompts, probability, gap): the number of its prompts, the mean
    P(right letter) over them and the largest completeness gap, both in probability units; where `config.read` is "answer",
    the geometric mean of P over the tokens of the right answer, and gaps in nats of its mean log P. `asked`: the queries
    with their prompts, so that a saved run can be looked into (empty in a result that was put together by hand).
    `failed`: a row for every query that was to be located and could not be (query, group, prompt, reason: see `Failure`);
    such a query stands in no other table, is not in `asked` and does not count in |C|.
    `gaps`: a row for every layer of every prompt (query, prompt, layer, gap, change, probability), prompts counted from 0:
    the completeness gap, P(right letter) minus P with the layer's site at 0, and P(right letter), in probability units. It
    has no rows for queries of a folder that an older version wrote, or of a result that was put together by hand.
    Everything else is derived from `clusters`, `queries`, `gaps` and `config`.
    """

    clusters: pd.DataFrame
    queries: pd.DataFrame
    config: QRNCAConfig
    model: ModelShape
    about: dict[str, Any] = field(default_factory=dict)
    asked: QuerySet = field(default=QuerySet(()), repr=False)
    failed: pd.DataFrame = field(default_factory=failed_table, repr=False)
    gaps: pd.DataFrame = field(default_factory=gap_table, repr=False)

    def __post_init__(self) -> None:
        check_kind("config", self.config, QRNCAConfig, "a QRNCAConfig")
        check_kind("model", self.model, ModelShape, "a ModelShape")
        check_kind("about", self.about, dict, "a dict")
        check_query_set(self.asked)
        for name, columns in _NEEDED.items():
            check_columns(name, getattr(self, name), columns, f"a table with the columns {', '.join(columns)}")
        check_enough_queries(len(self.queries), self.config.common_share)

    @cached_property
    def scored(self) -> pd.DataFrame:
        """The clusters with na, ica and naica: what the QR neurons are chosen from."""
        return score_clusters(self.clusters, len(self.queries))

    @cached_property
    def common(self) -> pd.DataFrame:
        """The common neurons, most common first: layer, neuron, clusters, share."""
        return common_neurons(self.clusters, len(self.queries), self.config.common_share)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The QR neurons: query, group, layer, neuron, na, ica, naica, rank; top v by naica, common neurons removed."""
        best = drop_neurons(take_top(self.scored, self.config.top), self.common)
        return ranked_table(best, list(self.queries["query"]))

    @cached_property
    def profiles(self) -> NaicaProfiles:
        """naica of every neuron in a cluster over the queries, common neurons included."""
        return NaicaProfiles.of(self.scored, self.queries["query"].tolist())

    @cached_property
    def rough(self) -> pd.DataFrame:
        """The rows of `queries` whose largest completeness gap is above 5 % of their mean P(right letter), largest first.

        Where texts were read, above 0.05 nats a token, which is 5 % of P as well.
        Their clusters may lack neurons or hold others; rule "auto" or more steps remedy that.
        """
        share = self.queries["gap"] / self._sizes(self.queries)
        worst = share[share > ROUGH_SHARE].sort_values(ascending=False, kind="stable")
        return self.queries.loc[worst.index].reset_index(drop=True)

    @cached_property
    def rough_prompts(self) -> pd.DataFrame:
        """The rows of `gaps` whose gap is above 5 % of their query's mean P(right letter): those that make it `rough`."""
        return above_share(self.gaps, self._sizes(self.queries.set_index("query"))).reset_index(drop=True)

    @cached_property
    def missed_layers(self) -> pd.DataFrame:
        """The rows of `gaps` with a gap above a tenth of |change|, and above 1 % of the prompt's P(right letter) and 1e-5.

        The latter is what rule "auto" tolerates: layers that hardly change P are not counted. Largest share of P first.
        """
        return missed(self.gaps, self._sizes(self.gaps))

    def _sizes(self, rows: pd.DataFrame) -> pd.Series:
        """What the gaps of some rows are measured by: P, and 1 nat where they are gaps of log P, of which P is a factor."""
        return rows["probability"] if self.config.read == "letter" else pd.Series(1.0, rows.index)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The groups in order of first appearance."""
        return tuple(dict.fromkeys(self.queries["group"]))

    @property
    def units(self) -> pd.Series:
        """What each row of `queries` counts as: the fact it asks for, where `asked` names one, else the query itself.

        Queries of several groups for one fact are one observation. Results put together by hand and runs over questions
        that name no fact know of none.
        """
        known = {query.id: query.unit for query in self.asked}
        units = [known.get(query, query) for query in self.queries["query"].tolist()]
        return pd.Series(units, index=self.queries.index, name="unit", dtype=object)

    @cached_property
    def common_set(self) -> NeuronSet:
        """The common neurons as a set, most common first."""
        return NeuronSet.from_frame(self.common)

    def to_frame(self) -> pd.DataFrame:
        """A copy of `table`."""
        return self.table.copy()

    def for_query(self, query: str) -> NeuronSet:
        """The QR neurons of one query, best first (empty if its cluster is). KeyError for an unknown id."""
        return NeuronSet.from_frame(self.table_for_query(query))

    def table_for_query(self, query: str) -> pd.DataFrame:
        """The rows of `table` about one query, best first. KeyError for an unknown id."""
        self.check_query(query)
        return self.table.iloc[self._places.get(query, [])]

    def check_query(self, query: str) -> None:
        """KeyError for a query that is not in the result, with the reason if it failed, else with the nearest id."""
        if not isinstance(query, str) or query not in self._ids:
            reasons = dict(zip(self.failed["query"], self.failed["reason"], strict=True))
            if isinstance(query, str) and query in reasons:
                raise KeyError(f"query {query!r} failed and has no neurons: {reasons[query]}")
            near = get_close_matches(query if isinstance(query, str) else told(query), list(self._ids), 1, 0.0)
            raise KeyError(f"no query {told(query)} among the {len(self._ids)} of this result; the nearest is {near[0]!r}")

    @cached_property
    def _ids(self) -> dict[str, None]:
        """The ids of the queries, in their order."""
        return dict.fromkeys(self.queries["query"].tolist())

    @cached_property
    def _places(self) -> dict[str, Any]:
        """By query, the rows of `table` that are about it."""
        return {str(query): places for query, places in self.table.groupby("query", sort=False).indices.items()}

    @cached_property
    def _group_places(self) -> dict[str, Any]:
        """By group, the rows of `table` that are about its queries; no rows for a group without QR neurons."""
        found = {str(group): places for group, places in self.table.groupby("group", sort=False).indices.items()}
        return {group: found.get(group, []) for group in self.groups}

    def table_for_group(self, group: str) -> pd.DataFrame:
        """The rows of `table` about the queries of a group. KeyError for an unknown group."""
        self.check_group(group)
        return self.table.iloc[self._group_places[group]]

    def check_group(self, group: str) -> None:
        """KeyError for a group that is not in the result."""
        if not isinstance(group, str) or group not in self.groups:
            raise KeyError(f"no group {told(group)} in this result; there are {', '.join(self.groups)}")

    def for_group(self, group: str) -> NeuronSet:
        """The QR neurons of a group's queries, by naica summed over its queries. KeyError for an unknown group."""
        return NeuronSet.from_frame(_ranked(self.table_for_group(group)))

    def top(self, k: int = 20) -> pd.DataFrame:
        """The `k` neurons with the highest naica summed over all queries: layer, neuron, naica, queries, groups."""
        best = self.ranked.head(whole_number("k", k, at_least=1))
        rows = self.table.merge(best[["layer", "neuron"]], on=["layer", "neuron"])
        groups = rows.groupby(["layer", "neuron"])["group"].agg(lambda names: ", ".join(sorted(set(names))))
        return best.merge(groups.rename("groups"), on=["layer", "neuron"], how="left")

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """All QR neurons by naica summed over all queries: layer, neuron, naica, queries."""
        return _ranked(self.table)

    def per_query(self) -> pd.DataFrame:
        """One row a query: query, group, prompts, probability, gap, cluster (its size), qr (number of QR neurons)."""
        sizes, found = self.clusters["query"].value_counts(), self.table["query"].value_counts()
        key = self.queries["query"]
        counts = {"cluster": key.map(sizes), "qr": key.map(found)}
        return self.queries.assign(**{name: n.fillna(0).astype(int) for name, n in counts.items()})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write parquet tables and a JSON header; the folder appears whole or not at all.

        FileExistsError if it is there and not empty, or a link.
        """
        with whole_folder(given_path("folder", folder)) as made:
            self.write_into(made)

    def write_into(self, folder: Path) -> None:
        """Write the files of `save` into an existing folder, the header last: with it the result is whole."""
        folder = given_path("folder", folder)
        check_folder(folder)
        tables = SavedTables(self.clusters, self.queries, self.gaps)
        failed = tuple(Failure(*row) for row in self.failed.itertuples(index=False))
        saved = Saved(tables, self.config, self.model, self.about, self.asked, failed)
        saved.write(folder, {"qr_neurons": self.table, "common_neurons": self.common})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> QRNeurons:
        """Read what `save` or `locate(out=...)` wrote.

        RunError if the folder holds no finished result or one of a newer format; DamagedRunError, which names the file, for
        one that is missing or not as it was written (`locate` with the same folder mends it).
        In folders of format 1 (before `format` stood in header.json) a site of None is the model's default.
        """
        found = Saved.read(given_path("folder", folder))
        tables, failed = found.tables, failed_table(found.failed)
        return cls(tables.clusters, tables.queries, found.config, found.model, found.about, found.asked, failed, tables.gaps)

    def restrict(self, queries: Iterable[str]) -> QRNeurons:
        """The same result for some of its queries alone: ica and common neurons are those among them.

        Of the queries that failed, those named here stay in `failed`. KeyError for an unknown id, ValueError for too few
        queries.
        """
        kept = set(listed("queries", queries))
        unknown = kept - set(self.queries["query"]) - set(self.failed["query"])
        if unknown:
            raise KeyError(f"no query {min(unknown)!r} in this result")
        clusters, rows = self.clusters["query"].isin(kept), self.queries["query"].isin(kept)
        return QRNeurons(
            self.clusters[clusters].reset_index(drop=True),
            self.queries[rows].reset_index(drop=True),
            self.config,
            self.model,
            self.about,
            self.asked.keep(kept),
            self.failed[self.failed["query"].isin(kept)].reset_index(drop=True),
            self.gaps[self.gaps["query"].isin(kept)].reset_index(drop=True),
        )

    def __repr__(self) -> str:
        mean = len(self.table) / len(self.queries)
        failed = f", {len(self.failed)} more failed" if len(self.failed) else ""
        read = "" if self.config.read == "letter" else ", read from whole answers"
        return (
            f"QRNeurons({len(self.queries)} queries in {len(self.groups)} groups{failed}{read}, {mean:.1f} QR neurons a "
            f"query, {len(self.common)} common neurons, model {self.model.name!r}{self._gaps_told()})"
        )

    def _gaps_told(self) -> str:
        told, prompts, missing = "", count_prompts(self.rough_prompts), count_prompts(self.missed_layers)
        if len(self.rough):
            limit = f"{ROUGH_SHARE:.0%} of P" if self.config.read == "letter" else f"{ROUGH_SHARE:g} nats"
            told = f", gap above {limit} in {len(self.rough)} queries"
            told += f" ({prompts} prompts)" if prompts else ""
        if missing:
            queries = self.missed_layers["query"].nunique()
            told += f", above {MISSED_SHARE:.0%} of a layer's change in {queries} queries ({missing} prompts)"
        return told

    def _repr_html_(self) -> str:
        by_group = self.per_query().groupby("group", sort=False, as_index=False)
        return notebook(repr(self), by_group.agg(queries=("query", "size"), qr=("qr", "mean")), self.top(10))


def check_located(located: QRNeurons) -> None:
    """TypeError for anything but a QRNeurons."""
    if not isinstance(located, QRNeurons):
        raise WrongKindError(f"expected a QRNeurons (what qrnca_lens.locate returns), found {type(located).__name__}")


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """The neurons of some rows of `QRNeurons.table` by summed naica: layer, neuron, naica, queries."""
    summed = rows.groupby(["layer", "neuron"], as_index=False).agg(naica=("naica", "sum"), queries=("query", "nunique"))
    return summed.sort_values(["naica", "layer", "neuron"], ascending=[False, True, True], ignore_index=True)
