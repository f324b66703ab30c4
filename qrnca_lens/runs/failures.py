"""Queries that fail, and errors that are not one query's alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager

import torch

from qrnca_lens.attribution import AttributionError
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.clustering.refine import check_enough_queries
from qrnca_lens.clustering.tables import Failure
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.models import BusyModelError, ModelError

_TELLING = 3  # so many queries that meet unforeseen errors, before any goes well, tell that none will
_OF_EVERYTHING = (BusyModelError, *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []))


class FailedQueriesWarning(UserWarning):
    """Queries that could not be located and are not in the result; `QRNeurons.failed` says which and why."""


class Failures:
    """The queries of one call that failed, and whether an error is one query's or concerns everything.

    With `fail_fast` every error concerns everything.
    """

    def __init__(self, fail_fast: bool = False) -> None:
        self._fail_fast = fail_fast
        self.by_query: dict[str, Failure] = {}
        self._unforeseen = 0
        self._one_went_well = False

    @contextmanager
    def told(self, query: Query, found: Sized) -> Iterator[None]:
        """Record an error of the block as the query's; what concerns everything is raised, with the query in a note.

        `found` has one entry for each of the query's prompts that went well.
        """
        try:
            yield
            self._one_went_well = True
        except Exception as error:
            foreseen = isinstance(error, (AttributionError, ModelError))
            self._unforeseen += not foreseen
            if self._fail_fast or (not foreseen and self._concerns_everything(error)):
                if sys.version_info >= (3, 11):
                    error.add_note(f"at query {query.id!r}, prompt {len(found)}")
                raise
            reason = str(error) if foreseen else f"{type(error).__name__}: {error}"
            self.by_query[query.id] = Failure(query.id, query.group, len(found), reason)

    def of(self, queries: Iterable[Query]) -> list[Failure]:
        """The failures of these queries, in their order."""
        return [self.by_query[query.id] for query in queries if query.id in self.by_query]

    def _concerns_everything(self, error: Exception) -> bool:
        if not isinstance(error, RuntimeError) or isinstance(error, _OF_EVERYTHING):
            return True
        return not self._one_went_well and self._unforeseen >= _TELLING


def check_enough_left(queries: QuerySet, failed: Sequence[Failure], config: QRNCAConfig) -> None:
    """ModelError where every query failed, ValueError where those that did not are too few; both name the first reason."""
    if not failed:
        return
    told = told_of(queries, failed)
    if len(failed) == len(queries):
        raise ModelError(f"no query can be located: {told}")
    try:
        check_enough_queries(len(queries) - len(failed), config.common_share)
    except ValueError as error:
        raise ValueError(f"{told}. Of those left, {error}") from None


def without(queries: QuerySet, failed: Sequence[Failure]) -> QuerySet:
    """The queries that did not fail."""
    bad = {failure.query for failure in failed}
    return queries.keep(query.id for query in queries if query.id not in bad) if bad else queries


def told_of(queries: QuerySet, failed: Sequence[Failure]) -> str:
    """How many queries failed, and the first with its reason."""
    first = failed[0]
    where = f"{first.query!r}, at prompt {first.prompt}"
    return f"{len(failed)} of {len(queries)} queries failed; the first, {where}: {first.reason}"
