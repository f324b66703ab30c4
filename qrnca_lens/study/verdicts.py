"""The paper's statements, each with the figures that decide it here; no gloss."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import bootstrap_interval, quantile_interval, with_interval
from qrnca_lens.data import LETTERS
from qrnca_lens.editing.effects import SUPPRESS
from qrnca_lens.editing.statistics import edit_success, specific
from qrnca_lens.localization import mean_overlap
from qrnca_lens.study import paper
from qrnca_lens.study.reproduction import Results

_OVERLAP_RESAMPLES = 200
_RIVALS = {
    "random": "QRNCA's suppression is ahead of random neurons",
    "activation": "QRNCA's suppression is ahead of the highest activations",
    "knowledge-neuron": "QRNCA's suppression is ahead of Knowledge Neuron*",
    "without-ica": "ICA helps",
    "with-common": "removing common neurons helps",
}


def statements(results: Mapping[str, Results]) -> pd.DataFrame:
    """One row a (statement, data set): whether it holds here, and the measured numbers.

    A comparison holds if the 95 % bootstrap interval over queries of the difference in specific effect (change of P on
    the own query minus that on an unrelated one with the same right letter, in percentage points) excludes zero on
    QRNCA's side; "no" if it excludes zero on the other side, "not told apart" otherwise.
    """
    rows = [row for name, result in results.items() for row in _of(name, result)]
    rows += [_overlap_statement(*pair) for pair in _domains_and_languages(results)]
    return pd.DataFrame(rows, columns=["statement", "data set", "holds here", "measured"])


def _domains_and_languages(results: Mapping[str, Results]) -> list[tuple[QRNeurons, QRNeurons]]:
    """Every pair of a data set of domains and one of languages, as their groups tell (`paper.data_set`)."""
    kinds = [(paper.data_set(result.located.groups), result.located) for result in results.values()]
    domains, languages = ([located for kind, located in kinds if kind == asked] for asked in ("domains", "languages"))
    return list(product(domains, languages))


def _of(name: str, result: Results) -> list[tuple[str, str, str, str]]:
    suppressed = result.effects[result.effects["factor"] == SUPPRESS]
    by_method = dict(list(suppressed.groupby("method")))
    ours, rows = specific(by_method["qrnca"]), []
    for rival, text in _RIVALS.items():
        if rival in by_method:
            theirs = specific(by_method[rival]).reindex(ours.index)
            difference = (ours - theirs).dropna().to_numpy(dtype=float)
            low, high = bootstrap_interval(difference)
            verdict = "yes" if high < 0 else "no" if low > 0 else "not told apart"
            flips = [edit_success(by_method[key], boost=False) for key in ("qrnca", rival)]
            apart = f"difference {with_interval(difference.mean(), (low, high))}"
            turned = f"flips {flips[0].count} against {flips[1].count} of {flips[0].of}"
            numbers = f"specific change of P {ours.mean():.1f} against {theirs.mean():.1f} points, {apart}; {turned}"
            rows.append((text, name, verdict, numbers))
    common, layers = result.located.common["layer"], result.located.model.n_layers
    share = float((common >= 3 * layers / 4).mean()) if len(common) else float("nan")
    rows.append(
        (
            "common neurons sit in the top layers",
            name,
            "yes" if share > 0.5 else "no",
            f"{share:.0%} of {len(common)} in the top quarter; by layer {common.value_counts().sort_index().to_dict()}",
        )
    )
    tokens = result.tokens[(result.tokens["kind"] == "common") & (result.tokens["rank"] <= 3)]
    letters = tokens["promoted"].str.strip(" ĠĊ▁␣·").isin(LETTERS)
    rows.append(
        (
            "common neurons promote option letters",
            name,
            "yes" if letters.mean() > 0.5 else "no",
            f"{letters.sum()} of the {len(tokens)} three most promoted tokens of the most common neurons are option letters",
        )
    )
    return rows


def _overlap_statement(domains: QRNeurons, languages: QRNeurons) -> tuple[str, str, str, str]:
    """Do domains overlap more? Bootstrap over the queries of every group, as the sets grow with the number of queries."""
    rng, both = np.random.default_rng(0), (domains, languages)
    drawn = np.array([[mean_overlap(located, _drawn(located, rng)) for located in both] for _ in range(_OVERLAP_RESAMPLES)])
    low, high = quantile_interval(drawn[:, 0] - drawn[:, 1])
    verdict = "yes" if low > 0 else "no" if high < 0 else "not told apart"
    means = [mean_overlap(located) for located in both]
    numbers = f"mean overlap {means[0]:.3f} against {means[1]:.3f}, bootstrapped difference [{low:.3f}, {high:.3f}]"
    return "domains overlap more than languages", "both", verdict, numbers


def _drawn(located: QRNeurons, rng: np.random.Generator) -> list[str]:
    """As many queries of every group as it has, drawn with replacement."""
    ids = [located.queries.loc[located.queries["group"] == group, "query"].to_numpy() for group in located.groups]
    return [query for of_group in ids for query in rng.choice(of_group, len(of_group))]
