"""What neurons hold at the end of prompts, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from qrnca_lens.core.neurons import Neuron, neuron_set
from qrnca_lens.data import Prompt
from qrnca_lens.data.query import texts_of
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.models import HookedModel, check_hooked, mlp_width


def activations(model: HookedModel, prompts: Sequence[Prompt], neurons: Iterable[Neuron] | Neuron) -> pd.DataFrame:
    """What W_out multiplies at the last position: a row for each prompt, a column (layer, neuron) for each neuron.

    Both in the given order; hooks that the model carries have their part in it. TypeError for anything but prompts and
    neurons, ValueError for a neuron outside the model, ModelError for a prompt that does not fit or numbers that are none.
    """
    check_hooked(model)
    chosen = neuron_set(neurons)
    chosen.check_inside(model.cfg.n_layers, mlp_width(model))
    by_layer = pd.MultiIndex.from_frame(chosen.to_frame().sort_values(["layer", "neuron"]))
    found = pd.DataFrame(last_activations(model, texts_of(prompts), chosen).numpy(), columns=by_layer)
    return found[list(chosen.to_frame().itertuples(index=False, name=None))]
