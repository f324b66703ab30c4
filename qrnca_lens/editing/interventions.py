"""Interventions on neurons: context managers that scale MLP activations through hook points (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from qrnca_lens.models import HookedModel, check_hooked, mlp_width, site_hook
from qrnca_lens.neurons import Neuron, neuron_set
from qrnca_lens.values import number

Positions = Literal["last", "all"]


@contextmanager
def scale(
    model: HookedModel, neurons: Iterable[Neuron] | Neuron, factor: float, *, positions: Positions = "last"
) -> Iterator[None]:
    """Multiply the activations of `neurons` by `factor` while the block runs.

    `positions`: "last" (the paper: the last position of every forward pass, so with a KV cache that of each new token) or
    "all". The scaled tensor is what W_out multiplies; in a gated MLP that is the same as scaling the up projection. Blocks
    nest; the hooks go away when the block ends, however it ends. Batches must not be padded on the right with "last".
    Raises ValueError for an empty set, a neuron outside the model or a factor that is not finite.
    """
    check_hooked(model)
    chosen = neuron_set(neurons)
    if not len(chosen):
        raise ValueError("the neuron set is empty; there is nothing to scale")
    chosen.check_inside(model.cfg.n_layers, mlp_width(model))
    factor = number("the factor", factor)
    if positions not in ("last", "all"):
        raise ValueError(f"positions must be 'last' or 'all', not {positions!r}")
    where = slice(-1, None) if positions == "last" else slice(None)
    hooks = [
        (site_hook(model, layer, "post"), _scaler(indices, factor, where)) for layer, indices in chosen.by_layer().items()
    ]
    with model.hooks(fwd_hooks=hooks):
        yield


def enhance(
    model: HookedModel, neurons: Iterable[Neuron] | Neuron, factor: float = 2.0, *, positions: Positions = "last"
) -> Any:
    """`scale` with the paper's boost, factor 2."""
    return scale(model, neurons, factor, positions=positions)


def suppress(
    model: HookedModel, neurons: Iterable[Neuron] | Neuron, factor: float = 0.0, *, positions: Positions = "last"
) -> Any:
    """`scale` with the paper's suppression, factor 0: the neurons are ablated."""
    return scale(model, neurons, factor, positions=positions)


def _scaler(indices: list[int], factor: float, where: slice) -> Any:
    def hook(post: torch.Tensor, hook: object) -> torch.Tensor:
        scaled = post.clone()
        scaled[:, where, indices] *= factor
        return scaled

    return hook
