"""The demonstration: the main job on the shipped model, and a page that shows its result."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from qrnca_lens.attribution.options import option_probabilities
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import with_interval
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Query, QuerySet, load_queries
from qrnca_lens.editing import scale
from qrnca_lens.editing.effects import SUPPRESS, edit_effects
from qrnca_lens.editing.statistics import edit_success, probability_change_ratio
from qrnca_lens.localization import layer_counts
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import HookedModel, load_model
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study.tables import letter_line
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.report import Section, write_page

_PER_GROUP = 12
_HOW_TO_READ = (
    "A multi-choice question is answered with one letter, whose probability P is measured. Integrated gradients give every "
    "MLP neuron a share of it. Neurons that many questions share are removed; what is left for a question are its "
    "query-relevant (QR) neurons.\n\n"
    "naica is the score they are ranked by: the neuron's share of its question's attribution (na) times how rare the neuron "
    "is among all questions (ica)."
)


@dataclass(frozen=True)
class Demo:
    """The demonstration's result: the effect over all questions, one question's neurons and edits, the page.

    `letter` is the sentence on how much of the effect is one on the letter (`tables.letter_line`).
    """

    located: QRNeurons
    effect: pd.DataFrame
    letter: str
    query: Query
    neurons: pd.DataFrame
    edits: pd.DataFrame
    counts: pd.DataFrame
    page: Path


def to_locate() -> QuerySet:
    """The questions that `run_demo` locates."""
    return load_queries("atlas/domains").sample(_PER_GROUP)


def run_demo(out: str | os.PathLike[str], *, model: HookedModel | None = None) -> Demo:
    """Locate the QR neurons of 72 domain questions on atlas; the run goes to `out`, the page to `out`/report.html.

    `model`: atlas, where it is loaded already. The question that is shown is the one with the median effect, not the one
    with the largest.
    """
    model = load_model("atlas") if model is None else model
    located = locate(model, to_locate(), out=out)
    own = {query: located.for_query(query) for query in located.queries["query"]}
    sets = {"its QR neurons": own, "random neurons, same layers": random_sets(own, located.model.d_mlp)}
    effects = edit_effects(model, located.asked, sets, factors=[SUPPRESS])
    ours = effects[effects["method"] == "its QR neurons"]
    query, letter = located.asked[_median_query(ours)], letter_line(probability_change_ratio(ours))
    columns = ["rank", "layer", "neuron", "na", "ica", "naica"]
    neurons = located.table_for_query(query.id)[columns].reset_index(drop=True)
    counts = layer_counts(located).rename(columns=lambda layer: f"layer {layer}").rename_axis(columns=None).reset_index()
    edits, page = edit_table(model, query, located), Path(out) / "report.html"
    found = Demo(located, _summary(effects), letter, query, neurons, edits, counts, page)
    write_page(found.page, "Query-relevant neurons of atlas", _sections(found))
    return found


def _median_query(effects: pd.DataFrame) -> str:
    change = (effects["p_after"] / effects["p_before"]).sort_values()
    return str(effects.loc[change.index[len(change) // 2], "query"])


def _summary(effects: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for method, part in effects.groupby("method", sort=False):
        change, flips = probability_change_ratio(part), edit_success(part, boost=False)
        changes = [with_interval(x.mean, x.ci) for x in (change.own, change.same_letter, change.other_letter)]
        rows.append((f"{method} suppressed", change.queries, *changes, f"{flips.count} of {flips.of}"))
    names = ["edit", "questions", "own question, %", "same letter, %", "other letter, %", "answers turned wrong"]
    return pd.DataFrame(rows, columns=names)


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
            rows.append([name, *option_probabilities(model, query.prompts[:1])[0].tolist()])
    return pd.DataFrame(rows, columns=["edit", *[f"P({letter})" for letter in query.prompts[0].names]])


def _sections(demo: Demo) -> list[Section]:
    located, query = demo.located, demo.query
    effect = (
        "Mean change of P(right letter) over all questions, on questions of other groups with the same right letter and "
        "with another, each with its 95 % bootstrap interval, and the prompts that turn wrong.\n\n" + demo.letter
    )
    return [
        Section("What this page shows", _HOW_TO_READ),
        Section("Where they sit", "", plots.heatmap(located)),
        Section("By layer", "", plots.layers(located)),
        Section("Counts", "QR neurons by group and layer, counted once a question.", demo.counts),
        Section("Are they really relevant?", effect, demo.effect),
        Section(f"One question, of median effect: {query.id}", "", f"{query.prompts[0].text} {query.prompts[0].letter}"),
        Section("Its QR neurons", "", demo.neurons),
        Section("Its answer when they are scaled", "P of each letter, scaled at the last token.", demo.edits),
        Section(
            "Common neurons", "In more than 30 % of all clusters, so removed from every question's set.", located.common
        ),
        Section("The run", "", repr(located)),
    ]
