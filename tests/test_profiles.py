"""Neuron clusters on planted blocks of neurons that serve the same queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from qrnca_lens.clustering import ModelShape, NeuronClusters, QRNCAConfig, QRNeurons, cluster_neurons
from qrnca_lens.clustering.profiles import METHODS, _by_size
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.views.plots import localization as figures

ALL_METHODS = list(METHODS)


def made(rows: list[tuple[str, int, int, float]], group_of: dict[str, str], common_share: float = 0.5) -> QRNeurons:
    clusters = pd.DataFrame(rows, columns=["query", "layer", "neuron", "attribution"]).assign(templates=1)
    clusters.insert(1, "group", clusters["query"].map(group_of))
    queries = pd.DataFrame({"query": list(group_of), "group": list(group_of.values()), "probability": 0.5, "gap": 0.0})
    return QRNeurons(clusters, queries, QRNCAConfig(common_share=common_share), ModelShape("tiny", 3, 40, "0"))


def blocks(sizes: tuple[int, ...] = (6, 4, 5), n: int = 8) -> QRNeurons:
    """Group g{b} has `n` queries, each with all `sizes[b]` neurons of layer b, and one neuron that no other query has."""
    generator = np.random.default_rng(0)
    group_of = {f"q{i}": f"g{i % len(sizes)}" for i in range(n * len(sizes))}
    rows = []
    for i, query in enumerate(group_of):
        layer = i % len(sizes)
        rows += [(query, layer, j, float(generator.uniform(1, 1.3))) for j in range(sizes[layer])]
        rows.append((query, layer, 10 + i, 1.0))
    return made(rows, group_of)


def by_hand() -> QRNeurons:
    """Four neurons in two pairs: (0, 0) and (0, 1) serve a and b of x; (1, 0) and (1, 1) serve c of x and d of y."""
    rows = [("a", 0, 0, 3.0), ("a", 0, 1, 1.0), ("b", 0, 0, 4.0), ("b", 0, 1, 2.0)]
    rows += [("c", 1, 0, 1.0), ("c", 1, 1, 1.0), ("d", 1, 0, 2.0), ("d", 1, 1, 3.0)]
    return made(rows, {"a": "x", "d": "y", "b": "x", "c": "x"})


@pytest.mark.parametrize("method", ALL_METHODS)
def test_planted_blocks_are_found(method: str) -> None:
    clusters = cluster_neurons(blocks(), method=method, bootstraps=10)
    assert (clusters.k, clusters.method, len(clusters.table)) == (3, method, 15)
    assert set(clusters.for_cluster(0)) == {Neuron(0, j) for j in range(6)}
    assert set(clusters.for_cluster(1)) == {Neuron(2, j) for j in range(5)}
    assert set(clusters.for_cluster(2)) == {Neuron(1, j) for j in range(4)}
    wanted = pd.DataFrame({"g0": [1.0, 0, 0], "g1": [0, 0, 1.0], "g2": [0, 1.0, 0]})
    pd.testing.assert_frame_equal(clusters.groups, wanted, check_names=False)
    assert clusters.silhouette > 0.9
    assert clusters.stability.tolist() == [1.0] * 10
    assert clusters.stability_mean == 1.0
    assert clusters.stability_interval == (1.0, 1.0)


def test_profiles_and_shares_by_hand() -> None:
    clusters = cluster_neurons(by_hand(), k=2, bootstraps=0)
    assert list(clusters.profiles.columns) == [("x", "a"), ("x", "b"), ("x", "c"), ("y", "d")]
    ica = np.log(4 / 3)  # every neuron is in two of four clusters
    first = np.array([3 / 4, 4 / 6]) * ica
    profile = clusters.profiles.loc[(0, 0)].to_numpy()
    assert profile.tolist() == pytest.approx([*(first / np.linalg.norm(first)), 0, 0])
    assert np.linalg.norm(clusters.profiles.to_numpy(), axis=1).tolist() == pytest.approx([1] * 4)
    # cluster 1 holds (1, 0) and (1, 1): all of c and all of d, so half of its naica falls on x and half on y
    assert clusters.groups.to_numpy().tolist() == [[1, 0], [pytest.approx(0.5), pytest.approx(0.5)]]
    assert clusters.table["cluster"].tolist() == [0, 0, 1, 1]
    assert clusters.for_cluster(1) & NeuronSet.of((1, 0), (1, 1)) == clusters.for_cluster(1)
    cosine = clusters.profiles.to_numpy() @ clusters.profiles.to_numpy().T
    inside, outside = 1 - cosine[0, 1], 1.0
    assert clusters.table["silhouette"][0] == pytest.approx((outside - inside) / outside)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_table_and_profiles_agree(method: str) -> None:
    located = blocks()
    clusters = cluster_neurons(located, method=method, k=5, bootstraps=5, seed=3)
    table = clusters.to_frame()
    assert table.columns.tolist() == ["layer", "neuron", "cluster", "silhouette"]
    assert list(clusters.profiles.index) == list(zip(table["layer"], table["neuron"], strict=True))
    assert table["cluster"].is_monotonic_increasing
    assert table["cluster"].value_counts().sort_index().is_monotonic_decreasing
    assert all(rows["silhouette"].is_monotonic_decreasing for _, rows in table.groupby("cluster"))
    assert clusters.groups.sum(axis=1).tolist() == pytest.approx([1] * 5)
    assert set(clusters.profiles.columns.get_level_values("query")) == set(located.queries["query"])
    assert ((clusters.stability >= -1) & (clusters.stability <= 1)).all()
    table.loc[0, "cluster"] = 99
    assert clusters.table["cluster"][0] == 0
    again = cluster_neurons(located, method=method, k=5, bootstraps=5, seed=3)
    pd.testing.assert_frame_equal(clusters.table, again.table)
    assert np.array_equal(clusters.stability, again.stability)


def test_unrelated_neurons_are_not_stable() -> None:
    generator = np.random.default_rng(1)
    group_of = {f"q{i}": f"g{i % 2}" for i in range(30)}
    rows = [(q, 0, int(j), float(generator.uniform(1, 2))) for q in group_of for j in generator.choice(40, 8, replace=False)]
    noise = cluster_neurons(made(rows, group_of), k=4, method="k-means", bootstraps=20)
    assert noise.stability_mean < 0.5
    low, high = noise.stability_interval
    assert low <= noise.stability_mean <= high


def test_min_queries() -> None:
    everything = cluster_neurons(blocks(), min_queries=1, bootstraps=0)
    assert len(everything.table) == 15 + 24
    assert np.isnan(everything.stability_mean)
    assert np.isnan(everything.stability_interval).all()
    with pytest.raises(ValueError, match="0 neurons with 0 distinct profiles are QR neurons of at least 9 queries"):
        cluster_neurons(blocks(), min_queries=9)


def test_neurons_with_equal_profiles() -> None:
    group_of = {f"q{i}": f"g{i % 2}" for i in range(8)}
    equal = made([(q, 0, j + 2 * (i % 2), 1.0) for i, q in enumerate(group_of) for j in (0, 1)], group_of)
    for method in ALL_METHODS:
        clusters = cluster_neurons(equal, method=method, bootstraps=30)
        assert (clusters.k, clusters.silhouette) == (2, pytest.approx(1))
        with pytest.raises(ValueError, match="k must lie in 2 to 2 for these 4 neurons, not 3"):
            cluster_neurons(equal, method=method, k=3)
    alone = made([(q, 0, j, 1.0) for q in ("q0", "q2") for j in range(3)], group_of)
    with pytest.raises(ValueError, match="3 neurons with 1 distinct profiles"):
        cluster_neurons(alone)


def test_neurons_whose_naica_is_zero_throughout_are_left_out() -> None:
    group_of = {f"q{i}": "g" for i in range(10)}
    rows = [(q, 0, 0, 1.0) for q in list(group_of)[:9]]  # log(10 / (9 + 1)) = 0
    rows += [(f"q{i}", 1, i % 3, 1.0 + i) for i in range(9)]
    clusters = cluster_neurons(made(rows, group_of, common_share=1.0), bootstraps=0)
    assert clusters.table["layer"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "no method 'magic'; there are hierarchical, k-means"),
        ({"k": 1}, "k must lie in 2 to 14 for these 15 neurons, not 1"),
        ({"k": 15}, "k must lie in 2 to 14"),
        ({"min_queries": 0}, "min_queries must be at least 1"),
        ({"bootstraps": -1}, "bootstraps must be at least 0, not -1"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_neurons(blocks(), **options)


def test_clusters_are_numbered_from_the_largest() -> None:
    assert _by_size(np.array([3, 0, 0, 7, 7, 7, 3])).tolist() == [1, 2, 2, 0, 0, 0, 1]


def test_it_displays_and_names_its_clusters() -> None:
    clusters = cluster_neurons(by_hand(), k=2, bootstraps=4)
    assert repr(clusters).startswith("NeuronClusters(4 neurons in 2 clusters by hierarchical, silhouette 0.98, stability ")
    html = clusters._repr_html_()
    assert html.count("<table") == 1
    assert "<th>neurons</th>" in html
    with pytest.raises(KeyError, match="no cluster 2 in this result; there are 0 to 1"):
        clusters.for_cluster(2)


def test_the_figure_shows_every_cell_where_they_fit() -> None:
    clusters = cluster_neurons(blocks(), bootstraps=0)
    figure = figures.neuron_clusters(clusters)
    (heat,) = figure.data
    assert np.array_equal(np.asarray(heat.z), clusters.profiles.to_numpy())
    first = clusters.table.iloc[0]
    assert heat.y[0] == f"L{first['layer']:.0f}.N{first['neuron']:.0f}, cluster 0"
    assert heat.x[:2] == ("q0, g0", "q3, g0")
    assert list(figure.layout.xaxis.ticktext) == ["g0", "g1", "g2"]
    assert list(figure.layout.xaxis.tickvals) == [3.5, 11.5, 19.5]
    assert list(figure.layout.yaxis.ticktext) == ["cluster 0", "cluster 1", "cluster 2"]
    assert list(figure.layout.yaxis.tickvals) == [2.5, 8, 12.5]
    assert [line.x0 for line in figure.layout.shapes[:2]] == [7.5, 15.5]
    assert figure.layout.title.text == "Neuron clusters and the queries they serve"


def big(n_neurons: int, n_queries: int) -> NeuronClusters:
    generator = np.random.default_rng(0)
    labels = np.sort(generator.integers(3, size=n_neurons))
    table = pd.DataFrame({"layer": 0, "neuron": range(n_neurons), "cluster": labels, "silhouette": 0.5})
    columns = pd.MultiIndex.from_tuples([(f"g{4 * i // n_queries}", f"q{i}") for i in range(n_queries)])
    index = pd.MultiIndex.from_frame(table[["layer", "neuron"]])
    profiles = pd.DataFrame(generator.random((n_neurons, n_queries)), index=index, columns=columns)
    return NeuronClusters(table, pd.DataFrame(np.eye(3)), np.ones(1), profiles, "k-means")


@pytest.mark.parametrize("shape", [(700, 552), (1000, 24), (30, 1800), (5000, 4), (25_000, 10)])
def test_a_large_figure_stays_small(shape: tuple[int, int]) -> None:
    clusters = big(*shape)
    figure = figures.neuron_clusters(clusters)
    z = np.asarray(figure.data[0].z)
    assert z.size <= figures.MOST_CELLS
    assert z.shape == (len(figure.data[0].y), len(figure.data[0].x))
    assert len(set(figure.data[0].y)) == z.shape[0]
    assert len(set(figure.data[0].x)) == z.shape[1]
    title = figure.layout.title.text
    assert ("most typical of" in title) == (z.shape[0] < shape[0])
    assert (f"of {shape[1]} queries" in title) == (z.shape[1] < shape[1])
    assert list(figure.layout.yaxis.ticktext) == ["cluster 0", "cluster 1", "cluster 2"]
    assert list(figure.layout.xaxis.ticktext) == ["g0", "g1", "g2", "g3"]
    if z.shape[0] == shape[0]:
        assert z[:, 0].tolist() == pytest.approx(
            clusters.profiles.iloc[:, : shape[1] // 4].to_numpy()[:, : -(-shape[1] // max(100, 20_000 // shape[0]))].mean(1)
        )
