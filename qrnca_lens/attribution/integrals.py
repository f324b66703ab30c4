"""Integrals of any differentiable function of the logits over the neurons of every layer: batches, memory, which path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Rule, quadrature
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.engine.asks import Ask, Objective, Positions, asked
from qrnca_lens.engine.batches import free_again, in_batches, is_out_of_memory
from qrnca_lens.engine.budget import layers_at_once, together
from qrnca_lens.engine.fallback import by_rows, warn_slow
from qrnca_lens.engine.finite import weight_fault, where_numbers_cease
from qrnca_lens.engine.integral import integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.engine.refinement import PathIntegral, PathTask
from qrnca_lens.models import HookedModel, check_hooked, check_site, exclusive, text_of, to_tokens

TextOrTokens = str | torch.Tensor


@dataclass(frozen=True)
class Settings:
    """How integrals are taken; the defaults of `attribution.attribute` say what each means."""

    steps: int
    rule: Rule
    site: Site
    positions: Positions


class AttributionError(RuntimeError):
    """Scores that are not numbers, or of a model whose weights are not; the message names the place and the prompt."""


def integrate(
    model: HookedModel,
    prompts: Sequence[TextOrTokens],
    objectives: Sequence[Objective],
    *,
    reads: Sequence[int] | None = None,
    steps: int = 16,
    rule: Rule = "right",
    site: Site | None = None,
    positions: Positions = "last",
    sizes: Sequence[float | None] | None = None,
) -> list[PathIntegral]:
    """`attribute` for any differentiable functions of the logits at each prompt's last `reads` positions (None: its last
    one), in the objective's unit. `sizes`: what each one's completeness gaps are measured by (None: its untouched value)."""
    check_hooked(model)
    task = PathTask(model, check_site(model, site), quadrature(rule, steps).with_ends())
    with torch.inference_mode(False):
        tokens = [to_tokens(model, prompt) for prompt in prompts]
        each = zip(tokens, objectives, reads or [1] * len(tokens), sizes or [None] * len(tokens), strict=True)
        asks = [asked(ids, objective, positions, count, size) for ids, objective, count, size in each]
    fault = weight_fault(model)
    if fault and asks:
        raise AttributionError(f"no valid scores for the prompt {text_of(model, prompts[0])[-80:]!r}: {fault}")
    found: list[PathIntegral] = []
    # gradients are needed also where the caller has switched them off for good
    with exclusive(model), torch.inference_mode(False):
        order = _by_size(asks)
        at_once, layers = _budget(task, asks)
        for batch in in_batches([asks[i] for i in order], at_once, lambda part: _that_fit(task, part, layers)):
            found += batch
    return [path for _, path in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]


def _by_size(asks: Sequence[Ask]) -> list[int]:
    """The order in which asks run: as they are given, but long suffixes together, since shorter ones are filled up."""
    widths = [ask.width for ask in asks]
    return sorted(range(len(asks)), key=lambda i: (widths[i], len(asks[i].tokens)) if max(widths) > 1 else 0)


def _budget(task: PathTask, asks: Sequence[Ask]) -> tuple[int, int | None]:
    """How many asks go together, and how many layers of each (None for all)."""
    lengths, width = [len(ask.tokens) for ask in asks], max((ask.width for ask in asks), default=1)
    nodes = task.quadrature.to_begin_with
    layers = layers_at_once(task.model, max(lengths, default=1), nodes, width)
    return together(task.model, lengths, nodes, width), layers


def _that_fit(task: PathTask, asks: Sequence[Ask], layers: int | None) -> list[PathIntegral]:
    """`_integrals`; a single prompt for which memory runs out goes on with half as many layers at once."""
    try:
        return _integrals(task, asks, layers)
    except Exception as error:
        at_once = layers or task.model.cfg.n_layers
        if len(asks) > 1 or at_once == 1 or not is_out_of_memory(error):
            raise
    free_again()  # outside of the handler, whose traceback keeps tensors alive
    return _that_fit(task, asks, (at_once + 1) // 2)


def _integrals(task: PathTask, asks: Sequence[Ask], layers: int | None) -> list[PathIntegral]:
    """By rows, those on the plain path that the rows cannot stand for."""
    model, tolerance = task.model, tolerance_of(task.model)
    found, why = by_rows(model, lambda: integrate_by_rows(task, asks, layers_at_once=layers))
    paths = [path if _stands(path, tolerance) else None for path in found] if found else [None] * len(asks)
    warn_slow(model, paths.count(None), len(asks), why, stacklevel=7)
    return [_valid(task, ask, path or _plain(task, ask, tolerance)) for ask, path in zip(asks, paths, strict=True)]


def _stands(path: PathIntegral, tolerance: float) -> bool:
    """Whether every layer scaled by 1 gives the untouched model's logits; also for scores that are no numbers anyway."""
    return path.drift.max().item() <= tolerance or not bool(torch.isfinite(path.scores).all())


def _plain(task: PathTask, ask: Ask, tolerance: float) -> PathIntegral:
    path = integrate_plainly(task, ask)
    if not _stands(path, tolerance):
        raise AttributionError(
            f"site {task.site!r} of {task.model.cfg.model_name} cannot be scaled: putting its own values back changes the "
            f"logits by {path.drift.max():.2g} of the largest; try another site, or remove hooks that read other positions"
        )
    return path


def _valid(task: PathTask, ask: Ask, path: PathIntegral) -> PathIntegral:
    """The path itself. AttributionError for scores that are no numbers."""
    bad = (~torch.isfinite(path.scores)).any(1).nonzero().flatten().tolist()
    if bad:
        # gradients flow backwards: NaN in one layer's gradient makes that of all earlier layers NaN
        what = f"NaN or infinite scores for the prompt {text_of(task.model, ask.tokens)[-80:]!r}"
        place = where_numbers_cease(task.model, ask.tokens)
        raise AttributionError(f"{what}: {place}" if place else f"layer {bad[-1]}: {what}; its logits are numbers")
    return path
