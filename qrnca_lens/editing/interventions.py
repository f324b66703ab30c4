"""Interventions on neurons: context managers that scale MLP activations through hook points (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from qrnca_lens.core.neurons import Neuron, neuron_set
from qrnca_lens.core.values import number
from qrnca_lens.engine.asks import Positions, check_positions
from qrnca_lens.engine.hooks import with_hooks
from qrnca_lens.engine.padding import RowEnds, row_ends
from qrnca_lens.models import HookedModel, check_hooked, exclusive, mlp_width, site_hook

Places = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From activations [row, position, neuron] to the rows and positions that are scaled."""


@contextmanager
def scale(
    model: HookedModel, neurons: Iterable[Neuron] | Neuron, factor: float, *, positions: Positions = "last"
) -> Iterator[None]:
    """Multiply the activations of `neurons` by `factor` while the block runs.

    `positions`: "last" (the paper: the last position of every forward pass, so with a KV cache that of each new token),
    "all", a position or spans (start, stop), counted in each row from its first token, negative ones from its own end. In a
    batch padded on the right "last" is each row's own last token, by the attention mask or else by the
    padding token; a call where a row may end in padding or in text raises ValueError (a tokenizer that pads with its BOS
    or EOS, or has no padding token, and no mask). The scaled tensor is what W_out multiplies; in a gated MLP that is the
    same as scaling the up projection. Blocks nest; the hooks go away when the block ends, however it ends. The model
    belongs to this thread while the block runs (see `models.exclusive`).
    Raises ValueError for an empty set, a neuron outside the model, a factor that is not finite or positions that are none,
    TypeError for positions of another kind, BusyModelError if another thread does not give the model back. A call inside
    the block raises ValueError where a row lacks the position, and where positions cannot be counted: in `generate`, with a
    KV cache, in a part of the model, and without an attention mask where a row may begin with padding.
    """
    check_hooked(model)
    chosen = neuron_set(neurons)
    if not len(chosen):
        raise ValueError("the neuron set is empty; there is nothing to scale")
    chosen.check_inside(model.cfg.n_layers, mlp_width(model))
    factor = number("the factor", factor)
    check_positions(positions)
    with exclusive(model), row_ends(model) as ends:
        where = _places(positions, ends)
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


def _places(positions: Positions, ends: RowEnds) -> Places | None:
    """Where a pass is scaled; None is everywhere."""
    if positions == "all":
        return None
    if positions == "last":
        return lambda post: (torch.arange(len(post), device=post.device), ends.of(post))
    return lambda post: ends.chosen(post, positions)


def _scaler(indices: list[int], factor: float, where: Places | None) -> Any:
    """A hook that scales neurons at some places, or at all positions (None)."""

    def hook(post: torch.Tensor, hook: object) -> torch.Tensor:
        scaled = post.clone()
        if where is None:
            scaled[:, :, indices] *= factor
        else:
            rows, at = where(post)
            scaled[rows[:, None], at[:, None], torch.tensor(indices, device=post.device)] *= factor
        return scaled

    return hook
