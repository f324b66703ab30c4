"""The paper's statements, each with the figures that decide it here; no gloss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from qrnca_lens.atlas.recipe import Recipe
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import paired_difference, quantile_interval, resampled_means, with_interval
from qrnca_lens.data import WORDING, Wording
from qrnca_lens.editing.effects import BOOST, SUPPRESS
from qrnca_lens.editing.statistics import edit_success, probability_change_ratio, specific
from qrnca_lens.localization import common_layer_test, overlap_difference, significant
from qrnca_lens.localization.significance import holm
from qrnca_lens.readout.token_kinds import KINDS
from qrnca_lens.study import paper
from qrnca_lens.study.comparison import OURS
from qrnca_lens.study.reproduction import Results

LEVEL = 0.05
_UNTOLD = "not told apart"
_NO_DATA = "no data"
_NO_MEANING = "no meaning"
_OF_LETTERS = {KINDS[0]: "no letter follows open prompts, so that letters among promoted tokens are none of the answers"}
"""What is counted and says nothing where answers are read, with the reason."""
_RIVALS = {
    "random": "QRNCA is ahead of random neurons",
    "activation": "QRNCA is ahead of the highest activations",
    "activation-absolute": "QRNCA is ahead of the largest absolute activations",
    "knowledge-neuron": "QRNCA is ahead of Knowledge Neuron*",
    "knowledge-neuron-without-common": "QRNCA is ahead of Knowledge Neuron* without common neurons",
    "without-ica": "ICA helps",
    "with-common": "removing common neurons helps",
}
_DIRECTIONS = {"suppressing": SUPPRESS, "boosting": BOOST}
_REGIONS = {
    "overlap": "a group shares fewer neurons with the others than chance",
    "layers": "a group's neurons lie in layers of their own",
    "concentration": "a group's neurons crowd into regions",
}


class _Finding(NamedTuple):
    """One row: `effect` above 0 speaks for the statement; `said` stands for the verdict where no p decides it."""

    statement: str
    data_set: str
    measured: str
    p: float = math.nan
    effect: float = math.nan
    said: str = ""


def statements(results: Mapping[str, Results], model: str = "") -> pd.DataFrame:
    """One row a (statement, data set): statement, data set, holds here, measured, p, p_corrected.

    Methods are compared pair by pair at equal counts, by the specific change: that of P on the own question less that on an
    unrelated one with the same right letter (of answers: on another one of the same group), in percentage points. `p` is
    two-sided for comparisons (sign flips over units, see `core.intervals.paired_difference`), common neurons and overlaps,
    one-sided for promoted tokens; `p_corrected` is Holm's over all of the table. "yes" or "no" stands where it is below
    0.05, by the side of the effect, "not told apart" elsewhere, "no data" where nothing could be measured, "no meaning"
    where a statement is about letters and answers are read. Permutation tests by group are corrected within each test; their
    verdict is the number of groups. `model` "atlas" adds where its facts are known to have been trained into.
    """
    found = [finding for name, result in results.items() for finding in _of(name, result)]
    found += [row for pair in _domains_and_languages(results) for row in _both(*pair)]
    if model == "atlas":
        found += [_in_layers(name, result.located, Recipe().recall_layers) for name, result in results.items()]
    corrected = holm(np.array([finding.p for finding in found], dtype=float))
    rows = [
        (one.statement, one.data_set, one.said or _verdict(one, p), one.measured, one.p, p)
        for one, p in zip(found, corrected, strict=True)
    ]
    return pd.DataFrame(rows, columns=["statement", "data set", "holds here", "measured", "p", "p_corrected"])


def _verdict(finding: _Finding, corrected: float) -> str:
    if math.isnan(corrected):
        return _NO_DATA
    return _UNTOLD if corrected >= LEVEL else "yes" if finding.effect > 0 else "no"


def _of(name: str, result: Results) -> Iterator[_Finding]:
    for direction, factor in _DIRECTIONS.items():
        edits, pairs = (table[table["factor"] == factor] for table in (result.effects, result.pairs))
        ours = edits[edits["method"] == OURS]
        if len(ours):
            yield _own(name, direction, ours, WORDING[result.read])
        for rival, text in _RIVALS.items():
            if rival in set(edits["method"]):
                yield _against(name, f"{text}, {direction}", pairs[pairs["rival"] == rival], edits, factor)
    yield _top_layers(name, result.located)
    for row in result.kinds.to_dict("records"):
        text = f"common neurons promote {row['kind']}"
        if result.read == "answer" and row["kind"] in _OF_LETTERS:
            yield _Finding(text, name, _OF_LETTERS[row["kind"]], said=_NO_MEANING)
            continue
        numbers = (
            f"{row['found']} of the {row['of']} most promoted tokens of {row['neurons']} common neurons, "
            f"{row['share']:.1%}; {row['random share']:.1%} of those of random neurons of the same layers, "
            f"{row['vocabulary share']:.2%} of the vocabulary"
        )
        yield _Finding(text, name, numbers, row["p"], row["share"] - row["random share"])
    for test, text in _REGIONS.items():
        rows = result.tests[result.tests["test"] == test]
        if len(rows):
            count, of = significant(rows)
            yield _Finding(text, name, _by_group(rows), said=f"{count} of {of} groups" if of else _NO_DATA)


def _by_group(rows: pd.DataFrame) -> str:
    cells = zip(rows["group"], rows["observed"], rows["permuted"], rows["p_corrected"], strict=True)
    return "; ".join(f"{group} {seen:.3g} (shuffled {chance:.3g}, p {p:.2g})" for group, seen, chance, p in cells)


def _own(name: str, direction: str, ours: pd.DataFrame, words: Wording) -> _Finding:
    """Is what the edit does to its question more than what it does to others with the same right letter, or group?"""
    found, points = probability_change_ratio(ours), specific(ours).to_numpy(dtype=float)
    p = paired_difference(points, np.zeros(len(points)), ours["unit"].to_numpy()).p
    share = found.letter_share
    parts = (
        f"P {found.points.mean:+.1f} points: question {found.question.mean:+.1f}, {words.shared} {found.letter.mean:+.1f}, "
        f"any question {found.general.mean:+.1f}; own less {words.same} "
        f"{with_interval(found.specific.mean, found.specific.ci)}"
    )
    numbers = parts + (f"; the {words.shared}'s share {with_interval(share.mean, share.ci)} %" if share else "")
    if words.explained:
        own, left = (with_interval(x.mean, x.ci, 2) for x in (found.nats, found.specific_nats))
        numbers += f"; log P a token {own} nats, own less {words.same} {left}"
    effect = found.specific.mean * (1 if direction == "boosting" else -1)
    return _Finding(f"the effect of {direction} is the question's, not the {words.shared}'s", name, numbers, p, effect)


def _against(name: str, text: str, pair: pd.DataFrame, edits: pd.DataFrame, factor: float) -> _Finding:
    """Of as many neurons of both, over the questions for which both have some."""
    of = edits["query"].nunique()
    if pair.empty:
        return _Finding(text, name, f"none of {of} questions has a neuron of both")
    ours, theirs = pair[pair["method"] == OURS], pair[pair["method"] != OURS]
    units = ours.set_index("query")["unit"]
    own, other = specific(ours), specific(theirs).reindex(units.index)
    found = paired_difference(own.to_numpy(dtype=float), other.to_numpy(dtype=float), units.to_numpy())
    flips = [edit_success(rows, boost=factor == BOOST) for rows in (ours, theirs)]
    numbers = (
        f"specific change of P {own.mean():.1f} against {other.mean():.1f} points, difference "
        f"{with_interval(found.mean, found.interval)}; flips {flips[0].count} against {flips[1].count} of {flips[0].of}; "
        f"{ours['neurons'].mean():.1f} neurons of each a question, {len(ours)} of {of} questions"
    )
    return _Finding(text, name, numbers, found.p, found.mean if factor == BOOST else -found.mean)


def _top_layers(name: str, located: QRNeurons) -> _Finding:
    """Deeper than as many neurons of the whole model, which is what "the top layers" says."""
    tested = common_layer_test(located).set_index("against")
    whole, clusters = tested.loc["all neurons of the model"], tested.loc["neurons of the clusters"]
    layers = located.common["layer"].value_counts().sort_index().to_dict()
    numbers = (
        f"{len(located.common)} common neurons, by layer of 0 to {located.model.n_layers - 1}: {layers}; mean depth "
        f"{whole['depth']:.2f} against {whole['expected']:.2f} of all neurons and {clusters['expected']:.2f} of those of "
        f"the clusters (p {clusters['p']:.2g})"
    )
    return _Finding("common neurons sit in the top layers", name, numbers, whole["p"], whole["depth"] - whole["expected"])


def _domains_and_languages(results: Mapping[str, Results]) -> list[tuple[tuple[str, Results], tuple[str, Results]]]:
    """Every pair of a data set of domains and one of languages, as their groups tell (`paper.data_set`)."""
    kinds = [(paper.data_set(result.located.groups), (name, result)) for name, result in results.items()]
    domains, languages = ([item for kind, item in kinds if kind == asked] for asked in ("domains", "languages"))
    return list(product(domains, languages))


def _both(domains: tuple[str, Results], languages: tuple[str, Results]) -> Iterable[_Finding]:
    """What the paper says of domains beside languages."""
    names, located = f"{domains[0]}, {languages[0]}", [result.located for _, result in (domains, languages)]
    try:
        found = overlap_difference(*located)
    except ValueError as reason:
        yield _Finding("domains overlap more than languages", names, str(reason))
    else:
        numbers = (
            f"at {found.per_group} questions a group mean rate {found.first:.3f} (shuffled {found.first_permuted:.3f}) "
            f"against {found.second:.3f} ({found.second_permuted:.3f}), difference {found.difference:.3f} "
            f"[{found.low:.3f}, {found.high:.3f}] over draws"
        )
        yield _Finding("domains overlap more than languages", names, numbers, found.p, found.difference)
    counts = [significant(rows) for rows in (r.tests[r.tests["test"] == "concentration"] for _, r in (domains, languages))]
    if all(of for _, of in counts):
        (one, ones), (other, others) = counts
        more = one / ones - other / others
        said = f"by counts, {'yes' if more > 0 else 'no' if more < 0 else _UNTOLD}"
        told = f"groups told from shuffled labels: {one} of {ones} domains, {other} of {others} languages; counts, no test"
        yield _Finding("domains have regions, languages are dispersed", names, told, said=said)


def _in_layers(name: str, located: QRNeurons, layers: tuple[int, ...]) -> _Finding:
    """The share of a query's QR neurons in the layers that the facts were trained into, against that of all neurons."""
    inside = located.table["layer"].isin(layers).groupby(located.table["query"]).mean()
    shares = inside.reindex(located.queries["query"]).to_numpy(dtype=float)
    interval = quantile_interval(resampled_means(shares[:, None], located.units.to_numpy())[:, 0])
    chance, counts = len(layers) / located.model.n_layers, located.table["layer"].value_counts(normalize=True).sort_index()
    numbers = (
        f"{np.nanmean(shares):.0%} [{interval[0]:.0%}, {interval[1]:.0%}] of a question's neurons in layers "
        f"{' and '.join(map(str, layers))}, {chance:.0%} of all neurons; by layer "
        f"{ ({layer: f'{share:.0%}' for layer, share in counts.items()}) }"
    )
    said = "yes" if interval[0] > chance else "no" if interval[1] < chance else _UNTOLD
    return _Finding("QR neurons lie in the layers that the facts were trained into", name, numbers, said=said)
