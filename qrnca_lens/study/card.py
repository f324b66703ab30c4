"""The model card of a multi-choice model: what it answers, where it keeps its facts, what its QR neurons do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from qrnca_lens.attribution.options import answers
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.tables import Failure, failed_table
from qrnca_lens.core.values import WrongKindError, whole_number
from qrnca_lens.data import QuerySet, load_queries
from qrnca_lens.data.readers.files import ATLAS_SETS
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.engine.hooks import with_hooks
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import HookedModel, ModelError, check_hooked, site_hook
from qrnca_lens.runs.failures import without
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.runs.prompts import check_prompts

FRESH_SEED = 20_250_227  # shuffles and distractors of the card; training draws its own
UNSURE = 0.6  # queries with a lower P(letter) than this leave room for boosting


@dataclass(frozen=True)
class Card:
    """Three measured tables and the result that the last one rests on; `to_markdown` prints them.

    `failed`: the questions with a prompt that the model cannot take (query, group, prompt, reason); they are in no table.
    """

    accuracy: pd.DataFrame
    zeroing: pd.DataFrame
    effects: pd.DataFrame
    located: dict[str, QRNeurons]
    failed: pd.DataFrame = field(default_factory=failed_table)

    def to_markdown(self) -> str:
        """The tables as Markdown."""
        parts = [
            "# Measured card",
            f"Written by `qrnca card`; shuffles and distractors drawn with seed {FRESH_SEED}. Three prompts a question; an "
            "answer is the likeliest of the four letters. Changes in % are those of the mean "
            "P(right letter) over queries. What the model is and is not: atlas.md.",
            "## Answers (fresh shuffles and distractors)",
            _markdown(self.accuracy),
            "## Zeroing MLPs: share of right answers left",
            _markdown(self.zeroing),
            "## Scaling each query's QR neurons",
            _markdown(self.effects),
            *[f"{name}: {located!r}" for name, located in self.located.items()],
            *(["## Questions that the model cannot take (in no table)", _markdown(self.failed)] if len(self.failed) else []),
        ]
        return "\n\n".join(parts) + "\n"


def measure_card(
    model: HookedModel,
    *,
    recall_layers: Sequence[int] | None = None,
    per_group: int | None = None,
    effects_per_group: int = 25,
) -> Card:
    """Measure the shipped questions with a seed of their own. `per_group` limits the questions, for a quick look.

    The zeroing table takes the layers one by one, and `recall_layers` together (None: all layers; for the shipped model,
    those of its recipe, into which its facts were trained). ModelError where the model can take no question of a set,
    ValueError for a layer that it lacks.
    """
    check_hooked(model)
    per_group = None if per_group is None else whole_number("per_group", per_group, at_least=1)
    effects_per_group = whole_number("effects_per_group", effects_per_group, at_least=1)
    recall = _chosen_layers(model, recall_layers)
    fresh = {name: load_queries(name, seed=FRESH_SEED) for name in ATLAS_SETS}
    held = {name: load_queries(name, seed=FRESH_SEED, held_out=True) for name in ATLAS_SETS}
    if per_group is not None:
        fresh = {name: queries.sample(per_group) for name, queries in fresh.items()}
        held = {name: queries.sample(per_group) for name, queries in held.items()}
    misfits = {
        f.query: f for sets in (fresh, held) for queries in sets.values() for f in check_prompts(model, queries).failed
    }
    fresh, held = _left(fresh, misfits), _left(held, misfits)
    accuracy = pd.concat([_accuracy(model, fresh[name], held[name]) for name in ATLAS_SETS], ignore_index=True)
    everything = QuerySet(tuple(query for queries in fresh.values() for query in queries), "atlas")
    located, tables = {}, []
    for name, queries in fresh.items():
        sample = queries.sample(effects_per_group, seed=1)
        located[name] = locate(model, sample, progress=False)
        tables.append(_effects(model, located[name], located[name].asked).assign(set=name))
    effects = pd.concat(tables, ignore_index=True)
    effects = effects[["set", *effects.columns[:-1]]]
    return Card(accuracy, _zeroing(model, everything, recall), effects, located, failed_table(misfits.values()))


def to_locate(per_group: int | None = None, effects_per_group: int = 25) -> dict[str, QuerySet]:
    """The questions that `measure_card` locates, where the model can take them all."""
    fresh = {name: load_queries(name, seed=FRESH_SEED) for name in ATLAS_SETS}
    chosen = {name: queries if per_group is None else queries.sample(per_group) for name, queries in fresh.items()}
    return {name: queries.sample(effects_per_group, seed=1) for name, queries in chosen.items()}


def _chosen_layers(model: HookedModel, layers: Sequence[int] | None) -> list[int]:
    last = model.cfg.n_layers - 1
    if layers is None:
        return list(range(last + 1))
    if not isinstance(layers, Sequence):
        raise WrongKindError(f"recall_layers is a list of layers, such as [1, 2], not {layers!r}")
    return [whole_number("each of recall_layers", layer, at_least=0, at_most=last) for layer in layers]


def _left(sets: dict[str, QuerySet], misfits: dict[str, Failure]) -> dict[str, QuerySet]:
    left = {name: without(queries, [*misfits.values()]) for name, queries in sets.items()}
    for name, queries in left.items():
        if not len(queries):
            first = next(failure for failure in misfits.values() if failure.query in {query.id for query in sets[name]})
            raise ModelError(f"the model can take no question of {name}; the first, {first.query!r}: {first.reason}")
    return left


def _accuracy(model: HookedModel, fresh: QuerySet, held: QuerySet) -> pd.DataFrame:
    parts = []
    for queries, suffix in ((fresh, ""), (held, " (held-out template)")):
        found = answers(model, queries).groupby("group", sort=False)
        parts.append(found.agg(**{f"accuracy{suffix}": ("right", "mean"), f"P(letter){suffix}": ("probability", "mean")}))
    counts = pd.Series({group: len(fresh.for_group(group)) for group in fresh.groups}, name="questions")
    return counts.to_frame().join(parts).rename_axis("group").reset_index()


def _zeroing(model: HookedModel, queries: QuerySet, recall: list[int]) -> pd.DataFrame:
    cases = [("nothing", [], at_last), (f"layers {recall} at the last token", recall, at_last)]
    cases.append((f"layers {recall} at all other tokens", recall, at_others))
    for layer in range(model.cfg.n_layers):
        cases.append((f"layer {layer} at the last token", [layer], at_last))
    rows = []
    for name, layers, where in cases:
        with zeroed(model, layers, where):
            found = answers(model, queries)
        rows.append((name, found["right"].mean(), found["probability"].mean()))
    return pd.DataFrame(rows, columns=["MLPs zeroed", "accuracy", "P(letter)"])


def at_last(post: torch.Tensor) -> torch.Tensor:
    """[batch, position, neuron] with zeros at the last position."""
    return torch.cat([post[:, :-1], torch.zeros_like(post[:, -1:])], dim=1)


def at_others(post: torch.Tensor) -> torch.Tensor:
    """[batch, position, neuron] with zeros at all positions but the last."""
    return torch.cat([torch.zeros_like(post[:, :-1]), post[:, -1:]], dim=1)


@contextmanager
def zeroed(model: HookedModel, layers: list[int], where: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The MLP activations of `layers` zeroed where `where` says, while the block runs."""

    def hook(post: torch.Tensor, hook: Any) -> torch.Tensor:
        return where(post)

    with with_hooks(model, [(site_hook(model, layer, "post"), hook) for layer in layers]):
        yield


def _effects(model: HookedModel, located: QRNeurons, queries: QuerySet) -> pd.DataFrame:
    own = {query: located.for_query(query) for query in located.queries["query"]}
    methods = {"QR neurons": own, "random, same layers": random_sets(own, located.model.d_mlp)}
    everything = edit_effects(model, queries, methods)
    rows = []
    for (name, factor), found in everything.groupby(["method", "factor"], sort=False):
        unsure = found[found["p_before"] < UNSURE]
        asked, right = found["prompts"].sum(), found["right_before"].sum()
        rows.append(
            {
                "neurons": name,
                "factor": factor,
                "queries": len(found),
                "P own": _before_after(found, "p_before", "p_after"),
                "P same letter": _before_after(found, "p_same_before", "p_same_after"),
                "P other letter": _before_after(found, "p_other_before", "p_other_after"),
                "% own": _change(found, "p_before", "p_after"),
                "% same letter": _change(found, "p_same_before", "p_same_after"),
                "% other letter": _change(found, "p_other_before", "p_other_after"),
                f"% own, P < {UNSURE}": _change(unsure, "p_before", "p_after"),
                "such queries": len(unsure),
                "right to wrong": f"{found['right_to_wrong'].sum()} / {right}",
                "wrong to right": f"{found['wrong_to_right'].sum()} / {asked - right}",
            }
        )
    return pd.DataFrame(rows)


def _change(found: pd.DataFrame, before: str, after: str) -> float:
    """The change in % of the mean P(right letter) over queries, which a query with P near 0 cannot dominate."""
    return float(100 * (found[after].mean() / found[before].mean() - 1))


def _before_after(found: pd.DataFrame, before: str, after: str) -> str:
    return f"{found[before].mean():.3f} to {found[after].mean():.3f}"


def _markdown(table: pd.DataFrame) -> str:
    cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row] for row in table.to_numpy()]
    shown = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1], *shown]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
