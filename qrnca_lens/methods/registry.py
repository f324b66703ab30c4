"""All methods by key: each gives every query a ranking of neurons; `find_neurons` cuts it by a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from qrnca_lens.clustering import QRNeurons, check_located
from qrnca_lens.core.shapes import Scores
from qrnca_lens.core.values import WrongKindError, check_kind, given_text, known, listed
from qrnca_lens.data import Prompt, QuerySet
from qrnca_lens.data.query import check_query_set, texts_of
from qrnca_lens.methods.ablation import ablation_scores
from qrnca_lens.methods.activation import absolute_activation_scores, activation_scores
from qrnca_lens.methods.budget import Budget, Sets, check_budget, equal_counts, own_sizes
from qrnca_lens.methods.contrastive import contrastive_scores
from qrnca_lens.methods.controls import random_rankings
from qrnca_lens.methods.gradient import gradient_scores
from qrnca_lens.methods.log_probability import log_probability_scores
from qrnca_lens.methods.random_scores import scores_at_random
from qrnca_lens.methods.ranking import Ranking
from qrnca_lens.methods.scoring import ScoreFunction, ScoresTogether, one_by_one, rank_by_scores, scores_of_prompts
from qrnca_lens.methods.variants import (
    knowledge_neurons,
    knowledge_neurons_without_common,
    qrnca,
    with_common,
    without_ica,
)
from qrnca_lens.models import HookedModel, check_hooked, mlp_width

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Evidence:
    """What a method may use: the model, the queries and the QRNCA result on them (its clusters, its set sizes).

    Queries that failed in `located` are left out of `queries`. KeyError for one that it does not know, TypeError for a part
    of another kind.
    """

    model: HookedModel
    queries: QuerySet
    located: QRNeurons

    def __post_init__(self) -> None:
        check_hooked(self.model)
        check_query_set(self.queries)
        check_located(self.located)
        failed = {*self.located.failed["query"]} & {query.id for query in self.queries}
        if failed:
            worked = self.queries.keep(query.id for query in self.queries if query.id not in failed)
            object.__setattr__(self, "queries", worked)
        for query in self.queries:
            self.located.check_query(query.id)


RankFunction = Callable[[Evidence], Iterable[tuple[str, Ranking]]]
"""The id of every query of `evidence.queries` with its ranking; others may be among them and are left out."""


@dataclass(frozen=True)
class Method:
    """A method of the tables; `in_paper` tells those of the paper's table 4 from ours.

    `scores` is the scoring function of a method that has one: its rankings hold all neurons of the model. `by_neuron`: it
    runs the model, or its end, for every neuron on its own, which takes too long where there are many.
    """

    key: str
    name: str
    reference: str
    in_paper: bool
    rank: RankFunction
    scores: ScoresTogether | None = None
    by_neuron: bool = False


def _scoring(
    key: str, name: str, reference: str, function: ScoresTogether, *, in_paper: bool = False, by_neuron: bool = False
) -> Method:
    def rank(evidence: Evidence) -> Iterator[tuple[str, Ranking]]:
        return rank_by_scores(evidence.model, evidence.queries, key, function)

    return Method(key, name, reference, in_paper, rank, function, by_neuron)


def _variant(
    key: str,
    name: str,
    reference: str,
    rankings: Callable[[QRNeurons], dict[str, Ranking]],
    *,
    in_paper: bool = True,
) -> Method:
    return Method(key, name, reference, in_paper, lambda evidence: rankings(evidence.located).items())


def _same_layers(evidence: Evidence) -> Iterable[tuple[str, Ranking]]:
    return random_rankings(qrnca(evidence.located), evidence.located.model.d_mlp).items()


_TABLE4, _STATIC = "paper, table 4", "Yu and Ananiadou 2024, arXiv 2312.12141"
_MARGIN = "integrated gradients of log P(right) - log P(best wrong letter)"

METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        _scoring("random", "Random", _TABLE4, one_by_one(scores_at_random), in_paper=True),
        _scoring("activation", "Activation", _TABLE4, one_by_one(activation_scores), in_paper=True),
        _variant("knowledge-neuron", "Knowledge Neuron*", "Dai et al. 2022", knowledge_neurons),
        _variant("without-ica", "QRNCA without ICA", _TABLE4, without_ica),
        _variant("with-common", "QRNCA with common neurons", _TABLE4, with_common),
        _variant("qrnca", "QRNCA", "paper", qrnca),
        _scoring("activation-absolute", "Activation, absolute", "control", one_by_one(absolute_activation_scores)),
        _variant(
            "knowledge-neuron-without-common",
            "Knowledge Neuron* without common neurons",
            "Dai et al. 2022",
            knowledge_neurons_without_common,
            in_paper=False,
        ),
        Method("random-layers", "Random, same layers", "control", False, _same_layers),
        _scoring(
            "ablation",
            "Exact ablation",
            "one neuron at a time set to zero",
            one_by_one(ablation_scores),
            by_neuron=True,
        ),
        _scoring("contrastive", "Contrastive target", _MARGIN, contrastive_scores),
        _scoring("gradient", "Gradient x activation", "Shrikumar et al. 2016, arXiv 1605.01713", gradient_scores),
        _scoring("log-probability", "Log-probability increase", _STATIC, one_by_one(log_probability_scores), by_neuron=True),
    )
}
"""The paper's methods in its order, then ours, then those that a user has registered."""


def register(key: str, name: str, reference: str) -> Callable[[ScoreFunction], ScoreFunction]:
    """A decorator that enters a user's scoring function as a method. ValueError if the key is taken."""

    _check_new(key, name, reference)

    def enter(function: ScoreFunction) -> ScoreFunction:
        _enter(_scoring(key, name, reference, one_by_one(function)))
        return function

    return enter


def register_ranking(key: str, name: str, reference: str) -> Callable[[RankFunction], RankFunction]:
    """A decorator that enters a user's function from evidence to rankings as a method. ValueError if the key is taken."""

    _check_new(key, name, reference)

    def enter(function: RankFunction) -> RankFunction:
        _enter(Method(key, name, reference, False, function))
        return function

    return enter


def _check_new(key: str, name: str, reference: str) -> None:
    given_text("a method's name", name)
    check_kind("a method's reference", reference, str, "a text")
    if given_text("a method's key", key) in METHODS:
        raise ValueError(f"a method with the key {key!r} is registered already; give another")


def _enter(method: Method) -> None:
    _check_new(method.key, method.name, method.reference)
    METHODS[method.key] = method


def score(model: HookedModel, prompt: Prompt, key: str) -> Scores:
    """One method's scores of every MLP neuron of `model` for the right letter of `prompt`, higher = more important.

    Raises ValueError for a key that names no scoring function; AttributionError for scores of the wrong shape or that are
    no numbers.
    """
    check_hooked(model)
    functions = {method.key: method.scores for method in METHODS.values() if method.scores}
    known("scoring function", key, functions)
    texts_of([prompt])
    return scores_of_prompts(model, [prompt], key, functions[key])[0]


def rank_neurons(key: str, evidence: Evidence) -> dict[str, Ranking]:
    """One method's ranking for every query of `evidence.queries`, best neuron first.

    Methods that score neurons rank all of the model (24 bytes each, so give a large model few queries at a time), those on
    QRNCA's clusters the neurons of the query's cluster. ValueError names the methods there are.
    """
    check_evidence(evidence)
    return _in_order(dict(_rankings(key, evidence)), evidence)


def find_neurons(key: str, evidence: Evidence, budget: Budget | None = None) -> Sets:
    """One method's neurons for every query of `evidence.queries`: the first of its rankings, as many as `budget` says.

    Without a budget `own_sizes`: the paper's variants choose their own number, all others get as many as QRNCA has for the
    query. ValueError names the methods there are; TypeError for a budget that is no rule.
    """
    if budget is not None:
        check_budget(budget)
    check_evidence(evidence)
    cut = budget or own_sizes(evidence.located)
    found = {query: ranking.top(cut(query, ranking)) for query, ranking in _rankings(key, evidence)}
    return _in_order(found, evidence)


def find_at_equal_counts(keys: Iterable[str], evidence: Evidence, budget: Budget) -> dict[str, Sets]:
    """Several methods' neurons, equally many of all of them for the same query, by method and then by query.

    As many as `budget` gives the method with the fewest: one on clusters has no more neurons than the query's cluster.
    Errors as in `find_neurons`, before anything is computed.
    """
    check_budget(budget)
    check_evidence(evidence)
    named = [_method(key).key for key in listed("keys", keys)]
    return equal_counts({key: find_neurons(key, evidence, budget) for key in named})


def check_evidence(evidence: Evidence) -> None:
    """TypeError for anything but an Evidence."""
    check_kind("evidence", evidence, Evidence, "an Evidence(model, queries, located)")


def _method(key: str) -> Method:
    return METHODS[known("method", key, METHODS)]


def _in_order(found: dict[str, _Found], evidence: Evidence) -> dict[str, _Found]:
    return {query.id: found[query.id] for query in evidence.queries}


def _rankings(key: str, evidence: Evidence) -> Iterator[tuple[str, Ranking]]:
    """The rankings of the queries asked for, one at a time. ValueError for a missing query."""
    method = _method(key)
    missing = {query.id for query in evidence.queries}
    for item in method.rank(evidence):
        query, ranking = _checked(item, key, evidence.model)
        if query in missing:
            missing.remove(query)
            yield query, ranking
    if missing:
        raise ValueError(f"method {key!r} gives no ranking for query {min(missing)!r}; it must rank all of evidence.queries")


def _checked(item: object, key: str, model: HookedModel) -> tuple[str, Ranking]:
    """What a user's function gave, if it is a query with neurons of this model."""
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[1], Ranking):
        raise WrongKindError(f"method {key!r} gives {item!r}; it must give pairs of a query's id and its Ranking")
    query, ranking = item
    n_layers, d_mlp = model.cfg.n_layers, mlp_width(model)
    if (ranking.layer >= n_layers).any() or (ranking.neuron >= d_mlp).any():
        raise ValueError(
            f"method {key!r} ranks neurons outside the model for query {query!r}: there are layers 0 to {n_layers - 1} "
            f"of {d_mlp} neurons each"
        )
    return query, ranking
