"""One run of the model over prompts, and what it leaves at their last position: all that a neuron gets and writes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from qrnca_lens.engine.finite import check_weights
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.models.hooked import HookedModel
from qrnca_lens.models.sites import PATTERN, in_block


@dataclass(frozen=True)
class Reading:
    """Prompts of one length, run once.

    `logits`: the model's own at the last position. `last`: by hook name, a copy of the tensor there [prompt, ...] on the
    device of the logits, so that the other positions are not kept alive; hooks that the model lacks are left out.
    `patterns`: by layer, the first prompt's attention, in the computer's memory rather than the device's.
    """

    tokens: Int[torch.Tensor, "prompt position"]
    logits: Float[torch.Tensor, "prompt token"]
    last: dict[str, torch.Tensor]
    patterns: dict[int, Float[torch.Tensor, "head position position"]]


@torch.no_grad()
def read(
    model: HookedModel, tokens: Int[torch.Tensor, "prompt position"], names: Collection[str], patterns: Collection[int] = ()
) -> Reading:
    """Run `tokens` once and keep what the hooks `names` see and the attention of the layers `patterns`.

    ModelError for weights that are NaN or infinite.
    """
    check_weights(model, str(model.tokenizer.decode(tokens[0])))
    looks = {layer: in_block(layer, PATTERN) for layer in patterns}
    wanted = {*names, *looks.values()}
    logits, cache = last_logits(model, tokens, torch.ones_like(tokens), wanted)
    return Reading(
        tokens,
        logits[:, -1].clone(),
        {name: cache[name][:, -1].clone().to(logits.device) for name in set(names) & set(cache)},
        {layer: cache[name][0].cpu() for layer, name in looks.items()},
    )
