"""Everything that is known of one neuron, with a page that shows why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from qrnca_lens.attribution.last_token import factors_of, scaled_logits
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import Prompt, Query
from qrnca_lens.explore import drawing, html
from qrnca_lens.explore.components import coloured_tokens
from qrnca_lens.explore.runs import model_of
from qrnca_lens.localization.projection import promoted_tokens, read_tokens
from qrnca_lens.models import HookedModel, option_tokens
from qrnca_lens.models.activity import last_activations, token_activations
from qrnca_lens.neurons import Neuron, NeuronSet

EFFECT_QUERIES, EXAMPLES, NEIGHBOURS, SHOWN_SCORES = 24, 3, 8, 8
GROUP_TITLES = {"in_clusters": "in clusters", "as_qr_neuron": "QR neuron"}
EDITS = {"ablated (x 0)": 0.0, "doubled (x 2)": 2.0}


@dataclass(frozen=True)
class Example:
    """A prompt with the neuron's activation at each of its tokens; the last one is what the ranking goes by."""

    query: str
    group: str
    tokens: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class NeuronCard(html.View):
    """One neuron of a run.

    `tokens`: what it promotes and suppresses when its activation is positive (the other way round when it is negative);
    `reads`: the tokens whose embeddings its input directions answer to most. `activity`: its activation (what W_out
    multiplies) at the last token of every prompt. `examples`: the prompts with the highest and the lowest of these.
    `scores`: na, ica, naica for every query whose cluster holds it; `rank` where it is a QR neuron. `effects`: the mean
    P(right letter) over a query's prompts untouched, ablated and doubled at the last token, for the queries where it ranks
    highest. `neighbours`: the neurons with the most similar naica over the queries (cosine).
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

    def _scores_html(self) -> list[str]:
        shown = self.scores.head(SHOWN_SCORES)
        if shown.empty:
            return [html.note("It is in no query's cluster.")]
        words = f"The {len(shown)} of {len(self.scores)} clusters with it where it counts most; a rank makes it a QR neuron."
        ranks = ["" if pd.isna(rank) else int(rank) for rank in shown["rank"]]
        return [html.note(words), html.table(shown.assign(rank=ranks))]

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
            return [html.note("It is in no query's cluster, so nothing was measured.")]
        of = int(self.scores["na"].notna().sum())
        which = f"{len(self.effects)} of {of} queries, those where it ranks highest"
        return [html.note(f"Mean P(right letter) over a query's prompts; {which}."), html.table(self.effects)]

    def _neighbours_html(self) -> str:
        if self.neighbours.empty:
            return html.note("It is in no query's cluster, so it has no profile.")
        pairs = self.neighbours[["layer", "neuron"]].itertuples(index=False, name=None)
        shown = self.neighbours.assign(neuron=[html.neuron_button(Neuron(*pair)) for pair in pairs])
        return html.table(shown[["neuron", "cosine", "queries"]], raw=["neuron"])


def neuron(
    model: HookedModel,
    layer: int,
    index: int,
    *,
    located: QRNeurons,
    activity: np.ndarray | None = None,
    effect_queries: int = EFFECT_QUERIES,
) -> NeuronCard:
    """The card of one neuron over the queries of a result.

    `activity`: its activation at the last token of every prompt of `located.asked`, where it is known already.
    Raises ValueError for a neuron outside the model, RunError for another model than the run's or a run without prompts.
    """
    model = model_of(located, model)
    chosen = Neuron(int(layer), int(index))
    NeuronSet((chosen,)).check_inside(located.model.n_layers, located.model.d_mlp)
    asked = [(query, prompt) for query in located.asked for prompt in query.prompts]
    if activity is None:
        activity = last_activations(model, [prompt.text for _, prompt in asked], NeuronSet((chosen,)))[:, 0].numpy()
    rows = [(q.id, q.group, p.template, value) for (q, p), value in zip(asked, activity.tolist(), strict=True)]
    in_clusters = located.scored[(located.scored["layer"] == layer) & (located.scored["neuron"] == index)]
    ranked = located.table[(located.table["layer"] == layer) & (located.table["neuron"] == index)]
    scores = in_clusters[["query", "group", "na", "ica", "naica"]].merge(ranked[["query", "rank"]], on="query", how="left")
    scores = scores.sort_values(["rank", "na"], ascending=[True, False], ignore_index=True)
    best = [located.asked[query] for query in scores["query"].head(effect_queries)]
    return NeuronCard(
        chosen,
        len(in_clusters) / len(located.queries),
        chosen in located.common_set,
        promoted_tokens(model, chosen),
        read_tokens(model, chosen),
        pd.DataFrame(rows, columns=["query", "group", "template", "activation"]),
        _examples(model, chosen, asked, activity),
        scores,
        _effects(model, chosen, best, scores),
        _neighbours(located, chosen),
    )


def _examples(
    model: HookedModel, chosen: Neuron, asked: Sequence[tuple[Query, Prompt]], activity: np.ndarray
) -> dict[str, tuple[Example, ...]]:
    """The strongest prompts of either sign, one a query."""
    chosen_rows: dict[str, list[int]] = {}
    for name, sign in (("highest positive", 1), ("lowest negative", -1)):
        best: dict[str, int] = {}
        for i in np.argsort(-sign * activity, kind="stable").tolist():
            if sign * activity[i] <= 0 or len(best) == EXAMPLES:
                break
            best.setdefault(asked[i][0].id, i)
        chosen_rows[name] = list(best.values())
    rows = [i for found in chosen_rows.values() for i in found]
    read = token_activations(model, [asked[i][1].text for i in rows], chosen)
    examples = {
        i: Example(asked[i][0].id, asked[i][0].group, tuple(tokens), values.numpy())
        for i, (tokens, values) in zip(rows, read, strict=True)
    }
    return {name: tuple(examples[i] for i in found) for name, found in chosen_rows.items()}


def _effects(model: HookedModel, chosen: Neuron, queries: Sequence[Query], scores: pd.DataFrame) -> pd.DataFrame:
    factors = factors_of(model, [(NeuronSet((chosen,)), factor) for factor in (1.0, *EDITS.values())])
    rows = []
    for query in queries:
        right = [option_tokens(model.tokenizer, prompt.text).id_of(prompt.letter) for prompt in query.prompts]
        logits = scaled_logits(model, [prompt.text for prompt in query.prompts], factors)
        p = logits.float().softmax(-1).cpu()[torch.arange(len(right)), :, right]
        rows.append((query.id, query.group, *p.mean(0).tolist()))
    table = pd.DataFrame(rows, columns=["query", "group", "P untouched", *[f"P {name}" for name in EDITS]])
    return table.merge(scores[["query", "rank"]], on="query", how="left")


def _neighbours(located: QRNeurons, chosen: Neuron) -> pd.DataFrame:
    """The neurons with the highest cosine between their naica over all queries and that of `chosen`."""
    scored = located.scored
    rows, keys = pd.MultiIndex.from_frame(scored[["layer", "neuron"]]).factorize()
    columns, _ = pd.factorize(scored["query"])
    profiles = sparse.csr_array((scored["naica"].to_numpy(), (rows, columns)))
    at = keys.get_indexer([(chosen.layer, chosen.index)])[0]
    if at < 0 or not profiles[[at]].count_nonzero():
        return pd.DataFrame(columns=["layer", "neuron", "cosine", "queries"])
    norms = np.sqrt(profiles.multiply(profiles).sum(axis=1))
    mine = profiles[[at]].toarray()[0]
    cosine = np.divide(profiles @ mine, norms * norms[at], out=np.zeros(len(keys)), where=norms > 0)
    cosine[at] = -1
    best = np.argsort(-cosine, kind="stable")[:NEIGHBOURS]
    counts = np.diff(profiles.indptr)
    made = [(*keys[i], float(cosine[i]), int(counts[i])) for i in best if cosine[i] > 0]
    return pd.DataFrame(made, columns=["layer", "neuron", "cosine", "queries"])


def _example_html(example: Example, highest: float) -> str:
    last = example.values[-1]
    title = f"{html.text(example.query)} ({html.text(example.group)}), last token {last:.4g}"
    return f"<p><b>{title}</b></p>{coloured_tokens(example.tokens, example.values, highest)}"


def _paired(parts: list[str]) -> list[str]:
    return ["".join(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
