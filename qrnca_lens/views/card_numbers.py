"""The numbers of a neuron's card: its strongest prompts, what editing it does, the neurons most like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from qrnca_lens.attribution.options import edited_options
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import Prompt, Query
from qrnca_lens.engine.activity import token_activations
from qrnca_lens.models import HookedModel

EXAMPLES, NEIGHBOURS = 3, 8
EDITS = {"ablated (x 0)": 0.0, "doubled (x 2)": 2.0}
ACTIVITY_COLUMNS = ["query", "group", "template", "letter", "activation"]


@dataclass(frozen=True)
class Example:
    """A prompt with the neuron's activation at each of its tokens; the last one is what the ranking goes by."""

    query: str
    group: str
    tokens: tuple[str, ...]
    values: np.ndarray


def activity_table(asked: Sequence[tuple[Query, Prompt]], activity: np.ndarray) -> pd.DataFrame:
    """One row a prompt: query, group, template, letter (the right one) and the activation at its last token."""
    rows = [(q.id, q.group, p.template, p.letter, value) for (q, p), value in zip(asked, activity.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=ACTIVITY_COLUMNS)


def scores_of(located: QRNeurons, chosen: Neuron) -> pd.DataFrame:
    """Every query whose cluster holds the neuron: query, group, na, ica, naica and, for a QR neuron, rank; best first."""
    clustered, ranked = (
        rows[(rows["layer"] == chosen.layer) & (rows["neuron"] == chosen.index)] for rows in (located.scored, located.table)
    )
    scores = clustered[["query", "group", "na", "ica", "naica"]].merge(ranked[["query", "rank"]], on="query", how="left")
    return scores.sort_values(["rank", "na"], ascending=[True, False], ignore_index=True)


def strongest_examples(
    model: HookedModel, chosen: Neuron, asked: Sequence[tuple[Query, Prompt]], activity: np.ndarray
) -> dict[str, tuple[Example, ...]]:
    """The strongest prompts of either sign, one a query."""
    chosen_rows: dict[str, list[int]] = {}
    for name, sign in (("highest positive", 1), ("lowest negative", -1)):
        best: dict[str, int] = {}
        for i in np.argsort(-sign * activity, kind="stable").tolist():
            if sign * activity[i] <= 0 or len(best) == EXAMPLES:
                break
            best.setdefault(asked[i][0].id, i)
        chosen_rows[name] = list(best.values())
    rows = [i for found in chosen_rows.values() for i in found]
    read = token_activations(model, [asked[i][1].text for i in rows], chosen)
    examples = {
        i: Example(asked[i][0].id, asked[i][0].group, tuple(tokens), values.numpy())
        for i, (tokens, values) in zip(rows, read, strict=True)
    }
    return {name: tuple(examples[i] for i in found) for name, found in chosen_rows.items()}


def effect_of(model: HookedModel, chosen: Neuron, query: Query) -> list[float]:
    """Mean P of the right option over the query's prompts: untouched, then with each of `EDITS` at the last token; exact."""
    edits = [(NeuronSet((chosen,)), factor) for factor in EDITS.values()]
    found = edited_options(model, query.prompts, [edits] * len(query.prompts))
    p = torch.stack([rows[:, prompt.right] for rows, prompt in zip(found, query.prompts, strict=True)])
    return p.mean(0).tolist()


def effects_table(queries: Sequence[Query], effects: Sequence[Sequence[float]], scores: pd.DataFrame) -> pd.DataFrame:
    """One row a query: query, group, what `effect_of` gives for it, and the neuron's rank there (see `scores_of`)."""
    rows = [(query.id, query.group, *effect) for query, effect in zip(queries, effects, strict=True)]
    table = pd.DataFrame(rows, columns=["query", "group", "P untouched", *[f"P {name}" for name in EDITS]])
    return table.merge(scores[["query", "rank"]], on="query", how="left")


def nearest_neurons(located: QRNeurons, chosen: Neuron) -> pd.DataFrame:
    """The neurons with the highest cosine between their naica over all queries and that of `chosen`."""
    profiles = located.profiles
    keys = profiles.neurons
    at = int(keys.get_indexer(pd.MultiIndex.from_tuples([(chosen.layer, chosen.index)]))[0])
    if at < 0 or not profiles.norms[at]:
        return pd.DataFrame(columns=["layer", "neuron", "cosine", "queries"])
    cosine = profiles.cosines(at)
    cosine[at] = -1
    best = np.argsort(-cosine, kind="stable")[:NEIGHBOURS]
    counts = np.diff(profiles.values.indptr)
    made = [(*keys[i], float(cosine[i]), int(counts[i])) for i in best if cosine[i] > 0]
    return pd.DataFrame(made, columns=["layer", "neuron", "cosine", "queries"])
