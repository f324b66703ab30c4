"""Whether a model can take the prompts of queries, what stands for their answers, and how it answers: before the work."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qrnca_lens.attribution.answers import answer_probabilities, option_answers
from qrnca_lens.attribution.letters import decisions, letter_shares, option_tokens, options_of
from qrnca_lens.attribution.targets import Answer, Choice, Target
from qrnca_lens.clustering.tables import Failure
from qrnca_lens.data import DataError, Prompt, Query, QuerySet, Read
from qrnca_lens.engine.executors import Executor, LocalExecutor, in_order
from qrnca_lens.models import HookedModel, ModelError, OptionTokens, reader_of
from qrnca_lens.runs.answering import Reading
from qrnca_lens.runs.failures import Failures

_SAYS_LETTERS = 0.5  # a model after whose open prompts letters hold more may be unable to say anything else
_LEAST = 1e-45  # P of an answer that is rounded to 0, for its logarithm
_FIRST_READ = 8  # queries that tell whether a model writes answers at all
_READ_TOGETHER = 64  # queries whose letters are read in one go
_LOG = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Read:
    """What reading a few queries gives: what is attributed and P of each option, by query, and those that cannot be used."""

    targets: dict[str, list[Target]]
    readings: list[Reading]
    failed: list[Failure]


def check_prompts(
    model: HookedModel, queries: QuerySet, executor: Executor | None = None, *, fail_fast: bool = False
) -> CheckedPrompts:
    """Whether the model can take every prompt of every query, and which tokens stand for the letters or answers after it.

    `executor` reads them, by default the model itself. Raises what concerns everything, as `locate` does.
    """
    is_open, first = queries.read == "answer", ()
    executor, ordered = executor or LocalExecutor(model), list(queries)
    reading = _ReadOpen(fail_fast) if is_open else _ReadLetters(fail_fast)
    parts: list[_Read] = []
    if is_open:
        first, ordered = ordered[:_FIRST_READ], ordered[_FIRST_READ:]
        parts.append(reading(model, first))
        _check_writes(model, parts[0].readings)
    pieces = [ordered[start : start + _READ_TOGETHER] for start in range(0, len(ordered), _READ_TOGETHER)]
    parts += in_order(executor, reading, pieces)
    targets = {query: aims for part in parts for query, aims in part.targets.items()}
    failed, readings = [one for part in parts for one in part.failed], [one for part in parts for one in part.readings]
    aims = [target for of_query in targets.values() for target in of_query]
    return CheckedPrompts(targets, _decided(aims), failed, readings)


def _decided(targets: Iterable[Target]) -> list[dict[str, Any]]:
    targets = list(targets)
    if any(isinstance(target, Answer) for target in targets):
        counts = Counter(target.reads for target in targets)
        return [{"tokens": tokens, "prompts": prompts} for tokens, prompts in sorted(counts.items())]
    return decisions([target.options for target in targets if isinstance(target, Choice)])


class _ReadLetters:
    """Reads which tokens stand for the letters of a few queries, and P of each."""

    def __init__(self, fail_fast: bool) -> None:
        self._failures = Failures(fail_fast)

    def __call__(self, model: HookedModel, queries: Sequence[Query]) -> _Read:
        targets: dict[str, list[Target]] = {}
        readings: list[Reading] = []
        _read_together(model, queries)
        for query in queries:
            found: list[OptionTokens] = []
            with self._failures.told(query, found):
                for prompt in query.prompts:
                    found.append(option_tokens(model, prompt))
                targets[query.id] = [Choice(o, prompt.right) for o, prompt in zip(found, query.prompts, strict=True)]
                readings.append(Reading(query, tuple(options.probabilities for options in found)))
        return _Read(targets, readings, self._failures.of(queries))


class _ReadOpen:
    """Reads P of every option's text after each open prompt of a few queries."""

    def __init__(self, fail_fast: bool) -> None:
        self._failures = Failures(fail_fast)

    def __call__(self, model: HookedModel, queries: Sequence[Query]) -> _Read:
        targets: dict[str, list[Target]] = {}
        for query in queries:
            found: list[Answer] = []
            with self._failures.told(query, found):
                for prompt in query.prompts:
                    found.append(option_answers(model, prompt)[prompt.right])
                targets[query.id] = [*found]
        usable = [query for query in queries if query.id in targets]
        p = answer_probabilities(model, [prompt for query in usable for prompt in query.prompts])
        parts = p.split([len(query.prompts) for query in usable])
        readings = [Reading(query, tuple(map(tuple, part.tolist()))) for query, part in zip(usable, parts, strict=True)]
        return _Read(targets, readings, self._failures.of(queries))


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
