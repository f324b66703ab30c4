"""Which questions a model answers both ways: by letter and by the answer's own text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from qrnca_lens.attribution.options import answers
from qrnca_lens.clustering.qr_neurons import Failure
from qrnca_lens.core.intervals import clustered_interval
from qrnca_lens.data import LETTERS, QuerySet
from qrnca_lens.models import HookedModel, ModelError
from qrnca_lens.runs.pipeline import check_prompts, without

ANSWERED_COLUMNS = ["query", "group", "unit", "letter_right", "letter_prompts", "answer_right", "answer_prompts", "answered"]
WAYS = ("both", "letter only", "answer only", "neither")
"""The ways in which a question can be answered, in the column `answered`."""
FEWEST, FEWEST_GROUPS = 4, 2
CHANCE = 1 / len(LETTERS)
WAYS_READ = {"letter": "by letter", "answer": "by answer"}


class ChanceWarning(UserWarning):
    """Right answers that are not told from chance: what the model says then stands for no knowledge."""


@dataclass(frozen=True)
class Share:
    """`count` of `of` prompts, and the 95 % interval of the share over units (`core.intervals.clustered_interval`)."""

    count: int
    of: int
    low: float
    high: float


def answered_ways(model: HookedModel, letters: QuerySet, texts: QuerySet) -> tuple[pd.DataFrame, list[Failure]]:
    """How each question is answered: a row a query with ANSWERED_COLUMNS, and the queries that the model cannot take.

    A question is answered by letter if the right letter is the likeliest of the four in more than half of its prompts, and
    by answer if the right option's text is the likeliest of the four (by its geometric-mean probability) in more than half
    of its open prompts (`texts`, the same queries). ModelError where the model can take no query in both ways.
    """
    failed = _failed(model, letters, texts)
    left = without(letters, failed)
    if not len(left):
        first = failed[0]
        raise ModelError(
            f"the model can take no question both by letter and by answer; the first, {first.query!r}: {first.reason}. "
            "A model that cannot write the answers tells nothing about them: give another model, or other questions"
        )
    by_letter = _right(model, left, "letter")
    by_answer = _right(model, without(texts, failed), "answer")
    rows = pd.DataFrame([(query.id, query.group, query.unit) for query in left], columns=["query", "group", "unit"])
    rows = rows.join(by_letter, on="query").join(by_answer, on="query")
    most = [2 * rows[f"{way}_right"] > rows[f"{way}_prompts"] for way in ("letter", "answer")]
    ways = {(True, True): "both", (True, False): "letter only", (False, True): "answer only", (False, False): "neither"}
    rows["answered"] = [ways[bool(letter), bool(answer)] for letter, answer in zip(*most, strict=True)]
    return rows[ANSWERED_COLUMNS], failed


def _failed(model: HookedModel, letters: QuerySet, texts: QuerySet) -> list[Failure]:
    """The queries with a prompt of either kind that the model cannot take; open prompts, which need no pass, come first."""
    failed = {failure.query: failure for failure in check_prompts(model, texts).failed}
    left = without(letters, [*failed.values()])
    failed |= {failure.query: failure for failure in check_prompts(model, left).failed}
    return [failed[query.id] for query in letters if query.id in failed]


def _right(model: HookedModel, queries: QuerySet, way: str) -> pd.DataFrame:
    by_query = answers(model, queries).groupby("query")["right"]
    return by_query.agg(["sum", "size"]).astype(int).set_axis([f"{way}_right", f"{way}_prompts"], axis=1)


def share_right(answered: pd.DataFrame, way: str) -> Share:
    """How many of the prompts, of all questions that were given, the model answers rightly by letter or by answer."""
    by_unit = answered.groupby("unit")[[f"{way}_right", f"{way}_prompts"]].sum()
    right, asked = (by_unit[f"{way}_{name}"].to_numpy(dtype=int) for name in ("right", "prompts"))
    return Share(int(right.sum()), int(asked.sum()), *clustered_interval(right, asked))


def warn_of_chance(answered: pd.DataFrame) -> None:
    """A ChanceWarning where the right answers by letter, or by answer, are not told from chance."""
    for way, words in WAYS_READ.items():
        share = share_right(answered, way)
        if share.low <= CHANCE:
            warnings.warn(
                f"{words} the model is right in {share.count} of {share.of} prompts ({share.count / share.of:.0%}, interval "
                f"{share.low:.0%} to {share.high:.0%}), which is not told from chance ({CHANCE:.0%}): what it answers so "
                "stands for no knowledge, and questions that it seems to answer both ways may be chance hits",
                ChanceWarning,
                stacklevel=4,
            )


def counts_by_group(answered: pd.DataFrame) -> pd.DataFrame:
    """Questions by group: group, questions, and a column for each of WAYS."""
    counts = pd.crosstab(answered["group"], answered["answered"]).reindex(columns=list(WAYS), fill_value=0)
    counts = counts.reindex(answered["group"].unique())
    counts.insert(0, "questions", counts.sum(axis=1))
    return counts.rename_axis(columns=None).reset_index()


def check_enough(answered: pd.DataFrame, kept: Sequence[str]) -> None:
    """ValueError, with the counts, where fewer than 4 questions in 2 groups can be measured; `kept` are their ids."""
    groups = answered.loc[answered["query"].isin(kept), "group"].nunique()
    if len(kept) >= FEWEST and groups >= FEWEST_GROUPS:
        return
    counted = answered["answered"].value_counts()
    told = ", ".join(f"{way}: {int(counted.get(way, 0))}" for way in WAYS)
    raise ValueError(
        f"{len(kept)} questions in {groups} groups are answered both by letter and by answer; at least {FEWEST} in "
        f"{FEWEST_GROUPS} groups are needed. Of {len(answered)} questions the model answers {told}. Give more questions, or "
        "others that the model answers both ways"
    )
