"""The option that neurons write: what they add to the residual stream, read by the end of the model as if it were all.

Nothing is fitted. The rows of W_out of some neurons, times their activity at the last position and summed, go through the
final norm and the unembedding, and the likeliest of the four options' tokens is read: their letters or, in open prompts, the
first tokens of their texts. Where a norm follows the MLP, what the
neurons of a layer write goes through it first, its scale held at its value on that prompt (`readout.residual`). The final
norm stretches what is written to one length, as if the neurons wrote alone, so what they write little of still counts.

What is only rounding is not read as an option: where neurons write less than float32 keeps of the residual stream at the
end (silent neurons write nothing), or the two likeliest tokens are closer than float32 tells apart, there is none. So it is
where the likeliest token stands for two options, as the same first token of two answers does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from qrnca_lens.attribution.options import next_tokens
from qrnca_lens.data import Prompt
from qrnca_lens.engine.activity import batches_of_one_length
from qrnca_lens.models import HookedModel, to_tokens
from qrnca_lens.readout.residual import Readout, token_logits

ALL = "all"
NONE = -1
_BATCH = 64
_NUMBERS = 2**24  # of float32 that one step makes, 64 MiB
_LOST = float(torch.finfo(torch.float32).eps)  # of the length of the residual stream
_TIE = 1e-5  # of the largest of the four logits: rounding in sums over d_model

Sets = Mapping[int, Int[np.ndarray, "_set _neuron"]]
Written = Float[torch.Tensor, "set prompt d_model"]


@torch.no_grad()
def written_options(model: HookedModel, prompts: Sequence[Prompt], sets: Sets) -> dict[str, Int[np.ndarray, "set prompt"]]:
    """The option (0 to 3, or NONE) that each set of neurons writes at the end of each prompt.

    `sets`: by layer the indices of the neurons of each set. Keys: the number of each layer, read alone, and ALL for the
    layers together; ALL has as many sets as every layer has. Raises ModelError for an architecture whose residual stream
    cannot be read.
    """
    tokens = [to_tokens(model, prompt.text) for prompt in prompts]
    ids = np.array([options.ids for options in next_tokens(model, prompts)]).reshape(-1, 4)
    distinct, places = np.unique(ids, return_inverse=True)
    logits_of, columns = token_logits(model, distinct.tolist()), torch.from_numpy(places.reshape(ids.shape))
    counts = {str(layer): len(indices) for layer, indices in sets.items()}
    counts[ALL] = min(counts.values(), default=0)
    found = {name: np.full((count, len(prompts)), NONE) for name, count in counts.items()}
    step = _sets_at_once(model, sets, min(_BATCH, len(prompts)))
    for rows in batches_of_one_length(tokens, _BATCH):
        read, at = Readout(model, torch.stack([tokens[row] for row in rows]), list(sets)), columns[rows]
        for some in (slice(start, start + step) for start in range(0, max(counts.values()), step)):
            together = None
            for layer, indices in sets.items():
                written = _written(model, read, layer, indices[some])
                found[str(layer)][some, rows] = _options_of(logits_of, written, read, at)
                together = written if together is None else _sum(together, written)
            if together is not None:
                found[ALL][some, rows] = _options_of(logits_of, together, read, at)
    return found


def _written(model: HookedModel, read: Readout, layer: int, sets: Int[np.ndarray, "set neuron"]) -> Written:
    """What the sets of neurons of a layer add to the residual stream."""
    post, weights = read.post(layer), model.blocks[layer].mlp.W_out
    indices = torch.from_numpy(sets).to(post.device)
    shares = post[:, indices].transpose(0, 1) @ weights[indices.to(weights.device)].to(post)
    return read.added(layer, shares.flatten(0, 1)).unflatten(0, shares.shape[:2])


def _sum(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What is written [set, prompt, d_model] by the sets that both have."""
    both = min(len(first), len(second))
    return first[:both] + second[:both]


def _options_of(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    written: Written,
    read: Readout,
    columns: Int[torch.Tensor, "prompt 4"],
) -> Int[np.ndarray, "set prompt"]:
    """The likeliest options; `columns` says which of the logits of `logits_of` are those of a prompt's four."""
    every = logits_of(written.flatten(0, 1)).unflatten(0, written.shape[:2])
    logits = every.gather(2, columns.to(every.device).expand(len(every), -1, -1))
    best = logits.topk(2)
    tied = best.values[..., 0] - best.values[..., 1] <= _TIE * logits.abs().amax(-1)
    silent = written.norm(dim=-1) <= _LOST * read.final().norm(dim=-1)
    return best.indices[..., 0].masked_fill(tied | silent, NONE).cpu().numpy()


def _sets_at_once(model: HookedModel, sets: Sets, prompts: int) -> int:
    widest = max((indices.shape[1] for indices in sets.values()), default=1)
    return max(1, _NUMBERS // (model.cfg.d_model * max(widest, prompts)))
