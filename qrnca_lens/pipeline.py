"""From queries to QR neurons, with a run folder that survives interruption."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qrnca_lens._version import __version__
from qrnca_lens.attribution import AttributionError, attribute
from qrnca_lens.attribution.path import tolerance_of
from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons, make_cluster
from qrnca_lens.clustering.qr_neurons import Failure, failed_table
from qrnca_lens.clustering.refine import check_enough_queries
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.models import HookedModel, ModelError, OptionTokens, check_hooked, check_site, mlp_width, option_tokens
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.models.letters import decisions
from qrnca_lens.run_folder import RunFolder, RunIdentity
from qrnca_lens.store import run_place
from qrnca_lens.terminal import Description

_VERSIONS = ("transformer_lens", "transformers", "torch", "numpy", "pandas")


class FailedQueriesWarning(UserWarning):
    """Queries that could not be located and are not in the result; `QRNeurons.failed` says which and why."""


def locate(
    model: HookedModel,
    queries: QuerySet,
    config: QRNCAConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> QRNeurons:
    """Find the QR neurons of every query (paper, section 3).

    A query with a prompt that the model cannot take (too long, say) or whose scores are not numbers is left out and told:
    it stands in `failed` of the result, with the reason, and in a FailedQueriesWarning. The config of the result names the
    site that was scaled, also where `config` leaves it to the model.

    With `out`, the work is kept in that run folder as it is done: interrupted in any way and called again with the same
    model, configuration and queries it goes on where it was, and the result is the same. `QRNeurons.load(out)` reads it. It
    may be called again with other queries too: those that the folder knows are not computed again. A finished folder that
    knows them all is only read; with new ones it grows, and then holds the result of the last call. Queries that failed are
    tried again by a call that goes on with a run; a finished one keeps them as failed.

    Raises ValueError for too few queries and where too few are left after those that failed, ModelError for a model or site
    that cannot be used and where every query failed, RunError for a folder that holds another run (the message lists what
    differs), other files, damage or a newer format and, before any prompt is looked at, for a place where no folder can be.
    """
    folder = None if out is None else run_place(out)
    check_hooked(model)
    tolerance_of(model)
    config = replace(config or QRNCAConfig(), site=check_site(model, config.site if config else None))
    check_enough_queries(len(queries), config.common_share)
    checked = check_prompts(model, queries)
    check_enough_left(queries, checked.failed, config)
    shape = ModelShape(str(model.cfg.model_name), model.cfg.n_layers, mlp_width(model), model_fingerprint(model))
    identity = RunIdentity(asdict(config), asdict(shape), queries, check_site(model, None))
    about: dict[str, Any] = {
        "name": queries.name,
        "made": list(queries.made),
        "letters": checked.decided,
        "versions": _versions(),
    }
    run = RunFolder(folder, identity, about)
    if run.finished is not None:
        about = run.finished.about
        failed = [Failure(*row) for row in run.finished.failed.itertuples(index=False) if row[0] in identity.fingerprints]
    else:
        failed = _compute(model, queries, config, checked, run, progress)
    check_enough_left(queries, failed, config)
    about = {**about, "queries": {"count": len(queries), "sha256": queries.fingerprint}}
    worked = without(queries, failed)
    tables = run.tables([query.id for query in worked])
    located = QRNeurons(*tables, config, shape, about, worked, failed_table(failed))
    if run.finished is None:
        run.finish(located)
    if failed:
        warnings.warn(f"{_told(queries, failed)}. They are not in the result", FailedQueriesWarning, stacklevel=2)
    return located


@dataclass(frozen=True)
class CheckedPrompts:
    """What `check_prompts` finds, before anything is computed.

    `letters`: the right letter's token for every prompt of every query that can be used. `decided`: which tokens stand for
    the letters, after how many prompts, and how much probability the model gives them. `failed`: the queries that cannot be
    used.
    """

    letters: dict[str, list[int]]
    decided: list[dict[str, Any]]
    failed: list[Failure]


def check_prompts(model: HookedModel, queries: QuerySet) -> CheckedPrompts:
    """Whether the model can take every prompt of every query, and which tokens stand for the letters after it."""
    letters: dict[str, list[int]] = {}
    decided: list[OptionTokens] = []
    failed = []
    for query in queries:
        found: list[OptionTokens] = []
        try:
            for prompt in query.prompts:
                found.append(option_tokens(model, prompt.text))
        except ModelError as error:
            failed.append(Failure(query.id, query.group, len(found), str(error)))
            continue
        decided += found
        letters[query.id] = [o.id_of(prompt.letter) for o, prompt in zip(found, query.prompts, strict=True)]
    return CheckedPrompts(letters, decisions(decided), failed)


def check_enough_left(queries: QuerySet, failed: Sequence[Failure], config: QRNCAConfig) -> None:
    """ModelError where every query failed, ValueError where those that did not are too few; both name the first reason."""
    if not failed:
        return
    told = _told(queries, failed)
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


def _compute(
    model: HookedModel, queries: QuerySet, config: QRNCAConfig, checked: CheckedPrompts, run: RunFolder, progress: bool
) -> list[Failure]:
    """Add every query that is not done to the run; those that fail are returned, in the order of `queries`."""
    failed = {failure.query: failure for failure in checked.failed}
    with progress_bar(progress) as bar:
        task = bar.add_task("locating", total=len(queries))
        with run.kept():
            for query in queries:
                if query.id not in failed and query.id not in run.done:
                    found = _one_query(model, query, config, checked.letters[query.id])
                    if isinstance(found, Failure):
                        failed[query.id] = found
                    else:
                        run.add(query, *found)
                bar.advance(task)
    return [failed[query.id] for query in queries if query.id in failed]


def _one_query(
    model: HookedModel, query: Query, config: QRNCAConfig, letters: list[int]
) -> tuple[pd.DataFrame, float, float] | Failure:
    """The query's cluster, its mean P(right letter) and its largest completeness gap; or why it has none."""
    found = []
    for prompt, letter in zip(query.prompts, letters, strict=True):
        try:
            found.append(attribute(model, prompt.text, letter, steps=config.steps, rule=config.rule, site=config.site))
        except AttributionError as error:
            return Failure(query.id, query.group, len(found), str(error))
    cluster = make_cluster(query.id, query.group, [a.scores for a in found], config.threshold)
    gap = max(a.completeness_gap.abs().max().item() for a in found)
    return cluster.table, sum(a.probability for a in found) / len(found), gap


def _told(queries: QuerySet, failed: Sequence[Failure]) -> str:
    first = failed[0]
    where = f"{first.query!r}, at prompt {first.prompt}"
    return f"{len(failed)} of {len(queries)} queries failed; the first, {where}: {first.reason}"


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"qrnca_lens": __version__, "python": platform.python_version(), **found}


def progress_bar(shown: bool) -> Progress:
    """A progress bar with time left, on stderr; silent if not `shown`."""
    return Progress(
        Description(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
