"""P(letter): how a model answers multi-choice prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.data import LETTERS, Prompt, QuerySet
from qrnca_lens.models.activity import last_positions
from qrnca_lens.models.hooked import HookedModel, check_hooked
from qrnca_lens.models.tokens import option_tokens
from qrnca_lens.neurons import NeuronSet


def letter_probabilities(
    model: HookedModel, prompts: Sequence[Prompt], *, batch: int = 64
) -> Float[torch.Tensor, "prompt letter"]:
    """P of each option letter (A, B, C, D) as the next token of each prompt, from a softmax over the whole vocabulary."""
    return letters_and_activations(model, prompts, NeuronSet(), batch=batch)[0]


def letters_and_activations(
    model: HookedModel, prompts: Sequence[Prompt], neurons: NeuronSet, *, batch: int = 64
) -> tuple[Float[torch.Tensor, "prompt letter"], Float[torch.Tensor, "prompt neuron"]]:
    """`letter_probabilities` and `activity.last_activations` from one reading of each prompt."""
    check_hooked(model)
    letters = torch.tensor([option_tokens(model.tokenizer, prompt.text).ids for prompt in prompts])
    p, activations = torch.empty(len(prompts), len(LETTERS)), torch.empty(len(prompts), len(neurons))
    for rows, logits, posts in last_positions(model, [prompt.text for prompt in prompts], neurons, batch=batch):
        p[rows] = logits.float().softmax(-1).cpu().gather(1, letters[rows])
        activations[rows] = posts.float().cpu()
    return p, activations


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
