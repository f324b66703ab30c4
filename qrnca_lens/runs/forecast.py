"""What `locate` will take, before it is run: prompts, tokens, memory, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qrnca_lens.attribution import AttributionError
from qrnca_lens.attribution.integrated import integrate
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.core.rules import quadrature
from qrnca_lens.core.shown import notebook
from qrnca_lens.data import QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.engine.asks import probability_of
from qrnca_lens.engine.budget import integral_cost, together
from qrnca_lens.models import HookedModel, ModelError, check_hooked, check_site, to_tokens

_TIMED = 2  # prompts that are timed together, after one that warms up


@dataclass(frozen=True)
class Estimate:
    """What locating some queries takes.

    `prompts`, `tokens` of them all and `longest` of one: of the queries whose prompts fit. `rows`: copies of a last position
    that run through layers, (the rule's nodes and both ends) x layers for every prompt; with rule "auto" those it begins
    with. `together`: prompts in a batch. `memory`: bytes
    of a batch, above the loaded model, by the cost model. `seconds`: by timing a few of the prompts, with the model's
    present device; None where they cannot be attributed.
    """

    prompts: int
    tokens: int
    longest: int
    rows: int
    together: int
    memory: int
    seconds: float | None

    def __str__(self) -> str:
        taken = "an unknown time" if self.seconds is None else f"about {_duration(self.seconds)}"
        return (
            f"{self.prompts:,} prompts, {self.tokens:,} tokens (at most {self.longest:,}), {self.rows:,} rows: "
            f"{self.together:,} prompts together, about {_size(self.memory)} above the model, {taken}"
        )

    def _repr_html_(self) -> str:
        return notebook(str(self))


def estimate(model: HookedModel, queries: QuerySet, config: QRNCAConfig | None = None) -> Estimate:
    """Estimate what `locate(model, queries, config)` takes for all of the queries; a few prompts are run for the time.

    Queries with a prompt that the model cannot take do not count. Raises ModelError for a model or site that cannot be used.
    """
    check_hooked(model)
    check_query_set(queries)
    tolerance_of(model)
    config = config or QRNCAConfig()
    check_site(model, config.site)
    tokens = [ids for query in queries for ids in _tokens(model, [prompt.text for prompt in query.prompts])]
    if not tokens:
        return Estimate(0, 0, 0, 0, 0, 0, 0.0)
    lengths = [len(ids) for ids in tokens]
    nodes = quadrature(config.rule, config.steps).with_ends().to_begin_with
    batch = min(len(tokens), together(model, lengths, nodes, 1))
    return Estimate(
        prompts=len(tokens),
        tokens=sum(lengths),
        longest=max(lengths),
        rows=len(tokens) * nodes * model.cfg.n_layers,
        together=batch,
        memory=integral_cost(model, max(lengths), nodes, 1).of(batch),
        seconds=_seconds(model, tokens, config),
    )


def _tokens(model: HookedModel, prompts: Sequence[str]) -> list[torch.Tensor]:
    """The tokens of one query's prompts; none where one of them does not fit."""
    try:
        return [to_tokens(model, prompt) for prompt in prompts]
    except ModelError:
        return []


def _seconds(model: HookedModel, tokens: Sequence[torch.Tensor], config: QRNCAConfig) -> float | None:
    """The time of all prompts, from that of some of median length."""
    middle = sorted(tokens, key=len)[len(tokens) // 2]
    timed = [middle, *[ids for ids in tokens if ids is not middle][: _TIMED - 1]]
    taken = 0.0
    try:
        for prompts in (timed[:1], timed):
            began = time.perf_counter()
            integrate(
                model, prompts, [probability_of(0)] * len(prompts), steps=config.steps, rule=config.rule, site=config.site
            )
            taken = time.perf_counter() - began
    except (AttributionError, ModelError):
        return None
    return taken / len(timed) * len(tokens)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 else "a second"


def _size(memory: int) -> str:
    return f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.0f} MiB"
