"""The demonstration: the main job on the shipped model, and a page that shows its result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qrnca_lens import plots
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import LETTERS, Query, load_queries
from qrnca_lens.editing import scale
from qrnca_lens.editing.effects import random_sets
from qrnca_lens.localization import layer_counts
from qrnca_lens.models import HookedModel, load_model
from qrnca_lens.models.letters import letter_probabilities
from qrnca_lens.neurons import NeuronSet
from qrnca_lens.pipeline import locate
from qrnca_lens.report import Section, write_page

_PER_GROUP = 12
_HOW_TO_READ = (
    "A multi-choice question is answered with one letter, so P(right letter) stands for the whole answer. Integrated "
    "gradients give every MLP neuron a share of that probability. Neurons that many questions share (option letters, "
    "wording) are removed; what is left for a question are its query-relevant (QR) neurons.\n\n"
    "naica is the score they are ranked by: the neuron's share of its question's attribution (na) times how rare the neuron "
    "is among all questions (ica)."
)


@dataclass(frozen=True)
class Demo:
    """What the demonstration found: the result, one question's neurons, counts, edits of that question, and the page."""

    located: QRNeurons
    query: Query
    neurons: pd.DataFrame
    counts: pd.DataFrame
    edits: pd.DataFrame
    page: Path


def run_demo(out: str | os.PathLike[str]) -> Demo:
    """Locate the QR neurons of 72 domain questions on atlas; the run goes to `out`, the page to `out`/report.html."""
    model = load_model("atlas")
    queries = load_queries("atlas/domains").sample(_PER_GROUP)
    located = locate(model, queries, out=out)
    query = next(q for q in queries if len(located.for_query(q.id)))
    edits = edit_table(model, query, located)
    columns = ["rank", "layer", "neuron", "na", "ica", "naica"]
    neurons = located.table.loc[located.table["query"] == query.id, columns].reset_index(drop=True)
    counts = layer_counts(located).rename(columns=lambda layer: f"layer {layer}").reset_index()
    page = write_page(
        Path(out) / "report.html", "Query-relevant neurons of atlas", _sections(located, query, neurons, counts, edits)
    )
    return Demo(located, query, neurons, counts, edits, page)


def edit_table(model: HookedModel, query: Query, located: QRNeurons) -> pd.DataFrame:
    """P of each letter on the first prompt: untouched, QR neurons at 0 and 2, random neurons of the same layers at 0."""
    chosen = located.for_query(query.id)
    control = random_sets({query.id: chosen}, located.model.d_mlp)[query.id]
    cases: list[tuple[str, NeuronSet, float]] = [
        ("untouched", chosen, 1.0),
        (f"its {len(chosen)} QR neurons suppressed", chosen, 0.0),
        (f"its {len(chosen)} QR neurons enhanced (x 2)", chosen, 2.0),
        (f"{len(control)} random neurons of the same layers suppressed", control, 0.0),
    ]
    rows = []
    for name, neurons, factor in cases:
        with scale(model, neurons, factor):
            rows.append([name, *letter_probabilities(model, query.prompts[:1])[0].tolist()])
    return pd.DataFrame(rows, columns=["edit", *[f"P({letter})" for letter in LETTERS]])


def _sections(
    located: QRNeurons, query: Query, neurons: pd.DataFrame, counts: pd.DataFrame, edits: pd.DataFrame
) -> list[Section]:
    return [
        Section("What this page shows", _HOW_TO_READ),
        Section("Where they sit", "", plots.heatmap(located)),
        Section("By layer", "", plots.layers(located)),
        Section("Counts", "QR neurons by group and layer, counted once a question.", counts),
        Section(f"One question: {query.id}", "", f"{query.prompts[0].text} {query.prompts[0].letter}"),
        Section("Its QR neurons", "", neurons),
        Section(
            "Are they really relevant?", "The letters' probabilities when these neurons are scaled at the last token.", edits
        ),
        Section(
            "Common neurons", "In more than 30 % of all clusters, and so removed from every question's set.", located.common
        ),
        Section("The run", "", repr(located)),
    ]
