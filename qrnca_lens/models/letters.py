"""P(letter): how a model answers multi-choice prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.data import LETTERS, Prompt, QuerySet
from qrnca_lens.models.activity import batches_of_one_length
from qrnca_lens.models.hooked import HookedModel, check_hooked
from qrnca_lens.models.tokens import option_tokens, to_tokens


def letter_probabilities(
    model: HookedModel, prompts: Sequence[Prompt], *, batch: int = 64
) -> Float[torch.Tensor, "prompt letter"]:
    """P of each option letter (A, B, C, D) as the next token of each prompt, from a softmax over the whole vocabulary.

    Prompts with the same number of tokens run together, so that nothing is padded and hooks on the last position (see
    `editing`) act where they should.
    """
    check_hooked(model)
    tokens = [to_tokens(model, prompt.text) for prompt in prompts]
    letters = torch.tensor([option_tokens(model.tokenizer, prompt.text).ids for prompt in prompts])
    found = torch.empty(len(prompts), len(LETTERS))
    for rows in batches_of_one_length(tokens, batch):
        with torch.no_grad():
            logits = model(torch.stack([tokens[i] for i in rows]))[:, -1]
        found[rows] = logits.float().softmax(-1).cpu().gather(1, letters[rows])
    return found


def answers(model: HookedModel, queries: QuerySet, *, batch: int = 64) -> pd.DataFrame:
    """One row a prompt: query, group, template, letter, answer (the likeliest option), right, probability (of letter)."""
    asked = [(query, prompt) for query in queries for prompt in query.prompts]
    found = letter_probabilities(model, [prompt for _, prompt in asked], batch=batch)
    rows = []
    for (query, prompt), p in zip(asked, found, strict=True):
        chosen = LETTERS[int(p.argmax())]
        mine = p[LETTERS.index(prompt.letter)].item()
        rows.append((query.id, query.group, prompt.template, prompt.letter, chosen, chosen == prompt.letter, mine))
    return pd.DataFrame(rows, columns=["query", "group", "template", "letter", "answer", "right", "probability"])
