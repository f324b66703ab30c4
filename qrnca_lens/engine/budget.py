"""How many prompts go together: what a batch costs in memory, by a model that the tests hold against measured peaks.

A row is one (layer, step) of one prompt at one position of its suffix. It joins at its layer and stays to the end of the
model, so what the backward pass keeps grows as a staircase: see docs/attribution.md, "What a large model costs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import psutil
import torch

from qrnca_lens.models import HookedModel, mlp_width
from qrnca_lens.models.hooked import device_of, dtype_of
from qrnca_lens.models.sites import is_gated

LOGITS = 2**25
"""Numbers held at once as logits of one prompt's rows."""
_UNKNOWN = 2**32  # bytes taken as free on a device that does not tell
_SHARE = 0.5  # of the free memory: the model of the cost is good to a factor of 2, and the device has other users
_HELD = 1.25  # what allocators hold between and after tensors, on rows that grow from layer to layer
# Rows that keep the matrix products busy; with more, the time of a row stays what it is. A CPU's caches are full at a few
# thousand, a GPU of the present has some hundred thousand threads.
_USEFUL = {"cpu": 2**12, "cuda": 2**16}


def free_memory(device: torch.device | str) -> int:
    """The bytes that are free: of the GPU for CUDA, of the machine for CPUs and for MPS, which shares its memory.

    For any other device 4 GiB are taken to be free.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type in ("cpu", "mps"):
        return psutil.virtual_memory().available
    return _UNKNOWN


@dataclass(frozen=True)
class Cost:
    """Bytes on the device: `fixed` for a batch of any size, `each` for every prompt in it."""

    fixed: int
    each: int

    def of(self, prompts: int) -> int:
        """The bytes of a batch of so many prompts."""
        return self.fixed + prompts * self.each


def integral_cost(model: HookedModel, length: int, nodes: int, width: int, layers: int | None = None) -> Cost:
    """What `integral.integrate_by_rows` takes for prompts of `length` tokens with suffixes of `width`, above the model.

    `nodes`: those that a layer takes at once (`Quadrature.to_begin_with`, of the rule with its ends). `layers`: how many at
    once, None for all.
    """
    cfg, d_mlp, size = model.cfg, mlp_width(model), dtype_of(model).itemsize
    at_once: int = layers or cfg.n_layers
    rows = nodes * at_once * width
    kept = nodes * width * (at_once * (at_once + 1) // 2 + at_once * (cfg.n_layers - at_once))
    # for the backward pass the MLP keeps its factors (three in gated MLPs, four in a GELU of its own), the norms and sums
    # keep residual streams, attention queries, keys, values and its pattern
    of_row = size * ((3 if is_gated(model) else 4) * d_mlp + 5 * cfg.d_model + _attention(model, length, width))
    if size < 4:
        of_row += 4 * 4 * cfg.d_model  # norms work in float32
    leaves = 2 * nodes * at_once * width * d_mlp  # the scaled activations and their gradients
    ends = rows * (_passing(model) + 2 * cfg.d_model)  # the last block's tensors on their way, final residuals and slopes
    of_rows = int(_HELD * (kept * of_row + size * (leaves + ends)))
    one = min(max(LOGITS, nodes * cfg.d_vocab), nodes * at_once * cfg.d_vocab)
    logits = one * (3 * size + 4 * 4)  # logits and their gradients; in float32 the softmax and its gradients
    return Cost(
        logits, _kept_text(model, length, width) + 4 * cfg.n_layers * d_mlp + max(of_rows, _read_text(model, length))
    )


def reading_cost(model: HookedModel, length: int, rows: int, width: int) -> Cost:
    """What `edits.read_edited` takes for prompts with so many rows (the edits and one untouched): no gradients are kept."""
    size, vocab = dtype_of(model).itemsize, model.cfg.d_vocab
    of_rows = int(_HELD * size * rows * width * (_passing(model) + _attention(model, length, width)))
    each = _kept_text(model, length, width) + max(of_rows, _read_text(model, length))
    return Cost(rows * vocab * (2 * size + 4), each)


def together(model: HookedModel, lengths: Sequence[int], nodes: int, width: int) -> int:
    """How many prompts `integrate_by_rows` takes at once: by half of the free memory, and no more rows than are of use.

    A power of two, so that a run which is cut off and goes on makes the same batches although the free memory has changed a
    little; at least 1. `lengths`: of the prompts, in tokens; the longest one counts.
    """
    longest = max(lengths, default=1)
    rows = nodes * model.cfg.n_layers * width
    return _fitting(model, integral_cost(model, longest, nodes, width), rows)


def together_read(model: HookedModel, lengths: Sequence[int], rows: int, width: int) -> int:
    """How many prompts `read_edited` takes at once with so many rows each; as `together`."""
    return _fitting(model, reading_cost(model, max(lengths, default=1), rows, width), rows * width)


def layers_at_once(model: HookedModel, length: int, nodes: int, width: int) -> int | None:
    """How many layers of one prompt go together where all of them do not fit in half of the free memory; else None."""
    usable = _SHARE * free_memory(device_of(model))
    costs, layers = partial(integral_cost, model, length, nodes, width), model.cfg.n_layers
    while layers > 1 and costs(layers).of(1) > usable:
        layers = (layers + 1) // 2
    return None if layers == model.cfg.n_layers else layers


def _fitting(model: HookedModel, cost: Cost, rows: int) -> int:
    device = device_of(model)
    by_memory = int((_SHARE * free_memory(device) - cost.fixed) // cost.each)
    most = max(1, min(by_memory, _USEFUL.get(device.type, _USEFUL["cuda"]) // rows))
    return 1 << (most.bit_length() - 1)


def _attention(model: HookedModel, length: int, width: int) -> int:
    """Numbers of one row: queries, keys and values of the suffix, and patterns over the text and the suffix."""
    cfg = model.cfg
    groups = cfg.n_key_value_heads or cfg.n_heads
    return (4 * cfg.n_heads + 2 * groups) * cfg.d_head + cfg.n_heads * (length + 4 * width)


def _passing(model: HookedModel) -> int:
    """Numbers of one row that live while a block runs and not longer."""
    return 4 * mlp_width(model) + 4 * model.cfg.d_model


def _kept_text(model: HookedModel, length: int, width: int) -> int:
    """Bytes that one text leaves for its rows: keys and values, and the residual stream and the MLP at the suffix."""
    cfg = model.cfg
    groups = cfg.n_key_value_heads or cfg.n_heads
    numbers = 2 * length * groups * cfg.d_head + width * (mlp_width(model) + cfg.d_model)
    return dtype_of(model).itemsize * cfg.n_layers * numbers


def _read_text(model: HookedModel, length: int) -> int:
    """Bytes of one text while a block reads it, with its whole attention pattern."""
    pattern = 5 * model.cfg.n_heads * (length + model.cfg.d_head)
    return dtype_of(model).itemsize * length * (_passing(model) + pattern)
