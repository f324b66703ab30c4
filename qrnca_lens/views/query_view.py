"""One query: its options' probabilities, its QR neurons, and a dose-response curve for each of them and for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.attribution.options import edited_options, option_probabilities
from qrnca_lens.clustering import ModelShape, QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.shown import escaped
from qrnca_lens.core.values import check_kind, whole_number
from qrnca_lens.data import WORDING, Prompt, Query
from qrnca_lens.models import HookedModel
from qrnca_lens.views import drawing, html
from qrnca_lens.views.runs import asked_query, model_of

FACTORS = tuple(step / 4 for step in range(17))  # 0 to 4
ALL = "all QR neurons"


@dataclass(frozen=True)
class QueryView(html.View):
    """One query of a run, its neurons and what scaling them does.

    `letters`: P of every option (of its letter or, after open prompts, of its text: `Prompt.labels`) after each of its
    prompts, and the right one. `neurons`: its QR neurons (rank, layer, neuron, na, ica, naica). `dose`: P of every option
    (columns A to D, in the order of the prompt's options) after prompt number `prompt` when the activations of `edit` (one
    neuron, or all of them) are multiplied by `factor` at the last position, or wherever a token of an answer is read; factor
    1 is the untouched model.
    """

    query: Query
    prompt: int
    letters: pd.DataFrame
    neurons: pd.DataFrame
    dose: pd.DataFrame
    model: ModelShape

    @property
    def right(self) -> str:
        """What the right option of the prompt that `dose` is about is called."""
        return self.asked.labels[self.asked.right]

    @property
    def asked(self) -> Prompt:
        """The prompt that `dose` is about."""
        return self.query.prompts[self.prompt]

    def to_frame(self) -> pd.DataFrame:
        """The QR neurons, with P of the right option when each alone is suppressed (x 0) and enhanced (x 2)."""
        names = [str(neuron) for neuron in NeuronSet.from_frame(self.neurons)]
        found = self._right_by_edit.reindex(names)
        return self.neurons.assign(**{"P x 0": found[0.0].to_numpy(), "P x 2": found[2.0].to_numpy()})

    @cached_property
    def _right_by_edit(self) -> pd.DataFrame:
        """P of the right option, a row an edit and a column a factor."""
        return self.dose.pivot(index="edit", columns="factor", values=self.asked.letter)

    def curve(self, edit: str | Neuron = ALL) -> pd.DataFrame:
        """P of every option by factor for one edit. KeyError for an edit that was not made."""
        check_kind("edit", edit, (str, Neuron), f"a Neuron or {ALL!r}")
        rows = self.dose[self.dose["edit"] == str(edit)]
        if rows.empty:
            raise KeyError(f"no edit {str(edit)!r} here; there are {', '.join(self.dose['edit'].unique())}")
        names = dict(zip(self.asked.names, self.asked.labels, strict=True))
        return rows.set_index("factor")[list(names)].rename(columns=names)

    def __repr__(self) -> str:
        return f"QueryView({self.query.id!r}, prompt {self.prompt}, {len(self.neurons)} QR neurons)"

    def to_html(self) -> str:
        """The view as an HTML fragment."""
        asked, words = self.asked, WORDING[self.asked.read]
        heading = f"{self.query.id} ({self.query.group}), prompt {self.prompt}, right {words.option} {self.right}"
        shown = self.to_frame()
        neurons = NeuronSet.from_frame(shown)
        strongest = [str(neuron) for neuron in neurons.neurons[:3]]
        shown = shown.assign(neuron=[html.neuron_button(neuron) for neuron in neurons])
        right = {name: self._right_by_edit.loc[name].tolist() for name in (ALL, *strongest)}
        scaled = f"P x 0 and P x 2: P({self.right}) after prompt {self.prompt} with that neuron alone scaled."
        options = {str(label): p.tolist() for label, p in self.curve().items()}
        return "".join(
            [
                html.section(heading, f"<pre>{escaped(asked.text)}</pre>", *self._compared(), html.table(self.letters)),
                html.section(
                    "Dose and response",
                    html.note(
                        f"The activations are multiplied by the factor at the last token of prompt {self.prompt}, the one "
                        f"above{words.also_at}; 1 is the untouched model."
                    ),
                    f'<div class="qrnca-row"><figure><figcaption>Every {words.option}, all QR neurons scaled</figcaption>',
                    self._lines(options, self.right, f"P({words.option})"),
                    f"</figure><figure><figcaption>P({escaped(self.right)}), the right {words.option}</figcaption>",
                    self._lines(right, ALL, f"P({self.right})"),
                    "</figure></div>",
                ),
                html.section("Its QR neurons", self._map(), html.note(scaled), html.table(shown, raw=["neuron"])),
            ]
        )

    def _lines(self, curves: Mapping[str, Sequence[float]], strong: str, named: str) -> str:
        """Curves over `FACTORS`; the P of an answer's token is far below 1, so there the axis ends at the highest one."""
        top = 1.0 if self.asked.read == "letter" else max(map(max, curves.values()))
        return drawing.lines(curves, FACTORS, x_title="factor", y_title=named, strong=strong, top=top)

    def _compared(self) -> list[str]:
        """The options of an open prompt, which does not show them, and what their P is."""
        if self.asked.read == "letter":
            return []
        rows = [(option, "right" * (i == self.asked.right)) for i, option in enumerate(self.asked.options)]
        compared = html.table(pd.DataFrame(rows, columns=["answers that are compared", ""]))
        return [compared, html.note(WORDING[self.asked.read].explained)]

    def _map(self) -> str:
        rows = self.neurons[["layer", "neuron", "naica", "rank"]].itertuples(index=False, name=None)
        marks = [
            (a, b, naica, f"{Neuron(a, b)}, rank {rank}, naica {naica:.4f} ({self.query.id})") for a, b, naica, rank in rows
        ]
        return drawing.dots(marks, self.model.n_layers, self.model.d_mlp)


def show(model: HookedModel | None, located: QRNeurons, query_id: str, *, prompt: int = 0) -> QueryView:
    """Look at one query of a result: question, P of the options, QR neurons, dose-response over factors 0 to 4.

    `model`: the one the result was made with; None stands for the shipped model. Raises KeyError for an unknown query
    (with the nearest id), ValueError for a prompt that it does not have, RunError for another model than the run's.
    """
    query = asked_query(located, query_id)
    prompt = whole_number("prompt", prompt)
    if not 0 <= prompt < len(query.prompts):
        raise ValueError(f"query {query_id!r} has prompts 0 to {len(query.prompts) - 1}, not {prompt}")
    model = model_of(model, located)
    return look(model, located, query, option_probabilities(model, query.prompts), prompt)


def look(
    model: HookedModel, located: QRNeurons, query: Query, p: Float[torch.Tensor, "prompt option"], prompt: int = 0
) -> QueryView:
    """The view of a query whose options' probabilities are known already."""
    of_prompts = [zip(asked.labels, row, strict=True) for asked, row in zip(query.prompts, p.tolist(), strict=True)]
    letters = pd.DataFrame([{f"P({label})": value for label, value in row} for row in of_prompts])
    letters.insert(0, "prompt", range(len(query.prompts)))
    letters["right"] = [asked.labels[asked.right] for asked in query.prompts]
    columns = ["rank", "layer", "neuron", "na", "ica", "naica"]
    neurons = located.table_for_query(query.id)[columns].reset_index(drop=True)
    chosen = located.for_query(query.id)
    edits = [(ALL, chosen), *((str(neuron), NeuronSet((neuron,))) for neuron in chosen)]
    return QueryView(query, prompt, letters, neurons, dose_response(model, query.prompts[prompt], edits), located.model)


def dose_response(model: HookedModel, prompt: Prompt, edits: list[tuple[str, NeuronSet]]) -> pd.DataFrame:
    """Columns edit, factor and P of every option (A to D) after `prompt`, a row for each edit and each of `FACTORS`."""
    scaled = [(neurons, factor) for _, neurons in edits for factor in FACTORS]
    p = edited_options(model, [prompt], [scaled])[0][1:]
    names = [(name, factor) for name, _ in edits for factor in FACTORS]
    return pd.DataFrame(
        [(*name, *row) for name, row in zip(names, p.tolist(), strict=True)], columns=["edit", "factor", *prompt.names]
    )
