"""What the measurement says, a sentence a line, each with the figures that decide it; no gloss."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from qrnca_lens.core.intervals import Interval, paired_difference, quantile_interval, resampled_means
from qrnca_lens.data.query import ALL_GROUPS
from qrnca_lens.localization.significance import LEVEL, holm
from qrnca_lens.study.transfer.effects import COMPARISONS
from qrnca_lens.study.transfer.kinds import of_questions
from qrnca_lens.study.transfer.overlap import KINDS
from qrnca_lens.study.transfer.split import FOUND, FOUND_TOGETHER, RANDOM_TOGETHER

NO, UNTOLD, YES = "no", "not told", "yes"
VERDICT_COLUMNS = ["statement", "verdict", "n", "number", "p", "p_corrected"]
_UNIT = {"points": "points of P", "log_p": "nats of log P per token"}
_THAN = {COMPARISONS[0]: "that of an unrelated question", COMPARISONS[1]: "random neurons of the same layers do"}
_ON = {"letter": "the letter", "answer": "the long answer"}


class _Line(NamedTuple):
    """`side` above 0 speaks for the statement; `said` stands for the verdict where no p decides it."""

    statement: str
    n: int
    number: str
    side: float
    p: float = math.nan
    said: str = ""


def verdict_table(
    overlaps: pd.DataFrame, comparisons: pd.DataFrame, split: pd.DataFrame, neurons: pd.DataFrame, *, seed: int = 0
) -> pd.DataFrame:
    """A row a statement with VERDICT_COLUMNS: first what does not hold, then what cannot be told, then what holds.

    The frames are those of `overlap_test`, `comparison_table`, `split_rows` and `neuron_kinds`. `n` counts questions, or
    neurons where the statement is about these. `p` is one-sided for overlaps and of sign flips over units elsewhere, and
    `p_corrected` Holm's over all lines that have one: "yes" or "no" stands where it is below 0.05, by the side of the
    effect. What most neurons do has no p: there the interval of their share, over units, lies above or below a half.
    """
    lines = [*_overlap_lines(overlaps), *_effect_lines(comparisons), *_split_lines(split, neurons, seed)]
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
        number = f"{_shown(row['mean'], (row['low'], row['high']), digits)} {_UNIT[row['measure']]}"
        lines.append(_Line(statement, int(row["questions"]), number, -row["mean"], row["p"]))
    return lines


def _split_lines(split: pd.DataFrame, neurons: pd.DataFrame, seed: int) -> list[_Line]:
    lines = []
    found = neurons[neurons["neurons"] == FOUND]
    for kind, words in (("letter", "follow the letter alone"), ("content", "follow the content alone")):
        follows = (found["kind"] == kind).to_numpy(dtype=float)[:, None]
        if not len(follows):
            continue
        share, interval = (
            float(100 * follows.mean()),
            quantile_interval(resampled_means(follows, found["unit"], seed=seed)[:, 0]),
        )
        low, high = 100 * interval[0], 100 * interval[1]
        said = YES if low > 50 else NO if high < 50 else UNTOLD
        number = f"{_shown(share, (low, high), 1)} % of them"
        lines.append(_Line(f"Most neurons found by letter {words}", len(found), number, 0.0, said=said))
    own, beside = (of_questions(split, name).set_index("query") for name in (FOUND_TOGETHER, RANDOM_TOGETHER))
    if len(own):
        lines += [
            _paired(
                "What they do together is more of the letter than of the content", own, own["letter"], own["content"], seed
            ),
            _paired(
                "What they do together is lost with other symbols than A to D", own, own["original"], own["symbols"], seed
            ),
            _paired(
                "With other symbols they lower the right option more than random neurons do",
                own,
                own["symbols"],
                beside.loc[own.index, "symbols"],
                seed,
            ),
            _paired(
                "They lower the right option of their own question more than that of an unrelated one",
                own,
                own["original"],
                own["elsewhere"],
                seed,
            ),
        ]
    return lines


def _paired(statement: str, own: pd.DataFrame, first: pd.Series, second: pd.Series, seed: int) -> _Line:
    one, other = first.to_numpy(dtype=float), second.to_numpy(dtype=float)
    paired = paired_difference(one, other, own["unit"], seed=seed)
    known = ~np.isnan(one - other)
    means = (float(values[known].mean()) if known.any() else math.nan for values in (one, other))
    number = "{:.3f} against {:.3f} nats, difference ".format(*means) + _shown(paired.mean, paired.interval, 3)
    return _Line(statement, int(known.sum()), number, paired.mean, paired.p)


def _shown(mean: float, interval: Interval, digits: int) -> str:
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
