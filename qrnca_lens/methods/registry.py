"""The methods that the tables compare: each gives every query its neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.selection import knowledge_neurons, qrnca, with_common, without_ica
from qrnca_lens.core.neurons import NeuronSet, top_neurons
from qrnca_lens.data import QuerySet
from qrnca_lens.methods import BASELINES, score
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import HookedModel

Sets = dict[str, NeuronSet]


@dataclass(frozen=True)
class Evidence:
    """What a method may use: the model, the queries and the QRNCA result on them (its clusters, its set sizes).

    Queries that failed in `located` are left out of `queries`. KeyError for one that it does not know.
    """

    model: HookedModel
    queries: QuerySet
    located: QRNeurons

    def __post_init__(self) -> None:
        failed = {*self.located.failed["query"]} & {query.id for query in self.queries}
        if failed:
            worked = self.queries.keep(query.id for query in self.queries if query.id not in failed)
            object.__setattr__(self, "queries", worked)
        for query in self.queries:
            self.located.check_query(query.id)


@dataclass(frozen=True)
class Method:
    """A method of the tables; `in_paper` tells those of the paper's table 4 from ours."""

    key: str
    name: str
    reference: str
    in_paper: bool
    find: Callable[[Evidence], Sets]


def methods() -> dict[str, Method]:
    """All methods by key: the paper's in its order, then ours, then scoring functions that a user has registered."""
    named = [
        Method("random", "Random", "paper, table 4", True, by_score("random")),
        Method("activation", "Activation", "paper, table 4", True, by_score("activation")),
        Method("knowledge-neuron", "Knowledge Neuron*", "Dai et al. 2022", True, lambda e: knowledge_neurons(e.located)),
        Method("without-ica", "QRNCA without ICA", "paper, table 4", True, lambda e: without_ica(e.located)),
        Method("with-common", "QRNCA with common neurons", "paper, table 4", True, lambda e: with_common(e.located)),
        Method("qrnca", "QRNCA", "paper", True, lambda e: qrnca(e.located)),
        Method("random-layers", "Random, same layers", "control", False, _matched),
    ]
    known = {method.key: method for method in named}
    for key, baseline in BASELINES.items():
        if key not in known:
            known[key] = Method(key, baseline.name, baseline.reference, False, by_score(key))
    return known


def find_neurons(key: str, evidence: Evidence) -> Sets:
    """One method's neurons for every query of `evidence.queries`. ValueError names the methods there are."""
    known = methods()
    if key not in known:
        raise ValueError(f"unknown method {key!r}; there are {', '.join(known)}")
    found = known[key].find(evidence)
    return {query.id: found[query.id] for query in evidence.queries}


def by_score(key: str) -> Callable[[Evidence], Sets]:
    """The neurons with the highest score summed over a query's prompts, as many as QRNCA has for that query."""

    def find(evidence: Evidence) -> Sets:
        found = {}
        for query in evidence.queries:
            count = len(evidence.located.for_query(query.id))
            total = torch.stack([score(key, evidence.model, prompt) for prompt in query.prompts]).sum(0)
            found[query.id] = NeuronSet.from_frame(top_neurons(total, count))
        return found

    return find


def _matched(evidence: Evidence) -> Sets:
    return random_sets(qrnca(evidence.located), evidence.located.model.d_mlp)
