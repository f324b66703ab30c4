"""Integrated gradients for every MLP neuron at chosen positions of many prompts (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, overload

import torch

from qrnca_lens.attribution.letters import target_of
from qrnca_lens.attribution.result import Attribution
from qrnca_lens.attribution.targets import Continuation, Target, check_target
from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Rule, quadrature
from qrnca_lens.core.values import whole_number
from qrnca_lens.engine.agreement import tolerance_of
from qrnca_lens.engine.asks import Ask, Objective, Positions, asked
from qrnca_lens.engine.batches import free_again, in_batches, is_out_of_memory
from qrnca_lens.engine.budget import layers_at_once, together
from qrnca_lens.engine.fallback import by_rows, warn_slow
from qrnca_lens.engine.finite import weight_fault, where_numbers_cease
from qrnca_lens.engine.integral import integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.engine.refinement import PathIntegral, PathTask
from qrnca_lens.models import HookedModel, check_hooked, check_site, exclusive, to_tokens

TextOrTokens = str | torch.Tensor
AskedFor = str | SupportsIndex | Target
"""A token string taken literally, a token id, or a target of `attribution.targets`."""


class AttributionError(RuntimeError):
    """Scores that are not numbers, or of a model whose weights are not; the message names the place and the prompt."""


@overload
def attribute(
    model: HookedModel,
    prompts: TextOrTokens,
    targets: AskedFor,
    *,
    steps: int = ...,
    rule: Rule = ...,
    site: Site | None = ...,
    positions: Positions = ...,
) -> Attribution: ...
@overload
def attribute(
    model: HookedModel,
    prompts: Sequence[TextOrTokens],
    targets: Sequence[AskedFor],
    *,
    steps: int = ...,
    rule: Rule = ...,
    site: Site | None = ...,
    positions: Positions = ...,
) -> list[Attribution]: ...
def attribute(
    model: HookedModel,
    prompts: TextOrTokens | Sequence[TextOrTokens],
    targets: AskedFor | Sequence[AskedFor],
    *,
    steps: int = 16,
    rule: Rule = "right",
    site: Site | None = None,
    positions: Positions = "last",
) -> Attribution | list[Attribution]:
    """Score every MLP neuron for a target after a prompt (text or tokens).

    A target is a token string taken literally, a token id, or a value of `attribution.targets`: one token, a choice among
    options, a continuation of several tokens (whose tokens but the last are run after the prompt).
    One prompt and one target give one Attribution; a list of prompts with a target each gives a list, and the prompts run
    together. `rule`: "right" (the paper), "endpoints" (the authors' code), "gauss-legendre" or "auto", which begins with
    about `steps` nodes and takes more, up to 256, in those layers whose completeness gap is above 1 % of P(target) (and
    1e-5); the result says how many. `site`: see `models.sites`; None is the paper's choice for the model. `positions`: what
    is scaled, "last" (the paper), "all", a position or spans (start, stop); the scores of a neuron are summed over them. For
    a continuation "last" is the prompt's last position, while numbers count in all that is run, so that -1 is that of the
    continuation's last token but one.
    Hooks that the model already carries stay active. Prompts run through the shared-prefix engine where its own check holds
    (each layer scaled by 1 must give the model's own logits), else on the plain path with a SlowPathWarning. Raises
    ModelError for a target that is not one token or is outside the vocabulary, a site that the model lacks, a prompt that
    does not fit or a float16 model; ValueError for a rule, number of steps or positions that are none, or lists of different
    lengths; AttributionError for NaN or infinite scores or weights; BusyModelError if another thread uses the model.
    """
    check_hooked(model)
    steps, one = whole_number("steps", steps), isinstance(prompts, str | torch.Tensor)
    asked_for, wanted = _pairs(prompts, targets)
    aims = [target if isinstance(target, Target) else target_of(model, target) for target in wanted]
    for aim in aims:
        check_target(model, aim)
    texts = [_with_continuation(model, prompt, aim) for prompt, aim in zip(asked_for, aims, strict=True)]
    objectives, reads = [aim.objective for aim in aims], [aim.reads for aim in aims]
    paths = integrate(model, texts, objectives, reads=reads, steps=steps, rule=rule, site=site, positions=positions)
    site = check_site(model, site)
    found = []
    for prompt, aim, path in zip(asked_for, aims, paths, strict=True):
        gap = path.scores.sum(1) - (path.untouched - path.at_zero)
        about = (_text_of(model, prompt), aim.name, aim.ids, site, rule, steps, path.nodes)
        found.append(Attribution(path.scores, path.untouched, gap, *about, positions))
    return found[0] if one else found


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
) -> list[PathIntegral]:
    """`attribute` for any differentiable functions of the logits at each prompt's last `reads` positions (None: its last
    one), in the objective's unit."""
    check_hooked(model)
    task = PathTask(model, check_site(model, site), quadrature(rule, steps).with_ends())
    with torch.inference_mode(False):
        tokens = [to_tokens(model, prompt) for prompt in prompts]
        each = zip(tokens, objectives, reads or [1] * len(tokens), strict=True)
        asks = [asked(ids, objective, positions, count) for ids, objective, count in each]
    fault = weight_fault(model)
    if fault and asks:
        raise AttributionError(f"no valid scores for the prompt {_text_of(model, prompts[0])[-80:]!r}: {fault}")
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


def _with_continuation(model: HookedModel, prompt: TextOrTokens, aim: Target) -> TextOrTokens:
    """What is run: the prompt, and after it all tokens of a continuation but the last."""
    if not isinstance(aim, Continuation) or aim.reads == 1:
        return prompt
    tokens = to_tokens(model, prompt)
    return torch.cat([tokens, tokens.new_tensor(aim.ids[:-1])])


def _pairs(
    prompts: TextOrTokens | Sequence[TextOrTokens], targets: AskedFor | Sequence[AskedFor]
) -> tuple[list[TextOrTokens], list[AskedFor]]:
    """The prompts with their targets, as lists."""
    if isinstance(prompts, str | torch.Tensor):
        if isinstance(targets, Sequence) and not isinstance(targets, str):
            raise ValueError("one prompt has one target; for several, give a list of prompts with a target each")
        return [prompts], [targets]
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise ValueError(f"{len(prompts)} prompts and one target; give a list of targets, one for each prompt")
    if len(prompts) != len(targets):
        raise ValueError(f"{len(prompts)} prompts and {len(targets)} targets; give each prompt a target of its own")
    return list(prompts), list(targets)


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
        what = f"NaN or infinite scores for the prompt {_text_of(task.model, ask.tokens)[-80:]!r}"
        place = where_numbers_cease(task.model, ask.tokens)
        raise AttributionError(f"{what}: {place}" if place else f"layer {bad[-1]}: {what}; its logits are numbers")
    return path


def _text_of(model: HookedModel, prompt: TextOrTokens) -> str:
    return prompt if isinstance(prompt, str) else str(model.tokenizer.decode(to_tokens(model, prompt)))
