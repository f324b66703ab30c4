"""How many of a run's neurons write an option letter themselves: QR neurons, common ones, and random ones.

    python benchmarks/letter_neurons.py MODEL RUN

A neuron writes a letter where one of A to D, with or without a space before it, is among the 10 tokens whose logits its row
of W_out raises most or lowers most.
"""

from __future__ import annotations

import random
import sys

import pandas as pd

import qrnca_lens as ql
from qrnca_lens.models import HookedModel

K, RANDOM = 10, 500
LETTERS = {mark + letter for letter in "ABCD" for mark in ("", "▁", "Ġ", " ")}


def main() -> None:
    """Print a row a kind of neurons, and the strongest QR neurons with the letters they write."""
    model, located = ql.load_model(sys.argv[1], device="cpu"), ql.QRNeurons.load(sys.argv[2])
    draw, shape = random.Random(0), located.model
    places = [(draw.randrange(shape.n_layers), draw.randrange(shape.d_mlp)) for _ in range(RANDOM)]
    found = located.table.merge(written(model, ql.NeuronSet.from_frame(located.table.drop_duplicates(["layer", "neuron"]))))
    writing = found[found["letters"] != ""]
    print(f"QR neurons, counted once a question: {len(writing)} of {len(found)} write a letter")
    print(f"of their naica: {writing['naica'].sum() / found['naica'].sum():.1%}")
    for name, neurons in (("common neurons", located.common_set), ("random neurons", ql.NeuronSet.of(*set(places)))):
        told = written(model, neurons)
        print(f"{name}: {(told['letters'] != '').sum()} of {len(told)}")
    top = found.groupby(["layer", "neuron", "letters"], as_index=False).agg(
        queries=("query", "size"), naica=("naica", "sum")
    )
    print(top.sort_values("naica", ascending=False).head(10).to_string(index=False))


def written(model: HookedModel, neurons: ql.NeuronSet) -> pd.DataFrame:
    """One row a neuron: layer, neuron, and the letters that it writes ("" for none)."""
    tokens = ql.promoted_tokens(model, neurons, k=K)
    rows = []
    for (layer, neuron), part in tokens.groupby(["layer", "neuron"]):
        shown = [*part["promoted"], *part["suppressed"]]
        letters = sorted({token.strip("▁Ġ ") for token in shown if token in LETTERS})
        rows.append((layer, neuron, "".join(letters)))
    return pd.DataFrame(rows, columns=["layer", "neuron", "letters"])


if __name__ == "__main__":
    main()
