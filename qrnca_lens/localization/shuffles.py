"""Group labels dealt anew, queries drawn from groups, and the sums over groups that both are read through."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from qrnca_lens.clustering import QRNeurons

CHUNK_ENTRIES = 8_000_000
"""How many numbers the sums of one block of shuffles may hold."""


def group_numbers(located: QRNeurons) -> Int[np.ndarray, " query"]:
    """The group of every query as its place in `located.groups`."""
    position = {group: i for i, group in enumerate(located.groups)}
    return located.queries["group"].map(position).to_numpy(dtype=int)


def unit_numbers(located: QRNeurons) -> Int[np.ndarray, " query"]:
    """What every query counts as (`QRNeurons.units`), numbered from 0: queries for the same fact have the same number."""
    return np.unique(located.units.to_numpy(dtype=str), return_inverse=True)[1]


def neuron_numbers(located: QRNeurons) -> Int[np.ndarray, " row"]:
    """The rows' neurons, numbered from 0: rows of `table` with the same neuron have the same number."""
    return located.table.groupby(["layer", "neuron"]).ngroup().to_numpy()


def exchangeable(groups: Int[np.ndarray, " query"], units: Int[np.ndarray, " query"]) -> list[Int[np.ndarray, " member"]]:
    """The sets of queries within which the labels may change places.

    A fact that is asked for in several groups is a set of its own; all other queries are one set (a fact that is asked
    several times in one group alone counts there as several queries).
    """
    spans = np.bincount(np.unique(np.stack([units, groups]), axis=1)[0])  # how many groups each unit is in
    block = np.where(spans[units] > 1, units, -1)
    order = np.argsort(block, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(block[order])) + 1)


def dealt(
    groups: Int[np.ndarray, " query"], sets: list[np.ndarray], generator: np.random.Generator
) -> Int[np.ndarray, " query"]:
    """The labels after they changed places within each of `sets`; every group keeps its number of queries."""
    found = groups.copy()
    for members in sets:
        found[members] = generator.permutation(groups[members])
    return found


def label_chunks(located: QRNeurons, permutations: int, seed: int, chunk: int) -> Iterator[Int[np.ndarray, "shuffle query"]]:
    """The true labels, then shuffles of them, in blocks of at most `chunk`; the block size does not change the shuffles."""
    groups = group_numbers(located)
    sets, generator = exchangeable(groups, unit_numbers(located)), np.random.default_rng(seed)
    yield groups[None]
    for start in range(0, permutations, chunk):
        yield np.stack([dealt(groups, sets, generator) for _ in range(min(chunk, permutations - start))])


def drawn(
    groups: Int[np.ndarray, " query"], units: Int[np.ndarray, " query"], per_group: int, generator: np.random.Generator
) -> Int[np.ndarray, " query"]:
    """The labels of `per_group` queries of every group, drawn without replacement; -1 for the queries that are not drawn.

    Every unit gets a random rank and each group takes its first: groups that share facts are drawn with the same ones.
    """
    rank = generator.random(units.max(initial=-1) + 1)[units]
    order = np.lexsort((rank, groups))
    by_group = groups[order]
    place = np.arange(len(groups)) - np.searchsorted(by_group, by_group)
    found = np.full(len(groups), -1)
    found[order[place < per_group]] = by_group[place < per_group]
    return found


def by_query(located: QRNeurons, column: Int[np.ndarray, " row"], values: Float[np.ndarray, " row"]) -> sparse.csr_array:
    """One row for each neuron, cell or layer (`column` of the rows of `table`), one column for each query; values add up."""
    position = {query: i for i, query in enumerate(located.queries["query"])}
    query = located.table["query"].map(position).to_numpy(dtype=int)
    shape = (int(column.max(initial=-1)) + 1, len(position))
    return sparse.csr_array(sparse.coo_array((values, (column, query)), shape=shape))


def group_sums(
    entries: sparse.csr_array, labels: Int[np.ndarray, "shuffle query"], n_groups: int
) -> Float[np.ndarray, "column shuffle group"]:
    """The values of `by_query` summed over the queries of each group, once for every row of labels; -1 counts nowhere."""
    one_hot = (labels[..., None] == np.arange(n_groups)).astype(float)
    flat = one_hot.transpose(1, 0, 2).reshape(labels.shape[1], -1)
    return (entries @ flat).reshape(len(entries.indptr) - 1, len(labels), n_groups)


def chunk_size(entries: sparse.csr_array, n_groups: int) -> int:
    """How many shuffles one call of `group_sums` may take."""
    return max(1, CHUNK_ENTRIES // max(1, len(entries.indptr) * n_groups))
