"""Which questions a model answers both ways: by letter and by the answer's own text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pandas as pd

from qrnca_lens.clustering.tables import Failure, failed_table
from qrnca_lens.data import DataError, QuerySet, Read
from qrnca_lens.models import HookedModel, ModelError
from qrnca_lens.runs.answering import COLUMNS, ChanceWarning, Check
from qrnca_lens.runs.checking import check
from qrnca_lens.runs.failures import without

PROMPT_COLUMNS = [*COLUMNS, "read"]
WAYS = ("both", "letter only", "answer only", "neither")
"""The ways in which a question can be answered, in the column `answered`."""
READS: tuple[Read, ...] = ("letter", "answer")
"""What can be read, and the neurons found by it."""
FEWEST, FEWEST_GROUPS = 4, 2


def both_kinds(queries: QuerySet, texts: QuerySet | None) -> tuple[QuerySet, QuerySet]:
    """The questions with their letters, and the same as open prompts (None: `queries.as_open()`).

    DataError for open prompts in the place of the letters or the other way round, other questions among the open prompts or
    other answers to them, and what `as_open` refuses.
    """
    if queries.read == "answer":
        raise DataError(
            f"{queries.name}: its prompts are open, so no letter follows; give the multi-choice queries themselves"
        )
    if texts is None:
        return queries, queries.as_open()
    if texts.read != "answer":
        raise DataError(f"{texts.name}: its prompts ask for a letter; give open prompts of the same questions (as_open)")
    theirs, ours = (
        {(q.id, q.group, q.unit, q.answer, tuple(sorted(q.prompts[0].shown))) for q in one} for one in (texts, queries)
    )
    if theirs != ours:
        query = min(theirs ^ ours)[0]
        raise DataError(
            f"{texts.name}: query {query!r} is not the same question there; make the open prompts of these queries"
        )
    by_id = {query.id: query for query in texts}
    return queries, QuerySet(tuple(by_id[query.id] for query in queries), texts.name, texts.made)


def prompts_answered(model: HookedModel, letters: QuerySet, texts: QuerySet) -> tuple[pd.DataFrame, list[Failure]]:
    """How each prompt of both kinds is answered (PROMPT_COLUMNS: those of `Check.answers`, and one of READS), and the
    queries that the model cannot take in one of the kinds, which are left out of both.

    ModelError where it can take none in both.
    """
    by_answer = check(model, texts)
    left = without(letters, _failures(by_answer))
    by_letter = check(model, left) if len(left) else Check(by_answer.model, by_answer.answers[:0], failed_table(()))
    failed = [*_failures(by_answer), *_failures(by_letter)]
    if len(failed) == len(letters):
        raise ModelError(
            f"the model can take no question both by letter and by answer; the first, {failed[0].query!r}: "
            f"{failed[0].reason}. A model that cannot write the answers tells nothing about them: give another one"
        )
    lost = {failure.query for failure in failed}
    parts = [found.answers.assign(read=read) for read, found in zip(READS, (by_letter, by_answer), strict=True)]
    prompts = pd.concat(parts, ignore_index=True)
    return prompts[~prompts["query"].isin(lost)].reset_index(drop=True)[PROMPT_COLUMNS], failed


def _failures(found: Check) -> list[Failure]:
    return [Failure(*row) for row in found.failed.itertuples(index=False)]


def checks(model: str, prompts: pd.DataFrame) -> dict[Read, Check]:
    """What the model does with the questions, by letter and by answer."""
    return {
        read: Check(model, prompts.loc[prompts["read"] == read, COLUMNS].reset_index(drop=True), failed_table(()))
        for read in READS
    }


def warn_of_chance(found: dict[Read, Check]) -> None:
    """A ChanceWarning for each kind of prompts whose right answers are not told from chance."""
    for read, one in found.items():
        if one.advice:
            hits = "questions that seem to be answered both ways may be chance hits"
            warnings.warn(f"by {read}: {one.advice}; {hits}", ChanceWarning, stacklevel=4)


def answered_ways(prompts: pd.DataFrame) -> pd.DataFrame:
    """A row a question: query, group, unit, letter_right, letter_prompts, answer_right, answer_prompts, answered.

    A question is answered by letter if the right letter is the likeliest of the four in more than half of its prompts, and
    by answer if the right option's text is the likeliest of the four (by its geometric-mean probability) in more than half
    of its open prompts. `answered` is one of WAYS.
    """
    rows = prompts[["query", "group", "unit"]].drop_duplicates(ignore_index=True)
    for read in READS:
        by_query = prompts[prompts["read"] == read].groupby("query")["is_right"]
        rows = rows.join(by_query.agg(["sum", "size"]).set_axis([f"{read}_right", f"{read}_prompts"], axis=1), on="query")
    most = [2 * rows[f"{read}_right"] > rows[f"{read}_prompts"] for read in READS]
    ways = {(True, True): "both", (True, False): "letter only", (False, True): "answer only", (False, False): "neither"}
    return rows.assign(answered=[ways[bool(letter), bool(answer)] for letter, answer in zip(*most, strict=True)])


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
