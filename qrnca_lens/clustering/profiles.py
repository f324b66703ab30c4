"""Clusters of neurons that serve the same queries (an extension: the paper's own clusters are those of single queries)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from qrnca_lens.clustering.qr_neurons import QRNeurons, check_located
from qrnca_lens.core.intervals import quantile_interval
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import seed_number, told, whole_number

Profiles = Float[np.ndarray, "neuron query"]
Labels = Int[np.ndarray, " neuron"]
MOST_CLUSTERS = 12


@dataclass(frozen=True)
class NeuronClusters:
    """Neurons grouped by the queries they serve; cluster 0 is the largest.

    `table` has one row a neuron (layer, neuron, cluster, silhouette), by cluster and falling silhouette (cosine distance,
    in [-1, 1]; low means between clusters). `groups` tells which groups a cluster serves: one row a cluster, one column a
    group, the share of the cluster's naica that falls on the group's queries (rows add up to 1, group sizes are not
    evened out). `stability` holds, for every bootstrap, the adjusted Rand index between this clustering and one of
    resampled queries (1 the same, 0 chance, NaN where the sample left too little to cluster). `profiles` is what was
    clustered: the neurons of `table`, in its order, as (layer, neuron) rows; queries as (group, query) columns, groups
    together; L2-normalised naica.
    """

    table: pd.DataFrame
    groups: pd.DataFrame
    stability: Float[np.ndarray, " bootstrap"]
    profiles: pd.DataFrame
    method: str

    @property
    def k(self) -> int:
        """The number of clusters."""
        return len(self.groups)

    @property
    def silhouette(self) -> float:
        """The mean silhouette over neurons."""
        return float(self.table["silhouette"].mean())

    @property
    def stability_mean(self) -> float:
        """The mean adjusted Rand index over bootstraps; NaN without any."""
        known = self._known_stability()
        return float(known.mean()) if len(known) else float("nan")

    @property
    def stability_interval(self) -> tuple[float, float]:
        """The 2.5 % and 97.5 % quantiles of the adjusted Rand index over bootstraps; NaN without any."""
        return quantile_interval(self._known_stability())

    def to_frame(self) -> pd.DataFrame:
        """A copy of `table`."""
        return self.table.copy()

    def for_cluster(self, i: int) -> NeuronSet:
        """The neurons of cluster `i`, most typical (highest silhouette) first. KeyError for an unknown cluster."""
        i = whole_number("i", i)
        if i not in self.groups.index:
            raise KeyError(f"no cluster {i} in this result; there are 0 to {self.k - 1}")
        return NeuronSet.from_frame(self.table[self.table["cluster"] == i])

    def _known_stability(self) -> Float[np.ndarray, " known"]:
        return self.stability[~np.isnan(self.stability)]

    def __repr__(self) -> str:
        low, high = self.stability_interval
        return (
            f"NeuronClusters({len(self.table)} neurons in {self.k} clusters by {self.method}, "
            f"silhouette {self.silhouette:.2f}, stability {self.stability_mean:.2f} ({low:.2f} to {high:.2f}))"
        )

    def _repr_html_(self) -> str:
        sizes = self.table["cluster"].value_counts().sort_index()
        shares = self.groups.reset_index()
        shares.insert(1, "neurons", sizes.to_numpy())
        return notebook(repr(self), shares)


def hierarchical(profiles: Profiles, k: int, seed: int) -> Labels:
    """Agglomerative clustering, average linkage, cosine distance; deterministic, so `seed` is not used."""
    return AgglomerativeClustering(n_clusters=k, metric="cosine", linkage="average").fit_predict(profiles)


def k_means(profiles: Profiles, k: int, seed: int) -> Labels:
    """K-means of the unit-length profiles, the best of ten starts from `seed`."""
    settings: dict[str, Any] = {"n_clusters": k, "n_init": 10, "random_state": seed}
    return KMeans(**settings).fit_predict(profiles)


METHODS: dict[str, Callable[[Profiles, int, int], Labels]] = {"hierarchical": hierarchical, "k-means": k_means}


def cluster_neurons(
    located: QRNeurons,
    *,
    method: str = "hierarchical",
    k: int | None = None,
    min_queries: int = 2,
    bootstraps: int = 50,
    seed: int = 0,
) -> NeuronClusters:
    """Group the neurons that are QR neurons of at least `min_queries` queries by the queries they serve.

    A neuron is described by its naica over all queries (0 where it is no QR neuron), scaled to unit length, so that the
    direction counts and not the strength. `method` is a key of `METHODS`: "hierarchical" or "k-means". `k` None takes the
    number of clusters from 2 to 12 with the highest mean silhouette (cosine), the smaller one in a tie. Stability:
    queries are drawn anew with replacement `bootstraps` times (0 for none), neurons without any drawn query are left out,
    and the others clustered into as many clusters as they have in the full clustering and compared with it. Time and
    memory grow with the square of the neurons.

    Raises ValueError for an unknown method, fewer than 3 neurons or 2 distinct profiles, a `k` outside 2 to one less than
    the number of neurons (and at most that of distinct profiles), `min_queries` below 1 or negative `bootstraps`.
    """
    check_located(located)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"no method {told(method)}; there are {', '.join(METHODS)}")
    min_queries, bootstraps = (
        whole_number("min_queries", min_queries, at_least=1),
        whole_number("bootstraps", bootstraps, at_least=0),
    )
    seed, k = seed_number(seed), None if k is None else whole_number("k", k)
    naica = _naica(located, min_queries)
    unit = _unit_rows(naica.to_numpy(dtype=float))
    most = min(len(unit) - 1, _distinct(unit))
    if most < 2:
        raise ValueError(
            f"{len(unit)} neurons with {_distinct(unit)} distinct profiles are QR neurons of at least {min_queries} "
            "queries; clustering needs 3 neurons and 2 profiles: lower min_queries or locate more queries"
        )
    if k is not None and not 2 <= k <= most:
        raise ValueError(f"k must lie in 2 to {most} for these {len(unit)} neurons, not {k}")
    labels = _by_size(_choose(unit, method, range(2, min(MOST_CLUSTERS, most) + 1) if k is None else [k], seed))
    silhouette = _silhouette(unit, labels)
    order = np.lexsort((-silhouette, labels))
    table = naica.index.to_frame(index=False).assign(cluster=labels, silhouette=silhouette).iloc[order]
    profiles = pd.DataFrame(unit, index=naica.index, columns=naica.columns).iloc[order]
    stability = _stability(unit, labels, method, bootstraps, seed)
    return NeuronClusters(table.reset_index(drop=True), _group_shares(naica, labels), stability, profiles, method)


def _naica(located: QRNeurons, min_queries: int) -> pd.DataFrame:
    """(layer, neuron) x (group, query): naica of the neurons in enough queries; queries by group, all of them."""
    rows = located.table
    wide = rows.pivot(index=["layer", "neuron"], columns="query", values="naica")
    wide = wide[wide.notna().sum(axis=1) >= min_queries].fillna(0.0)
    wide = wide[(wide != 0).any(axis=1)]  # naica can be 0 throughout where common_share is near 1
    place = {group: i for i, group in enumerate(located.groups)}
    queries = located.queries.sort_values("group", key=lambda g: g.map(place), kind="stable")
    wide = wide.reindex(columns=list(queries["query"]), fill_value=0.0)
    wide.columns = pd.MultiIndex.from_frame(queries[["group", "query"]])
    return wide


def _choose(unit: Profiles, method: str, ks: range | list[int], seed: int) -> Labels:
    """The labels with the highest mean silhouette over `ks`; the first of a tie."""
    found = [METHODS[method](unit, k, seed) for k in ks]
    return found[0] if len(found) == 1 else max(found, key=lambda labels: float(_silhouette(unit, labels).mean()))


def _silhouette(unit: Profiles, labels: Labels) -> Float[np.ndarray, " neuron"]:
    return np.asarray(silhouette_samples(unit, labels, metric="cosine"), dtype=float)


def _stability(unit: Profiles, labels: Labels, method: str, bootstraps: int, seed: int) -> Float[np.ndarray, " bootstrap"]:
    generator = np.random.default_rng(seed)
    n_queries, found = unit.shape[1], np.full(bootstraps, np.nan)
    for i in range(bootstraps):
        drawn = unit[:, generator.integers(n_queries, size=n_queries)]
        left = (drawn != 0).any(axis=1)
        sample = _unit_rows(drawn[left])
        clusters = min(len(np.unique(labels[left])), _distinct(sample))
        if clusters >= 2:
            found[i] = adjusted_rand_score(labels[left], METHODS[method](sample, clusters, seed))
    return found


def _group_shares(naica: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Cluster x group: share of the cluster's naica."""
    by_group = naica.T.groupby(level="group", sort=False).sum().T
    summed = by_group.groupby(labels).sum()
    summed.index.name = "cluster"
    return summed.div(summed.sum(axis=1), axis=0)


def _by_size(labels: Labels) -> Labels:
    """Number the clusters from the largest down; equal ones by their first neuron."""
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    return np.argsort(np.lexsort((first, -size)))[inverse]


def _unit_rows(values: Profiles) -> Profiles:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _distinct(unit: Profiles) -> int:
    return len(np.unique(unit.round(9), axis=0))
