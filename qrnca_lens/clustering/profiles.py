"""Clusters of neurons that serve the same queries (an extension: the paper's own clusters are those of single queries).

A neuron serves few of the queries, so profiles are sparse throughout: neurons x queries would be a table of gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import sparse
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from qrnca_lens.clustering.naica import NaicaProfiles
from qrnca_lens.clustering.qr_neurons import QRNeurons, check_located
from qrnca_lens.core.intervals import quantile_interval
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.shown import notebook
from qrnca_lens.core.values import seed_number, told, whole_number

Profiles: TypeAlias = sparse.csr_array
"""Neurons x queries."""
Labels = Int[np.ndarray, " neuron"]
MOST_CLUSTERS = 12
_BLOCK = 256  # neurons whose distances to all others are computed together
_SAME = 1e-12  # a distance below this is that of equal profiles


@dataclass(frozen=True)
class NeuronClusters:
    """Neurons grouped by the queries they serve; cluster 0 is the largest.

    `table` has one row a neuron (layer, neuron, cluster, silhouette), by cluster and falling silhouette (cosine distance,
    in [-1, 1]; low means between clusters). `groups` tells which groups a cluster serves: one row a cluster, one column a
    group, the share of the cluster's naica that falls on the group's queries (rows add up to 1, group sizes are not
    evened out). `stability` holds, for every bootstrap, the adjusted Rand index between this clustering and one of
    resampled queries (1 the same, 0 chance, NaN where the sample left too little to cluster). `profiles` is what was
    clustered: the neurons of `table`, in its order, as (layer, neuron) rows; queries as (group, query) columns, groups
    together; L2-normalised naica, in pandas' sparse columns.
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


def hierarchical(profiles: Profiles, ks: Sequence[int], seed: int) -> list[Labels]:
    """Agglomerative clustering, average linkage, cosine distance; deterministic, so `seed` is not used.

    Takes the distances of all pairs of neurons, 8 bytes each, twice.
    """
    merges = linkage(_distances(profiles), "average")[:, :2].astype(int)
    return [_cut(merges, k) for k in ks]


def k_means(profiles: Profiles, ks: Sequence[int], seed: int) -> list[Labels]:
    """K-means of the unit-length profiles, the best of ten starts from `seed`."""
    settings: dict[str, Any] = {"n_init": 10, "random_state": seed}
    places = (part.astype(np.int32) for part in (profiles.indices, profiles.indptr))  # scikit-learn takes no others
    values = sparse.csr_array((profiles.data, *places), profiles.shape)
    return [KMeans(n_clusters=k, **settings).fit_predict(values) for k in ks]


METHODS: dict[str, Callable[[Profiles, Sequence[int], int], list[Labels]]] = {
    "hierarchical": hierarchical,
    "k-means": k_means,
}
"""Each gives the labels for every number of clusters that is asked for."""


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
    memory grow with the QR neurons of all queries together; those of "hierarchical" with the square of the different
    neurons, of which 20,000 take 3.2 GB.

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
    naica, neurons, queries = _naica(located, min_queries)
    unit = _unit_rows(naica)
    count, distinct = len(neurons), _distinct(unit)
    most = min(count - 1, distinct)
    if most < 2:
        raise ValueError(
            f"{count} neurons with {distinct} distinct profiles are QR neurons of at least {min_queries} "
            "queries; clustering needs 3 neurons and 2 profiles: lower min_queries or locate more queries"
        )
    if k is not None and not 2 <= k <= most:
        raise ValueError(f"k must lie in 2 to {most} for these {count} neurons, not {k}")
    labels = _by_size(_choose(unit, method, range(2, min(MOST_CLUSTERS, most) + 1) if k is None else [k], seed))
    silhouette = _silhouette(unit, labels)
    order = np.lexsort((-silhouette, labels))
    table = neurons.to_frame(index=False).assign(cluster=labels, silhouette=silhouette).iloc[order]
    profiles = pd.DataFrame.sparse.from_spmatrix(unit[order], index=neurons[order], columns=queries)
    stability = _stability(unit, labels, method, bootstraps, seed)
    return NeuronClusters(table.reset_index(drop=True), _group_shares(naica, queries, labels), stability, profiles, method)


def _naica(located: QRNeurons, min_queries: int) -> tuple[Profiles, pd.MultiIndex, pd.MultiIndex]:
    """naica of the neurons in enough queries: the values, (layer, neuron) of the rows, (group, query) of the columns;
    queries by group, all of them."""
    place = {group: i for i, group in enumerate(located.groups)}
    queries = located.queries.sort_values("group", key=lambda g: g.map(place), kind="stable")
    found = NaicaProfiles.of(located.table, queries["query"].tolist())
    kept = np.diff(found.values.indptr) >= min_queries
    found.values.eliminate_zeros()  # naica can be 0 throughout where common_share is near 1
    kept &= np.diff(found.values.indptr) > 0
    order = found.neurons.argsort()
    order = order[kept[order]]
    return found.values[order], found.neurons[order], pd.MultiIndex.from_frame(queries[["group", "query"]])


def _choose(unit: Profiles, method: str, ks: Sequence[int], seed: int) -> Labels:
    """The labels with the highest mean silhouette over `ks`; the first of a tie."""
    found = METHODS[method](unit, ks, seed)
    return found[0] if len(found) == 1 else max(found, key=lambda labels: float(_silhouette(unit, labels).mean()))


def _silhouette(unit: Profiles, labels: Labels) -> Float[np.ndarray, " neuron"]:
    """The silhouette of every neuron by cosine distance; 0 for one that is a cluster by itself.

    As profiles have unit length, a neuron's distances to all of a cluster add up to the cluster's size less the product with
    the sum of its profiles: no pair of neurons has to be looked at.
    """
    member = _one_hot(labels)
    size = member.sum(axis=0)
    away = size - (unit @ (unit.T @ member)).toarray()
    rows = np.arange(len(labels))
    own, others = size[labels], away / size
    within = np.divide(away[rows, labels], own - 1, out=np.zeros(len(labels)), where=own > 1)
    others[rows, labels] = np.inf
    nearest = others.min(axis=1)
    within, nearest = (np.where(distance < _SAME, 0.0, distance) for distance in (within, nearest))
    larger = np.maximum(within, nearest)
    return np.divide(nearest - within, larger, out=np.zeros(len(labels)), where=(own > 1) & (larger > 0))


def _stability(unit: Profiles, labels: Labels, method: str, bootstraps: int, seed: int) -> Float[np.ndarray, " bootstrap"]:
    generator = np.random.default_rng(seed)
    n_queries, found = unit.tocsc().indptr.size - 1, np.full(bootstraps, np.nan)
    for i in range(bootstraps):
        drawn = unit[:, generator.integers(n_queries, size=n_queries)]
        left = np.diff(drawn.indptr) > 0
        sample = _unit_rows(drawn[np.flatnonzero(left)])
        clusters = min(len(np.unique(labels[left])), _distinct(sample))
        if clusters >= 2:
            found[i] = adjusted_rand_score(labels[left], METHODS[method](sample, [clusters], seed)[0])
    return found


def _group_shares(naica: Profiles, queries: pd.MultiIndex, labels: Labels) -> pd.DataFrame:
    """Cluster x group: share of the cluster's naica."""
    codes, groups = pd.factorize(queries.get_level_values("group"))
    summed = (_one_hot(labels).T @ naica @ _one_hot(codes)).toarray()
    clusters, names = pd.RangeIndex(len(summed), name="cluster"), pd.Index(groups, name="group")
    return pd.DataFrame(summed / summed.sum(axis=1, keepdims=True), index=clusters, columns=names)


def _distances(unit: Profiles) -> Float[np.ndarray, " pair"]:
    """The cosine distances of every two neurons, the pairs in scipy's order."""
    n = len(unit.indptr) - 1
    found, place, across = np.empty(n * (n - 1) // 2), 0, unit.T.tocsr()
    for start in range(0, n, _BLOCK):
        near = (unit[start : start + _BLOCK] @ across).toarray()
        for i, row in enumerate(near, start + 1):
            found[place : place + n - i] = 1 - row[i:]
            place += n - i
    return np.maximum(found, 0.0)


def _cut(merges: Int[np.ndarray, "merge 2"], k: int) -> Labels:
    """The labels of `k` clusters: a tree without its last k - 1 merges; merge number i makes node n + i of n neurons."""
    n = len(merges) + 1
    done = merges[: n - k]
    parents = np.repeat(np.arange(n, n + len(done)), 2)
    links = sparse.coo_array((np.ones(len(parents)), (done.ravel(), parents)), shape=(2 * n - 1, 2 * n - 1))
    return connected_components(links, directed=False)[1][:n]


def _one_hot(labels: Int[np.ndarray, " row"]) -> sparse.csr_array:
    """One row a label, 1 in the column of that number."""
    n = len(labels)
    return sparse.csr_array((np.ones(n), (np.arange(n), labels)), shape=(n, int(labels.max()) + 1))


def _by_size(labels: Labels) -> Labels:
    """Number the clusters from the largest down; equal ones by their first neuron."""
    _, first, inverse, size = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    return np.argsort(np.lexsort((first, -size)))[inverse]


def _unit_rows(values: Profiles) -> Profiles:
    norms = np.sqrt(values.multiply(values).sum(axis=1))
    return sparse.csr_array(
        (values.data / np.repeat(norms, np.diff(values.indptr)), values.indices, values.indptr), values.shape
    )


def _distinct(unit: Profiles) -> int:
    """How many profiles differ within 9 digits."""
    rounded = sparse.csr_array((unit.data.round(9), unit.indices, unit.indptr), unit.shape).copy()
    rounded.eliminate_zeros()
    rounded.sort_indices()
    ends = zip(rounded.indptr, rounded.indptr[1:], strict=False)
    return len({(rounded.indices[a:b].tobytes(), rounded.data[a:b].tobytes()) for a, b in ends})
