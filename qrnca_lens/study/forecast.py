"""What a study takes beside locating, before it is run: prompts that are read, edits of prompts, and the time of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qrnca_lens.attribution.options import edited_options
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.shown import notebook
from qrnca_lens.data import Prompt, QuerySet
from qrnca_lens.methods import METHODS
from qrnca_lens.models import HookedModel, ModelError, check_hooked, mlp_width
from qrnca_lens.runs.status import duration
from qrnca_lens.study.reproduction import Sample, compared_methods
from qrnca_lens.study.subjects import Subject

_TIMED, _MANY = 4, 48  # prompts that are timed, with one edit each and with so many
_PLACES = 3  # where an edit is read: on its own prompt and on two unrelated ones
_CUTS = 3  # further sets of a question, on average, where methods have other counts than QRNCA
_QR_NEURONS = 12  # of a question, as in the paper's table 3
_REORDERED = 6  # texts of a prompt in `transfer`: four orders of its options, other symbols, an unrelated one


@dataclass(frozen=True)
class TablesEstimate:
    """What the tables take: prompts that are read untouched, edits that prompts are read with, and about how many seconds,
    by timing a few prompts on the model's present device; None where they cannot be read."""

    readings: int
    edits: int
    seconds: float | None

    def __str__(self) -> str:
        taken = "an unknown time" if self.seconds is None else f"about {duration(self.seconds)}"
        return f"{self.readings:,} prompts to read, {self.edits:,} edits of a prompt, {taken}"

    def _repr_html_(self) -> str:
        return notebook(str(self))


def estimate_tables(model: HookedModel, item: Subject, sample: Sample | None = None) -> TablesEstimate:
    """What `reproduce` takes for one subject beside locating; methods beyond the paper that are attributions of their own,
    and the fits of the probe, are not in it."""
    check_hooked(model)
    sample, prompts, groups = sample or Sample(), _count(item.queries), len(item.queries.groups)
    per_query = prompts / max(1, len(item.queries))
    unseen = [queries for queries in (item.fresh, item.held_out) if queries is not None]
    others = sum(map(_count, unseen)) + prompts if unseen else 0
    small = int(per_query * min(len(item.queries), sample.extended * groups))
    compared, beyond = compared_methods(), [key for key in METHODS if key not in compared_methods()]
    scored = sum(METHODS[key].scores is not None for key in compared)
    one_by_one = 0
    if model.cfg.n_layers * mlp_width(model) <= sample.single_neurons:
        one_by_one = sum(METHODS[key].by_neuron for key in beyond) * model.cfg.n_layers * mlp_width(model)
    both_ways = 2 * _PLACES
    edits = (
        both_ways * prompts * (len(compared) + _CUTS)
        + small * (both_ways * (1 + len(beyond)) + one_by_one)
        + 2 * len(item.queries) * min(len(item.queries), sample.collateral * groups)
        + 2 * both_ways * others
    )
    checked = sum(_count(queries) for queries in (item.queries, *item.renderings, *unseen))
    readings = checked + prompts * (1 + scored) + 2 * small + 2 * len(item.queries) + others + checked // 2
    return TablesEstimate(readings, edits, _seconds(model, item.queries, readings, edits))


def estimate_transfer(model: HookedModel, letters: QuerySet, texts: QuerySet) -> TablesEstimate:
    """What `transfer` takes beside locating twice, if all of the questions are answered both ways."""
    check_hooked(model)
    counts = _count(letters), _count(texts)
    edits = 4 * _PLACES * sum(counts) + _REORDERED * counts[0] * 2 * (_QR_NEURONS + 1)
    readings = 2 * sum(counts) + _REORDERED * counts[0]
    return TablesEstimate(readings, edits, _seconds(model, letters, readings, edits))


def _count(queries: QuerySet) -> int:
    return sum(len(query.prompts) for query in queries)


def _seconds(model: HookedModel, queries: QuerySet, readings: int, edits: int) -> float | None:
    """From some prompts of median length, which are read once to warm up, with one edit and with many."""
    prompts = sorted((prompt for query in queries for prompt in query.prompts), key=lambda prompt: len(prompt.text))
    middle = max(0, (len(prompts) - _TIMED) // 2)
    timed = prompts[middle : middle + _TIMED]
    try:
        _time(model, timed[:1], 1)
        one, many = _time(model, timed, 1), _time(model, timed, _MANY)
    except ModelError:
        return None
    of_edit = max(0.0, many - one) / (len(timed) * (_MANY - 1))
    return readings * one / len(timed) + edits * of_edit


def _time(model: HookedModel, prompts: Sequence[Prompt], edits: int) -> float:
    """Edits of a neuron in every layer but the first quarter."""
    layers = range(model.cfg.n_layers // 4, model.cfg.n_layers)
    neurons = NeuronSet.of(*((layer, 0) for layer in layers))
    began = time.perf_counter()
    edited_options(model, prompts, [[(neurons, 0.0)] * edits] * len(prompts))
    return time.perf_counter() - began
