"""The study's files: results.json, every figure as HTML and plotly JSON, and one self-contained report.html."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from qrnca_lens.clustering import NeuronClusters, cluster_neurons
from qrnca_lens.clustering.qr_neurons import QRNeurons
from qrnca_lens.core.store import write_record, write_text
from qrnca_lens.core.writing import own_folder, plain_name
from qrnca_lens.data import Read
from qrnca_lens.editing.statistics import group_changes
from qrnca_lens.study.prediction_table import table7, table7_sentence
from qrnca_lens.study.reproduction import Reproduction, Results, Sample
from qrnca_lens.study.tables import (
    as_json,
    failed,
    figure2a,
    given_away,
    letter_line,
    method_name,
    pcr_of,
    read_of,
    table3,
    table4,
    table6,
    table_unseen,
)
from qrnca_lens.study.verdicts import statements
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.plots import localization as plots_localization
from qrnca_lens.views.report import Section, write_page

_READING = (
    "Where the paper has a number (Llama-2-7B-chat), it stands beside the one measured here. Intervals are 95 % and over "
    "questions (over facts, where several questions ask for the same): bootstrap for probability changes, Wilson's with the "
    "effective number of prompts for counts. A PCR is printed only where the change on unrelated queries can be told from "
    "zero; elsewhere it would be a division by noise."
)
_READING_ANSWERS = (
    "Answers are read, not letters: prompts are open, they show no options and end before the answer. P is that of the "
    "right answer, a token: the geometric mean over its tokens, each after those before it; log P is its logarithm, in "
    "nats. An answer is right where it is the likeliest of the question's four options. Neurons are scaled at the "
    "prompt's last token and at all of the answer but its last. The paper's own numbers are about letters."
)
_PAIRS = (
    "QRNCA and one other method at equal counts: for each question as many neurons of both as the one with fewer has, the "
    "first of its ranking; questions for which either has none are left out."
)
_SPECIFIC: dict[Read, str] = {
    "letter": "The specific change is that on the own question less that on an unrelated one with the same right letter.",
    "answer": "The specific change is that on the own question less that on another question of the same group.",
}
_STATEMENTS = (
    "p is corrected for all rows that have one (Holm). Tests by group are corrected within the test; their verdict is the "
    "number of groups."
)
_KINDS = "Among the three most promoted tokens of each common neuron, beside random neurons of the same layers."
_KINDS_OF_ANSWERS = " No letter follows open prompts, so that letters among these tokens are none of the answers."
_FORMS = (
    "Questions whose right option is the only one of its form (a number, a formula, a name, ...) among the four: a model "
    "could pick it without knowing the answer."
)
_NO_FORMS = "Left out: open prompts show no options, so that no option's form gives anything away."
_OWN_SIZES = "Each method with as many neurons as its own rule takes, as in the paper. {specific}"
_UNSEEN: dict[Read, str] = {
    "letter": (
        "QR neurons at their own sizes, measured on the prompts that they were found with, on fresh shuffles and "
        "distractors, and on a template that had no part in detection; the same questions in all three."
    ),
    "answer": (
        "QR neurons at their own sizes, measured on the prompts that they were found with and on an open template that "
        "had no part in detection; the same questions in both. Open prompts show no options, so that there are no fresh "
        "shuffles."
    ),
}
_QUESTIONS = {
    "overlap": "Does a group share fewer of its QR neurons with the others than under shuffled group labels?",
    "concentration": "Do fewer cells of layer x neuron hold a group's naica than under shuffled group labels?",
    "layers": "Do a group's QR neurons lie in other layers than those of the others, more than under shuffled labels?",
}
_NULL = (
    "The null hypothesis: which group a question belongs to does not matter for its neurons. Where groups ask for the same "
    "facts, labels change places within a fact. Groups that are languages differ in script and words, so that for them the "
    "null is false before anything is measured: a small p does not say that knowledge is kept by language."
)
_OVERLAP = (
    "|A and B| / mean(|A|, |B|) of the sets of two groups, made by the same number of queries of each, beside the mean "
    "under shuffled group labels. The paper's range is not shown: it does not say how its rate is defined."
)


def write_report(study: Reproduction) -> Path:
    """Write all files into the study's folder and return the page's path."""
    held = statements(study.results, study.model)
    reading = [_READING, *([_READING_ANSWERS] if read_of(study.results) == "answer" else [])]
    sections = [Section("How to read this", "\n\n".join(reading)), *_tables(study, held)]
    figures: dict[str, go.Figure] = {}
    for name, result in study.results.items():
        figures |= {f"{name}-{key}": figure for key, figure in result_figures(result).items()}
    for name, result in study.results.items():
        by_test = {str(key): rows.drop(columns="test") for key, rows in result.tests.groupby("test", sort=False)}
        figures[f"{name}-significance"] = plots_localization.permutation(by_test["concentration"])
        sections += [
            Section(f"Is a region real? {name}: {key}", f"{_QUESTIONS[key]} {_NULL}", rows) for key, rows in by_test.items()
        ]
    sections += [Section(key, "", figure) for key, figure in figures.items()]
    record = as_json(study.results, study.about, held)
    record |= {f"figures/{key}": f"figures/{key}.json" for key in figures}
    folder = own_folder(study.folder / "figures")
    for key, figure in figures.items():
        write_text(figure.to_json() or "", folder / f"{plain_name(key)}.json")
        write_page(folder / f"{key}.html", key, [Section(key, "", figure)])
    write_record(record, study.folder / "results.json")
    return write_page(study.folder / "report.html", f"QRNCA on {study.model}: the paper's tables and figures", sections)


def _letters(results: Mapping[str, Results]) -> str:
    """For each data set how much of what suppressing QR neurons does is an effect on the letter, or on the group."""
    found = pcr_of(results)
    lines = {name: letter_line(found["qrnca", name, "suppress"], result.read) for name, result in results.items()}
    return "\n\n".join(f"QRNCA, {name}, suppressed: {line}" for name, line in lines.items())


def _beyond(study: Reproduction) -> str:
    """What stands above the tables of the methods that the paper does not have: which of them were left out, and why."""
    sample = Sample(**study.about.get("sample", {}))
    left_out = {key: None for result in study.results.values() for key in sample.beyond(result.located.model)[1]}
    if not left_out:
        return "On a sample of the queries."
    return (
        f"On a sample of the queries. Left out: {', '.join(method_name(key) for key in left_out)}. They take every neuron "
        f"on its own, and the model has more than {sample.single_neurons:,} (`single_neurons` of the sample)."
    )


def _means(edits: pd.DataFrame) -> pd.DataFrame:
    return edits.groupby("factor").agg("mean", numeric_only=True).reset_index()


def result_figures(result: Results) -> dict[str, go.Figure]:
    """The paper's figures 2a, 2b, 3, 4 and 5 of one data set, and the clusters of neurons."""
    effects = result.effects[result.effects["method"] == "qrnca"].reset_index(drop=True)
    figures = {
        "figure2a": plots_localization.overlap_matrix(result.located),
        "figure2b": plots_localization.layer_distribution(result.located),
        "figure3-4": plots.changes(group_changes(effects), result.read),
        "figure5": plots.heatmap(result.located),
    }
    clusters = neuron_clusters(result.located)
    if clusters is not None:
        figures["clusters"] = plots_localization.neuron_clusters(clusters)
    return figures


def neuron_clusters(located: QRNeurons) -> NeuronClusters | None:
    """The clusters of neurons by query profile; None if there are too few neurons to cluster."""
    try:
        return cluster_neurons(located)
    except ValueError:
        return None


def _tables(study: Reproduction, held: pd.DataFrame) -> list[Section]:
    results, lost, read = study.results, failed(study.results), read_of(study.results)
    own, beyond, kinds = _OWN_SIZES.format(specific=_SPECIFIC[read]), _beyond(study), _KINDS
    forms = Section("Right options that their form gives away", _FORMS, given_away(results))
    if read == "answer":
        kinds, forms = _KINDS + _KINDS_OF_ANSWERS, replace(forms, text=_NO_FORMS, content=None)
    why = "They are left out of everything below."
    tokens = [Section(f"Table 5: promoted tokens, {name}", "", result.tokens) for name, result in results.items()]
    collateral = [
        section
        for name, result in results.items()
        for section in (
            Section(f"Collateral on other queries, {name}", "", _means(result.others)),
            Section(f"Collateral on a neutral text, {name}", "", _means(result.loss)),
        )
    ]
    return [
        *([Section("Queries that failed", why, lost)] if len(lost) else []),
        Section("Which statements of the paper hold here", _STATEMENTS, held),
        Section("Table 3: QR neurons a query", "", table3(results)),
        Section("Table 4: probability change ratio", f"{own}\n\n{_letters(results)}", table4(results)),
        Section("Table 4, pairs at equal counts", _PAIRS, table4(results, "pairs")),
        Section("Table 4, methods beyond the paper", beyond, table4(results, "extended")),
        Section("Edits on prompts that had no part in detection", _UNSEEN[read], table_unseen(results)),
        *tokens,
        *[Section(f"Kinds of tokens that common neurons promote, {name}", kinds, r.kinds) for name, r in results.items()],
        Section("Table 6: edit success", own, table6(results)),
        Section("Table 6, pairs at equal counts", _PAIRS, table6(results, "pairs")),
        Section("Table 6, methods beyond the paper", beyond, table6(results, "extended")),
        Section("Table 7: neuron-based prediction", table7_sentence(results), table7(results)),
        forms,
        Section("Figure 2a: overlap between groups", _OVERLAP, figure2a(results)),
        *collateral,
    ]
