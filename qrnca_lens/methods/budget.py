"""How many neurons of a ranking are taken: the rules that cut every method's rankings in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qrnca_lens.clustering import ModelShape, QRNeurons, check_located
from qrnca_lens.core.neurons import NeuronSet, check_sets
from qrnca_lens.core.values import WrongKindError, check_kind, number, told, whole_number
from qrnca_lens.methods.ranking import Ranking

Sets = dict[str, NeuronSet]

Budget = Callable[[str, Ranking], int]
"""From a query's id and a method's ranking for it to the number of neurons taken, the first of the ranking."""


def check_budget(budget: Budget) -> None:
    """TypeError for what is no rule."""
    if not callable(budget) or isinstance(budget, type):
        raise WrongKindError(f"budget must be a rule, such as at_most(20) of qrnca_lens.methods, not {told(budget)}")


def at_most(k: int) -> Budget:
    """`k` neurons of every query, or all that the ranking has. ValueError for a `k` below 1."""
    count = whole_number("k", k, at_least=1)
    return lambda query, ranking: count


def share(part: float, model: ModelShape) -> Budget:
    """This part of the model's MLP neurons, to the nearest whole number. ValueError for none or above 1."""
    check_kind("model", model, ModelShape, "the ModelShape of a result, located.model")
    part, neurons = number("part", part), model.n_layers * model.d_mlp
    if not 0.5 < part * neurons <= neurons:
        raise ValueError(f"part must be at most 1 and no less than one of the {neurons} neurons, not {part}")
    return at_most(round(part * neurons))


def like(located: QRNeurons) -> Budget:
    """As many as QRNCA has for the query in `located`. KeyError for a query that it does not know."""
    check_located(located)
    counts = located.per_query().set_index("query")["qr"].to_dict()

    def count(query: str, ranking: Ranking) -> int:
        located.check_query(query)
        return counts[query]

    return count


def own_sizes(located: QRNeurons) -> Budget:
    """What each method's own rule takes (`Ranking.own`); where it names no number, as many as QRNCA in `located`."""
    as_qrnca = like(located)
    return lambda query, ranking: as_qrnca(query, ranking) if ranking.own is None else ranking.own


def cut(rankings: Mapping[str, Ranking], budget: Budget) -> Sets:
    """Every query's ranking (by query) cut to the neurons that the budget gives it, best first."""
    check_budget(budget)
    check_kind("rankings", rankings, Mapping, "a dict of rankings by query")
    for ranking in rankings.values():
        check_kind("a ranking", ranking, Ranking, "a Ranking of qrnca_lens.methods")
    return {query: ranking.top(budget(query, ranking)) for query, ranking in rankings.items()}


def equal_counts(sets: Mapping[str, Sets]) -> dict[str, Sets]:
    """Every method's sets (by method, then by query) cut to the length of the shortest one for the same query.

    The sets come best first, so what remains is the first of each ranking. KeyError for a query that a method lacks.
    """
    check_sets("sets", sets)
    queries = dict.fromkeys(query for found in sets.values() for query in found)
    counts = {query: min(len(found[query]) for found in sets.values()) for query in queries}
    return {
        method: {query: NeuronSet(found[query].neurons[: counts[query]]) for query in found}
        for method, found in sets.items()
    }
