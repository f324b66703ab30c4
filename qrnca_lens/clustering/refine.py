"""From clusters to QR neurons: normalised attribution, inverse cluster attribution, common neurons (paper, section 3.3).

Pure functions over one table with a row for every (query, neuron) of every cluster:
query, group, layer, neuron, attribution, templates. Queries with an empty cluster have no row but count in |C|.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

SCORE_COLUMNS = ["query", "group", "layer", "neuron", "na", "ica", "naica", "rank"]


def cluster_counts(clusters: pd.DataFrame, n_clusters: int) -> pd.DataFrame:
    """How many clusters hold each neuron: layer, neuron, clusters, share (of all `n_clusters`)."""
    counts = clusters.groupby(["layer", "neuron"], as_index=False).agg(clusters=("query", "nunique"))
    return counts.assign(share=counts["clusters"] / n_clusters)


def common_neurons(clusters: pd.DataFrame, n_clusters: int, common_share: float) -> pd.DataFrame:
    """The neurons in more than `common_share` of the clusters, most common first."""
    counts = cluster_counts(clusters, n_clusters)
    common = counts[counts["share"] > common_share]
    return common.sort_values(["clusters", "layer", "neuron"], ascending=[False, True, True], ignore_index=True)


def score_clusters(clusters: pd.DataFrame, n_clusters: int) -> pd.DataFrame:
    """Add na, ica and naica to every row.

    na = attribution / Z, with Z the sum over the query's cluster, so that a query's na sum to 1 (the sum over all neurons
    that the paper's text names can be zero or negative, since scores have a sign; the authors' code takes the cluster's).
    ica = log(|C| / (clusters with the neuron + 1)), slightly negative for a neuron of every cluster; naica = na * ica.
    """
    counts = cluster_counts(clusters, n_clusters)[["layer", "neuron", "clusters"]]
    rows = clusters.merge(counts, on=["layer", "neuron"], how="left", sort=False)
    total = rows.groupby("query")["attribution"].transform("sum")
    na, ica = rows["attribution"] / total, np.log(n_clusters / (rows["clusters"] + 1))
    return rows.assign(na=na, ica=ica, naica=na * ica)


def take_top(scored: pd.DataFrame, top: int, by: str = "naica") -> pd.DataFrame:
    """The `top` rows of each query by `by`. Ties go to the higher na, then to the lower layer, then the lower neuron."""
    order = [*dict.fromkeys([by, "na"]), "layer", "neuron"]
    rising = [name in ("layer", "neuron") for name in order]
    ranked = scored.sort_values(order, ascending=rising, kind="stable")
    return ranked[ranked.groupby("query").cumcount() < top]


def drop_neurons(rows: pd.DataFrame, dropped: pd.DataFrame) -> pd.DataFrame:
    """The rows whose neuron is not in `dropped` (columns layer, neuron)."""
    keys = pd.MultiIndex.from_frame(rows[["layer", "neuron"]])
    return rows[~keys.isin(pd.MultiIndex.from_frame(dropped[["layer", "neuron"]]))]


def ranked_table(rows: pd.DataFrame, queries: list[str]) -> pd.DataFrame:
    """SCORE_COLUMNS, queries in the given order, rank 1 the best of a query (rows come best first)."""
    rows = rows.assign(rank=rows.groupby("query").cumcount() + 1)
    position = rows["query"].map({query: i for i, query in enumerate(queries)})
    return rows.assign(position=position).sort_values(["position", "rank"], ignore_index=True)[SCORE_COLUMNS]


def check_enough_queries(n_clusters: int, common_share: float) -> None:
    """ValueError where one cluster alone is more than `common_share`, so that every neuron would be common."""
    if n_clusters * common_share < 1:
        raise ValueError(
            f"{n_clusters} queries are too few for common_share={common_share}: every neuron would count as common; "
            f"give at least {math.ceil(1 / common_share)} queries"
        )
