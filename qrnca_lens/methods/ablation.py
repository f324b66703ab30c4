"""Exact ablation: what P(right letter) loses when one neuron alone is set to zero at the last position."""

from __future__ import annotations

import torch

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.shapes import Scores
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.methods.scoring import Asked
from qrnca_lens.models import mlp_width


def ablation_scores(asked: Asked) -> Scores:
    """P(right letter) minus P with the neuron at zero, for every neuron. For large models use `ablate_each` on a subset."""
    n_layers, d_mlp = asked.model.cfg.n_layers, mlp_width(asked.model)
    everything = NeuronSet.of(*[(layer, i) for layer in range(n_layers) for i in range(d_mlp)])
    return ablate_each(asked, everything).unflatten(0, (n_layers, d_mlp))


def ablate_each(asked: Asked, neurons: NeuronSet) -> torch.Tensor:
    """P(right letter) minus P with one neuron at zero, [neuron], in the order of the set.

    Every neuron is one row of a batch of single last tokens that starts at its layer. ValueError for a neuron outside.
    """
    neurons.check_inside(asked.model.cfg.n_layers, mlp_width(asked.model))
    edits = [(NeuronSet((neuron,)), 0.0) for neuron in neurons]
    objective = asked.target.objective
    (p,) = read_edited(asked.model, [asked.prompt.text], [edits], [lambda logits: objective(logits[:, None])])
    return (p[0] - p[1:]).cpu()
