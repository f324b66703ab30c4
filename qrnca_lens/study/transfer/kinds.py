"""Letter or content: what kind each neuron found by letter is of, and how much of the effect is of each kind."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qrnca_lens.core.intervals import quantile_interval, resampled_means
from qrnca_lens.study.transfer.split import FOUND, FOUND_TOGETHER, PARTS, RANDOM, RANDOM_TOGETHER

NEURON_KINDS = ("letter", "content", "both", "neither")
SMALL = 0.95
"""A part of an effect counts where it is above what this share of the random neurons have,"""
FIFTH = 0.2
"""and at least this share of what the neuron does: what a strong one leaks from one part into the other is no kind."""
NEURON_COLUMNS = ["query", "group", "unit", "neurons", "layer", "neuron", "templates", *PARTS, "kind"]
SHARE_COLUMNS = ["neurons", "kind", "count", "of", "share", "low", "high", "effect_share", "effect_low", "effect_high"]
PART_COLUMNS = ["neurons", "part", "questions", "mean", "low", "high", "of_original", "of_original_low", "of_original_high"]


def neuron_kinds(split: pd.DataFrame) -> pd.DataFrame:
    """A row a (question, neuron found or random) with NEURON_COLUMNS, from the rows of `split_rows`.

    Its parts are means over the prompts in which suppressing it lowers the right letter while the options stand as they did
    when it was found (`templates` counts them; NaN for none): the prompts of a question have different right letters, and a
    neuron that writes one of them is found in the prompts with that one. Its `kind` is "letter" or "content" where that part
    is above its limit (`limits`) and at least a FIFTH of `original`, "both" where both are, else "neither".
    """
    alone = split[split["neurons"].isin([FOUND, RANDOM])]
    key = ["query", "group", "unit", "neurons", "layer", "neuron"]
    used = alone.assign(**{part: alone[part].where(alone["original"] > 0) for part in PARTS})
    grouped = used.groupby(key, sort=False)
    table = grouped[list(PARTS)].mean().assign(templates=grouped["original"].count()).reset_index()
    above = limits(table)
    large = {part: table[part] >= FIFTH * table["original"] for part in above}
    letter, content = ((table[part] > above[part]) & large[part] for part in ("letter", "content"))
    table["kind"] = np.select([letter & content, letter, content], ["both", "letter", "content"], "neither")
    return table[NEURON_COLUMNS]


def limits(neurons: pd.DataFrame) -> dict[str, float]:
    """Above what a part of a neuron's effect counts: the SMALL quantile of the random neurons, those without a prompt that
    they lower as 0, and never below 0."""
    beside = neurons[neurons["neurons"] == RANDOM]
    return {
        part: max(0.0, float(np.quantile(beside[part].fillna(0.0), SMALL))) if len(beside) else 0.0
        for part in ("letter", "content")
    }


def kind_shares(neurons: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How many neurons are of each kind, those found and the random ones, with SHARE_COLUMNS.

    `share` is in % of the neurons, `effect_share` in % of their summed `original` effect; 95 % intervals are over units.
    """
    rows = []
    for name, part in neurons.groupby("neurons", sort=False):
        of = {kind: (part["kind"] == kind).to_numpy(dtype=float) for kind in NEURON_KINDS}
        effect = part["original"].fillna(0.0).to_numpy(dtype=float)
        columns = np.stack([*of.values(), *(one * effect for one in of.values()), effect], axis=1)
        drawn, means = resampled_means(columns, part["unit"], seed=seed), columns.mean(0)
        for i, kind in enumerate(NEURON_KINDS):
            share = 100 * means[i], *quantile_interval(100 * drawn[:, i])
            rows.append((name, kind, int(of[kind].sum()), len(part), *share, *_ratio(means, drawn, i + len(of))))
    return pd.DataFrame(rows, columns=SHARE_COLUMNS)


def part_means(split: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The parts of the effect of each question's neurons, suppressed together, with PART_COLUMNS: means over questions, and
    in % of the mean `original` effect over the same questions (NaN where that cannot be told from 0)."""
    rows = []
    for name in (FOUND_TOGETHER, RANDOM_TOGETHER):
        by_query = of_questions(split, name)
        if not len(by_query):
            continue
        for part in PARTS:
            known = by_query[by_query[part].notna()]
            both = known[[part, "original"]].to_numpy(dtype=float)
            if not len(known):
                rows.append((name, part, 0, *[np.nan] * 6))
                continue
            drawn, means = resampled_means(both, known["unit"], seed=seed), both.mean(0)
            low, high = quantile_interval(drawn[:, 1])
            share = _ratio(means, drawn, 0) if low > 0 or high < 0 else (np.nan,) * 3
            rows.append((name, part, len(known), means[0], *quantile_interval(drawn[:, 0]), *share))
    return pd.DataFrame(rows, columns=PART_COLUMNS)


def of_questions(split: pd.DataFrame, neurons: str) -> pd.DataFrame:
    """A row a question: query, unit and the parts of what its neurons do together, means over all of its prompts."""
    rows = split[split["neurons"] == neurons]
    return rows.groupby(["query", "unit"], sort=False)[list(PARTS)].mean().reset_index()


def _ratio(means: np.ndarray, drawn: np.ndarray, column: int) -> tuple[float, float, float]:
    """A column's mean in % of the last one's, with interval; NaN where the last is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found, values = 100 * means[column] / means[-1], 100 * drawn[:, column] / drawn[:, -1]
    return float(found), *quantile_interval(values[np.isfinite(values)])
