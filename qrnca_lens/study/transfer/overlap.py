"""How much the neurons of a question found by letter and those found by answer are the same ones.

The measure is the Jaccard index: neurons in both sets over neurons in either. It is NaN for two empty sets. What it is
compared with are the answer sets of the other questions of the same group: a model may keep all that concerns a group, or
all that concerns questions, in the same neurons, which says nothing about the knowledge asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import quantile_interval, resampled_means
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import ALL_GROUPS
from qrnca_lens.localization.significance import TIE, holm

DEALS = 10_000
KINDS = ("QR neurons", "whole clusters")
"""The sets that are compared: what is left after ica and common neurons, and all neurons above the threshold."""
PAIR_COLUMNS = ["neurons", "query", "group", "unit", "letter", "answer", "shared", "jaccard", "others"]
TEST_COLUMNS = [
    *["neurons", "group", "questions", "letter", "answer", "shared", "jaccard", "low", "high", "others"],
    *["permuted", "permuted_low", "permuted_high", "p", "p_corrected"],
]
Pairs = Mapping[str, tuple[NeuronSet, NeuronSet]]
"""By query the neurons found by letter and those found by answer."""


def sets_of(letter: QRNeurons, answer: QRNeurons) -> dict[str, Pairs]:
    """For each of KINDS the two sets of every query of the two runs."""
    clusters = [
        {query: NeuronSet.from_frame(rows) for query, rows in run.clusters.groupby("query")} for run in (letter, answer)
    ]
    ids, none = list(letter.queries["query"]), NeuronSet()
    return {
        KINDS[0]: {query: (letter.for_query(query), answer.for_query(query)) for query in ids},
        KINDS[1]: {query: (clusters[0].get(query, none), clusters[1].get(query, none)) for query in ids},
    }


def overlap_pairs(letter: QRNeurons, answer: QRNeurons) -> pd.DataFrame:
    """A row a kind of neurons and question, with PAIR_COLUMNS: the sizes of both sets, how many neurons they share, their
    Jaccard index, and the mean index of the letter set with the answer sets of the `others` of its group."""
    rows = []
    groups, units = letter.queries["group"].to_numpy(), letter.units.to_numpy()
    for kind, sets in sets_of(letter, answer).items():
        table = jaccard_table(sets)
        for i, (query, (one, other)) in enumerate(sets.items()):
            others = (groups == groups[i]) & (units != units[i])
            known = table[i, others][~np.isnan(table[i, others])]
            mean = float(known.mean()) if len(known) else np.nan
            rows.append((kind, query, groups[i], units[i], len(one), len(other), len(one & other), table[i, i], mean))
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def jaccard_table(sets: Pairs) -> Float[np.ndarray, "question question"]:
    """The Jaccard index of every question's letter set (row) with every question's answer set (column)."""
    number = {neuron: i for i, neuron in enumerate(dict.fromkeys(n for pair in sets.values() for one in pair for n in one))}
    letter, answer = (_members([pair[k] for pair in sets.values()], number) for k in (0, 1))
    shared = letter @ answer.T
    either = letter.sum(1)[:, None] + answer.sum(1)[None] - shared
    return np.divide(shared, either, out=np.full(shared.shape, np.nan), where=either > 0)


def _members(sets: Sequence[NeuronSet], number: Mapping[Neuron, int]) -> Float[np.ndarray, "question neuron"]:
    found = np.zeros((len(sets), len(number)))
    for row, neurons in enumerate(sets):
        found[row, [number[neuron] for neuron in neurons]] = 1.0
    return found


def overlap_test(letter: QRNeurons, answer: QRNeurons, *, seed: int = 0) -> pd.DataFrame:
    """Do the two sets of a question overlap MORE than sets of different questions of its group? A row a kind of neurons and
    group, all groups together first, with TEST_COLUMNS.

    The statistic is the mean Jaccard index over questions, `low` to `high` its 95 % cluster interval over units. Under the
    null hypothesis which answer set belongs to which question of the group does not matter: they are dealt anew within each
    group DEALS times, `permuted` is the mean then and `permuted_low` to `permuted_high` its 95 % range. `p` is one-sided,
    (1 + deals with at least as much) / (1 + deals), and NaN for a group of one question; `p_corrected` is Holm's over the
    groups of a kind, and p itself for all groups together. `letter`, `answer`, `shared` and `others` are means of
    `overlap_pairs`.
    """
    pairs, found = overlap_pairs(letter, answer), []
    groups, units = letter.queries["group"].to_numpy(), letter.units.to_numpy()
    dealt = _deals(groups, units, np.random.default_rng(seed))
    for kind, sets in sets_of(letter, answer).items():
        of_kind = pairs[pairs["neurons"] == kind].reset_index(drop=True)
        values = jaccard_table(sets)[np.arange(len(groups)), dealt]
        everything = np.ones(len(groups), bool)
        cases = {ALL_GROUPS: everything, **{group: groups == group for group in letter.groups}}
        rows = [_row(kind, group, of_kind[members], values[:, members], seed) for group, members in cases.items()]
        corrected = [rows[0][-1], *holm(np.array([row[-1] for row in rows[1:]], float))]
        found += [(*row, p) for row, p in zip(rows, corrected, strict=True)]
    return pd.DataFrame(found, columns=TEST_COLUMNS)


def _deals(groups: np.ndarray, units: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, "deal question"]:
    """Whose answer set each question gets, from its own group, DEALS times.

    Facts that are asked for in several groups change places in all of them alike, as far as the groups have the same ones.
    """
    codes = np.unique(units.astype(str), return_inverse=True)[1]
    found = np.tile(np.arange(len(groups)), (DEALS, 1))
    drawn, own = rng.random((DEALS, codes.max(initial=-1) + 1)), rng.random((DEALS, len(groups)))
    for group in dict.fromkeys(groups):
        members = np.flatnonzero(groups == group)
        members = members[np.argsort(codes[members], kind="stable")]
        once = len(set(codes[members])) == len(members)
        keys = drawn[:, codes[members]] if once else own[:, members]
        found[:, members] = members[np.argsort(keys, axis=1)]
    return found


def _row(kind: str, group: str, pairs: pd.DataFrame, dealt: np.ndarray, seed: int) -> tuple[object, ...]:
    own = pairs["jaccard"].to_numpy(dtype=float)
    means = [float(pairs[name].mean()) for name in ("letter", "answer", "shared")]
    low, high = quantile_interval(_known(resampled_means(own[:, None], pairs["unit"], seed=seed)[:, 0]))
    head = (kind, group, len(pairs), *means, float(pairs["jaccard"].mean()), low, high, float(pairs["others"].mean()))
    permuted = _known(_means(dealt))
    if not pairs["others"].notna().any() or np.isnan(own).all():
        return (*head, np.nan, np.nan, np.nan, np.nan)
    p = (1 + (permuted >= np.nanmean(own) - TIE).sum()) / (1 + len(permuted))
    return (*head, float(permuted.mean()), *quantile_interval(permuted), float(p))


def _means(values: Float[np.ndarray, "deal question"]) -> Float[np.ndarray, " deal"]:
    known = ~np.isnan(values)
    count = known.sum(1)
    return np.divide(np.where(known, values, 0.0).sum(1), count, out=np.full(len(values), np.nan), where=count > 0)


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
