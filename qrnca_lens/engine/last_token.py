"""The last token of a prompt run again and again, its MLP activations scaled in many ways at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import number, whole_number
from qrnca_lens.engine.activity import right_padded
from qrnca_lens.engine.finite import check_logits, check_weights
from qrnca_lens.engine.hooks import Hook, with_hooks
from qrnca_lens.engine.path import drift_of, tolerance_of
from qrnca_lens.engine.prefix import SharedPrefix
from qrnca_lens.models import HookedModel, is_hooked_transformer, mlp_width, site_hook, to_tokens

Factors = Mapping[int, Float[torch.Tensor, "row neuron"]]


class LastToken:
    """One prompt of a hooked model; `logits` are the untouched model's after it, [token].

    HookedTransformers run single tokens against the cached prefix; a bridge, or a model whose untouched row does not give
    `logits` back, runs the whole prompt for every row. ModelError for logits or weights that are NaN or infinite.
    """

    def __init__(self, model: HookedModel, prompt: str) -> None:
        self._model, self._prompt, self._tokens = model, prompt, to_tokens(model, prompt)
        check_weights(model, prompt)
        self._prefix = SharedPrefix(model, self._tokens, "post") if is_hooked_transformer(model) else None
        if self._prefix is not None:
            self.logits = self._prefix.logits
        else:
            self.logits = _whole(model, [self._tokens], {})[0]
        check_logits(model, prompt, self._tokens, self.logits)

    def scaled(self, factors: Factors, *, batch: int = 256) -> Float[torch.Tensor, "row token"]:
        """The logits with, in row r, the activations of layer l multiplied by `factors[l][r]` at the last position.

        Layers that are not in `factors` are left alone. `batch` rows run together.
        """
        if not factors:
            raise ValueError("no layer to scale; give factors for at least one")
        rows, batch = len(next(iter(factors.values()))), whole_number("batch", batch, at_least=1)
        parts = [
            self._batch({layer: values[start : start + batch] for layer, values in factors.items()})
            for start in range(0, rows, batch)
        ]
        logits = torch.cat(parts)
        check_logits(self._model, self._prompt, self._tokens, logits)
        return logits

    @torch.no_grad()
    def _batch(self, factors: Factors) -> torch.Tensor:
        rows = len(next(iter(factors.values())))
        if self._prefix is not None:
            # one untouched row more: it must give the model's own logits
            checked = {layer: torch.cat([torch.ones_like(values[:1]), values]) for layer, values in factors.items()}
            logits = self._prefix.forward(
                {min(factors): rows + 1}, [_scaling(self._model, k, v) for k, v in checked.items()]
            )
            if drift_of(logits[0], self.logits) <= tolerance_of(self._model):
                return logits[1:]
            self._prefix = None
        return _whole(self._model, [self._tokens] * rows, factors)


@torch.no_grad()
def scaled_logits(model: HookedModel, prompts: Sequence[str], factors: Factors) -> Float[torch.Tensor, "prompt row token"]:
    """What `LastToken(model, prompt).scaled(factors)` gives for every prompt, by running all whole prompts in one batch.

    Faster than the shared prefix for a handful of rows on a small model. ModelError for logits or weights that are NaN or
    infinite.
    """
    if prompts:
        check_weights(model, prompts[0])
    tokens = [to_tokens(model, prompt) for prompt in prompts]
    rows = len(next(iter(factors.values())))
    each = {layer: values.repeat(len(prompts), 1) for layer, values in factors.items()}
    logits = _whole(model, [ids for ids in tokens for _ in range(rows)], each).unflatten(0, (len(prompts), rows))
    for prompt, ids, found in zip(prompts, tokens, logits, strict=True):
        check_logits(model, prompt, ids, found)
    return logits


@torch.no_grad()
def _whole(model: HookedModel, tokens: Sequence[torch.Tensor], factors: Factors) -> Float[torch.Tensor, "row token"]:
    """The logits after each row of `tokens`, its activations at its last token scaled by the row's factors."""
    padded, mask = right_padded(tokens)
    last = mask.sum(1) - 1
    with with_hooks(model, [_scaling(model, layer, values, last) for layer, values in factors.items()]):
        return model(padded, attention_mask=mask)[torch.arange(len(tokens)), last]


def _scaling(model: HookedModel, layer: int, values: torch.Tensor, last: torch.Tensor | int = -1) -> Hook:
    """A hook that multiplies the activations [row, position, neuron] of position `last` by `values` [row, neuron]."""

    def hook(post: torch.Tensor, hook: Any) -> torch.Tensor:
        scaled, rows = post.clone(), torch.arange(len(post))
        scaled[rows, last] *= values.to(post)
        return scaled

    return site_hook(model, layer, "post"), hook


def factors_of(model: HookedModel, edits: Sequence[tuple[NeuronSet, float]]) -> dict[int, torch.Tensor]:
    """One row an edit: ones, and the edit's factor at the edit's neurons. ValueError for a neuron outside the model."""
    n_layers, d_mlp = model.cfg.n_layers, mlp_width(model)
    for neurons, _ in edits:
        neurons.check_inside(n_layers, d_mlp)
    touched = sorted({neuron.layer for neurons, _ in edits for neuron in neurons}) or [n_layers - 1]
    factors = {layer: torch.ones(len(edits), d_mlp, dtype=torch.float32) for layer in touched}
    for row, (neurons, factor) in enumerate(edits):
        for layer, indices in neurons.by_layer().items():
            factors[layer][row, indices] = number("factor", factor)
    return factors
