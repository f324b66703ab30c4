"""What single neurons do at the last position of many prompts, or at every position of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch.nn.utils.rnn import pad_sequence

from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.values import whole_number
from qrnca_lens.engine.batches import in_batches
from qrnca_lens.engine.finite import check_logits, check_weights
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.models.hooked import HookedModel, exclusive, is_hooked_transformer
from qrnca_lens.models.reader import reader_of, to_tokens
from qrnca_lens.models.sites import site_hook

Rows = Int[torch.Tensor, "row longest"]


def last_positions(
    model: HookedModel, texts: Sequence[str], neurons: NeuronSet, *, batch: int = 64
) -> Iterator[tuple[list[int], Float[torch.Tensor, "row token"], Float[torch.Tensor, "row neuron"]]]:
    """Read each prompt once: (positions in `texts`, logits after them, what W_out multiplies there), batch after batch.

    The neurons stand by layer and index. Prompts of one length run together, so that nothing is padded, at most `batch` and
    fewer where memory runs out. ModelError for
    logits or weights that are NaN or infinite.
    """
    batch = whole_number("batch", batch, at_least=1)
    tokens = [to_tokens(model, text) for text in texts]
    names = {site_hook(model, layer, "post"): indices for layer, indices in neurons.by_layer().items()}
    if texts:
        check_weights(model, texts[0])

    def read(rows: Sequence[int]) -> list[tuple[list[int], torch.Tensor, torch.Tensor]]:
        together = torch.stack([tokens[i] for i in rows])
        with torch.no_grad():
            logits, kept = last_logits(model, together, torch.ones_like(together), set(names))
        for i, row in zip(rows, logits[:, -1], strict=True):
            check_logits(model, texts[i], tokens[i], row)
        found = [kept[name][:, -1, indices].to(logits.device) for name, indices in names.items()]
        return [([*rows], logits[:, -1], torch.cat([logits.new_empty(len(rows), 0), *found], dim=1))]

    for same in batches_of_one_length(tokens, max(1, len(tokens))):
        for found in in_batches(same, batch, read):
            yield from found


def last_activations(
    model: HookedModel, texts: Sequence[str], neurons: NeuronSet, *, batch: int = 64
) -> Float[torch.Tensor, "prompt neuron"]:
    """What W_out multiplies at the last position of each prompt (site "post"), the neurons by layer and index; float32."""
    found = torch.empty(len(texts), len(neurons), dtype=torch.float32)
    for rows, _, posts in last_positions(model, texts, neurons, batch=batch):
        found[rows] = posts.float().cpu()
    return found


def token_activations(
    model: HookedModel, texts: Sequence[str], neuron: Neuron
) -> list[tuple[list[str], Float[torch.Tensor, " position"]]]:
    """For each prompt its tokens as texts, and what W_out multiplies for this neuron at each of them; float32.

    The prompts run together (fewer where memory runs out), shorter ones filled up on the right, where a causal model's
    earlier positions see nothing.
    """
    tokens = [to_tokens(model, text) for text in texts]
    if not tokens:
        return []
    name = site_hook(model, neuron.layer, "post")

    def read(some: Sequence[torch.Tensor]) -> list[tuple[list[str], torch.Tensor]]:
        rows, mask = right_padded(some)
        with exclusive(model), torch.no_grad():
            if is_hooked_transformer(model):
                _, kept = model.run_with_cache(
                    rows, attention_mask=mask, names_filter=name, return_cache_object=False, stop_at_layer=neuron.layer + 1
                )
            else:
                _, kept = last_logits(model, rows, mask, {name})
        return [
            (reader_of(model).pieces(ids), row[: len(ids), neuron.index].float().cpu())
            for ids, row in zip(some, kept[name], strict=True)
        ]

    return [found for part in in_batches(tokens, len(tokens), read) for found in part]


def right_padded(tokens: Sequence[torch.Tensor]) -> tuple[Rows, Rows]:
    """Prompts of any lengths as one batch, and its attention mask.

    What fills them up stands on the right, where a causal model's earlier positions see nothing. The mask also tells
    hooks on the last position (see `editing`) where each row ends.
    """
    ids = pad_sequence(list(tokens), batch_first=True)
    lengths = torch.tensor([len(row) for row in tokens], device=ids.device)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


def batches_of_one_length(tokens: Sequence[torch.Tensor], batch: int) -> list[list[int]]:
    """The positions of `tokens`, at most `batch` together, all of one length: nothing needs padding."""
    lengths: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        lengths.setdefault(len(ids), []).append(i)
    return [same[start : start + batch] for same in lengths.values() for start in range(0, len(same), batch)]
