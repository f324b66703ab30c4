"""Exact ablation: what P of the right option loses when one neuron alone is set to zero at the last position."""

from __future__ import annotations

import torch

from qrnca_lens.attribution.options import edited_options
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.shapes import Scores
from qrnca_lens.methods.scoring import Asked
from qrnca_lens.models import mlp_width


def ablation_scores(asked: Asked) -> Scores:
    """P(right option) minus P with the neuron at zero, for every neuron. For large models use `ablate_each` on a subset."""
    n_layers, d_mlp = asked.model.cfg.n_layers, mlp_width(asked.model)
    everything = NeuronSet.of(*[(layer, i) for layer in range(n_layers) for i in range(d_mlp)])
    return ablate_each(asked, everything).unflatten(0, (n_layers, d_mlp))


def ablate_each(asked: Asked, neurons: NeuronSet) -> torch.Tensor:
    """P(right option) minus P with one neuron at zero, [neuron], in the order of the set.

    Every neuron is one row of a batch of single last tokens that starts at its layer; of an open prompt, of the positions at
    which the options are read (`edited_options`). ValueError for a neuron outside.
    """
    neurons.check_inside(asked.model.cfg.n_layers, mlp_width(asked.model))
    edits = [(NeuronSet((neuron,)), 0.0) for neuron in neurons]
    (found,) = edited_options(asked.model, [asked.prompt], [edits])
    p = found[:, asked.prompt.right]
    return p[0] - p[1:]
