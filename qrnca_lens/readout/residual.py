"""From a neuron to the logits: what it adds to the residual stream, and how the end of the model reads that.

Between W_out and the residual stream can lie a norm (Gemma 2 and 3, OLMo 2, Exaone 4, GLM 4) and a factor (Granite);
between the unembedding and the logits a factor (Cohere, Granite) and a soft cap (Gemma 2). Everything is in float32, and
checked on the prompt itself: a model that does something else is refused, never read wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from transformer_lens.utilities.activation_functions import apply_softcap

from qrnca_lens.engine.finite import check_logits
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel, as_bridge, dtype_of, exclusive, is_hooked_transformer
from qrnca_lens.models.sites import (
    ATTN_OUT,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    in_block,
    norm_after_mlp,
    residual_factor,
    site_hook,
)
from qrnca_lens.readout.norms import Vectors, norm_parts
from qrnca_lens.readout.reading import Reading, read

_COLUMNS = 16384  # of the unembedding that become float32 at once


class Readout:
    """The last position of some prompts of one length, read from the MLPs of `layers` to the logits.

    `logits`: the model's own, [prompt, token]. `reading`: a run of these prompts that kept the hooks `readout_hooks`;
    without it they are run. Raises ModelError where the residual stream is not what a block's MLP, read by `added`, says it
    writes, or the logits are not what `logits_of` makes of the residual stream at the end.
    """

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[torch.Tensor, "prompt position"],
        layers: Sequence[int],
        reading: Reading | None = None,
    ) -> None:
        self._model, self._final = model, in_block(model.cfg.n_layers - 1, RESID_POST)
        names = readout_hooks(model, layers)
        reading = reading or read(model, tokens, names)
        missing = sorted(names - set(reading.last))
        if missing:
            raise ModelError(f"{model.cfg.model_name} has no {missing[0]}, so what its neurons write cannot be checked")
        self._kept = reading.last
        self.logits: Float[torch.Tensor, "prompt token"] = reading.logits
        for ids, row in zip(tokens, self.logits, strict=True):
            check_logits(model, str(model.tokenizer.decode(ids)), ids, row)
        self._whole = {layer: self._written(layer) for layer in layers}
        for layer in layers:
            self._check_block(layer)
        self._check_end()

    def post(self, layer: int) -> Float[torch.Tensor, "prompt neuron"]:
        """What W_out multiplies."""
        return self._kept[site_hook(self._model, layer, "post")].float()

    def before(self, layer: int) -> Float[torch.Tensor, "prompt d_model"]:
        """The residual stream without what the MLP of `layer` adds to it."""
        return self._kept[in_block(layer, RESID_POST)].float() - self._kept[in_block(layer, MLP_OUT)].float()

    def final(self) -> Float[torch.Tensor, "prompt d_model"]:
        """The residual stream after the last layer."""
        return self._kept[self._final].float()

    def added(self, layer: int, shares: Vectors) -> Vectors:
        """What shares of the MLP's output (activations times rows of W_out) add to the residual stream of their prompts.

        `shares` holds a row for each prompt, once or several times over (all prompts, then all again). The norm after the
        MLP, where there is one, has its scale held at that of the prompt's whole MLP output, which makes it linear: shares
        add up.
        """
        whole = self._whole[layer]
        if len(whole) > 1:
            whole = whole.repeat(len(shares) // len(whole), 1)
        return into_residual(self._model, layer, shares, whole)

    @torch.no_grad()
    def _written(self, layer: int) -> Float[torch.Tensor, "prompt d_model"]:
        """The MLP's output before anything is done to it."""
        mlp = self._model.blocks[layer].mlp
        post, bias = self.post(layer), getattr(mlp, "b_out", None)
        written = post @ mlp.W_out.to(post)
        return written if bias is None else written + bias.to(written)

    @torch.no_grad()
    def _check_block(self, layer: int) -> None:
        norm, whole = norm_after_mlp(self._model, layer), self._whole[layer]
        told = norm_parts(self._model, norm, self._kept[self._final])(whole) if norm is not None else whole
        told = told * residual_factor(self._model, layer)
        sums = [self._kept[in_block(layer, name)].float() for name in _before_mlp(self._model, layer)]
        kept = self._kept[in_block(layer, MLP_OUT)].float()
        between = self._kept[in_block(layer, RESID_POST)].float() - sum(sums)
        rounding = 4 * torch.finfo(dtype_of(self._model)).eps * max(part.abs().max() for part in (between, *sums))
        if not (_close(told, kept, self._model) and _close(between, kept, self._model, float(rounding))):
            raise ModelError(
                f"layer {layer} of {self._model.cfg.model_name}: its MLP's output and the norm after it do not add up to "
                "what reaches the residual stream, so what a neuron writes cannot be read (an architecture, or a hook, "
                "that does something else in between)"
            )

    def _check_end(self) -> None:
        if not _close(logits_of(self._model, self.final()), self.logits.float(), self._model):
            raise ModelError(
                f"{self._model.cfg.model_name}: final norm, unembedding and what is known to follow them do not give the "
                "model's logits, so no residual stream can be read (an architecture, or a hook, that does something else)"
            )


def readout_hooks(model: HookedModel, layers: Iterable[int]) -> set[str]:
    """The hooks that a `Readout` of these layers reads."""
    names = {in_block(model.cfg.n_layers - 1, RESID_POST)}
    for layer in layers:
        names |= {in_block(layer, name) for name in (RESID_POST, MLP_OUT, *_before_mlp(model, layer))}
        names.add(site_hook(model, layer, "post"))
    return names


def _before_mlp(model: HookedModel, layer: int) -> tuple[str, ...]:
    """The hooks whose sum is the residual stream that the MLP adds to."""
    return (RESID_MID,) if in_block(layer, RESID_MID) in model.hook_dict else (RESID_PRE, ATTN_OUT)


def _close(found: torch.Tensor, wanted: torch.Tensor, model: HookedModel, rounding: float = 0.0) -> bool:
    tolerance = max(1e-3, 8 * torch.finfo(dtype_of(model)).eps)
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max() + rounding)


@torch.no_grad()
def into_residual(model: HookedModel, layer: int, shares: Vectors, held_at: Float[torch.Tensor, "whole d_model"]) -> Vectors:
    """What shares of the output of an MLP add to the residual stream, in float32.

    Through the norm after the MLP, where there is one, without its bias and with its scale held at that of `held_at` (one
    row, or one for each share), and times the factor on the way.
    """
    norm = norm_after_mlp(model, layer)
    if norm is not None:
        shares = norm_parts(model, norm, model.blocks[layer].mlp.W_out).held_at(held_at)(shares)
    return shares.float() * residual_factor(model, layer)


@torch.no_grad()
def logits_of(model: HookedModel, resid: Vectors) -> Float[torch.Tensor, "row token"]:
    """The logits of residual streams, read as at the end of the model."""
    normed = norm_parts(model, _final_norm(model), model.unembed.W_U.T)(resid)
    return _transform(model, _unembedded(normed, model.unembed.W_U) + _unembedding_bias(model))


@torch.no_grad()
def token_logits(model: HookedModel, tokens: Sequence[int]) -> Callable[[Vectors], Float[torch.Tensor, "row token"]]:
    """`logits_of` for these tokens alone, made ready once for many residual streams."""
    norm = norm_parts(model, _final_norm(model), model.unembed.W_U.T)
    columns, bias = model.unembed.W_U[:, tokens].float(), _unembedding_bias(model)[tokens]
    return lambda resid: _transform(model, norm(resid) @ columns + bias)


@torch.no_grad()
def linear_logits(
    model: HookedModel,
    resid: Vectors,
    tokens: slice | Sequence[int],
    *,
    held_at: Float[torch.Tensor, "1 d_model"] | None = None,
) -> Float[torch.Tensor, "row token"]:
    """What residual-stream vectors add to the logits of `tokens`, before a soft cap and without the biases.

    The final norm's scale is held at that of `held_at` [1, d_model]; without it, it is each vector's own.
    """
    norm, columns = norm_parts(model, _final_norm(model), model.unembed.W_U.T), model.unembed.W_U[:, tokens]
    slope = torch.func.grad(lambda logit: _transform(model, logit))(columns.new_zeros((), dtype=torch.float32))
    return _unembedded(norm.held_at(resid if held_at is None else held_at)(resid), columns) * slope


def _final_norm(model: HookedModel) -> torch.nn.Module:
    """The norm before the unembedding. ModelError for a model that has none, or none that is known."""
    norm = getattr(model, "ln_final", None)
    if norm is None or isinstance(norm, torch.nn.Identity):
        raise ModelError(f"{model.cfg.model_name} has no final norm, so no residual stream of it can be read as logits")
    return norm


def _unembedding_bias(model: HookedModel) -> Float[torch.Tensor, " token"]:
    with exclusive(model):
        return model.unembed(torch.zeros_like(model.unembed.W_U.T[:1])[None])[0, 0].float()


def _unembedded(normed: Vectors, columns: Float[torch.Tensor, "d_model token"]) -> Float[torch.Tensor, "row token"]:
    return torch.cat([normed @ part.float() for part in columns.split(_COLUMNS, dim=1)], dim=1)


def _transform(model: HookedModel, logits: torch.Tensor) -> Any:
    """What the architecture does to the logits after the unembedding: a factor, a soft cap."""
    if is_hooked_transformer(model):
        return apply_softcap(logits, model.cfg.output_logits_soft_cap)
    return as_bridge(model).adapter.apply_output_logits_transform(logits)
