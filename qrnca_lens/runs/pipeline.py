"""From queries to QR neurons, with a run folder that survives interruption."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from qrnca_lens._version import __version__
from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons, config_of
from qrnca_lens.clustering.gaps import MISSED_SHARE, ROUGH_SHARE, count_prompts
from qrnca_lens.clustering.refine import check_enough_queries
from qrnca_lens.clustering.tables import Failure, failed_table
from qrnca_lens.core.store import run_place
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.core.values import yes_or_no
from qrnca_lens.data import QuerySet, Read
from qrnca_lens.data.query import check_query_set, check_read
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.engine.batches import QUERIES_TOGETHER
from qrnca_lens.engine.executors import Executor
from qrnca_lens.models import HookedModel, check_hooked, check_site, mlp_width, reader_of
from qrnca_lens.models.fingerprint import model_fingerprint, weights_sum
from qrnca_lens.models.origin import source_entry
from qrnca_lens.runs.answering import ChanceWarning, Check
from qrnca_lens.runs.executing import Engine, check_engine, executor_for
from qrnca_lens.runs.failures import FailedQueriesWarning, check_enough_left, told_of, without
from qrnca_lens.runs.folder import RunFolder, RunIdentity
from qrnca_lens.runs.prompts import CheckedPrompts, check_prompts, queries_for
from qrnca_lens.runs.work import Chunk, Compute

_VERSIONS = ("transformer_lens", "transformers", "torch", "numpy", "pandas")


class GapWarning(UserWarning):
    """Scores that do not add up to the change of P(right letter), by more than 5 % of P or a tenth of that change; where
    texts are read, to that of log P, by more than 0.05 nats a token or a tenth.

    `QRNeurons.rough`, `rough_prompts` and `missed_layers` say where.
    """


def locate(
    model: HookedModel,
    queries: QuerySet,
    config: QRNCAConfig | None = None,
    *,
    read: Read | None = None,
    out: str | os.PathLike[str] | None = None,
    engine: Engine = "local",
    fail_fast: bool = False,
    progress: bool = True,
) -> QRNeurons:
    """Find the QR neurons of every query (paper, section 3).

    `read` says what is attributed (None: what `config` says, which is "letter" by default): P of the right letter, or with
    "answer" the mean log P over the tokens of the right answer's own text, each at its own last position. The queries are
    then put as open prompts (`QuerySet.as_open`), and `asked` of the result holds these.

    A query with a prompt that the model cannot take (too long, say), whose scores are not numbers or that meets another
    RuntimeError (torch's, out of memory say) is left out and told: it stands in `failed` of the result, with the reason,
    and in a FailedQueriesWarning. Not so a RuntimeError that concerns everything: one that meets the first three queries of
    the call, a BusyModelError and an error of the device itself. These, and errors of other types, end the call as they are,
    with the query in a note (from Python 3.11 on). The config of the result names the
    site that was scaled, also where `config` leaves it to the model.

    A GapWarning tells of queries whose completeness gap is above 5 % of P(right letter) (0.05 nats of log P), of prompts at
    which a layer's gap is above a tenth of what the layer changes (`QRNeurons.missed_layers`), and how to remedy it.

    A ChanceWarning tells, before anything is computed, of a model whose answers are not told from chance (`ql.check`); a
    finished folder is opened without reading a prompt, and names it in `about`.

    With `out`, the work is kept in that run folder as it is done: interrupted in any way and called again with the same
    model, configuration and queries it goes on where it was, and the result is the same. `QRNeurons.load(out)` reads it. It
    may be called again with other queries too: those that the folder knows are not computed again. A finished folder that
    knows them all is only read; with new ones it grows, and then holds the result of the last call. Queries that failed are
    tried again by a call that goes on with a run; a finished one keeps them as failed.

    `engine` does the work: "local", the model in this process; "ray", workers that load the same model (`RayExecutor`, which
    may be given itself). The result does not depend on it. With `fail_fast` the first query that fails ends the call, with
    its error.

    Raises ValueError for too few queries and where too few are left after those that failed, ModelError for a model or site
    that cannot be used, for answers of a model that can say letters alone, and where every query failed, RunError for a
    folder that holds another run (the message lists what differs), in which another call works, with other files, damage or
    a newer format and, before any prompt is looked at, for a place where no folder can be.
    """
    folder = None if out is None else run_place(out)
    check_hooked(model)
    check_query_set(queries)
    check_engine(engine)
    fail_fast, progress = yes_or_no("fail_fast", fail_fast), yes_or_no("progress", progress)
    config = config_of(config)
    config = replace(config, site=check_site(model, config.site), read=config.read if read is None else check_read(read))
    tolerance_of(model)
    queries = queries_for(queries, config.read)
    check_enough_queries(len(queries), config.common_share)
    reader = reader_of(model).record()
    name, default_site, summed = str(model.cfg.model_name), check_site(model, None), partial(weights_sum, model)
    run = RunFolder(folder, RunIdentity(asdict(config), name, partial(_shape, model), summed, reader, queries, default_site))
    finished = run.result()
    if finished is not None:
        rows = finished.failed[finished.failed["query"].isin({query.id for query in queries})]
        failed = [Failure(*row) for row in rows.itertuples(index=False)]
        located = _result(run, queries, config, finished.model, finished.about, failed)
    else:
        run.refuse_busy()
        with executor_for(model, engine) as executor:
            located = _locate(model, queries, config, run, executor, progress=progress, fail_fast=fail_fast)
    _warn(located, queries)
    return located


def _locate(
    model: HookedModel,
    queries: QuerySet,
    config: QRNCAConfig,
    run: RunFolder,
    executor: Executor,
    *,
    progress: bool,
    fail_fast: bool,
) -> QRNeurons:
    """Read the prompts, go on with what the folder holds, and finish it."""
    checked = check_prompts(model, queries, executor, fail_fast=fail_fast)
    check_enough_left(queries, checked.failed, config)
    advice = Check.of(str(model.cfg.model_name), checked.readings).advice
    if advice:
        warnings.warn(advice, ChanceWarning, stacklevel=3)
    about: dict[str, Any] = {
        "name": queries.name,
        "made": list(queries.made),
        "reader": reader_of(model).record(),
        "letters" if config.read == "letter" else "answers": checked.decided,
        **({"advice": advice} if advice else {}),
        "versions": _versions(),
        **source_entry(model),
    }
    with run.opened(about):
        failed = _compute(queries, config, checked, run, executor, progress=progress, fail_fast=fail_fast)
        check_enough_left(queries, failed, config)
        run.flush()
        about |= {**run.versions(), "seconds": round(run.seconds, 1)}
        located = _result(run, queries, config, run.identity.model, about, failed)
        run.finish(located)
    return located


def _result(
    run: RunFolder,
    queries: QuerySet,
    config: QRNCAConfig,
    shape: ModelShape,
    about: dict[str, Any],
    failed: Sequence[Failure],
) -> QRNeurons:
    """The result for the queries that did not fail, in their order."""
    check_enough_left(queries, failed, config)
    worked = without(queries, failed)
    tables = run.tables([query.id for query in worked])
    about = {**about, "queries": {"count": len(queries), "sha256": queries.fingerprint}}
    return QRNeurons(tables.clusters, tables.queries, config, shape, about, worked, failed_table(failed), tables.gaps)


def _shape(model: HookedModel) -> ModelShape:
    return ModelShape(str(model.cfg.model_name), model.cfg.n_layers, mlp_width(model), model_fingerprint(model))


def _warn(located: QRNeurons, queries: QuerySet) -> None:
    """Tell of queries that failed and of integrals that miss too much."""
    failed = [Failure(*row) for row in located.failed.itertuples(index=False)]
    if failed:
        warnings.warn(f"{told_of(queries, failed)}. They are not in the result", FailedQueriesWarning, stacklevel=3)
    if len(located.rough) or len(located.missed_layers):
        warnings.warn(_rough(located), GapWarning, stacklevel=3)


def _compute(
    queries: QuerySet,
    config: QRNCAConfig,
    checked: CheckedPrompts,
    run: RunFolder,
    executor: Executor,
    *,
    progress: bool,
    fail_fast: bool,
) -> list[Failure]:
    """Add every query that is not done to the run; those that fail are returned, in the order of `queries`."""
    failed = {failure.query: failure for failure in checked.failed}
    chunks = []
    for start in range(0, len(queries), QUERIES_TOGETHER):
        part = queries.queries[start : start + QUERIES_TOGETHER]
        new = [q for q in part if q.id not in failed and q.id not in run.done]
        if new:
            chunks.append(Chunk(tuple(new), tuple(tuple(checked.targets[query.id]) for query in new), config))
    done = len(queries) - sum(len(chunk.queries) for chunk in chunks)
    with progress_bar(progress) as bar:
        task = bar.add_task("locating", total=len(queries), completed=done)
        for place, computed in executor.run(Compute(fail_fast), chunks):
            for query, cluster, gaps in computed.found:
                run.add(query, cluster, gaps)
            for failure in computed.failed:
                failed[failure.query] = failure
                run.failed(failure)
            run.settle()
            bar.advance(task, len(chunks[place].queries))
    return [failed[query.id] for query in queries if query.id in failed]


def _rough(located: QRNeurons) -> str:
    """What a GapWarning says: both counts, by queries and prompts, the worst of each, and the remedy."""
    rough, rows, queries, told = located.rough, located.missed_layers, len(located.queries), []
    letters = located.config.read == "letter"
    changed = "P" if letters else "log P"
    limit = f"{ROUGH_SHARE:.0%} of P(right letter)" if letters else f"{ROUGH_SHARE:g} nats of log P(right answer) a token"
    prompts = count_prompts(located.gaps)
    if len(rough):
        worst, bad = rough.iloc[0], count_prompts(located.rough_prompts)
        of_prompts = f" ({bad} of {prompts} prompts)" if bad else ""
        told.append(
            f"in {len(rough)} of {queries} queries{of_prompts} the completeness gap is above {limit}; the "
            f"worst, {worst['query']!r}: a gap of {worst['gap']:.2g} at P = {worst['probability']:.2g}"
        )
    if len(rows):
        worst = rows.iloc[0]
        told.append(
            f"{count_prompts(rows)} of {prompts} prompts (in {rows['query'].nunique()} of {queries} queries) have a layer "
            f"whose integral misses more than {MISSED_SHARE:.0%} of what the layer changes {changed} by; "
            f"the worst, prompt {worst['prompt']} of {worst['query']!r} at layer {worst['layer']}: {worst['gap']:.2g} of "
            f"{worst['change']:.2g}"
        )
    remedy = (
        "even 256 nodes a layer are too few; a bfloat16 model can be loaded in float32"
        if located.config.rule == "auto"
        else 'use QRNCAConfig(rule="auto"), or more steps'
    )
    return f"{'. Also, '.join(told)}. Their clusters may differ from exact ones: {remedy}"


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _VERSIONS}
    return {"qrnca_lens": __version__, "python": platform.python_version(), **found}
