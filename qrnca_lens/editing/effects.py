"""What scaling a query's neurons does to its own answer and to those of unrelated queries (paper, section 4.2)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from qrnca_lens.data import LETTERS, Query, QuerySet
from qrnca_lens.editing.interventions import scale
from qrnca_lens.models import HookedModel
from qrnca_lens.models.letters import letter_probabilities
from qrnca_lens.neurons import NeuronSet

COLUMNS = [
    "query",
    "group",
    "neurons",
    "unrelated",
    "prompts",
    "p_before",
    "p_after",
    "right_before",
    "wrong_to_right",
    "right_to_wrong",
    "p_unrelated_before",
    "p_unrelated_after",
]


@dataclass(frozen=True)
class Baseline:
    """The untouched model's letter probabilities: one tensor [prompt, letter] a query."""

    queries: QuerySet
    letters: dict[str, torch.Tensor]


def measure_baseline(model: HookedModel, queries: QuerySet) -> Baseline:
    """P of every letter on every prompt, without any edit."""
    found = letter_probabilities(model, [prompt for query in queries for prompt in query.prompts])
    parts = found.split([len(query.prompts) for query in queries])
    return Baseline(queries, {query.id: part for query, part in zip(queries, parts, strict=True)})


def edit_effects(
    model: HookedModel, baseline: Baseline, neurons: Mapping[str, NeuronSet], factor: float, *, seed: int = 0
) -> pd.DataFrame:
    """Scale each query's own neurons by `factor`; one row a query of `neurons` with COLUMNS.

    Probabilities are means over a query's prompts; right_before, wrong_to_right and right_to_wrong count prompts (the
    answer is the likeliest of the four letters). The unrelated query is drawn from another group with `seed` and the
    query's id, so that methods meet the same ones. A query whose set is empty is left alone: nothing changes.
    Raises ValueError if there is no other group.
    """
    queries = baseline.queries
    if len(queries.groups) < 2:
        raise ValueError("unrelated queries come from other groups; give queries of at least two groups")
    rows = []
    for query in queries:
        if query.id in neurons:
            pool = [other for other in queries if other.group != query.group]
            other = random.Random(f"{seed}/{query.id}").choice(pool)
            rows.append(_one_query(model, baseline, query, other, neurons[query.id], factor))
    return pd.DataFrame(rows, columns=COLUMNS)


def _one_query(
    model: HookedModel, baseline: Baseline, query: Query, other: Query, neurons: NeuronSet, factor: float
) -> tuple[object, ...]:
    prompts = [*query.prompts, *other.prompts]
    before = torch.cat([baseline.letters[query.id], baseline.letters[other.id]])
    after = before
    if len(neurons):
        with scale(model, neurons, factor):
            after = letter_probabilities(model, prompts)
    right = torch.tensor([LETTERS.index(prompt.letter) for prompt in prompts])
    own = len(query.prompts)
    was, now = (p.argmax(1)[:own] == right[:own] for p in (before, after))
    p_before, p_after = (p.gather(1, right[:, None])[:, 0] for p in (before, after))
    return (
        query.id,
        query.group,
        len(neurons),
        other.id,
        own,
        p_before[:own].mean().item(),
        p_after[:own].mean().item(),
        int(was.sum()),
        int((~was & now).sum()),
        int((was & ~now).sum()),
        p_before[own:].mean().item(),
        p_after[own:].mean().item(),
    )


def random_sets(neurons: Mapping[str, NeuronSet], d_mlp: int, *, seed: int = 0) -> dict[str, NeuronSet]:
    """For every query as many random neurons as it has, layer by layer (a control matched in number and layer)."""
    drawn = {}
    for query, chosen in neurons.items():
        rng = random.Random(f"{seed}/{query}")
        pairs = [(layer, i) for layer, indices in chosen.by_layer().items() for i in rng.sample(range(d_mlp), len(indices))]
        drawn[query] = NeuronSet.of(*pairs)
    return drawn
