"""Interventions on neurons: context managers that scale MLP activations through hook points (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from qrnca_lens.core.neurons import Neuron, neuron_set
from qrnca_lens.core.values import number
from qrnca_lens.engine.hooks import with_hooks
from qrnca_lens.engine.padding import RowEnds, row_ends
from qrnca_lens.models import HookedModel, check_hooked, exclusive, mlp_width, site_hook

Positions = Literal["last", "all"]


@contextmanager
def scale(
    model: HookedModel, neurons: Iterable[Neuron] | Neuron, factor: float, *, positions: Positions = "last"
) -> Iterator[None]:
    """Multiply the activations of `neurons` by `factor` while the block runs.

    `positions`: "last" (the paper: the last position of every forward pass, so with a KV cache that of each new token) or
    "all". In a batch padded on the right "last" is each row's own last token, by the attention mask or else by the
    padding token; a call where a row may end in padding or in text raises ValueError (a tokenizer that pads with its BOS
    or EOS, or has no padding token, and no mask). The scaled tensor is what W_out multiplies; in a gated MLP that is the
    same as scaling the up projection. Blocks nest; the hooks go away when the block ends, however it ends. The model
    belongs to this thread while the block runs (see `models.exclusive`).
    Raises ValueError for an empty set, a neuron outside the model or a factor that is not finite, BusyModelError if
    another thread does not give the model back.
    """
    check_hooked(model)
    chosen = neuron_set(neurons)
    if not len(chosen):
        raise ValueError("the neuron set is empty; there is nothing to scale")
    chosen.check_inside(model.cfg.n_layers, mlp_width(model))
    factor = number("the factor", factor)
    if positions not in ("last", "all"):
        raise ValueError(f"positions must be 'last' or 'all', not {positions!r}")
    with exclusive(model), row_ends(model) as ends:
        where = ends if positions == "last" else None
        by_layer = chosen.by_layer().items()
        hooks = [(site_hook(model, layer, "post"), _scaler(indices, factor, where)) for layer, indices in by_layer]
        with with_hooks(model, hooks):
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


def _scaler(indices: list[int], factor: float, ends: RowEnds | None) -> Any:
    """A hook that scales neurons at each row's last position, or at all positions (None)."""

    def hook(post: torch.Tensor, hook: object) -> torch.Tensor:
        scaled = post.clone()
        if ends is None:
            scaled[:, :, indices] *= factor
        else:
            rows, columns = torch.arange(len(post), device=post.device), torch.tensor(indices, device=post.device)
            scaled[rows[:, None], ends.of(post)[:, None], columns] *= factor
        return scaled

    return hook
