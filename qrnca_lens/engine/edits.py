"""Many edits of many prompts at once: a row is a prompt with some of its neurons scaled, as `editing` scales them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import number
from qrnca_lens.engine.agreement import drift_of, tolerance_of
from qrnca_lens.engine.asks import Ask, Positions, asked
from qrnca_lens.engine.batches import in_batches
from qrnca_lens.engine.budget import together_read
from qrnca_lens.engine.fallback import by_rows, warn_slow
from qrnca_lens.engine.finite import check_logits, check_weights
from qrnca_lens.engine.hooks import Hook, with_hooks
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.engine.rows import groups, run_rows, texts_of
from qrnca_lens.models import HookedModel, exclusive, mlp_width, site_hook, text_of, to_tokens

Edit: TypeAlias = tuple[NeuronSet, float]
"""Neurons, and the factor that their activations are multiplied by."""
Reading = Callable[[torch.Tensor], torch.Tensor]
"""What is kept of the logits [row, 1, token] at the last position of a prompt, as targets take them: [row, ...]."""
_ROWS = 512
_NUMBERS = 2**26  # held at once in one tensor of whole prompts


@torch.no_grad()
def read_edited(
    model: HookedModel,
    prompts: Sequence[str | torch.Tensor],
    edits: Sequence[Sequence[Edit]],
    readings: Sequence[Reading],
    *,
    positions: Positions = "last",
) -> list[torch.Tensor]:
    """For each prompt (a text or its tokens) what its reading makes of the untouched logits (row 0) and of those with each
    of its edits.

    `positions` are scaled.
    ModelError for logits or weights that are NaN or infinite, ValueError for a neuron outside the model or a factor that is
    none. Prompts that the rows cannot stand for run whole for every edit, with a SlowPathWarning.
    """
    for neurons, factor in (edit for of_prompt in edits for edit in of_prompt):
        neurons.check_inside(model.cfg.n_layers, mlp_width(model))
        number("factor", factor)
    if prompts:
        check_weights(model, text_of(model, prompts[0]))
    jobs = [
        _Job(prompt, asked(to_tokens(model, prompt), _no_objective, positions), list(of_prompt), reading)
        for prompt, of_prompt, reading in zip(prompts, edits, readings, strict=True)
    ]
    most = max((len(job.edits) for job in jobs), default=0)
    found: list[torch.Tensor] = []
    with exclusive(model):
        for batch in in_batches(jobs, _together(model, jobs, most + 1), lambda part: _run(model, part)):
            found += batch
    return found


def _together(model: HookedModel, jobs: Sequence[_Job], rows: int) -> int:
    """How many jobs of at most so many rows go together."""
    lengths, width = [len(job.ask.tokens) for job in jobs], max((job.ask.width for job in jobs), default=1)
    return min(max(1, _ROWS // rows), together_read(model, lengths, min(rows, _ROWS), width))


class _Job:
    """One prompt with its edits, in the rising order of the layers they begin in."""

    def __init__(self, prompt: str | torch.Tensor, ask: Ask, edits: list[Edit], reading: Reading) -> None:
        self._prompt, self.ask, self.edits, self._reading = prompt, ask, edits, reading
        firsts = [min((neuron.layer for neuron in neurons), default=10**9) for neurons, _ in edits]
        self.order = sorted(range(len(edits)), key=firsts.__getitem__)
        self.firsts = [firsts[i] for i in self.order]

    def read(self, model: HookedModel, logits: torch.Tensor) -> torch.Tensor:
        """The reading of logits [row, 1, token]."""
        check_logits(model, text_of(model, self._prompt), self.ask.tokens, logits)
        return self._reading(logits)


def _no_objective(logits: torch.Tensor) -> torch.Tensor:
    raise AssertionError("edits have no objective")


def _run(model: HookedModel, jobs: Sequence[_Job]) -> list[torch.Tensor]:
    found, why = by_rows(model, lambda: [rows for part in groups(model, jobs) for rows in _by_rows(model, part)])
    found = found or [None] * len(jobs)
    warn_slow(model, sum(rows is None for rows in found), len(jobs), why, stacklevel=6)
    return [_whole(model, job) if rows is None else rows for job, rows in zip(jobs, found, strict=True)]


def _by_rows(model: HookedModel, jobs: Sequence[_Job]) -> list[torch.Tensor | None]:
    """The readings of every job; None for one whose untouched row does not give the model's own logits."""
    texts = texts_of(model, [job.ask for job in jobs], "post")
    chosen, tolerance = texts.scaled(), tolerance_of(model)
    read = [[job.read(model, logits[None])] for job, logits in zip(jobs, texts.logits, strict=True)]
    good = [True] * len(jobs)
    most, size = max(len(job.edits) for job in jobs), max(1, _ROWS // len(jobs))
    for start in range(0, most, size):
        part = slice(start, min(start + size, most))
        first = min((job.firsts[start] for job in jobs if len(job.firsts) > start), default=10**9)
        first = min(first, texts.layers[-1])
        # one untouched row more: it must give the model's own logits
        hooks = _scalings(model, jobs, part, chosen)
        final = run_rows(texts, {first: part.stop - part.start + 1}, hooks)
        for i, job in enumerate(jobs):
            count = len(job.order[part])
            logits = texts.finish(final[: count + 1, i, texts.reads(i)])
            good[i] &= bool(drift_of(logits[0], texts.logits[i]) <= tolerance)
            if good[i] and count:
                read[i].append(job.read(model, logits[1:]))
    return [_in_order(job, torch.cat(rows)) if ok else None for job, rows, ok in zip(jobs, read, good, strict=True)]


def _in_order(job: _Job, rows: torch.Tensor) -> torch.Tensor:
    """Row 0, then the edits in the order in which they were given."""
    back = torch.tensor(job.order, dtype=torch.long, device=rows.device).argsort()
    return torch.cat([rows[:1], rows[1:][back]])


def _scalings(model: HookedModel, jobs: Sequence[_Job], part: slice, chosen: torch.Tensor) -> list[Hook]:
    """Hooks that scale row r + 1 of every prompt by its edit r of this part; row 0 and rows past a prompt's edits rest."""
    edits = [
        (row * len(jobs) + i, job.edits[edit])
        for i, job in enumerate(jobs)
        for row, edit in enumerate(job.order[part], start=1)
    ]
    return _scaling_rows(model, edits, chosen)


def _scaling_rows(model: HookedModel, edits: Iterable[tuple[int, Edit]], chosen: torch.Tensor) -> list[Hook]:
    """Hooks that scale rows by an edit each, at the chosen positions."""
    entries: dict[int, list[tuple[int, list[int], float]]] = {}
    for row, (neurons, factor) in edits:
        for layer, indices in neurons.by_layer().items():
            entries.setdefault(layer, []).append((row, indices, factor))
    return [(site_hook(model, layer, "post"), _scaling(rows, chosen)) for layer, rows in entries.items()]


def _scaling(entries: Sequence[tuple[int, list[int], float]], chosen: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Multiplies the chosen positions [ask, suffix] of rows [row * ask, suffix, neuron] by their factors."""

    def hook(post: torch.Tensor, hook: Any) -> torch.Tensor:
        factors = torch.ones(len(post), post.shape[-1], dtype=post.dtype, device=post.device)
        for row, indices, factor in entries:
            factors[row, indices] = factor
        scaled = post * factors[:, None]
        if bool(chosen.all()):
            return scaled
        return torch.where(chosen.to(post.device).repeat(len(post) // len(chosen), 1)[..., None], scaled, post)

    return hook


def _whole(model: HookedModel, job: _Job) -> torch.Tensor:
    """The readings of one job, its whole prompt run for every row."""
    tokens, edits = job.ask.tokens, [(NeuronSet(), 1.0), *job.edits]
    chosen = torch.zeros(1, len(tokens), dtype=torch.bool, device=tokens.device)
    chosen[0, list(job.ask.scaled)] = True
    found, size = [], max(1, min(_ROWS, _NUMBERS // max(len(tokens) * mlp_width(model), model.cfg.d_vocab)))
    for start in range(0, len(edits), size):
        part = edits[start : start + size]
        batch = tokens.expand(len(part), -1)
        with with_hooks(model, _scaling_rows(model, enumerate(part), chosen)):
            logits, _ = last_logits(model, batch, torch.ones_like(batch))
        found.append(job.read(model, logits))
    return torch.cat(found)
