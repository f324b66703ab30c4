"""Does removing a domain's neurons hurt that domain more than others? On questions that had no part in finding them.

    python benchmarks/regions.py MODEL RUN OUT.parquet

The run is cut to one half of each group's questions (`QuerySet.split(0.5, 0)`), which gives each group its strongest QR
neurons (by naica summed over them); they are set to 0 at the last position in the prompts of the other half, of its own
group and of all others, and so are as many random neurons of the same layers.
"""

from __future__ import annotations

import sys

import pandas as pd

import qrnca_lens as ql
from qrnca_lens.attribution.options import edited_options
from qrnca_lens.core.intervals import paired_difference, with_interval
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import HookedModel

SIZES = (10, 20, 50, 100)


def main() -> None:
    """Write a row a (size, kind, edited group, question), print the means."""
    model, located = ql.load_model(sys.argv[1], device="cpu"), ql.QRNeurons.load(sys.argv[2])
    found = measured(model, located)
    found.to_parquet(sys.argv[3])
    for (size, kind), part in found.groupby(["size", "kind"], sort=False):
        print(f"{size} {kind}: {told(part)}")
        for group, of in part.groupby("group", sort=False):
            print(f"    questions of {group}: {told(of)}")


def measured(model: HookedModel, located: ql.QRNeurons) -> pd.DataFrame:
    """A row a (size, kind of neurons, edited group, question): change of P of the right option in points, means over its
    prompts, and how many of them were right before and after."""
    detection, evaluation = located.asked.split(0.5, 0)
    known = located.restrict([query.id for query in detection])
    sets = {}
    for size in SIZES:
        for group in known.groups:
            ours = ql.NeuronSet(known.for_group(group).neurons[:size])
            sets[size, "QR", group] = ours
            sets[size, "random", group] = random_sets({group: ours}, located.model.d_mlp)[group]
    queries = [query for query in evaluation for _ in query.prompts]
    prompts = [prompt for query in evaluation for prompt in query.prompts]
    edits = [(neurons, 0.0) for neurons in sets.values()]
    rows = []
    for query, prompt, p in zip(queries, prompts, edited_options(model, prompts, [edits] * len(prompts)), strict=True):
        right, chosen = p[:, prompt.right], p.argmax(-1) == prompt.right
        for row, (size, kind, group) in enumerate(sets, 1):
            change = 100 * float(right[row] - right[0])
            rows.append((size, kind, group, query.id, query.group, change, bool(chosen[0]), bool(chosen[row])))
    names = ["size", "kind", "edited", "query", "group", "points", "right_before", "right_after"]
    by = ["size", "kind", "edited", "query", "group"]
    return (
        pd.DataFrame(rows, columns=names)
        .groupby(by, sort=False, as_index=False)
        .agg(points=("points", "mean"), right_before=("right_before", "sum"), right_after=("right_after", "sum"))
    )


def told(part: pd.DataFrame) -> str:
    """The change where the question's own group is edited, where another is, and their difference question by question."""
    own = part[part["group"] == part["edited"]].set_index("query")["points"]
    other = part[part["group"] != part["edited"]].groupby("query")["points"].mean().reindex(own.index)
    found = paired_difference(own.to_numpy(), other.to_numpy(), own.index.to_numpy())
    flips = [
        f"{int((rows['right_before'] - rows['right_after']).sum())} of {int(rows['right_before'].sum())}"
        for rows in (part[part["group"] == part["edited"]], part[part["group"] != part["edited"]])
    ]
    return (
        f"own group {own.mean():+.1f} points, another {other.mean():+.1f}, difference "
        f"{with_interval(found.mean, found.interval)} (p {found.p:.2g}), {len(own)} questions; right answers lost "
        f"{flips[0]} and {flips[1]}"
    )


if __name__ == "__main__":
    main()
