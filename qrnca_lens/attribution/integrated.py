"""Integrated gradients for every MLP neuron at the last position (paper, section 3.2)."""

from __future__ import annotations

import warnings
from typing import SupportsIndex

import torch

from qrnca_lens.attribution.result import Attribution
from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Rule, quadrature
from qrnca_lens.core.shapes import Tokens
from qrnca_lens.core.values import whole_number
from qrnca_lens.engine.finite import weight_fault, where_numbers_cease
from qrnca_lens.engine.integral import integrate_by_shared_prefix
from qrnca_lens.engine.path import Objective, PathIntegral, PathTask, probability_of, tolerance_of
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.models import HookedModel, check_hooked, check_site, exclusive, is_hooked_transformer, target_id, to_tokens


class AttributionError(RuntimeError):
    """Scores that are not numbers, or of a model whose weights are not; the message names the place and the prompt."""


class SlowPathWarning(UserWarning):
    """The shared-prefix engine does not fit this model (or a hook on it), and the plain path is used."""


def attribute(
    model: HookedModel,
    prompt: str | Tokens,
    target: str | SupportsIndex,
    *,
    steps: int = 16,
    rule: Rule = "right",
    site: Site | None = None,
) -> Attribution:
    """Score every MLP neuron for `target` (a token string taken literally, or a token id) after `prompt` (text or tokens).

    `rule`: "right" (the paper), "endpoints" (the authors' code) or "gauss-legendre". `site`: see `models.sites`; None is
    the paper's choice for the model. Hooks that the model already carries stay active. HookedTransformers run through the
    shared-prefix engine where its own check holds (each layer scaled by 1 must give the model's own logits), else on
    the plain path with a SlowPathWarning; bridges always take the plain path. Raises ModelError for a target that is not
    one token, a site that the model lacks, a prompt that does not fit or a float16 model; ValueError for a rule or number
    of steps that is none; AttributionError for NaN or infinite scores or weights; BusyModelError if another thread
    uses the model.
    """
    check_hooked(model)
    steps = whole_number("steps", steps)
    token = target_id(model, target)
    path = integrate_objective(model, prompt, probability_of(token), steps=steps, rule=rule, site=site)
    gap = path.scores.sum(1) - (path.untouched - path.at_zero)
    name = target if isinstance(target, str) else model.tokenizer.decode([token])
    return Attribution(
        path.scores, path.untouched, gap, _text_of(model, prompt), name, token, check_site(model, site), rule, steps
    )


def integrate_objective(
    model: HookedModel,
    prompt: str | Tokens,
    objective: Objective,
    *,
    steps: int = 16,
    rule: Rule = "right",
    site: Site | None = None,
) -> PathIntegral:
    """`attribute` for any differentiable function of the last position's logits; scores in the objective's unit."""
    check_hooked(model)
    nodes = quadrature(rule, steps).with_ends()
    with torch.inference_mode(False):
        task = PathTask(model, to_tokens(model, prompt), objective, check_site(model, site), nodes)
    fault = weight_fault(model)
    if fault:
        raise AttributionError(f"no valid scores for the prompt {_text_of(model, prompt)[-80:]!r}: {fault}")
    # gradients are needed also where the caller has switched them off for good
    with exclusive(model), torch.inference_mode(False):
        path = _integrate(task)
    bad = (~torch.isfinite(path.scores)).any(1).nonzero().flatten().tolist()
    if bad:
        # gradients flow backwards: NaN in one layer's gradient makes that of all earlier layers NaN
        what = f"NaN or infinite scores for the prompt {_text_of(model, prompt)[-80:]!r}"
        place = where_numbers_cease(model, task.tokens)
        raise AttributionError(f"{what}: {place}" if place else f"layer {bad[-1]}: {what}; its logits are numbers")
    return path


def _integrate(task: PathTask) -> PathIntegral:
    tolerance = tolerance_of(task.model)
    if is_hooked_transformer(task.model):
        path = integrate_by_shared_prefix(task)
        if _reproduces(path, tolerance) or not torch.isfinite(path.scores).all():
            return path
        warnings.warn(
            f"the shared-prefix engine does not reproduce {task.model.cfg.model_name}; using the plain path",
            SlowPathWarning,
            stacklevel=4,
        )
    path = integrate_plainly(task)
    if torch.isfinite(path.scores).all() and not _reproduces(path, tolerance):
        raise AttributionError(
            f"site {task.site!r} of {task.model.cfg.model_name} cannot be scaled: putting its own values back changes the "
            f"logits by {path.drift.max():.2g} of the largest; try another site, or remove hooks that read other positions"
        )
    return path


def _reproduces(path: PathIntegral, tolerance: float) -> bool:
    """Whether every layer scaled by 1 gives the untouched model's logits."""
    return path.drift.max().item() <= tolerance


def _text_of(model: HookedModel, prompt: str | Tokens) -> str:
    return prompt if isinstance(prompt, str) else str(model.tokenizer.decode(to_tokens(model, prompt)))
