"""What the measurement says, a sentence a line, each with the figures that decide it; no gloss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from qrnca_lens.core.intervals import Interval, clustered_interval, paired_difference, quantile_interval, resampled_means
from qrnca_lens.data import ALL_GROUPS, Read
from qrnca_lens.localization.significance import LEVEL, holm
from qrnca_lens.runs.answering import Check
from qrnca_lens.study.transfer.effects import COMPARISONS
from qrnca_lens.study.transfer.kinds import of_questions
from qrnca_lens.study.transfer.overlap import KINDS
from qrnca_lens.study.transfer.split import FOUND, FOUND_TOGETHER, RANDOM_TOGETHER

NO, UNTOLD, YES = "no", "not told", "yes"
VERDICT_COLUMNS = ["statement", "verdict", "n", "number", "p", "p_corrected"]
_UNIT = {"points": "points of P", "log_p": "nats of log P per token"}
_THAN = {COMPARISONS[0]: "that of an unrelated question", COMPARISONS[1]: "random neurons of the same layers do"}
_ON = {"letter": "the letter", "answer": "the long answer"}


@dataclass(frozen=True)
class _Share:
    """`count` of `of` prompts, and the 95 % interval of the share over units."""

    count: int
    of: int
    low: float
    high: float


class _Line(NamedTuple):
    """`side` above 0 speaks for the statement; `said` stands for the verdict where no p decides it."""

    statement: str
    n: int
    number: str
    side: float
    p: float = math.nan
    said: str = ""


@dataclass(frozen=True)
class Tables:
    """What verdicts rest on: what `checks`, `overlap_test`, `comparison_table`, `split_rows` and `neuron_kinds`
    give."""

    checks: Mapping[Read, Check]
    overlaps: pd.DataFrame
    comparisons: pd.DataFrame
    split: pd.DataFrame
    neurons: pd.DataFrame


def verdict_table(tables: Tables, *, seed: int = 0) -> pd.DataFrame:
    """A row a statement with VERDICT_COLUMNS: first what does not hold, then what cannot be told, then what holds.

    `n` counts questions, or prompts or neurons where the statement is about these. `p` is one-sided for overlaps and of sign
    flips over units elsewhere, and `p_corrected` Holm's over all lines that have one: "yes" or "no" stands where it is below
    0.05, by the side of the effect. Shares have no p: there the interval, over units, lies above or below chance or a half.
    """
    lines = [
        *_answer_lines(tables),
        *_overlap_lines(tables.overlaps),
        *_effect_lines(tables.comparisons),
        *_neuron_lines(tables.neurons, seed),
        *_together_lines(tables.split, seed),
    ]
    corrected = holm(np.array([line.p for line in lines], dtype=float))
    rows = [
        (line.statement, line.said or _verdict(line, p), line.n, line.number, line.p, p)
        for line, p in zip(lines, corrected.tolist(), strict=True)
    ]
    table = pd.DataFrame(rows, columns=VERDICT_COLUMNS)
    order = table["verdict"].map([NO, UNTOLD, YES].index)
    return table.iloc[np.argsort(order.to_numpy(dtype=int), kind="stable")].reset_index(drop=True)


def _verdict(line: _Line, p: float) -> str:
    if math.isnan(p) or p >= LEVEL:
        return UNTOLD
    return YES if line.side > 0 else NO


def _answer_lines(tables: Tables) -> list[_Line]:
    """Whether what is measured is knowledge at all: a model that always says one letter answers some questions rightly."""
    lines = []
    for read, found in tables.checks.items():
        told = found.groups.iloc[-1]
        share, level = (
            _Share(int(told["right"]), int(told["prompts"]), told["low"], told["high"]),
            max(told["chance"], told["habit"]),
        )
        lines.append(_share_line(f"The model answers the questions by {read} better than chance", share, float(level)))
    rows = tables.split[tables.split["neurons"] == FOUND_TOGETHER]
    chance = float(tables.checks["letter"].groups["chance"].iloc[-1])
    for column, orders, words in (("right_reordered", 3, "in other orders"), ("right_symbols", 1, "under other symbols")):
        known = rows[rows[column].notna()]
        if len(known):
            right = (orders * known[column].astype(float)).groupby(known["unit"]).sum().round().to_numpy(dtype=int)
            asked = (orders * known.groupby("unit").size()).to_numpy(dtype=int)
            share = _Share(int(right.sum()), int(asked.sum()), *clustered_interval(right, asked))
            statement = f"It chooses the right option {words} better than chance, of the questions measured"
            lines.append(_share_line(statement, share, chance))
    return lines


def _share_line(statement: str, share: _Share, than: float) -> _Line:
    said = YES if share.low > than else NO if share.high < than else UNTOLD
    mean, interval = 100 * share.count / share.of, (100 * share.low, 100 * share.high)
    number = f"{_shown(mean, interval, 1)} % of the prompts, chance {100 * than:.1f} %"
    return _Line(statement, share.of, number, 0.0, said=said)


def _overlap_lines(overlaps: pd.DataFrame) -> list[_Line]:
    lines = []
    for kind in KINDS:
        row = overlaps[(overlaps["neurons"] == kind) & (overlaps["group"] == ALL_GROUPS)].iloc[0]
        of = "" if kind == KINDS[0] else ", all neurons of the clusters counted"
        number = f"Jaccard {row['jaccard']:.3f} [{row['low']:.3f}, {row['high']:.3f}], dealt {row['permuted']:.3f}"
        statement = f"The two sets of a question overlap more than sets of different questions of its group{of}"
        lines.append(_Line(statement, int(row["questions"]), number, 1.0, float(row["p"])))
    return lines


def _effect_lines(comparisons: pd.DataFrame) -> list[_Line]:
    lines = []
    for row in comparisons.to_dict("records"):
        on, than = _ON[row["prompts"]], _THAN[row["comparison"]]
        statement = f"Suppressing the neurons found by {row['set']} lowers {on}, more than {than}"
        digits = 1 if row["measure"] == "points" else 3
        number = "no question has such a partner for all of its prompts"
        if row["questions"]:
            number = (
                f"{row['own']:.{digits}f} against {row['beside']:.{digits}f} {_UNIT[row['measure']]}, "
                f"difference {_shown(row['mean'], (row['low'], row['high']), digits)}"
            )
        side = -max(row["mean"], row["own"])  # lowers, and more than what it is compared with
        lines.append(_Line(statement, int(row["questions"]), number, side, row["p"]))
    return lines


def _neuron_lines(neurons: pd.DataFrame, seed: int) -> list[_Line]:
    found = neurons[neurons["neurons"] == FOUND]
    if not len(found):
        return []
    lines, of = [], {kind: (found["kind"] == kind).to_numpy(dtype=float) for kind in ("letter", "content")}
    for kind, follows in of.items():
        low, high = quantile_interval(100 * resampled_means(follows[:, None], found["unit"], seed=seed)[:, 0])
        said = YES if low > 50 else NO if high < 50 else UNTOLD
        number = f"{_shown(100 * follows.mean(), (low, high), 1)} % of them"
        lines.append(_Line(f"Most neurons found by letter follow the {kind} alone", len(found), number, 0.0, said=said))
    paired = paired_difference(100 * of["letter"], 100 * of["content"], found["unit"], seed=seed)
    number = f"difference of the shares {_shown(paired.mean, paired.interval, 1)} points"
    statement = "More neurons found by letter follow the letter alone than the content alone"
    return [*lines, _Line(statement, len(found), number, paired.mean, paired.p)]


def _together_lines(split: pd.DataFrame, seed: int) -> list[_Line]:
    own, beside = (of_questions(split, name).set_index("query") for name in (FOUND_TOGETHER, RANDOM_TOGETHER))
    if not len(own):
        return []
    together = "Suppressed together, the neurons found by letter"
    pairs = {
        f"{together} lower more the letter than the content": (own["letter"], own["content"]),
        f"{together} lower the content more than random neurons do": (own["content"], beside["content"].reindex(own.index)),
        f"{together} lower the letter more than random neurons do": (own["letter"], beside["letter"].reindex(own.index)),
        f"{together} lower the right option as A to D more than under other symbols": (own["original"], own["symbols"]),
        f"{together} lower the right option under other symbols more than random ones": (
            own["symbols"],
            beside["symbols"].reindex(own.index),
        ),
        f"{together} lower the right option more than that of an unrelated question": (own["original"], own["elsewhere"]),
    }
    return [_paired(statement, own, first, second, seed) for statement, (first, second) in pairs.items()]


def _paired(statement: str, own: pd.DataFrame, first: pd.Series, second: pd.Series, seed: int) -> _Line:
    one, other = first.to_numpy(dtype=float), second.to_numpy(dtype=float)
    paired = paired_difference(one, other, own["unit"], seed=seed)
    known = ~np.isnan(one - other)
    means = (float(values[known].mean()) if known.any() else math.nan for values in (one, other))
    number = "{:.3f} against {:.3f} nats, difference ".format(*means) + _shown(paired.mean, paired.interval, 3)
    return _Line(statement, int(known.sum()), number, paired.mean, paired.p)


def _shown(mean: float, interval: Interval, digits: int) -> str:
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
