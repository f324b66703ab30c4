"""How a model answers questions, against chance: tables of what was read once, and the warning that it tells nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from qrnca_lens.clustering.tables import Failure, failed_table
from qrnca_lens.core.intervals import clustered_interval
from qrnca_lens.core.shown import notebook
from qrnca_lens.data import ALL_GROUPS, Query

COLUMNS = ["query", "group", "unit", "prompt", "right", "answer", "is_right", "probability", "mass", "chance"]
GROUP_COLUMNS = [
    "group",
    "queries",
    "prompts",
    "right",
    "accuracy",
    "low",
    "high",
    "chance",
    "habit",
    "verdict",
    "mean mass",
    "lowest mass",
    "answered",
]
OPTION_COLUMNS = ["option", "right", "chosen", "share right", "share chosen", "low", "high"]
ABOVE, BELOW, UNTOLD = "above chance", "below chance", "not told from chance"


class ChanceWarning(UserWarning):
    """A model whose answers are not told from chance: what it says then stands for no knowledge."""


@dataclass(frozen=True)
class Reading:
    """What a model gives the options of one query: [prompt][option], in the order of each prompt's options."""

    query: Query
    probabilities: tuple[tuple[float, ...], ...]

    @property
    def rows(self) -> list[tuple[str, str, str, int, str, str, bool, float, float, float]]:
        """A row of COLUMNS for each prompt; the answer is the likeliest option, the first of equal ones."""
        found = []
        for i, (prompt, p) in enumerate(zip(self.query.prompts, self.probabilities, strict=True)):
            chosen = max(range(len(p)), key=p.__getitem__)
            open_prompt, right = prompt.read == "answer", chosen == prompt.right
            names = prompt.options if open_prompt else prompt.names
            about = (self.query.id, self.query.group, self.query.unit, i, names[prompt.right], names[chosen], right)
            found.append((*about, p[prompt.right], math.nan if open_prompt else sum(p), 1 / len(p)))
        return found


@dataclass(frozen=True, repr=False)
class Check:
    """What a model does with questions.

    `answers`: a row a prompt (query, group, unit, prompt, right, answer, is_right, probability, mass, chance), prompts
    counted from 0: what the right option and the likeliest are called, P of the right one, P of all options together
    (NaN for open prompts, whose P is a geometric mean over tokens), 1 / options.
    `failed`: the queries that could not be read (query, group, prompt, reason), which count nowhere else.
    """

    model: str
    answers: pd.DataFrame
    failed: pd.DataFrame

    @classmethod
    def of(cls, model: str, readings: Iterable[Reading], failed: Sequence[Failure] = ()) -> Check:
        """From what was read of every query."""
        rows = [row for reading in readings for row in reading.rows]
        return cls(model, pd.DataFrame(rows, columns=COLUMNS), failed_table(failed))

    @cached_property
    def groups(self) -> pd.DataFrame:
        """A row a group and, last, one for all: GROUP_COLUMNS.

        `right` of `prompts`: `accuracy`, with its cluster interval over units of observation. `chance`: 1 / options.
        `habit`: the accuracy of one who answers each option as often as the model does and each question at random; above
        `chance` where the options that the model prefers are right more often than others. `verdict`: whether the interval
        lies above the higher of the two, below chance, or neither. `mean mass`, `lowest mass`: P of all options together.
        `answered`: the queries that are answered rightly in every prompt.
        """
        parts = [*self.answers.groupby("group", sort=False), (ALL_GROUPS, self.answers)]
        return pd.DataFrame([_summary(str(name), part) for name, part in parts], columns=GROUP_COLUMNS)

    @cached_property
    def options(self) -> pd.DataFrame:
        """How often each option is right and how often it is chosen, with the interval of that share: OPTION_COLUMNS.

        No rows where options are called by their own texts, so that none of them stands in all prompts.
        """
        names = sorted({*self.answers["right"], *self.answers["answer"]})
        fewest, rows, prompts = self.answers["chance"].min(), [], len(self.answers)
        for name in names if len(names) * fewest <= 1 else ():
            right, chosen = self.answers["right"] == name, self.answers["answer"] == name
            counts = int(right.sum()), int(chosen.sum())
            rows.append((name, *counts, *(count / prompts for count in counts), *_interval(self.answers, chosen)))
        return pd.DataFrame(rows, columns=OPTION_COLUMNS)

    @property
    def answered(self) -> tuple[str, ...]:
        """The ids of the queries that are answered rightly in every prompt: `queries.keep(check.answered)`."""
        right = self.answers.groupby("query", sort=False)["is_right"].all()
        return tuple(right.index[right.to_numpy(dtype=bool)])

    @property
    def verdict(self) -> str:
        """That of all questions."""
        return str(self.groups["verdict"].iloc[-1])

    @property
    def advice(self) -> str:
        """What a ChanceWarning says; "" where the answers are above chance."""
        if self.verdict == ABOVE:
            return ""
        return (
            f"{self._accuracy}: the answers stand for no knowledge, and neither do neurons that are found for them; ask as "
            "a chat (as_chat, --chat), after solved questions (with_examples, --shots), another model, or more questions"
        )

    @property
    def _accuracy(self) -> str:
        told = self.groups.iloc[-1]
        if not told["prompts"]:
            return f"{self.model} could read no query"
        share, level = _share(told["accuracy"], told), max(told["chance"], told["habit"])
        return (
            f"{self.model} answers {told['right']} of {told['prompts']} prompts rightly ({share}), {told['verdict']} "
            f"({level:.1%})"
        )

    def to_frame(self) -> pd.DataFrame:
        """`groups`."""
        return self.groups.copy()

    def __repr__(self) -> str:
        told = self.groups.iloc[-1]
        parts = [self._accuracy]
        if told["prompts"]:
            parts.append(f"{told['answered']} of {told['queries']} queries are answered in all wordings")
        if told["prompts"] and told["mean mass"] == told["mean mass"]:
            parts.append(f"the options have {told['mean mass']:.1%} of the probability (lowest {told['lowest mass']:.1%})")
        if len(self.options):
            most = self.options.iloc[int(self.options["chosen"].to_numpy().argmax())]
            share = _share(most["share chosen"], most)
            parts.append(f"{most['option']} is chosen most, {share} of prompts, and right in {most['share right']:.0%}")
        if len(self.failed):
            first = self.failed.iloc[0]
            parts.append(
                f"queries that could not be read: {len(self.failed)}, the first, {first['query']!r}: {first['reason']}"
            )
        return f"Check({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        return notebook(repr(self), self.groups, self.options, *([self.failed] if len(self.failed) else []))


def _summary(name: str, part: pd.DataFrame) -> dict[str, Any]:
    """A row of GROUP_COLUMNS; what cannot be told of no prompts is left out."""
    row = {"group": name, "queries": part["query"].nunique(), "prompts": len(part), "verdict": UNTOLD, "answered": 0}
    if not len(part):
        return row | {"right": 0}
    right, chance, habit = part["is_right"], float(part["chance"].mean()), _habit(part)
    low, high = _interval(part, right)
    return row | {
        "right": int(right.sum()),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
        "chance": chance,
        "habit": habit,
        "verdict": ABOVE if low > max(chance, habit) else BELOW if high < chance else UNTOLD,
        "mean mass": float(part["mass"].mean()),
        "lowest mass": float(part["mass"].min()),
        "answered": int(right.groupby(part["query"]).all().sum()),
    }


def _habit(part: pd.DataFrame) -> float:
    """The sum over options of the share of prompts where it is chosen times the share where it is right."""
    chosen, right = (part[column].value_counts(normalize=True) for column in ("answer", "right"))
    return float((chosen * right).sum())


def _interval(part: pd.DataFrame, counted: pd.Series) -> tuple[float, float]:
    by_unit = counted.groupby(part["unit"])
    return clustered_interval(by_unit.sum().to_numpy(dtype=np.int64), by_unit.size().to_numpy(dtype=np.int64))


def _share(share: float, bounds: pd.Series) -> str:
    return f"{share:.1%} [{bounds['low']:.1%}, {bounds['high']:.1%}]"
