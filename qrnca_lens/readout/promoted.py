"""The tokens a neuron promotes: its output weights read through the model's own vocabulary (paper, table 5)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from qrnca_lens.core.neurons import Neuron, NeuronSet, neuron_set
from qrnca_lens.core.values import whole_number
from qrnca_lens.models import HookedModel, check_hooked, exclusive, mlp_width
from qrnca_lens.models.sites import is_gated, norm_before_mlp
from qrnca_lens.readout.residual import into_residual, linear_logits

PROJECTION_COLUMNS = ["layer", "neuron", "rank", "promoted", "promoted_logit", "suppressed", "suppressed_logit"]
_BATCH = 128
_SPACES = "▁Ġ"


def promoted_tokens(model: HookedModel, neurons: Iterable[Neuron] | Neuron, k: int = 10) -> pd.DataFrame:
    """The `k` tokens that each neuron raises most and lowers most when its activation is positive (paper, table 5).

    A neuron's row of W_out (d_model), as it reaches the residual stream (in Gemma 2 and OLMo 2 through the norm after the
    MLP, in Granite times a factor), is sent through the model's final norm (`ln_final`) and `unembed`, in float32, before a
    soft cap; the biases of norms and unembedding, the same for every neuron, do not count. The norm stretches
    every row to one length, as if the neuron wrote alone: the scale of the logits is arbitrary, and only their order and
    their relative size within one neuron count. A negative activation swaps the two sides. Nothing between the neuron's
    layer and the output is followed.

    Returns one row for each neuron and rank (1 the strongest): layer, neuron, rank, promoted, promoted_logit, suppressed,
    suppressed_logit; neurons in the given order. A token's leading space shows as "▁", line breaks and other characters
    without a shape as escapes. Ids beyond the tokenizer's vocabulary (padding of the unembedding) are left out.

    Raises ValueError for an empty set, a neuron outside the model or a `k` outside 1 .. size of the vocabulary.
    """
    check_hooked(model)
    chosen, k = neuron_set(neurons), whole_number("k", k)
    if not len(chosen):
        raise ValueError("the neuron set is empty; there is nothing to project")
    chosen.check_inside(model.cfg.n_layers, mlp_width(model))
    known = vocabulary_size(model)
    if not 1 <= k <= known:
        raise ValueError(f"k must lie in 1 to {known} (the vocabulary), not {k}")
    values, ids = (part.tolist() for part in strongest(model, chosen, k))
    shown: dict[int, str] = {i: _spelled(model.tokenizer, i) for row in ids for i in row}
    made = [
        (neuron.layer, neuron.index, r + 1, shown[row[r]], value[r], shown[row[k + r]], value[k + r])
        for neuron, value, row in zip(chosen, values, ids, strict=True)
        for r in range(k)
    ]
    return pd.DataFrame(made, columns=PROJECTION_COLUMNS)


def read_tokens(model: HookedModel, neuron: Neuron, k: int = 10) -> pd.DataFrame:
    """The `k` tokens whose embeddings a neuron's input directions answer to most, and the `k` they answer to least.

    Every row of W_E goes through the norm before the neuron's MLP (where there is one) and onto the neuron's column of
    W_gate and W_in (gated MLPs; inputs "gate" and "up") or of W_in alone ("pre"). The residual stream of a deep layer is
    far from a token's embedding, so this says most for the first layers. Returns one row for each input and rank: input,
    rank, raised_by, raised, lowered_by, lowered (in units of the pre-activation, without its bias). Raises ValueError for
    a neuron outside the model.
    """
    check_hooked(model)
    neuron_set(neuron).check_inside(model.cfg.n_layers, mlp_width(model))
    k = whole_number("k", k, at_least=1)
    mlp, norm = model.blocks[neuron.layer].mlp, norm_before_mlp(model, neuron.layer)
    directions = {"gate": mlp.W_gate, "up": mlp.W_in} if is_gated(model) else {"pre": mlp.W_in}
    columns = torch.stack([weights[:, neuron.index] for weights in directions.values()], dim=1).float()
    with exclusive(model), torch.no_grad():
        parts = model.W_E[: len(model.tokenizer)].to(columns.device).split(4096)
        seen = torch.cat([(norm(part[None])[0] if norm else part).float() @ columns for part in parts])
    values, ids = _extremes(seen.T, min(k, len(seen)))
    found = []
    for name, row, tokens in zip(directions, values.tolist(), ids.tolist(), strict=True):
        half, words = len(row) // 2, [_spelled(model.tokenizer, i) for i in tokens]
        found += [(name, r + 1, words[r], row[r], words[half + r], row[half + r]) for r in range(half)]
    return pd.DataFrame(found, columns=["input", "rank", "raised_by", "raised", "lowered_by", "lowered"])


def strongest(model: HookedModel, neurons: NeuronSet, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids of the `k` most promoted and then the `k` most suppressed tokens, a row a neuron.

    Read as in `promoted_tokens`. The vocabulary's logits are held for a batch of neurons at a time.
    """
    known, found = vocabulary_size(model), []
    for start in range(0, len(neurons), _BATCH):
        rows = torch.cat([_written(model, neuron) for neuron in neurons.neurons[start : start + _BATCH]])
        found.append(_extremes(linear_logits(model, rows, slice(known)), k))
    values, ids = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, ids


def vocabulary_size(model: HookedModel) -> int:
    """How many ids have both a token and a logit; those of the unembedding's padding have no token."""
    return min(len(model.tokenizer), model.unembed.W_U.shape[1])


@torch.no_grad()
def _written(model: HookedModel, neuron: Neuron) -> Float[torch.Tensor, "1 d_model"]:
    """What the neuron would add to the residual stream at activation 1, if it wrote alone."""
    row = model.blocks[neuron.layer].mlp.W_out[neuron.index][None]
    return into_residual(model, neuron.layer, row, row).to(model.unembed.W_U.device)


def _extremes(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and ids of the `k` highest (falling) and then the `k` lowest (rising) logits of every row."""
    high, low = logits.topk(k, dim=-1), logits.topk(k, dim=-1, largest=False)
    return torch.cat([high.values, low.values], dim=-1), torch.cat([high.indices, low.indices], dim=-1)


def _spelled(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    (piece,) = tokenizer.convert_ids_to_tokens([token])
    return visible_token(piece or f"<id {token}>", str(tokenizer.decode([token])))


def visible_token(piece: str, text: str) -> str:
    """A token's `text` with leading spaces as "▁"; `piece`, the vocabulary's own spelling, where it is no whole text."""
    if not text or "\ufffd" in text:
        return piece
    bare = text.lstrip(" ")
    # sentencepiece-style tokenizers drop the space when a text begins with it
    spaces = max(len(text) - len(bare), len(piece) - len(piece.lstrip(_SPACES)))
    return "▁" * spaces + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in bare)
