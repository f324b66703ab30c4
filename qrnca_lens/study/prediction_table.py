"""Table 7 of the paper, neuron-based prediction, with the sentence that follows from it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from qrnca_lens.study import paper
from qrnca_lens.study.direct import ALL
from qrnca_lens.study.reproduction import Results

LEVEL = 0.05
_OPEN = (
    "Open prompts show no options, so that no probe can learn which of them is which: neurons are read directly alone, by "
    "the first token of each option's text. Questions with two options that begin with the same token are left out; "
    "chance is that of four options."
)
_NONE_TO_READ = (
    "nothing to read: no group has both QR neurons and a question, among those that had no part in detection, whose options "
    "all begin with tokens of their own."
)


def table7(results: Mapping[str, Results]) -> pd.DataFrame:
    """Neuron-based prediction by group, beside random neurons, the prompted model, chance and the paper.

    The columns of `prediction.COLUMNS`. The probe learns the letter from the neurons' activity; "direct" reads the letter
    that they write. `p` is over draws of random neurons, corrected for the number of groups within a reading and `layers`.
    """
    rows = []
    for name, result in results.items():
        for row in result.prediction.to_dict("records"):
            prompted, neurons = paper.TABLE7.get(paper.group(str(row["group"])) or "", (None, None))
            known = {"the prompted model": prompted, "QR neurons": neurons if row["layers"] == ALL else None}
            rows.append({"data set": name, **row, "chance": 0.25, "paper": known.get(str(row["neurons"]))})
    return pd.DataFrame(rows)


def table7_sentence(results: Mapping[str, Results]) -> str:
    """What table 7 shows: a line for each data set and reading, with the numbers, and a line for the layers read alone.

    A group's QR neurons are more accurate than random neurons of the same layers if `p_corrected` is below 0.05. Of the
    other groups nothing is said but that they are not told apart; too few draws to tell any apart are named, and so are
    groups that have no random neurons to compare with. Of open prompts it says how they are read and, for a data set without
    any row, why.
    """
    lines = [_OPEN] if any(result.read == "answer" for result in results.values()) else []
    for name, result in results.items():
        if result.read == "answer" and result.prediction.empty:
            lines.append(f"{name}: {_NONE_TO_READ}")
            continue
        rows = result.prediction[result.prediction["neurons"] == "QR neurons"]
        together, alone = rows[rows["layers"] == ALL], rows[rows["layers"] != ALL]
        lines += [f"{name}, {reading}: {_compared(part)}" for reading, part in together.groupby("reading", sort=False)]
        layers = sorted(alone["layers"].unique(), key=int)
        if layers:
            each = "; ".join(f"of layer {layer} for {_told(alone[alone['layers'] == layer])}" for layer in layers)
            lines.append(
                f"{name}, direct, a layer alone (corrected for the groups, not for the layers): more accurate than random "
                f"neurons {each}."
            )
    return "\n".join(lines)


def _compared(rows: pd.DataFrame) -> str:
    """One reading of all layers together; each group with its accuracy and the mean and quantiles of the draws'."""
    said = [f"the QR neurons are more accurate than random neurons of the same layers for {_told(rows)}"]
    draws = rows.loc[rows["p"].notna(), "draws"]
    if len(draws) and len(draws) / (1 + draws.max()) >= LEVEL:
        needed = round(len(draws) / LEVEL)
        said[0] += f"; {draws.max()} draws cannot tell any of {len(draws)} groups, it takes {needed}"
    apart = rows["p_corrected"] < LEVEL
    for verdict, part in (("Told apart", rows[apart]), ("Not told apart", rows[~apart & rows["p"].notna()])):
        numbers = [
            f"{row['group']} {row['accuracy']:.2f} against {row['random_mean']:.2f} (95 % of {row['draws']} draws: "
            f"{row['random_low']:.2f} to {row['random_high']:.2f}), corrected p {row['p_corrected']:.3f}"
            for row in part.to_dict("records")
        ]
        if numbers:
            said.append(f"{verdict}: {'; '.join(numbers)}")
    return ". ".join(said) + "."


def _told(rows: pd.DataFrame) -> str:
    """For how many groups the QR neurons are told from random ones, of how many that have some to compare with."""
    known, without = rows[rows["p"].notna()], rows.loc[rows["p"].isna(), "group"]
    text = f"{(known['p_corrected'] < LEVEL).sum()} of {len(known)} groups"
    return f"{text} (no random neurons for {', '.join(without)}: too few others in a layer)" if len(without) else text
