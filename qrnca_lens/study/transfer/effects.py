"""What suppressing the neurons found by letter and by answer does to the letter and to the answer, here and elsewhere."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pandas as pd

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import clustered_interval, paired_difference, quantile_interval, resampled_means
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.editing.effects import COLUMNS, SUPPRESS, edit_effects
from qrnca_lens.localization.significance import holm
from qrnca_lens.models import HookedModel
from qrnca_lens.study.transfer.both_ways import READS

SETS = ("letter", "answer", "random (letter)", "random (answer)")
"""The neurons that are suppressed: those found each way, and as many random ones of the same layers for each."""
PLACES = ("own", "unrelated")
"""The questions on which an effect is read."""
EDIT_COLUMNS = ["prompts_of", *COLUMNS]
CHANGE_COLUMNS = ["set", "prompts", "on", "query", "group", "unit", "percent", "points", "log_p"]
EFFECT_COLUMNS = [
    *["set", "prompts", "on", "questions", "neurons"],
    *[f"{measure}{bound}" for measure in ("percent", "points", "log_p") for bound in ("", "_low", "_high")],
    *["flipped", "of", "share", "share_low", "share_high"],
]
COMPARISON_COLUMNS = [
    *["set", "prompts", "comparison", "measure", "questions", "own", "beside", "mean", "low", "high", "p", "p_corrected"],
]
COMPARISONS = ("own - unrelated", "set - random")
MEASURES = {"letter": "points", "answer": "log_p"}
"""What is compared on each kind of prompts: P of the right letter in points, log P per token of the right answer in nats."""
_UNRELATED = {"letter": "same", "answer": "other"}
Sets = Mapping[str, NeuronSet]


def four_sets(letter: QRNeurons, answer: QRNeurons, *, seed: int = 0) -> dict[str, dict[str, NeuronSet]]:
    """For each of SETS the neurons of every query of the two runs."""
    ids = list(letter.queries["query"])
    found = {name: {query: run.for_query(query) for query in ids} for name, run in (("letter", letter), ("answer", answer))}
    taken = {query: found["letter"][query] | found["answer"][query] for query in ids}
    beside = {
        f"random ({name})": random_beside(found[name], taken, letter.model.d_mlp, seed=f"{seed}/{name}") for name in found
    }
    return {**found, **beside}


def random_beside(sets: Sets, taken: Sets, d_mlp: int, *, seed: str = "0") -> dict[str, NeuronSet]:
    """For each query as many random neurons as its set has in each layer, none of those `taken` for it.

    Where a layer of `d_mlp` neurons has fewer others, all of them.
    """
    drawn = {}
    for query, neurons in sets.items():
        rng, used = random.Random(f"{seed}/{query}/beside"), taken[query].by_layer()
        found: list[Neuron] = []
        for layer, indices in neurons.by_layer().items():
            others = [i for i in range(d_mlp) if i not in set(used.get(layer, ()))]
            found += [Neuron(layer, i) for i in rng.sample(others, min(len(indices), len(others)))]
        drawn[query] = NeuronSet(tuple(found))
    return drawn


def transfer_edits(model: HookedModel, letter: QRNeurons, answer: QRNeurons, *, seed: int = 0) -> pd.DataFrame:
    """`edit_effects` of all SETS at factor 0 on both kinds of prompts, with a column `prompts_of` (one of READS)."""
    sets = four_sets(letter, answer, seed=seed)
    asked = {"letter": letter.asked, "answer": answer.asked}
    parts = [
        edit_effects(model, queries, sets, factors=[SUPPRESS], seed=seed).assign(prompts_of=read)
        for read, queries in asked.items()
    ]
    return pd.concat(parts, ignore_index=True)[EDIT_COLUMNS]


def changes(edits: pd.DataFrame) -> pd.DataFrame:
    """A row a (set, prompts, on, question) with CHANGE_COLUMNS: what the edit changes of P, in % and in points, and of log P
    in nats (of an answer: per token).

    `on` is the question itself or an unrelated one: of another group, and where letters are read with the same right
    letter, so that an effect on the letter is in both. NaN where some prompt of the question has no such partner, and for a
    change relative to a P of 0.
    """
    parts = []
    for read, of_read in edits.groupby("prompts_of", sort=False):
        kind = _UNRELATED[str(read)]
        for on in PLACES:
            infix = "" if on == "own" else f"{kind}_"
            before, after, log_before, log_after = (
                of_read[f"{name}_{infix}{when}"].astype(float) for name in ("p", "log_p") for when in ("before", "after")
            )
            whole = of_read["prompts" if on == "own" else f"{kind}_prompts"] == of_read["prompts"]
            values = {
                "percent": 100 * (after / before.where(before > 0) - 1),
                "points": 100 * (after - before),
                "log_p": (log_after - log_before).where(np.isfinite(log_after) & np.isfinite(log_before)),
            }
            named = of_read[["query", "group", "unit"]].assign(set=of_read["method"], prompts=read, on=on)
            parts.append(named.assign(**{name: found.where(whole) for name, found in values.items()}))
    return pd.concat(parts, ignore_index=True)[CHANGE_COLUMNS]


def effect_table(edits: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The means of `changes` over questions with EFFECT_COLUMNS, each with its 95 % cluster interval over units.

    `neurons` is the mean size of the sets; of the own prompts that were answered rightly, `of`, `flipped` are not any more,
    with `share` in %.
    """
    rows = []
    sizes = edits.groupby("method")["neurons"].mean()
    for key, part in changes(edits).groupby(["set", "prompts", "on"], sort=False):
        name, read, on = map(str, key)
        names = ["percent", "points", "log_p"]
        drawn = resampled_means(part[names].to_numpy(dtype=float), part["unit"], seed=seed)
        estimates = [
            value
            for column, measure in enumerate(names)
            for value in (float(part[measure].mean()), *quantile_interval(_finite(drawn[:, column])))
        ]
        of_key = edits[(edits["method"] == name) & (edits["prompts_of"] == read)]
        flips = _flips(of_key) if on == "own" else (np.nan,) * 5
        rows.append((name, read, on, int(part["points"].notna().sum()), float(sizes[name]), *estimates, *flips))
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def _flips(edits: pd.DataFrame) -> tuple[float, ...]:
    by_unit = edits.groupby("unit")[["right_to_wrong", "right_before"]].sum()
    counts, of = by_unit["right_to_wrong"].to_numpy(dtype=int), by_unit["right_before"].to_numpy(dtype=int)
    low, high = clustered_interval(counts, of)
    share = 100 * counts.sum() / of.sum() if of.sum() else np.nan
    return float(counts.sum()), float(of.sum()), float(share), 100 * low, 100 * high


def comparison_table(edits: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Paired differences over questions with COMPARISON_COLUMNS: for the letter's and the answer's set on each kind of
    prompts the change of the own question less that of the unrelated one, and less that by random neurons. `own` and
    `beside` are the means of the two.

    `p` is that of sign flips over units (`core.intervals.paired_difference`), `p_corrected` Holm's over the table.
    """
    found = changes(edits).set_index(["set", "prompts", "on", "query"]).sort_index()
    rows = []
    for name in READS:
        for read, measure in MEASURES.items():
            own = found.loc[(name, read, "own")]
            beside = {
                COMPARISONS[0]: found.loc[(name, read, "unrelated")],
                COMPARISONS[1]: found.loc[(f"random ({name})", read, "own")],
            }
            for comparison, other in beside.items():
                first, second = own[measure].to_numpy(dtype=float), other.loc[own.index, measure].to_numpy(dtype=float)
                paired = paired_difference(first, second, own["unit"], seed=seed)
                known = ~np.isnan(first - second)
                means = (float(values[known].mean()) if known.any() else np.nan for values in (first, second))
                head = (name, read, comparison, measure, int(known.sum()), *means)
                rows.append((*head, paired.mean, *paired.interval, paired.p))
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS[:-1])
    return table.assign(p_corrected=holm(table["p"].to_numpy(dtype=float)))


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
