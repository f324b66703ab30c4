"""Results, effects and a model put together by hand, so that every number can be worked out on paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.editing.effects import COLUMNS
from qrnca_lens.models import load_model, to_tokens

Row = tuple[str, int, int, float]
MARKS = "+-=~"
WRITER = {"A": (1, 7), "B": (1, 30), "C": (2, 7), "D": (2, 12)}
"""The neuron of the planted model that writes each letter, as (layer, index)."""


def made(
    rows: Sequence[Row], group_of: dict[str, str], *, n_layers: int = 3, d_mlp: int = 10, common_share: float = 0.5
) -> QRNeurons:
    """A result from (query, layer, neuron, attribution) rows."""
    clusters = pd.DataFrame(list(rows), columns=["query", "layer", "neuron", "attribution"]).assign(templates=1)
    clusters.insert(1, "group", clusters["query"].map(group_of))
    queries = pd.DataFrame({"query": list(group_of), "group": list(group_of.values()), "prompts": 1})
    queries = queries.assign(probability=0.5, gap=0.0)
    config = QRNCAConfig(common_share=common_share)
    return QRNeurons(clusters, queries, config, ModelShape("tiny", n_layers, d_mlp, "0"))


def by_hand(groups: str | Sequence[str] = "xyz") -> QRNeurons:
    """Sets: x {(0,1), (1,9), (0,2)}, y {(0,1), (1,3)}, z none; (2, 5) is in 4 of 6 clusters and therefore common."""
    rows = [("a", 0, 1, 4.0), ("a", 1, 9, 1.0), ("b", 0, 2, 1.0), ("c", 0, 1, 3.0), ("d", 1, 3, 2.0), ("d", 0, 1, 2.0)]
    rows += [(query, 2, 5, 1.0) for query in "abcd"]
    return made(rows, {query: groups[i // 2] for i, query in enumerate("abcdef")})


def effects(
    method: str,
    factor: float,
    after: Sequence[float],
    same: Sequence[float],
    *,
    other: Sequence[float] | None = None,
    turned: Sequence[tuple[int, int]] | None = None,
    before: float = 0.5,
) -> pd.DataFrame:
    """Rows of `edit_effects` for the queries q0, q1, … of three prompts, two of them right; groups x and y in turn.

    `after`, `same` and `other` are P after the edit of the query and of its partners with the same letter and with another
    (which the edit leaves as it is, if not given), `before` all of them before it; `turned` counts (wrong to right, right to
    wrong). Every query is a unit of its own.
    """
    turned, other = turned or [(0, 0)] * len(after), other or [before] * len(after)

    def both(now: float) -> tuple[float, ...]:
        """P before and after, and their logarithms."""
        return before, now, *(math.log(p) if p else -math.inf for p in (before, now))

    rows = [
        (method, factor, f"q{i}", "xy"[i % 2], f"q{i}", 5, 3, *both(own), 2, *turns, *both(s), 3, *both(o), 3, "[]", "[]")
        for i, (own, s, o, turns) in enumerate(zip(after, same, other, turned, strict=True))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def in_pairs(found: pd.DataFrame) -> pd.DataFrame:
    """`found` as QRNCA beside each of the other methods."""
    rivals = [method for method in found["method"].unique() if method != "qrnca"] if len(found) else []
    return pd.concat(
        [found[found["method"].isin(["qrnca", rival])].assign(rival=rival) for rival in rivals]
        or [pd.DataFrame(columns=["rival", *COLUMNS])],
        ignore_index=True,
    )


def planted_prompt(number: int, letter: str, mark: str | None = None) -> Prompt:
    """A prompt of the planted model; its last character says which letter is written, `letter` which one is right."""
    return Prompt(f"Which letter is right? {number}{mark or MARKS['ABCD'.index(letter)]}", letter)


def planted_queries(letters: Iterable[str], groups: Sequence[str], *, first: str = "q") -> QuerySet:
    """A query for each text of `letters`, with a prompt for each of its letters; groups in turn."""
    queries = []
    for i, own in enumerate(letters):
        prompts = tuple(planted_prompt(10 * i + j, letter) for j, letter in enumerate(own))
        queries.append(Query(f"{first}{i}", groups[i % len(groups)], prompts))
    return QuerySet(tuple(queries), "planted")


def writers(letters: str) -> NeuronSet:
    """The neurons that write these letters."""
    return NeuronSet.of(*(WRITER[letter] for letter in letters))


def planted_model(folder: Path, *, habit: float = 1.0) -> Any:
    """A llama that knows only the last character of a prompt, through four neurons.

    Nothing attends and no other neuron writes. After the mark of a letter the embedding alone says D, as loud as `habit`,
    and the neuron of `WRITER` says its letter, as loud as 20 and silent after the other marks.
    """
    model = load_model(folder, device="cpu")
    text = planted_prompt(0, "A").text
    read = model.ln_final.w.data[:, None] * model.W_U.data[:, list(option_tokens(model, text).ids)]
    says = torch.linalg.pinv(read)  # row k raises the letter k by one, and no other of the four
    tokens = torch.stack([to_tokens(model, planted_prompt(0, letter).text) for letter in "ABCD"])
    for block in model.blocks:
        for weight in (block.attn.W_O, block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out):
            weight.data.zero_()
    embedded = model.embed.W_E.data[tokens[:, -1]]
    model.embed.W_E.data[tokens[:, -1]] = embedded - embedded @ read @ says + habit * says[3]
    for layer in (1, 2):
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
            mlp, seen = model.blocks[layer].mlp, model.blocks[layer].ln2(cache["resid_mid", layer])[:, -1]
        notices = torch.linalg.pinv(seen)  # column k answers 1 to the mark k and 0 to the others
        for k, (at, index) in enumerate(WRITER.values()):
            if at == layer:
                mlp.W_in.data[:, index], mlp.W_gate.data[:, index] = notices[:, k], 4 * notices[:, k]
                mlp.W_out.data[index] = 5 * says[k]
    return model
