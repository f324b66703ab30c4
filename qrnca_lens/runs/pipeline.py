"""From queries to QR neurons, with a run folder that survives interruption."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch

from qrnca_lens._version import __version__
from qrnca_lens.attribution import Attribution, AttributionError, attribute
from qrnca_lens.attribution.answers import answer_probabilities, option_answers
from qrnca_lens.attribution.letters import decisions, letter_shares, option_tokens, options_of
from qrnca_lens.attribution.targets import Answer, Choice, Target
from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons, make_cluster
from qrnca_lens.clustering.gaps import MISSED_SHARE, ROUGH_SHARE, PromptGaps, count_prompts
from qrnca_lens.clustering.qr_neurons import Failure, failed_table
from qrnca_lens.clustering.refine import check_enough_queries
from qrnca_lens.core.store import run_place
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.data import DataError, Prompt, Query, QuerySet, Read
from qrnca_lens.data.query import check_query_set
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.engine.batches import QUERIES_TOGETHER
from qrnca_lens.models import (
    BusyModelError,
    HookedModel,
    ModelError,
    OptionTokens,
    check_hooked,
    check_site,
    mlp_width,
    reader_of,
)
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.models.origin import source_entry
from qrnca_lens.runs.answering import ChanceWarning, Check, Reading
from qrnca_lens.runs.folder import RunFolder, RunIdentity

_SAYS_LETTERS = 0.5  # a model after whose open prompts letters hold more may be unable to say anything else
_LEAST = 1e-45  # P of an answer that is rounded to 0, for its logarithm
_TELLING = 3  # so many queries that meet unforeseen errors, before any goes well, tell that none will
_FIRST_READ = 8  # queries that tell whether a model writes answers at all
_READ_TOGETHER = 64  # queries whose letters are read in one go
_OF_EVERYTHING = (BusyModelError, *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []))
_LOG = logging.getLogger(__name__)
_VERSIONS = ("transformer_lens", "transformers", "torch", "numpy", "pandas")


class FailedQueriesWarning(UserWarning):
    """Queries that could not be located and are not in the result; `QRNeurons.failed` says which and why."""


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

    A ChanceWarning tells, before anything is computed, of a model whose answers are not told from chance (`ql.check`).

    With `out`, the work is kept in that run folder as it is done: interrupted in any way and called again with the same
    model, configuration and queries it goes on where it was, and the result is the same. `QRNeurons.load(out)` reads it. It
    may be called again with other queries too: those that the folder knows are not computed again. A finished folder that
    knows them all is only read; with new ones it grows, and then holds the result of the last call. Queries that failed are
    tried again by a call that goes on with a run; a finished one keeps them as failed.

    Raises ValueError for too few queries and where too few are left after those that failed, ModelError for a model or site
    that cannot be used, for answers of a model that can say letters alone, and where every query failed, RunError for a
    folder that holds another run (the message lists what differs), in which another call works, with other files, damage or
    a newer format and, before any prompt is looked at, for a place where no folder can be.
    """
    folder = None if out is None else run_place(out)
    check_hooked(model)
    check_query_set(queries)
    tolerance_of(model)
    config = config or QRNCAConfig()
    config = replace(config, site=check_site(model, config.site), read=read or config.read)
    queries = queries_for(queries, config.read)
    check_enough_queries(len(queries), config.common_share)
    checked = check_prompts(model, queries)
    check_enough_left(queries, checked.failed, config)
    answered = Check.of(str(model.cfg.model_name), checked.readings)
    if answered.advice:
        warnings.warn(answered.advice, ChanceWarning, stacklevel=2)
    shape = ModelShape(str(model.cfg.model_name), model.cfg.n_layers, mlp_width(model), model_fingerprint(model))
    reader = reader_of(model).record()
    identity = RunIdentity(asdict(config), asdict(shape), reader, queries, check_site(model, None))
    about: dict[str, Any] = {
        "name": queries.name,
        "made": list(queries.made),
        "reader": reader,
        **({"letters": checked.decided} if config.read == "letter" else {"answers": checked.decided}),
        "versions": _versions(),
        **source_entry(model),
    }
    run = RunFolder(folder, identity, about)
    with run.opened():
        if run.finished is not None:
            about = run.finished.about
            rows = run.finished.failed.itertuples(index=False)
            failed = [Failure(*row) for row in rows if row[0] in identity.fingerprints]
        else:
            failed = _compute(model, queries, config, checked, run, progress)
        check_enough_left(queries, failed, config)
        about = {**about, "queries": {"count": len(queries), "sha256": queries.fingerprint}}
        worked = without(queries, failed)
        clusters, rows, gaps = run.tables([query.id for query in worked])
        located = QRNeurons(clusters, rows, config, shape, about, worked, failed_table(failed), gaps)
        if run.finished is None:
            run.finish(located)
    if failed:
        warnings.warn(f"{_told(queries, failed)}. They are not in the result", FailedQueriesWarning, stacklevel=2)
    if len(located.rough) or len(located.missed_layers):
        warnings.warn(_rough(located), GapWarning, stacklevel=2)
    return located


@dataclass(frozen=True)
class CheckedPrompts:
    """What `check_prompts` finds, before anything is computed.

    `targets`: what is attributed at every prompt of every query that can be used. `decided`: which tokens stand for the
    letters, after how many prompts, and how much probability the model gives them; of open prompts how many tokens the
    right answers have. `failed`: the queries that cannot be used. `readings`: P of each option after every prompt of the
    others.
    """

    targets: dict[str, list[Target]]
    decided: list[dict[str, Any]]
    failed: list[Failure]
    readings: list[Reading]


def check_prompts(model: HookedModel, queries: QuerySet) -> CheckedPrompts:
    """Whether the model can take every prompt of every query, and which tokens stand for the letters or answers after it.

    Raises what concerns everything, as `locate` does.
    """
    if queries.read == "answer":
        return _check_open(model, queries)
    targets: dict[str, list[Target]] = {}
    decided: list[OptionTokens] = []
    readings: list[Reading] = []
    failures = _Failures()
    for start in range(0, len(queries), _READ_TOGETHER):
        part = queries.queries[start : start + _READ_TOGETHER]
        _read_together(model, part)
        for query in part:
            found: list[OptionTokens] = []
            with failures.told(query, found):
                for prompt in query.prompts:
                    found.append(option_tokens(model, prompt))
                decided += found
                targets[query.id] = [Choice(o, prompt.right) for o, prompt in zip(found, query.prompts, strict=True)]
                readings.append(Reading(query, tuple(options.probabilities for options in found)))
    return CheckedPrompts(targets, decisions(decided), list(failures.by_query.values()), readings)


def _check_open(model: HookedModel, queries: QuerySet) -> CheckedPrompts:
    targets: dict[str, list[Target]] = {}
    failures = _Failures()
    for query in queries:
        found: list[Answer] = []
        with failures.told(query, found):
            for prompt in query.prompts:
                found.append(option_answers(model, prompt)[prompt.right])
            targets[query.id] = [*found]
    counts = Counter(target.reads for of_query in targets.values() for target in of_query)
    decided = [{"tokens": tokens, "prompts": prompts} for tokens, prompts in sorted(counts.items())]
    usable = queries.keep(targets).queries
    readings = _read_open(model, usable[:_FIRST_READ])
    _check_writes(model, readings)
    readings += _read_open(model, usable[_FIRST_READ:])
    return CheckedPrompts(targets, decided, list(failures.by_query.values()), readings)


def _read_open(model: HookedModel, queries: Sequence[Query]) -> list[Reading]:
    """P of every option's text after each open prompt."""
    p = answer_probabilities(model, [prompt for query in queries for prompt in query.prompts])
    parts = p.split([len(query.prompts) for query in queries])
    return [Reading(query, tuple(map(tuple, part.tolist()))) for query, part in zip(queries, parts, strict=True)]


def _check_writes(model: HookedModel, readings: Sequence[Reading]) -> None:
    """ModelError for a model that can say letters alone: token by token the right answers are less likely than a draw from
    the whole vocabulary, and the letters hold most of the probability after the prompts."""
    pairs = [pair for one in readings for pair in zip(one.query.prompts, one.probabilities, strict=True)]
    right = sum(math.log(max(p[prompt.right], _LEAST)) for prompt, p in pairs) / max(1, len(pairs))
    chance = -math.log(model.cfg.d_vocab)
    if right >= chance:
        return
    share = letter_shares(model, [prompt.text for prompt, _ in pairs]).mean().item()
    if share > _SAYS_LETTERS:
        raise ModelError(
            f"{model.cfg.model_name} is a letter-only model asked for answers: after open prompts the letters A to D hold "
            f"{share:.0%} of the probability, and log P of the right answers is {right:.1f} nats a token, below the "
            f"{chance:.1f} of a draw from its {model.cfg.d_vocab} tokens; read letters (read='letter'), or take a model "
            "that writes answers"
        )


def queries_for(queries: QuerySet, read: Read) -> QuerySet:
    """The queries as they are put to be read so: as open prompts for answers. DataError for open prompts and letters."""
    if read == "answer":
        return queries.as_open()
    if queries.read == "answer":
        raise DataError(f"{queries.name}: open prompts end before the answer, so no letter follows; give read='answer'")
    return queries


def _read_together(model: HookedModel, queries: Sequence[Query]) -> None:
    """Let `option_tokens` know the letters after these prompts, read in batches. Where that fails, it reads them."""
    prompts = [prompt for query in queries for prompt in query.prompts]
    try:
        options_of(model, [prompt for prompt in prompts if _is_readable(model, prompt)])
    except Warning:  # which the user has made an error
        raise
    except Exception as error:  # noqa: BLE001 - met again prompt by prompt, where it is raised or told
        _LOG.debug("the letters of the batch of query %r are read prompt by prompt: %s", queries[0].id, error)


def _is_readable(model: HookedModel, prompt: Prompt) -> bool:
    try:
        reader_of(model).tokens(prompt.text)
        reader_of(model).options(prompt.text, prompt.names)
    except ModelError:
        return False
    return True


class _Failures:
    """The queries of one call that failed, and whether an error is one query's or concerns everything."""

    def __init__(self) -> None:
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
        except (AttributionError, ModelError) as error:
            self.by_query[query.id] = Failure(query.id, query.group, len(found), str(error))
        except Exception as error:
            self._unforeseen += 1
            if self._concerns_everything(error):
                if sys.version_info >= (3, 11):
                    error.add_note(f"at query {query.id!r}, prompt {len(found)}")
                raise
            reason = f"{type(error).__name__}: {error}"
            self.by_query[query.id] = Failure(query.id, query.group, len(found), reason)

    def _concerns_everything(self, error: Exception) -> bool:
        if not isinstance(error, RuntimeError) or isinstance(error, _OF_EVERYTHING):
            return True
        return not self._one_went_well and self._unforeseen >= _TELLING


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
    failures = _Failures()
    unusable = {failure.query: failure for failure in checked.failed}
    with progress_bar(progress) as bar:
        task = bar.add_task("locating", total=len(queries))
        with run.kept():
            for start in range(0, len(queries), QUERIES_TOGETHER):
                part = queries.queries[start : start + QUERIES_TOGETHER]
                new = [query for query in part if query.id not in unusable and query.id not in run.done]
                for query, found in _attributed(model, new, config, checked, failures):
                    run.add(query, *_summary(query, found, config))
                bar.advance(task, len(part))
    failed = unusable | failures.by_query
    return [failed[query.id] for query in queries if query.id in failed]


def _attributed(
    model: HookedModel, queries: Sequence[Query], config: QRNCAConfig, checked: CheckedPrompts, failures: _Failures
) -> Iterator[tuple[Query, list[Attribution]]]:
    """The attributions of a few queries, whose prompts run together.

    Where that fails, they run prompt by prompt, so that the query at fault is found and the others are not lost.
    """
    prompts = [prompt.text for query in queries for prompt in query.prompts]
    targets = [target for query in queries for target in checked.targets[query.id]]
    if not prompts:
        return
    together: Iterator[Attribution] | None
    try:
        together = iter(attribute(model, prompts, targets, steps=config.steps, rule=config.rule, site=config.site))
    except Exception as error:  # noqa: BLE001 - run again prompt by prompt, where it is raised or told
        _LOG.debug("the batch of query %r runs prompt by prompt: %s", queries[0].id, error)
        together = None
    for query in queries:
        found: list[Attribution] = []
        with failures.told(query, found):
            for prompt, target in zip(query.prompts, checked.targets[query.id], strict=True):
                if together is not None:
                    found.append(next(together))
                else:
                    asked = (prompt.text, target)
                    found.append(attribute(model, *asked, steps=config.steps, rule=config.rule, site=config.site))
        if query.id not in failures.by_query:
            yield query, found


def _summary(query: Query, found: Sequence[Attribution], config: QRNCAConfig) -> tuple[pd.DataFrame, list[PromptGaps]]:
    """The query's cluster, and what the integrals of its prompts miss."""
    cluster = make_cluster(query.id, query.group, [a.scores for a in found], config.threshold)
    gaps = [
        PromptGaps(query.id, i, a.completeness_gap.tolist(), a.change.tolist(), a.probability) for i, a in enumerate(found)
    ]
    return cluster.table, gaps


def _told(queries: QuerySet, failed: Sequence[Failure]) -> str:
    first = failed[0]
    where = f"{first.query!r}, at prompt {first.prompt}"
    return f"{len(failed)} of {len(queries)} queries failed; the first, {where}: {first.reason}"


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
