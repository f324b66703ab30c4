"""Integrated gradients for every MLP neuron at chosen positions of many prompts (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, TypeAlias, TypeVar, cast, overload

import torch

from qrnca_lens.attribution.answers import answer_of, integrate_answers
from qrnca_lens.attribution.integrals import Settings, TextOrTokens, integrate
from qrnca_lens.attribution.options import target_of
from qrnca_lens.attribution.result import Attribution
from qrnca_lens.attribution.targets import Answer, Continuation, Reduce, Target, check_target
from qrnca_lens.core.neurons import Site
from qrnca_lens.core.rules import Rule
from qrnca_lens.core.values import items, whole_number
from qrnca_lens.engine.asks import Positions, check_positions
from qrnca_lens.models import HookedModel, check_hooked, check_site, text_of, to_tokens

AskedFor: TypeAlias = str | SupportsIndex | Target
"""A token string taken literally, a token id, or a target of `attribution.targets`."""
_Given = TypeVar("_Given")


@overload
def attribute(
    model: HookedModel,
    prompts: TextOrTokens,
    targets: AskedFor | None = ...,
    *,
    answer: str | None = ...,
    against: str | None = ...,
    reduce: Reduce = ...,
    steps: int = ...,
    rule: Rule = ...,
    site: Site | None = ...,
    positions: Positions = ...,
) -> Attribution: ...
@overload
def attribute(
    model: HookedModel,
    prompts: Sequence[TextOrTokens],
    targets: Sequence[AskedFor] | None = ...,
    *,
    answer: Sequence[str] | None = ...,
    against: Sequence[str] | None = ...,
    reduce: Reduce = ...,
    steps: int = ...,
    rule: Rule = ...,
    site: Site | None = ...,
    positions: Positions = ...,
) -> list[Attribution]: ...
def attribute(
    model: HookedModel,
    prompts: TextOrTokens | Sequence[TextOrTokens],
    targets: AskedFor | Sequence[AskedFor] | None = None,
    *,
    answer: str | Sequence[str] | None = None,
    against: str | Sequence[str] | None = None,
    reduce: Reduce = "mean",
    steps: int = 16,
    rule: Rule = "right",
    site: Site | None = None,
    positions: Positions = "last",
) -> Attribution | list[Attribution]:
    """Score every MLP neuron for a target after a prompt (text or tokens), or for an answer of any length.

    A target is a token string taken literally, a token id, or a value of `attribution.targets`: one token, a choice among
    options, a continuation of several tokens (whose tokens but the last are run after the prompt), an answer.
    One prompt and one target give one Attribution; a list of prompts with a target each gives a list, and the prompts run
    together. `rule`: "right" (the paper), "endpoints" (the authors' code), "gauss-legendre" or "auto", which begins with
    about `steps` nodes and takes more, up to 256, in those layers whose completeness gap is above 1 % of P(target) (and
    1e-5); the result says how many. `site`: see `models.sites`; None is the paper's choice for the model. `positions`: what
    is scaled, "last" (the paper), "all", a position or spans (start, stop); the scores of a neuron are summed over them. For
    a continuation "last" is the prompt's last position, while numbers count in all that is run, so that -1 is that of the
    continuation's last token but one.

    With `answer`, a text, in the place of a target the log-probability of the whole answer is attributed, in nats, token by
    token: each token at its own last position, the answer before it given. `reduce` says whether scores are the "mean" over
    its tokens or their "sum"; every token keeps its own completeness gap (`Attribution.tokens`). `against` is another
    answer, whose scores are taken off. Positions then count in the prompt and the answer before each token; rule "auto"
    leaves a gap of at most 0.01 nats a token.

    Hooks that the model already carries stay active. Prompts run through the shared-prefix engine where its own check holds
    (each layer scaled by 1 must give the model's own logits), else on the plain path with a SlowPathWarning. Raises
    ModelError for a target that is not one token or is outside the vocabulary, an answer that is empty or too long for the
    context, a site that the model lacks, a prompt that does not fit or a float16 model; ValueError for a rule, number of
    steps or positions that are none, for lists of different lengths, and for both or neither of target and answer;
    AttributionError for NaN or infinite scores or weights; BusyModelError if another thread uses the model.
    """
    check_hooked(model)
    steps, one = whole_number("steps", steps), isinstance(prompts, str | torch.Tensor)
    one_prompt = "a prompt (a text or a tensor of token ids) or a list of these"
    asked_for = [prompts] if isinstance(prompts, str | torch.Tensor) else list(items("prompts", prompts, one_prompt))
    check_positions(positions)
    aims, others = _aims(model, asked_for, targets, answer, against, reduce, one=one)
    settings = Settings(steps, rule, check_site(model, site), positions)
    found = _of_targets(model, asked_for, aims, settings)
    answers = [(i, aim, others[i]) for i, aim in enumerate(aims) if isinstance(aim, Answer)]
    long = integrate_answers(model, [(asked_for[i], aim, other) for i, aim, other in answers], settings)
    found |= {i: made for (i, *_), made in zip(answers, long, strict=True)}
    results = [found[i] for i in range(len(asked_for))]
    return results[0] if one else results


def _of_targets(
    model: HookedModel, prompts: Sequence[TextOrTokens], aims: Sequence[Target], how: Settings
) -> dict[int, Attribution]:
    """The attributions of all targets but answers, by their place."""
    places = [i for i, aim in enumerate(aims) if not isinstance(aim, Answer)]
    texts = [_with_continuation(model, prompts[i], aims[i]) for i in places]
    objectives, reads = [aims[i].objective for i in places], [aims[i].reads for i in places]
    found = {}
    for i, path in zip(places, integrate(model, texts, objectives, reads=reads, **vars(how)), strict=True):
        gap = path.scores.sum(1) - (path.untouched - path.at_zero)
        named = (text_of(model, prompts[i]), aims[i].name, aims[i].ids)
        settings = (how.site, how.rule, how.steps, path.nodes, how.positions)
        found[i] = Attribution(path.scores, path.untouched, gap, *named, *settings)
    return found


def _aims(
    model: HookedModel,
    prompts: Sequence[TextOrTokens],
    targets: AskedFor | Sequence[AskedFor] | None,
    answer: str | Sequence[str] | None,
    against: str | Sequence[str] | None,
    reduce: Reduce,
    *,
    one: bool,
) -> tuple[list[Target], list[Answer | None]]:
    """What each prompt is asked for, and the answer that an answer is held against, if any."""
    if (targets is None) == (answer is None):
        raise ValueError("give a target or an answer: a token or a value of attribution.targets, or answer='a text'")
    aims: list[Target] = []
    if targets is not None:
        if against is not None or not isinstance(reduce, str) or reduce != "mean":
            raise ValueError("against and reduce are about answers; give answer='a text' in the place of a target")
        for target in _each("target", len(prompts), targets, one=one):
            aims.append(target if isinstance(target, Target) else target_of(model, target))
    if answer is not None:
        aims.extend(_answers(model, prompts, "answer", answer, reduce, one=one))
    for aim in aims:
        check_target(model, aim)
    if against is None:
        return aims, [None] * len(aims)
    return aims, [*_answers(model, prompts, "against", against, reduce, one=one)]


def _answers(
    model: HookedModel,
    prompts: Sequence[TextOrTokens],
    what: str,
    given: str | Sequence[str],
    reduce: Reduce,
    *,
    one: bool,
) -> list[Answer]:
    texts = _each(what, len(prompts), given, one=one)
    return [answer_of(model, prompt, text, reduce) for prompt, text in zip(prompts, texts, strict=True)]


def _with_continuation(model: HookedModel, prompt: TextOrTokens, aim: Target) -> TextOrTokens:
    """What is run: the prompt, and after it all tokens of a continuation but the last."""
    if not isinstance(aim, Continuation) or aim.reads == 1:
        return prompt
    tokens = to_tokens(model, prompt)
    return torch.cat([tokens, tokens.new_tensor(aim.ids[:-1])])


def _each(what: str, prompts: int, given: _Given | Sequence[_Given], *, one: bool) -> list[_Given]:
    """What is given for every prompt, as a list. ValueError for a list beside one prompt, and the other way round."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        if one:
            raise ValueError(f"one prompt has one {what}; for several, give a list of prompts with a {what} each")
        if prompts != len(given):
            raise ValueError(f"{prompts} prompts and {len(given)} {what}s; give one {what} for each prompt")
        return list(given)
    if not one:
        raise ValueError(f"{prompts} prompts and one {what}; give a list of {what}s, one for each prompt")
    return [cast("_Given", given)]
