"""Everything that is known of one neuron, with a page that shows why; its numbers come from `card_numbers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import pandas as pd

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.shown import escaped
from qrnca_lens.core.values import check_kind, listed, whole_number
from qrnca_lens.data import WORDING, Read
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.models import HookedModel
from qrnca_lens.readout.promoted import promoted_tokens, read_tokens
from qrnca_lens.views import drawing, html
from qrnca_lens.views.card_numbers import (
    Example,
    activity_table,
    effect_of,
    effects_table,
    nearest_neurons,
    scores_of,
    strongest_examples,
)
from qrnca_lens.views.components import coloured_tokens
from qrnca_lens.views.runs import asked_query, model_of

EFFECT_QUERIES, SHOWN_SCORES = 24, 8
EFFECT_TITLES = {"P untouched": "P", "P ablated (x 0)": "P x 0", "P doubled (x 2)": "P x 2"}
GROUP_TITLES = {"in_clusters": "in clusters", "as_qr_neuron": "QR neuron"}


@dataclass(frozen=True)
class NeuronCard(html.View):
    """One neuron of a run.

    `tokens`: what it promotes and suppresses when its activation is positive (the other way round when it is negative);
    `reads`: the tokens whose embeddings its input directions answer to most. `activity`: its activation (what W_out
    multiplies) at the last token of every prompt, with the prompt's right letter. `examples`: the prompts with the highest
    and the lowest of these. `scores`: na, ica, naica for every query whose cluster holds it; `rank` where it is a QR
    neuron. `effects`: the mean P of the right option (`read`: of its letter, or of its text) over a query's prompts
    untouched, ablated and doubled at the last token, for the measured queries. `neighbours`: the neurons with the most
    similar naica over the queries (cosine).
    """

    neuron: Neuron
    share: float
    common: bool
    tokens: pd.DataFrame
    reads: pd.DataFrame
    activity: pd.DataFrame
    examples: dict[str, tuple[Example, ...]]
    scores: pd.DataFrame
    effects: pd.DataFrame
    neighbours: pd.DataFrame
    read: Read = "letter"

    def to_frame(self) -> pd.DataFrame:
        """One row a query: query, group, mean activation, na, ica, naica, rank and, where measured, the effects."""
        mean = self.activity.groupby(["query", "group"], sort=False, as_index=False)["activation"].mean()
        found = mean.merge(self.scores, on=["query", "group"], how="left")
        return found.merge(self.effects.drop(columns=["group", "rank"]), on="query", how="left")

    def by_group(self) -> pd.DataFrame:
        """group, queries, in clusters, as QR neuron, summed naica as QR neuron, mean activation."""
        rows = self.to_frame().assign(ranked=lambda t: t["rank"].notna(), clustered=lambda t: t["na"].notna())
        rows["ranked_naica"] = rows["naica"].where(rows["ranked"], 0.0)
        return rows.groupby("group", sort=False, as_index=False).agg(
            queries=("query", "size"),
            in_clusters=("clustered", "sum"),
            as_qr_neuron=("ranked", "sum"),
            naica=("ranked_naica", "sum"),
            activation=("activation", "mean"),
        )

    def by_letter(self) -> pd.DataFrame:
        """letter (the right one of a prompt), prompts, mean activation: a neuron of letters differs here. No row for open
        prompts, which have no letters."""
        rows = self.activity if self.read == "letter" else self.activity.head(0)
        return rows.groupby("letter", as_index=False).agg(prompts=("query", "size"), activation=("activation", "mean"))

    @property
    def queries(self) -> int:
        """How many queries the run has."""
        return self.activity["query"].nunique()

    def __repr__(self) -> str:
        kind = "common" if self.common else self._role()
        return f"NeuronCard({self.neuron}, {kind}, in {self.share:.1%} of the clusters)"

    def to_html(self) -> str:
        """The card as an HTML fragment."""
        kind = (
            f"A common neuron: it is in {self.share:.1%} of all clusters, so it counts for no single query."
            if self.common
            else f"{self._role()}; in {self.share:.1%} of all clusters."
        )
        groups = {str(group): part["activation"].to_numpy() for group, part in self.activity.groupby("group", sort=False)}
        signs = [
            html.section(f"Prompts with the {name} activation", *[_example_html(e, self._strongest()) for e in found])
            for name, found in self.examples.items()
            if found
        ]
        positive = (self.activity["activation"] > 0).mean()
        return "".join(
            [
                f"<h2>{self.neuron}</h2>",
                html.note(kind),
                html.section("By group", html.table(self.by_group().rename(columns=GROUP_TITLES))),
                html.section("By query", *self._scores_html()),
                html.section(
                    "Activation at the last token",
                    html.note(
                        f"Positive on {positive:.0%} of {len(self.activity)} prompts; the two signs can differ in meaning."
                    ),
                    drawing.histogram(groups, x_title="activation"),
                    *self._letters_html(),
                ),
                *signs,
                html.section("Tokens", *self._tokens_html()),
                html.section("What ablating and doubling it does", *self._effects_html()),
                html.section("Nearest neurons by query profile", self._neighbours_html()),
            ]
        )

    def _role(self) -> str:
        queries = int(self.scores["rank"].notna().sum())
        return f"QR neuron of {queries} {'query' if queries == 1 else 'queries'}"

    def _letters_html(self) -> list[str]:
        means = self.by_letter()
        return [html.note("Its mean over the prompts with each right letter"), html.table(means)] if len(means) else []

    def _scores_html(self) -> list[str]:
        shown = self.scores.head(SHOWN_SCORES)
        if shown.empty:
            return [html.note("It is in no query's cluster.")]
        words = f"The {len(shown)} of {len(self.scores)} clusters with it where it counts most; a rank makes it a QR neuron."
        return [html.note(words), html.table(_ranks_shown(shown))]

    def _strongest(self) -> float:
        return max((float(np.abs(e.values).max()) for found in self.examples.values() for e in found), default=1.0)

    def _tokens_html(self) -> list[str]:
        promoted = self.tokens[["rank", "promoted", "suppressed"]].rename(
            columns={"promoted": "raises (activation > 0)", "suppressed": "lowers (activation > 0)"}
        )
        words = "A negative activation swaps the two columns." if (self.activity["activation"] < 0).any() else ""
        parts = [html.note(f"What it writes, through the final norm and the unembedding. {words}"), html.table(promoted)]
        for name, rows in self.reads.groupby("input", sort=False):
            parts.append(html.note(f"Token embeddings that its {name} direction answers to"))
            parts.append(html.table(rows[["rank", "raised_by", "lowered_by"]]))
        return [f'<div class="qrnca-row">{"".join(f"<div>{part}</div>" for part in _paired(parts))}</div>']

    def _effects_html(self) -> list[str]:
        if self.effects.empty:
            return [html.note("Nothing was measured; give the queries as effects_on.")]
        words = WORDING[self.read]
        return [
            html.note(
                f"Mean {words.right} over a query's prompts, untouched, ablated (x 0) and doubled (x 2). {words.explained}"
            ),
            html.note(f"Measured on {len(self.effects)} of {self.queries} queries; {len(self.scores)} clusters hold it."),
            html.table(_ranks_shown(self.effects).rename(columns=EFFECT_TITLES)),
        ]

    def _neighbours_html(self) -> str:
        if self.neighbours.empty:
            return html.note("It is in no query's cluster, so it has no profile.")
        buttons = [html.neuron_button(neuron) for neuron in NeuronSet.from_frame(self.neighbours)]
        shown = self.neighbours.assign(neuron=buttons)
        return html.table(shown[["neuron", "cosine", "queries"]], raw=["neuron"])


def neuron(
    model: HookedModel,
    layer: SupportsIndex,
    index: SupportsIndex,
    *,
    located: QRNeurons,
    effects_on: Sequence[str] | None = None,
    activity: np.ndarray | None = None,
) -> NeuronCard:
    """The card of one neuron over the queries of a result.

    `effects_on`: the ids of the queries on which its effect is measured; None: those whose clusters hold it, at most 24,
    the ones where it ranks highest (for a common neuron, which has no rank: has the highest attribution).
    `activity`: its activation at the last token of every prompt of `located.asked`, where it is known already.
    Raises TypeError for a layer or index that is no whole number, ValueError for a neuron outside the model, KeyError for an
    unknown query, RunError for another model than the run's or a run without prompts.
    """
    effects_on = None if effects_on is None else listed("effects_on", effects_on)
    model = model_of(model, located)
    chosen = Neuron(whole_number("a neuron's layer", layer), whole_number("a neuron's index", index))
    NeuronSet((chosen,)).check_inside(located.model.n_layers, located.model.d_mlp)
    asked = [(query, prompt) for query in located.asked for prompt in query.prompts]
    if activity is not None:
        _check_activity(activity, len(asked))
    scores = scores_of(located, chosen)
    measured = scores["query"].head(EFFECT_QUERIES) if effects_on is None else effects_on
    queries = [asked_query(located, query) for query in measured]
    if activity is None:
        activity = last_activations(model, [prompt.text for _, prompt in asked], NeuronSet((chosen,)))[:, 0].numpy()
    return NeuronCard(
        chosen,
        len(scores) / len(located.queries),
        chosen in located.common_set,
        promoted_tokens(model, chosen),
        read_tokens(model, chosen),
        activity_table(asked, activity),
        strongest_examples(model, chosen, asked, activity),
        scores,
        effects_table(queries, [effect_of(model, chosen, query) for query in queries], scores),
        nearest_neurons(located, chosen),
        located.asked.read,
    )


def _check_activity(activity: np.ndarray, prompts: int) -> None:
    """TypeError for what is no array, ValueError for one without a number for each prompt."""
    check_kind("activity", activity, np.ndarray, "an array with a number for each prompt of located.asked")
    if activity.shape != (prompts,):
        raise ValueError(f"activity needs a number for each of the {prompts} prompts, not an array {activity.shape}")


def _ranks_shown(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(rank=["" if pd.isna(rank) else int(rank) for rank in rows["rank"]])


def _example_html(example: Example, highest: float) -> str:
    last = example.values[-1]
    title = f"{escaped(example.query)} ({escaped(example.group)}), last token {last:.4g}"
    return f"<p><b>{title}</b></p>{coloured_tokens(example.tokens, example.values, highest)}"


def _paired(parts: list[str]) -> list[str]:
    return ["".join(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
