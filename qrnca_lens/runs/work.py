"""The work of a run on a few queries: their prompts attributed together, and what is kept of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from qrnca_lens.attribution import Attribution, attribute
from qrnca_lens.attribution.targets import Target
from qrnca_lens.clustering import QRNCAConfig, make_cluster
from qrnca_lens.clustering.gaps import PromptGaps
from qrnca_lens.clustering.tables import Failure
from qrnca_lens.data import Query
from qrnca_lens.models import HookedModel
from qrnca_lens.runs.failures import Failures

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Queries that run together, with what is attributed at each of their prompts."""

    queries: tuple[Query, ...]
    targets: tuple[tuple[Target, ...], ...]
    config: QRNCAConfig


@dataclass(frozen=True)
class Computed:
    """What the work on a chunk gives: cluster and gaps of every query that went well, and those that failed."""

    found: list[tuple[Query, pd.DataFrame, list[PromptGaps]]]
    failed: list[Failure]


class Compute:
    """Computes the clusters of chunks (paper, section 3.2)."""

    def __init__(self, fail_fast: bool) -> None:
        self._failures = Failures(fail_fast)

    def __call__(self, model: HookedModel, chunk: Chunk) -> Computed:
        """Those of one chunk, and which of its queries failed."""
        found = []
        for query, scored in _attributed(model, self._failures, chunk):
            cluster = make_cluster(query.id, query.group, [a.scores for a in scored], chunk.config.threshold)
            found.append((query, cluster.table, _gaps(query, scored)))
        return Computed(found, self._failures.of(chunk.queries))


def _gaps(query: Query, scored: Sequence[Attribution]) -> list[PromptGaps]:
    """What the integrals of a query's prompts miss."""
    return [
        PromptGaps(query.id, i, a.completeness_gap.tolist(), a.change.tolist(), a.probability) for i, a in enumerate(scored)
    ]


def _attributed(model: HookedModel, failures: Failures, chunk: Chunk) -> Iterator[tuple[Query, list[Attribution]]]:
    """The attributions of a few queries, whose prompts run together.

    Where that fails, they run prompt by prompt, so that the query at fault is found and the others are not lost.
    """
    config = chunk.config
    prompts = [prompt.text for query in chunk.queries for prompt in query.prompts]
    targets = [target for of_query in chunk.targets for target in of_query]
    if not prompts:
        return
    scored: Iterator[Attribution] | None
    try:
        scored = iter(attribute(model, prompts, targets, steps=config.steps, rule=config.rule, site=config.site))
    except Exception as error:  # noqa: BLE001 - run again prompt by prompt, where it is raised or told
        _LOG.debug("the batch of query %r runs prompt by prompt: %s", chunk.queries[0].id, error)
        scored = None
    for query, aims in zip(chunk.queries, chunk.targets, strict=True):
        found: list[Attribution] = []
        with failures.told(query, found):
            for prompt, target in zip(query.prompts, aims, strict=True):
                if scored is not None:
                    found.append(next(scored))
                else:
                    asked = (prompt.text, target)
                    found.append(attribute(model, *asked, steps=config.steps, rule=config.rule, site=config.site))
        if query.id not in failures.by_query:
            yield query, found
