"""Random neurons to compare with, matched to a method's own in number and layer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import seed_number, whole_number
from qrnca_lens.methods.ranking import Ranking


def random_sets(neurons: Mapping[str, NeuronSet], d_mlp: int, *, seed: int = 0) -> dict[str, NeuronSet]:
    """For every query as many random neurons as it has, layer by layer (a control matched in number and layer)."""
    drawn, seed = {}, seed_number(seed)
    for query, chosen in neurons.items():
        by_layer = _draw(random.Random(f"{seed}/{query}"), (neuron.layer for neuron in chosen), d_mlp, {})
        drawn[query] = NeuronSet.of(*[(layer, i) for layer, indices in by_layer.items() for i in indices])
    return drawn


def disjoint_draws(
    neurons: NeuronSet, d_mlp: int, *, draws: int, seed: int = 0
) -> dict[int, Int[np.ndarray, "draw neuron"]]:
    """By layer, `draws` times as many random neurons as the set has there, none of them in the set: their indices.

    A layer with more than half of its `d_mlp` neurons in the set has too few others, and is left out.
    """
    drawn, seed, draws = {}, seed_number(seed), whole_number("draws", draws, at_least=1)
    for layer, indices in neurons.by_layer().items():
        rng, taken = random.Random(f"{seed}/{layer}"), set(indices)
        others = [i for i in range(d_mlp) if i not in taken]
        if len(indices) <= len(others):
            drawn[layer] = np.array([rng.sample(others, len(indices)) for _ in range(draws)])
    return drawn


def random_rankings(rankings: Mapping[str, Ranking], d_mlp: int, *, seed: int = 0) -> dict[str, Ranking]:
    """For every query a random neuron of the same layer in each place, with the score of the neuron that it stands for.

    So a control cut anywhere is matched in number and layer to the ranking cut there. Its own neurons are those that
    `random_sets` draws for the own neurons of the ranking.
    """
    drawn, seed = {}, seed_number(seed)
    for query, ranking in rankings.items():
        rng, layers = random.Random(f"{seed}/{query}"), ranking.layer.tolist()
        own = len(ranking) if ranking.own is None else ranking.own
        by_layer = _draw(rng, layers[own:], d_mlp, _draw(rng, layers[:own], d_mlp, {}))
        waiting = {layer: iter(indices) for layer, indices in by_layer.items()}
        neurons = np.array([next(waiting[layer]) for layer in layers], int)
        drawn[query] = Ranking(ranking.layer, neurons, ranking.score, ranking.own)
    return drawn


def _draw(rng: random.Random, layers: Iterable[int], d_mlp: int, drawn: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """`drawn` (indices by layer) and a random index more for each of `layers`, none twice; new layers in rising order."""
    found = dict(drawn)
    for layer, count in sorted(Counter(layers).items()):
        before = found.get(layer, [])
        taken = set(before)
        found[layer] = before + rng.sample([i for i in range(d_mlp) if i not in taken], count)
    return found
