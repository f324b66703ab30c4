"""Random neurons to compare with, matched to a method's own in number and layer."""

from __future__ import annotations

import random
from collections.abc import Mapping

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import seed_number

Sets = Mapping[str, NeuronSet]


def random_sets(neurons: Sets, d_mlp: int, *, seed: int = 0) -> dict[str, NeuronSet]:
    """For every query as many random neurons as it has, layer by layer (a control matched in number and layer)."""
    drawn, seed = {}, seed_number(seed)
    for query, chosen in neurons.items():
        rng = random.Random(f"{seed}/{query}")
        pairs = [(layer, i) for layer, indices in chosen.by_layer().items() for i in rng.sample(range(d_mlp), len(indices))]
        drawn[query] = NeuronSet.of(*pairs)
    return drawn
