"""The numbers of a circuit: contributions to a neuron's pre-activation, what it writes, where heads look.

The input of an MLP is the norm of a sum: the embedding, the output of every earlier head and MLP. With the norm's scale
held at its value in this prompt, the norm is linear, so a neuron's pre-activation is a sum of one number a component
(direct contributions; what a component does by way of later ones counts as theirs). Likewise, what a neuron writes reaches
a letter's logit through the final norm, its scale held, and the unembedding (`readout.residual`).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.core.neurons import NeuronSet, Site
from qrnca_lens.core.shapes import Tokens
from qrnca_lens.data import Prompt
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.models import HookedModel, ModelError, OptionTokens, is_hooked_transformer, mlp_width, reader_of, site_hook
from qrnca_lens.models.sites import (
    MIXED,
    MLP_OUT,
    RESID_PRE,
    in_block,
    is_gated,
    norm_after_mlp,
    norm_before_mlp,
    residual_factor,
)
from qrnca_lens.readout.norms import norm_parts
from qrnca_lens.readout.reading import read
from qrnca_lens.readout.residual import Readout, linear_logits, readout_hooks

CONTRIBUTION_COLUMNS = ["layer", "neuron", "input", "source", "kind", "value"]


class PromptRun:
    """One run of the model over one prompt, and what the circuits of all neurons up to a layer need of it.

    It keeps the last position of every hook, what each head writes there once it has been asked for, and the attention
    patterns: layers x heads x tokens^2 numbers of the model's dtype, in the computer's memory. ModelError for weights that
    are NaN or infinite.
    """

    def __init__(self, model: HookedModel, tokens: Tokens, last_layer: int) -> None:
        self.model, self.tokens = model, tokens
        attending, reading = range(_attending(model, last_layer)), range(last_layer + 1)
        names = readout_hooks(model, reading) | {in_block(0, RESID_PRE)}
        names |= {in_block(layer, MIXED) for layer in attending}
        names |= {site_hook(model, layer, site) for layer in reading for site in _inputs(model)}
        self.reading = read(model, tokens[None], names, attending)
        self._attention: dict[int, torch.Tensor] = {}

    def last(self, name: str) -> torch.Tensor:
        """What the hook `name` saw at the last position, in float32."""
        return self.reading.last[name][0].float()

    def attention_parts(self, layer: int) -> Float[torch.Tensor, "part d_model"]:
        """What each head of a layer adds to the residual stream, and last what the layer's attention bias adds."""
        if layer not in self._attention:
            attention, factor = self.model.blocks[layer].attn, residual_factor(self.model, layer)
            mixed = self.last(in_block(layer, MIXED)).reshape(self.model.cfg.n_heads, -1)
            heads = factor * torch.einsum("hd,hdm->hm", mixed, attention.W_O.to(mixed))
            self._attention[layer] = torch.cat([heads, factor * _of(attention, "b_O", heads[0])[None]])
        return self._attention[layer]


def _attending(model: HookedModel, layer: int) -> int:
    """How many layers' attention the MLP of `layer` reads; its own layer's is not among them where they run in parallel."""
    return layer + (not model.cfg.parallel_attn_mlp)


def _inputs(model: HookedModel) -> tuple[Site, ...]:
    return ("gate", "up") if is_gated(model) else ("pre",)


@torch.no_grad()
def contributions_to(run: PromptRun, neurons: NeuronSet) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row for each neuron, input and source, and the pre-activations that they add up to (see `Circuit`).

    Raises ModelError where the remainder is more than rounding.
    """
    model, rows, inputs = run.model, [], []
    for layer, indices in neurons.by_layer().items():
        sources, parts = _components(run, layer)
        mlp, norm = model.blocks[layer].mlp, norm_before_mlp(model, layer)
        parts = parts.to(mlp.W_in.device)
        if norm is None or norm_after_mlp(model, layer) is not None:
            raise _no_plain_sum(model, layer)
        known = norm_parts(model, norm, mlp.W_in.T)
        through = known.held_at(parts.sum(0, keepdim=True))(parts)
        for site in _inputs(model):
            weights = (mlp.W_gate if site == "gate" else mlp.W_in)[:, indices].float()
            values = through @ weights
            bias = known.bias @ weights + _bias_of(model, layer, site)[indices]
            actual = run.last(site_hook(model, layer, site))[indices].to(values.device)
            remainder = actual - values.sum(0) - bias
            size = values.abs().sum(0) + actual.abs()
            if (remainder.abs() > tolerance_of(model) * size + 1e-6).any():
                raise _no_plain_sum(model, layer)
            named = [*sources, ("bias", "bias"), ("remainder", "remainder")]
            for k, index in enumerate(indices):
                column = [*values[:, k].tolist(), bias[k].item(), remainder[k].item()]
                rows += [(layer, index, site, *source, value) for source, value in zip(named, column, strict=True)]
                inputs.append((layer, index, site, actual[k].item()))
    return (
        pd.DataFrame(rows, columns=CONTRIBUTION_COLUMNS),
        pd.DataFrame(inputs, columns=["layer", "neuron", "input", "value"]),
    )


def _no_plain_sum(model: HookedModel, layer: int) -> ModelError:
    return ModelError(
        f"layer {layer} of {model.cfg.model_name}: the contributions do not add up to the pre-activation; its MLP input is "
        "not the norm of embedding, heads and MLPs, so this view would be wrong"
    )


def _bias_of(model: HookedModel, layer: int, site: Site) -> torch.Tensor:
    """What is added between the weights and the site's tensor; a gated HookedTransformer adds its b_in only later."""
    mlp = model.blocks[layer].mlp
    like = mlp.W_in.new_zeros(mlp_width(model), dtype=torch.float32)
    if is_gated(model) and is_hooked_transformer(model):
        return like
    return _of(mlp, "b_gate" if site == "gate" else "b_in", like)


def _components(run: PromptRun, layer: int) -> tuple[list[tuple[str, str]], Float[torch.Tensor, "source d_model"]]:
    """What the MLP's norm in `layer` reads at the last position, part by part: (name, kind) and vectors in float32."""
    names, parts = [("embedding", "embedding")], [run.last(in_block(0, RESID_PRE))[None]]
    for source in range(layer + 1):
        if source < _attending(run.model, layer):
            parts.append(run.attention_parts(source))
            names += [(f"L{source}H{head}", "head") for head in range(run.model.cfg.n_heads)]
            names.append((f"attention bias {source}", "bias"))
        if source < layer:
            parts.append(run.last(in_block(source, MLP_OUT))[None])
            names.append((f"MLP {source}", "mlp"))
    return names, torch.cat(parts)


def _of(module: Any, name: str, like: torch.Tensor) -> torch.Tensor:
    """A parameter in float32, or zeros in the shape of `like` where the module has none."""
    value = getattr(module, name, None)
    return torch.zeros_like(like) if value is None else value.to(like)


@torch.no_grad()
def direct_writes(run: PromptRun, neurons: NeuronSet, options: OptionTokens) -> pd.DataFrame:
    """What each neuron adds to the options' logits directly (before a soft cap, where the model has one).

    One row a neuron, in the set's order: layer, neuron, activation (what W_out multiplies) and a column an option. Raises
    ModelError for an architecture whose blocks or logits are not understood (see `readout.residual`).
    """
    model, rows = run.model, {}
    read = Readout(model, run.tokens[None], list(neurons.by_layer()), run.reading)
    for layer, indices in neurons.by_layer().items():
        post = read.post(layer)[0, indices]
        shares = post[:, None] * model.blocks[layer].mlp.W_out[indices].to(post)
        logits = linear_logits(model, read.added(layer, shares), options.ids, held_at=read.final())
        for row in zip(indices, post.tolist(), *logits.T.tolist(), strict=True):
            rows[layer, row[0]] = (layer, *row)
    ordered = [rows[neuron.layer, neuron.index] for neuron in neurons]
    return pd.DataFrame(ordered, columns=["layer", "neuron", "activation", *options.letters])


def attention_shares(run: PromptRun, of: list[str], last: int) -> pd.DataFrame:
    """How the last token's attention falls on the regions of the prompt, for all heads that layer `last`'s MLP reads."""
    names = list(dict.fromkeys(of))
    belongs = np.array([[region == name for name in names] for region in of], dtype=np.float32)
    rows = []
    for layer in range(_attending(run.model, last)):
        pattern = run.reading.patterns[layer][:, -1].float().numpy()
        rows += [(layer, head, *shares) for head, shares in enumerate((pattern @ belongs).tolist())]
    return pd.DataFrame(rows, columns=["layer", "head", *names])


def regions(model: HookedModel, prompt: Prompt, question: str) -> list[str]:
    """The region of every token: "question", "option A" …, "rest"; all "prompt" for tokenizers that keep no offsets."""
    offsets = reader_of(model).offsets(prompt.text)
    if offsets is None:
        return ["prompt"] * len(reader_of(model).tokens(prompt.text))
    spans, at = {}, 0
    listed = prompt.options if prompt.read == "letter" else ()
    labelled = [(f"option {a}", rf"(?<!\w){a}\W{{1,3}}", o) for a, o in zip(prompt.names, listed, strict=False)]
    for name, label, part in [("question", "", question), *labelled]:
        # with its label: an option of one letter also stands in "Options" and is itself a label
        found = re.compile(f"{label}({re.escape(part)})").search(prompt.text, at) if part else None
        if found:
            spans[name], at = found.span(1), found.end()
    made = []
    for start, end in offsets:
        inside = [name for name, (first, last) in spans.items() if max(first, start) < min(last, end)]
        made.append(inside[0] if inside else "rest")
    return made
