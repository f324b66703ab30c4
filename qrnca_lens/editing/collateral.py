"""What an edit does to everything else: the other queries' answers, and the loss on a neutral text."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch

from qrnca_lens.attribution.options import edited_options
from qrnca_lens.attribution.targets import is_right
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import number
from qrnca_lens.data import QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.editing.interventions import scale
from qrnca_lens.engine.finite import check_logits, check_weights
from qrnca_lens.models import HookedModel, ModelError, exclusive, to_tokens

OTHERS_COLUMNS = ["query", "accuracy_before", "accuracy_after", "p_before", "p_after"]
LOSS_COLUMNS = ["query", "loss_before", "loss_after"]
NEUTRAL_TEXT = (
    "The path followed the river for a mile and then turned between two low hills. In the afternoon the wind dropped, and "
    "the children carried their chairs out to the garden. Someone had left a book on the table; its pages moved a little. "
    "Later they walked back along the same path, talking about what to cook for dinner."
)


def other_queries(model: HookedModel, queries: QuerySet, edited: Mapping[str, NeuronSet], factor: float) -> pd.DataFrame:
    """One row a query of `edited`: accuracy and mean P(right letter) on the first prompt of all other queries.

    Columns: query, accuracy_before, accuracy_after, p_before, p_after. Every prompt runs once for all edits.
    """
    check_query_set(queries)
    owners, factor = list(edited), number("factor", factor)
    right, p = [], []
    prompts, edits = [query.prompts[0] for query in queries], [(edited[owner], factor) for owner in owners]
    found = edited_options(model, prompts, [edits] * len(prompts))
    for prompt, letters in zip(prompts, found, strict=True):
        right.append(is_right(letters, prompt.right))
        p.append(letters[:, prompt.right])
    rights, ps = torch.stack(right).double(), torch.stack(p).double()
    ids = [query.id for query in queries]
    rows = []
    for row, owner in enumerate(owners, 1):
        others = torch.tensor([query != owner for query in ids])
        rows.append((owner, *[float(table[others, i].mean()) for table in (rights, ps) for i in (0, row)]))
    return pd.DataFrame(rows, columns=OTHERS_COLUMNS)


def neutral_text(model: HookedModel) -> str:
    """NEUTRAL_TEXT, or as many of its first words as the model's context holds. ModelError if it holds none."""
    words = NEUTRAL_TEXT.split(" ")
    for count in range(len(words), 1, -1):
        try:
            to_tokens(model, " ".join(words[:count]))
        except ModelError:
            continue
        return " ".join(words[:count])
    raise ModelError(f"the model's context of {model.cfg.n_ctx} tokens does not hold two words of the neutral text")


@torch.no_grad()
def neutral_loss(
    model: HookedModel, edited: Mapping[str, NeuronSet], factor: float, text: str = NEUTRAL_TEXT
) -> pd.DataFrame:
    """One row a query of `edited`: the mean next-token loss (nats) on a neutral text, untouched and with its neurons scaled
    at all positions: query, loss_before, loss_after."""
    factor = number("factor", factor)
    tokens = to_tokens(model, text)[None]
    check_weights(model, text)
    before = _loss(model, text, tokens)
    rows = []
    for query, neurons in edited.items():
        after = before
        if len(neurons):
            with scale(model, neurons, factor, positions="all"):
                after = _loss(model, text, tokens)
        rows.append((query, before, after))
    return pd.DataFrame(rows, columns=LOSS_COLUMNS)


def _loss(model: HookedModel, text: str, tokens: torch.Tensor) -> float:
    with exclusive(model):
        logits = model(tokens, attention_mask=torch.ones_like(tokens))[0].float()
    check_logits(model, text, tokens[0], logits)
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:]).item()
