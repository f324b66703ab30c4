"""The circuit of a query's neurons at the last token: what feeds them, what the feeding heads look at, what they write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.attribution.options import next_tokens
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet, neuron_set
from qrnca_lens.core.values import check_kind, whole_number
from qrnca_lens.data import WORDING, Prompt, Query
from qrnca_lens.models import HookedModel, reader_of
from qrnca_lens.readout.contributions import PromptRun, attention_shares, contributions_to, direct_writes, regions
from qrnca_lens.views import drawing, html
from qrnca_lens.views.components import attention_patterns, coloured_tokens
from qrnca_lens.views.runs import asked_query, model_of

SHOWN_HEADS, SHOWN_NEURONS, SHOWN_SOURCES = 6, 6, 10


@dataclass(frozen=True)
class Circuit(html.View):
    """What feeds some neurons at the last token of one prompt (`number` of the query's), and what they write.

    `contributions`: one row for each neuron, input ("gate" and "up" in gated MLPs, else "pre") and source: layer, neuron,
    input, source ("embedding", "L0H2", "MLP 0", "bias" …), kind (embedding, head, mlp, bias, remainder), value, in units of
    the pre-activation; the rows of a neuron and input add up to `inputs`. `writes`: layer, neuron, activation (what W_out
    multiplies) and one column an option (A to D): what it adds directly to the logit of its token. `attention`: layer, head
    and one column a region of the prompt, the share of the last token's attention that falls on it. `patterns`: the
    attention [head, destination, source] of the `heads` that feed the neurons most. `starts`: the tokens (id, text) of the
    options: their letters or, after an open prompt, the first token of each option's text.
    """

    query: str
    number: int
    prompt: Prompt
    tokens: tuple[str, ...]
    inputs: pd.DataFrame
    contributions: pd.DataFrame
    writes: pd.DataFrame
    attention: pd.DataFrame
    heads: tuple[tuple[int, int], ...]
    patterns: Float[np.ndarray, "head destination source"]
    starts: tuple[tuple[int, str], ...]

    def to_frame(self) -> pd.DataFrame:
        """A copy of `contributions`."""
        return self.contributions.copy()

    def of(self, neuron: Neuron) -> pd.DataFrame:
        """The contributions to one neuron, strongest first. KeyError for a neuron that is not in the circuit."""
        check_kind("neuron", neuron, Neuron, "a Neuron, such as Neuron(3, 17)")
        rows = self.contributions
        rows = rows[(rows["layer"] == neuron.layer) & (rows["neuron"] == neuron.index)]
        if rows.empty:
            known = ", ".join(map(str, NeuronSet.from_frame(self.writes)))
            raise KeyError(f"neuron {neuron} is not in this circuit; there are {known}")
        return rows.sort_values("value", key=abs, ascending=False, ignore_index=True)

    def __repr__(self) -> str:
        return f"Circuit({self.query!r}, {len(self.writes)} neurons, {len(self.tokens)} tokens)"

    def to_html(self, chosen: Neuron | None = None, *, heads: int = SHOWN_HEADS) -> str:
        """The view as an HTML fragment; `chosen` limits it to one neuron, `heads` the attention maps."""
        heads = whole_number("heads", heads, at_least=0)
        if chosen is not None:
            check_kind("chosen", chosen, Neuron, "a Neuron, such as Neuron(3, 17), or None")
        shown = [chosen] if chosen else list(NeuronSet.from_frame(self.writes))
        option, right = WORDING[self.prompt.read].option, self.prompt.labels[self.prompt.right]
        parts = [html.note(f"At the last token of {self.query}, prompt {self.number}, right {option} {right}.")]
        parts += [html.note(words) for words in self._about_starts()]
        parts += [_neuron_html(self, neuron) for neuron in shown[:SHOWN_NEURONS]]
        if len(shown) > SHOWN_NEURONS:
            parts.append(html.note(f"{len(shown) - SHOWN_NEURONS} more neurons are in .to_frame()."))
        parts.append(html.section("Where the feeding heads look, from the last token", *self._looks()))
        names = [f"L{layer}H{head}" for layer, head in self.heads[:heads]]
        parts.append(html.section("Attention patterns", attention_patterns(list(self.tokens), self.patterns[:heads], names)))
        return "".join(parts)

    def _about_starts(self) -> list[str]:
        """Of an open prompt: by which token each answer stands, and which ones cannot be told apart."""
        if self.prompt.read == "letter":
            return []
        named = [f"{label}: {piece!r}" for label, (_, piece) in zip(self.prompt.labels, self.starts, strict=True)]
        told = [f"An answer stands here for its first token after the prompt ({'; '.join(named)})."]
        for token in dict.fromkeys(self.starts):
            alike = [label for label, start in zip(self.prompt.labels, self.starts, strict=True) if start == token]
            if len(alike) > 1:
                told.append(f"{' and '.join(alike)} begin with the same token, so they cannot be told apart here.")
        return told

    def _looks(self) -> list[str]:
        shares = self.attention.set_index(["layer", "head"]).loc[list(self.heads)].round(3).reset_index()
        lines = [
            f"<p><b>L{layer}H{head}</b> {coloured_tokens(self.tokens, pattern[-1])}</p>"
            for (layer, head), pattern in zip(self.heads[:3], self.patterns, strict=False)
        ]
        return [html.table(shares), *lines]


def _neuron_html(found: Circuit, neuron: Neuron) -> str:
    rows = found.of(neuron)
    writes = found.writes[(found.writes["layer"] == neuron.layer) & (found.writes["neuron"] == neuron.index)]
    charts = []
    for name in found.inputs["input"].unique():
        part = rows[rows["input"] == name]
        whole = part["value"].sum()
        strongest = part.head(SHOWN_SOURCES)
        rest = whole - strongest["value"].sum()
        listed = [
            (r.source, r.value, f"{r.source} adds {r.value:.5g} to the {name} of {neuron}") for r in strongest.itertuples()
        ]
        listed.append(("all others", rest, f"{len(part) - len(strongest)} other sources add {rest:.5g}"))
        listed.append(
            ("= pre-activation", whole, f"the sum, {whole:.6g}: the {name} of {neuron} before anything is applied")
        )
        charts.append(drawing.bars(listed, title=f"What feeds its {name}"))
    prompt, letters = found.prompt, found.prompt.read == "letter"
    wrote = [
        (f"{label} (right)" if name == prompt.letter else label, added, f"{label}: {added:.5g} logits")
        for name, label, added in zip(prompt.names, prompt.labels, writes.iloc[0][list(prompt.names)], strict=True)
    ]
    whose = "the letters' logits" if letters else "the logits of the answers' first tokens"
    charts.append(drawing.bars(wrote, title=f"What it writes to {whose}, at activation {writes['activation'].iloc[0]:.3g}"))
    return html.section(f"{neuron}", f'<div class="qrnca-row">{"".join(charts)}</div>')


def circuit(
    model: HookedModel,
    located: QRNeurons,
    query_id: str,
    neurons: Iterable[Neuron] | Neuron | None = None,
    *,
    prompt: int = 0,
) -> Circuit:
    """The circuit of `neurons` (None: the query's QR neurons) at the last token of one of the query's prompts.

    Raises KeyError for an unknown query, ValueError for a prompt number or neuron that does not exist, RunError for a run
    of another model, ModelError where the contributions do not add up (an MLP input that is no norm of a plain sum).
    """
    model = model_of(model, located)
    query = asked_query(located, query_id)
    prompt = whole_number("prompt", prompt)
    if not 0 <= prompt < len(query.prompts):
        raise ValueError(f"query {query_id!r} has prompts 0 to {len(query.prompts) - 1}, not {prompt}")
    chosen = located.for_query(query_id) if neurons is None else neuron_set(neurons)
    chosen.check_inside(located.model.n_layers, located.model.d_mlp)
    if not len(chosen):
        what = f"query {query_id!r} has no QR neurons" if neurons is None else "the neuron set is empty"
        raise ValueError(f"{what}; give the neurons to look at")
    return circuit_of(ask(model, query, prompt, max(chosen.by_layer())), chosen)


@dataclass(frozen=True)
class AskedPrompt:
    """One run of the model over prompt `number` of a query, from which the circuits of any of its neurons are drawn."""

    query: Query
    number: int
    run: PromptRun

    @property
    def prompt(self) -> Prompt:
        """The prompt that was run."""
        return self.query.prompts[self.number]


def ask(model: HookedModel, query: Query, number: int, last_layer: int) -> AskedPrompt:
    """Run one of a query's prompts, once, for the circuits of neurons up to `last_layer`."""
    return AskedPrompt(query, number, PromptRun(model, reader_of(model).tokens(query.prompts[number].text), last_layer))


def circuit_of(asked: AskedPrompt, neurons: NeuronSet) -> Circuit:
    """The circuit of at least one neuron in a prompt that was run already; ModelError as in `circuit`."""
    run, model, prompt = asked.run, asked.run.model, asked.prompt
    contributions, inputs = contributions_to(run, neurons)
    heads, options = _strongest_heads(contributions), next_tokens(model, [prompt])[0]
    patterns = [run.reading.patterns[layer][head].float().numpy() for layer, head in heads]
    return Circuit(
        asked.query.id,
        asked.number,
        prompt,
        tuple(reader_of(model).pieces(run.tokens)),
        inputs,
        contributions,
        direct_writes(run, neurons, options),
        attention_shares(run, regions(model, prompt, asked.query.question), max(neurons.by_layer())),
        tuple(heads),
        np.stack(patterns) if patterns else np.zeros((0, len(run.tokens), len(run.tokens)), dtype=np.float32),
        tuple(zip(options.ids, reader_of(model).pieces(torch.tensor(options.ids)), strict=True)),
    )


def _strongest_heads(contributions: pd.DataFrame) -> list[tuple[int, int]]:
    """(layer, head) by the sum of |contribution| over neurons and inputs."""
    heads = contributions[contributions["kind"] == "head"]
    sums = heads.assign(size=heads["value"].abs()).groupby("source")["size"].sum().sort_values(ascending=False)
    named = [str(name)[1:].split("H") for name in sums.index[:SHOWN_HEADS]]
    return [(int(layer), int(head)) for layer, head in named]
