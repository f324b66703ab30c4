"""What `locate` will take, before it is run: prompts, tokens, memory, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from qrnca_lens.attribution import AttributionError, attribute
from qrnca_lens.attribution.options import target_of
from qrnca_lens.attribution.targets import Target
from qrnca_lens.clustering import QRNCAConfig, config_of
from qrnca_lens.core.rules import quadrature
from qrnca_lens.core.shown import notebook
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.engine.batches import QUERIES_TOGETHER
from qrnca_lens.engine.budget import integral_cost, layers_at_once, together
from qrnca_lens.engine.rows import groups
from qrnca_lens.models import HookedModel, ModelError, check_hooked, check_site, to_tokens
from qrnca_lens.runs.prompts import check_prompts, queries_for
from qrnca_lens.runs.status import duration

_READ = 16  # queries whose answers are read, to tell whether the model writes any
_TIMED = 4  # prompts that are timed together, after one that warms up


@dataclass(frozen=True)
class Estimate:
    """What locating some queries takes.

    `prompts`, `tokens` of them all and `longest` of one: of the queries whose prompts fit. `targets`: what is integrated,
    one a prompt, or one for each token of its right answer where texts are read. `rows`: copies of a last position that run
    through layers, (the rule's nodes and both ends) x layers for every target; with rule "auto" those it begins with.
    `together`: prompts in the largest batch (a bridge's run alone). `memory`: the most bytes
    of a batch, above the loaded model, by the cost model. `seconds`: by timing a few of the prompts, with the model's
    present device; None where they cannot be attributed.
    """

    prompts: int
    tokens: int
    longest: int
    targets: int
    rows: int
    together: int
    memory: int
    seconds: float | None

    def __str__(self) -> str:
        taken = "an unknown time" if self.seconds is None else f"about {duration(self.seconds)}"
        answers = f" with {self.targets:,} answer tokens" if self.targets != self.prompts else ""
        return (
            f"{self.prompts:,} prompts{answers}, {self.tokens:,} tokens (at most {self.longest:,}), {self.rows:,} rows: "
            f"{self.together:,} prompts together, about {_size(self.memory)} above the model, {taken}"
        )

    def _repr_html_(self) -> str:
        return notebook(str(self))


def estimate(model: HookedModel, queries: QuerySet, config: QRNCAConfig | None = None) -> Estimate:
    """Estimate what `locate(model, queries, config)` takes for all of the queries; a few prompts are run for the time.

    Queries with a prompt that the model cannot take do not count. Raises ModelError for a model or site that cannot be
    used, and for answers of a model that can say letters alone.
    """
    check_hooked(model)
    check_query_set(queries)
    tolerance_of(model)
    config = config_of(config)
    check_site(model, config.site)
    queries = queries_for(queries, config.read)
    if config.read == "answer":
        check_prompts(model, queries.keep(query.id for query in queries.queries[:_READ]))
    parts = [queries.queries[start : start + QUERIES_TOGETHER] for start in range(0, len(queries), QUERIES_TOGETHER)]
    counted = [[asked for query in part for asked in _that_fit(model, query)] for part in parts]
    counted = [part for part in counted if part]
    if not counted:
        return Estimate(0, 0, 0, 0, 0, 0, 0, 0.0)
    nodes = quadrature(config.rule, config.steps).with_ends().to_begin_with
    lengths = [[length for asked in part for length in asked.lengths] for part in counted]
    batches = [_batch(model, part, nodes) for part in lengths]
    flat = [asked for part in counted for asked in part]
    targets = sum(map(len, lengths))
    return Estimate(
        prompts=len(flat),
        tokens=sum(max(asked.lengths) for asked in flat),
        longest=max(map(max, lengths)),
        targets=targets,
        rows=targets * nodes * model.cfg.n_layers,
        together=max(size for size, _ in batches),
        memory=max(memory for _, memory in batches),
        seconds=_seconds(model, flat, targets, config),
    )


@dataclass(frozen=True)
class _Asked:
    """A prompt, the right answer's tokens where it is open, and the length of what stands before each target."""

    prompt: Prompt
    lengths: tuple[int, ...]


def _that_fit(model: HookedModel, query: Query) -> list[_Asked]:
    """One query's prompts; none where one of them does not fit."""
    try:
        return [_Asked(prompt, _lengths(model, prompt)) for prompt in query.prompts]
    except ModelError:
        return []


def _lengths(model: HookedModel, prompt: Prompt) -> tuple[int, ...]:
    length = len(to_tokens(model, prompt.text))
    more = target_of(model, prompt).reads if prompt.read == "answer" else 1
    return tuple(range(length, length + more))


def _batch(model: HookedModel, lengths: Sequence[int], nodes: int) -> tuple[int, int]:
    """The size of the first batch of some queries' prompts, and its bytes."""
    longest, fitting = max(lengths), min(len(lengths), together(model, lengths, nodes, 1))
    size = len(groups(model, range(fitting))[0])
    layers = layers_at_once(model, longest, nodes, 1)
    return size, integral_cost(model, longest, nodes, 1, layers).of(size)


def _seconds(model: HookedModel, prompts: Sequence[_Asked], targets: int, config: QRNCAConfig) -> float | None:
    """The time of all targets, from that of some prompts of median length: rule "auto" takes as many nodes as they need."""
    by_length = sorted(prompts, key=lambda asked: asked.lengths[-1])
    middle = max(0, (len(by_length) - _TIMED) // 2)
    timed, taken = by_length[middle : middle + _TIMED], 0.0
    try:
        aims: list[Target] = [target_of(model, asked.prompt) for asked in timed]
        for count in (1, len(timed)):
            texts = [asked.prompt.text for asked in timed[:count]]
            began = time.perf_counter()
            attribute(model, texts, aims[:count], steps=config.steps, rule=config.rule, site=config.site)
            taken = time.perf_counter() - began
    except (AttributionError, ModelError):
        return None
    return taken / sum(len(asked.lengths) for asked in timed) * targets


def _size(memory: int) -> str:
    return f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.0f} MiB"
