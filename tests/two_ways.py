"""Questions that a tiny model answers both ways, a model with neurons of letters and answers, tables made by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tiny import GATED, save_tiny
from transformers import LlamaConfig

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.attribution.options import option_probabilities
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.data import LETTERS, Prompt, Query, QuerySet
from qrnca_lens.data.templates import TEMPLATES, Template
from qrnca_lens.editing.effects import COLUMNS
from qrnca_lens.models import load_model, reader_of, to_tokens
from qrnca_lens.study.transfer.both_ways import PROMPT_COLUMNS, READS
from qrnca_lens.study.transfer.reorderings import SYMBOLS, renamed_template

WORDS = ("one", "two", "red", "hot")
SIZES = GATED | {"max_position_embeddings": 256, "num_key_value_heads": 4}


def tiny_llama(folder: Path) -> Any:
    """A random model whose context holds the templates of the package."""
    return load_model(save_tiny("llama", folder, LlamaConfig(**SIZES)), device="cpu")


def rendered(template: Template, question: str, options: Sequence[str], letter: str) -> Prompt:
    return Prompt(template.render(question, tuple(options)), letter, template.key, tuple(options))


def answered_both_ways(model: Any, tries: int) -> QuerySet:
    """Questions in groups x and y whose right option is the one that the model says in most open prompts, with the options
    of each prompt in an order in which it says that option's letter."""
    found, templates = [], TEMPLATES["en"].detection
    for i in range(tries):
        question, options = f"{i}{'xyz'[i % 3]}?", [f"{word}{i}" for word in WORDS]
        asked = tuple(rendered(template, question, options, "A") for template in templates)
        texts = QuerySet((Query("q", "x", asked, question, options[0]),)).as_open().queries[0].prompts
        said = option_probabilities(model, texts).argmax(1)
        right = int(said.mode().values)
        prompts = [_said(model, template, question, options, right) for template in templates]
        if int((said == right).sum()) > 1 and all(prompts):
            chosen = tuple(prompt for prompt in prompts if prompt)
            found.append(Query(f"q{i}", "xy"[len(found) % 2], chosen, question, options[right]))
    return QuerySet(tuple(found), "answered")


def _said(model: Any, template: Template, question: str, options: list[str], right: int) -> Prompt | None:
    for order in itertools.permutations(options):
        prompt = rendered(template, question, order, LETTERS[order.index(options[right])])
        if int(letter_probabilities(model, [prompt])[0].argmax()) == prompt.right:
            return prompt
    return None


def planted_queries() -> QuerySet:
    """Four questions in two groups, each with one prompt; their right letters are A, B, C, D."""
    template, queries = TEMPLATES["en"].detection[0], []
    for i, letter in enumerate(LETTERS):
        options = tuple(f"{word}{i}" for word in WORDS)
        prompt = rendered(template, f"{i}?", options, letter)
        queries.append(Query(f"p{i}", "xy"[i % 2], (prompt,), f"{i}?", options[prompt.right]))
    return QuerySet(tuple(queries), "planted")


def content_neuron(i: int) -> Neuron:
    """The neuron that makes the planted model say the right option of question `i`, wherever it stands."""
    return Neuron(1, 10 + i)


def letter_neuron(i: int) -> Neuron:
    """The neuron that writes the letter that is right in the prompt of question `i`, whatever stands there."""
    return Neuron(1, 20 + i)


def faint_neurons() -> list[Neuron]:
    """Neurons that write a little of anything after all texts."""
    return [Neuron(1, 30 + i) for i in range(4)]


def two_ways_model(folder: Path) -> Any:
    """A llama that knows the texts of `planted_queries`, their re-ordered and renamed forms too, by their last position.

    Attention of layer 0 makes them differ. In layer 1 the content neuron of a question writes "known", its letter neuron the
    letter of its prompt; in layer 2 eight neurons write the letter or symbol of the right option where "known" is written.
    """
    config = LlamaConfig(**{**SIZES, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 48})
    model: Any = load_model(save_tiny("llama", folder, config), device="cpu")
    texts, owner, says_what = _texts()
    for layer, block in enumerate(model.blocks):
        for weight in (block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out, *([block.attn.W_O] if layer else [])):
            weight.data.zero_()
    model.to(torch.float64)
    with torch.no_grad():
        rows = torch.stack([model.run_with_cache(to_tokens(model, text))[1]["resid_mid", 1][0, -1] for text in texts])
    names = [*LETTERS, *SYMBOLS[0]]
    ids = [token for four in (LETTERS, SYMBOLS[0]) for token in _without_space(model, texts[0], four)]
    assert len(ids) == len(names)
    read = model.ln_final.w.data[:, None] * model.W_U.data[:, ids]
    says = torch.linalg.pinv(read)  # row k raises letter or symbol k by one, and no other of the eight
    first, scale = model.blocks[1], rows.pow(2).mean(1).sqrt()
    seen = torch.linalg.pinv(rows / scale[:, None] * first.ln2.w.data)  # column t answers 1 to text t
    known = 0.1 * torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = known - known @ read @ says  # says none of the eight itself
    for k, neuron in enumerate(faint_neurons()):
        _fire(first.mlp, neuron.index, seen.sum(1), 0.16 * says[[k, (k + 1) % 4 + 4]].sum(0) - 0.16 * says[(k + 2) % 4])
    for i in range(4):
        mine = seen[:, [t for t, of in enumerate(owner) if of == i]].sum(1)
        _fire(first.mlp, content_neuron(i).index, mine, known)
        _fire(first.mlp, letter_neuron(i).index, mine, 0.5 * says[i])
    second = model.blocks[2]
    wanted = torch.cat([rows, says, known[None]]) * second.ln2.w.data
    solve = torch.linalg.pinv(wanted)  # column t answers 1 to text t, and none to what layer 1 writes; the last to "known"
    alike = solve[:, : len(texts)] @ (4 * scale)
    second.mlp.W_gate.data[:, 40], second.mlp.W_in.data[:, 40] = alike, alike
    second.mlp.W_out.data[40] = 2 * says.sum(0)  # letters and symbols without a space are likely
    for k in range(8):
        at = [t for t, what in enumerate(says_what) if what == k]
        second.mlp.W_gate.data[:, k] = solve[:, at] @ (4 * scale[at])
        second.mlp.W_in.data[:, k] = solve[:, -1]
        second.mlp.W_out.data[k] = 0.5 * says[k]
    return model.to(torch.float32)


def _texts() -> tuple[list[str], list[int], list[int]]:
    """The texts of all forms, the question that each asks, and which of A, B, C, D, 1, 2, 3, 4 is right."""
    template, texts, owner, says = TEMPLATES["en"].detection[0], [], [], []
    for i, query in enumerate(planted_queries()):
        prompt = query.prompts[0]
        for to in range(4):
            shift = (prompt.right - to) % 4
            texts.append(template.render(query.question, prompt.options[shift:] + prompt.options[:shift]))
            owner.append(i)
            says.append(to)
        texts.append(renamed_template(template, SYMBOLS[0]).render(query.question, prompt.options))
        owner.append(i)
        says.append(4 + prompt.right)
    return texts, owner, says


def _without_space(model: Any, text: str, four: tuple[str, ...]) -> tuple[int, ...]:
    return next(form.ids for form in reader_of(model).options(text, four) if not form.leading_space)


def _fire(mlp: Any, index: int, notices: torch.Tensor, writes: torch.Tensor) -> None:
    mlp.W_in.data[:, index], mlp.W_gate.data[:, index], mlp.W_out.data[index] = notices, 4 * notices, writes


def prompt_rows(rights: Sequence[tuple[str, int, int]]) -> pd.DataFrame:
    """Rows of `prompts_answered` from (group, right by letter, right by answer) of three prompts each; B is never said."""
    rows = [
        (f"q{i}", group, f"q{i}", place, "A" if place < right else "B", "A", place < right, 0.5, 0.9, 0.25, read)
        for i, (group, *both) in enumerate(rights)
        for read, right in zip(READS, both, strict=True)
        for place in range(3)
    ]
    return pd.DataFrame(rows, columns=PROMPT_COLUMNS)


def edit_rows(read: str, name: str, own: Sequence[float], same: Sequence[float], other: Sequence[float]) -> pd.DataFrame:
    """Rows of `transfer_edits` for the questions q0, q1, …: P after the edit, of all 0.5 before it."""
    rows = []
    for i, (a, b, c) in enumerate(zip(own, same, other, strict=True)):
        values = {"p": a, "p_same": b, "p_other": c}
        row: dict[str, Any] = {f"{key}_before": 0.5 for key in values} | {f"{key}_after": p for key, p in values.items()}
        row |= {f"log_{key}_before": math.log(0.5) for key in values}
        row |= {f"log_{key}_after": math.log(p) if p else -math.inf for key, p in values.items()}
        row |= {"method": name, "factor": 0.0, "query": f"q{i}", "group": "xy"[i % 2], "unit": f"q{i}", "neurons": 4}
        row |= {"prompts": 3, "same_prompts": 3, "other_prompts": 3, "right_before": 2, "right_to_wrong": i % 2}
        rows.append(row | {"wrong_to_right": 0, "same_partners": "[]", "other_partners": "[]"})
    return pd.DataFrame(rows)[COLUMNS].assign(prompts_of=read)


def all_edits() -> pd.DataFrame:
    still = [0.5] * 6
    parts = [
        edit_rows("letter", "letter", [0.1] * 6, [0.4] * 6, still),
        edit_rows("answer", "letter", still, [0.1] * 6, still),
    ]
    parts += [edit_rows("letter", "answer", still, still, still)]
    parts += [edit_rows("answer", "answer", [0.05] * 6, [0.3] * 6, [0.25] * 6)]
    parts += [edit_rows(read, f"random ({name})", still, still, still) for name in READS for read in READS]
    return pd.concat(parts, ignore_index=True)
