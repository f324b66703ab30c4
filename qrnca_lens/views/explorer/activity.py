"""What every prompt of a run gives: P of its options, and the activations of the neurons that are looked at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float

from qrnca_lens.attribution.options import options_and_activations
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.models import HookedModel

NUMBERS = 200_000_000
"""How many activations are kept, in float32: those of 3,300 neurons after the 60,000 prompts of 20,000 queries."""
READ_LATER = 256
"""How many neurons that were read on demand are kept beside them."""


class Activity:
    """Activations at the last token of every prompt, kept for as many neurons as `NUMBERS` allow.

    All prompts are read once, for the first of the neurons in `likely`. One that is asked for and was not read takes
    another reading of all prompts, with neurons `near` it, which are asked for next. So the memory is bounded, whatever the
    number of queries and of different neurons in their clusters. `options`: by query, P of the options after its prompts.
    """

    def __init__(self, model: HookedModel, located: QRNeurons, likely: Iterable[Neuron]) -> None:
        self._model = model
        prompts = [prompt for query in located.asked for prompt in query.prompts]
        self._texts = [prompt.text for prompt in prompts]
        neurons = NeuronSet(tuple(islice(likely, max(1, NUMBERS // len(prompts)))))
        self._columns = {neuron: k for k, neuron in enumerate(sorted(neurons))}
        p, self._table = options_and_activations(model, prompts, neurons)
        self._later: OrderedDict[Neuron, np.ndarray] = OrderedDict()
        parts = p.split([len(query.prompts) for query in located.asked])
        self.options: dict[str, Float[torch.Tensor, "prompt option"]] = {
            query.id: part for query, part in zip(located.asked, parts, strict=True)
        }

    def of(self, chosen: Neuron, near: Callable[[], Iterable[Neuron]]) -> Float[np.ndarray, " prompt"]:
        """One number a prompt, in the order of the run's queries."""
        if chosen in self._columns:
            return self._table[:, self._columns[chosen]].numpy()
        if chosen not in self._later:
            self._read(NeuronSet((chosen, *(neuron for neuron in near() if neuron not in self._columns))))
        self._later.move_to_end(chosen)
        return self._later[chosen]

    def _read(self, neurons: NeuronSet) -> None:
        """Read all prompts once more, and forget what was asked for longest ago."""
        found = last_activations(self._model, self._texts, neurons).T.contiguous().numpy()
        self._later.update(zip(sorted(neurons), found, strict=True))
        while len(self._later) > max(READ_LATER, len(neurons)):
            self._later.popitem(last=False)
