"""What single neurons do at the last position of many prompts, or at every position of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch.nn.utils.rnn import pad_sequence

from qrnca_lens.models.hooked import HookedModel
from qrnca_lens.models.sites import site_hook
from qrnca_lens.models.tokens import to_tokens
from qrnca_lens.neurons import Neuron, NeuronSet
from qrnca_lens.shapes import Tokens


def batches_of_one_length(tokens: Sequence[torch.Tensor], batch: int) -> list[list[int]]:
    """The positions of `tokens`, at most `batch` together, all of one length: nothing needs padding."""
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        lengths.setdefault(len(ids), []).append(i)
    return [same[start : start + batch] for same in lengths.values() for start in range(0, len(same), batch)]


def last_activations(
    model: HookedModel, texts: Sequence[str], neurons: NeuronSet, *, batch: int = 64
) -> Float[torch.Tensor, "prompt neuron"]:
    """What W_out multiplies at the last position of each prompt (site "post"), the neurons by layer and index; float32."""
    tokens = [to_tokens(model, text) for text in texts]
    names = {site_hook(model, layer, "post"): indices for layer, indices in neurons.by_layer().items()}
    found = torch.empty(len(texts), len(neurons))
    for rows in batches_of_one_length(tokens, batch):
        with torch.no_grad():
            _, cache = model.run_with_cache(torch.stack([tokens[i] for i in rows]), names_filter=lambda name: name in names)
        found[rows] = torch.cat([cache[name][:, -1, indices] for name, indices in names.items()], dim=1).float().cpu()
    return found


def token_activations(
    model: HookedModel, texts: Sequence[str], neuron: Neuron
) -> list[tuple[list[str], Float[torch.Tensor, " position"]]]:
    """For each prompt its tokens as texts, and what W_out multiplies for this neuron at each of them; float32.

    The prompts run together, shorter ones filled up on the right, where a causal model's earlier positions see nothing.
    """
    tokens = [to_tokens(model, text) for text in texts]
    if not tokens:
        return []
    name = site_hook(model, neuron.layer, "post")
    with torch.no_grad():
        _, cache = model.run_with_cache(pad_sequence(tokens, batch_first=True), names_filter=name)
    return [
        (token_texts(model, ids), row[: len(ids), neuron.index].float().cpu())
        for ids, row in zip(tokens, cache[name], strict=True)
    ]


def token_texts(model: HookedModel, tokens: Tokens) -> list[str]:
    """Each token decoded on its own; the vocabulary's spelling for one that is only part of a character."""
    texts = [str(model.tokenizer.decode([token])) for token in tokens.tolist()]
    pieces = model.tokenizer.convert_ids_to_tokens(tokens.tolist())
    return [str(piece) if "\ufffd" in text else text for text, piece in zip(texts, pieces, strict=True)]
