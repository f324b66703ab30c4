"""Views of a run that was read from whole answers: options are called by their texts, and P is that of a token."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from asked_open import ALIKE, open_queries, open_questions

import qrnca_lens as ql
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.shown import TITLE
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.editing.statistics import group_changes
from qrnca_lens.models import to_tokens
from qrnca_lens.views.explorer.selection import catalog_of
from qrnca_lens.views.plots import figures

ODD = ("<b>one</b>", "two $x$", "3", "a very long answer of many words indeed")


def words_of(page: str) -> str:
    """What a reader sees of HTML, without its tags."""
    return re.sub(r"<[^>]+>", " ", page)


@pytest.fixture(scope="module")
def run(model_of: Callable[[str], Any]) -> tuple[Any, QRNeurons]:
    model = model_of("llama")
    return model, ql.locate(model, open_questions(), QRNCAConfig(steps=3), read="answer", progress=False)


def with_prompts(located: QRNeurons, *prompts: Prompt) -> QRNeurons:
    """The run as if the query x0 had been asked with these prompts."""
    others = (query for query in located.asked if query.id != "x0")
    return replace(located, asked=QuerySet((Query("x0", "x", prompts), *others)))


def p_by_hand(model: Any, prompt: Prompt, option: str) -> float:
    """The geometric mean over the option's tokens, each from a run of all that stands before it."""
    tokens = to_tokens(model, prompt.text)
    answer = model.tokenizer.encode(f" {option}", add_special_tokens=False)
    logs = []
    for token in answer:
        with torch.no_grad():
            logs.append(model(tokens[None])[0, -1].log_softmax(-1)[token].item())
        tokens = torch.cat([tokens, torch.tensor([token])])
    return math.exp(sum(logs) / len(logs))


def test_options_of_open_prompts_are_called_by_their_texts() -> None:
    letters = Prompt("Which?", "A")
    assert letters.labels == letters.names == ("A", "B", "C", "D")
    labels = Prompt("Which?", "A", options=ODD, read="answer").labels
    assert labels[:3] == ODD[:3] and labels[3] == ODD[3][: TITLE - 1] + "…"
    turned = Prompt("Which?", "A", options=("\u202eone", "2", "3", "4"), read="answer").labels
    assert turned[0] == "\\u202eone"
    alike = tuple(f"{'the same beginning ' * 2}{i}" for i in range(4))  # cut, they would be one
    assert Prompt("Which?", "A", options=alike, read="answer").labels == alike


def test_what_is_to_follow_a_prompt() -> None:
    assert Prompt("Which?\nAnswer:", "B").solved == "Which?\nAnswer: B"
    assert Prompt("Which (", "B").solved == "Which (B"
    assert Prompt("Which?\nAnswer:", "B", options=("1", "2", "3", "4"), read="answer").solved == "Which?\nAnswer: 2"
    assert Prompt("哪个？\n答案:", "B", options=("一", "二", "三", "四"), read="answer").solved == "哪个？\n答案:二"


def test_a_query_shows_p_of_its_answers(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    view, query = ql.show(model, located, "x2"), located.asked["x2"]
    assert view.right == query.answer == "Cy Dee"
    for i, prompt in enumerate(query.prompts):
        wanted = {f"P({option})": pytest.approx(p_by_hand(model, prompt, option), rel=1e-4) for option in prompt.options}
        assert view.letters.loc[i].drop(["prompt", "right"]).to_dict() == wanted
    assert set(view.letters["right"]) == {"Cy Dee"}
    assert view.curve().loc[1.0].to_dict() == pytest.approx(
        {option: view.letters.loc[0, f"P({option})"] for option in query.prompts[0].options}, rel=1e-4
    )
    neuron = located.for_query("x2").neurons[0]
    assert view.to_frame().loc[0, "P x 2"] == view.curve(neuron).loc[2.0, "Cy Dee"]


def test_options_in_another_order_stand_in_their_own_columns(run: tuple[Any, QRNeurons]) -> None:
    """The second prompt has the options turned round."""
    model, located = run
    first = located.asked["x0"].prompts[0]
    turned = first.options[::-1]
    other = Prompt("Who was 0?", "ABCD"[turned.index("Ada")], options=turned, read="answer")
    changed = with_prompts(located, first, other)
    letters = ql.show(model, changed, "x0").letters
    for option in other.options:
        assert letters.loc[1, f"P({option})"] == pytest.approx(p_by_hand(model, other, option), rel=1e-4)


def test_no_page_speaks_of_letters(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    neuron = located.for_query("x0").neurons[0]
    card = ql.neuron(model, neuron.layer, neuron.index, located=located)
    assert card.by_letter().empty
    views = {
        "query": ql.show(model, located, "x0").to_html(),
        "card": card.to_html(),
        "circuit": ql.circuit(model, located, "x0").to_html(),
    }
    for name, page in views.items():
        assert "letter" not in words_of(page) and not re.search(r"P\([A-D]\)", words_of(page)), name
    assert "right answer Ada" in words_of(views["query"]) and "geometric mean" in views["query"]
    assert "Mean P(right answer)" in views["card"] and "geometric mean" in views["card"]
    assert "geometric mean" not in ql.neuron(model, 0, 0, located=located, effects_on=()).to_html()


def test_texts_of_options_are_no_html(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    odd = Prompt("Who is 0?", "A", options=ODD, read="answer")
    changed = with_prompts(located, odd)
    pages = [ql.show(model, changed, "x0").to_html(), ql.circuit(model, changed, "x0").to_html()]
    for page in pages:
        assert "<b>one" not in page and "&lt;b&gt;one" in page
    assert ODD[3] in pages[0]  # whole, where the compared answers are listed


def test_curves_of_answers_fill_their_axis(run: tuple[Any, QRNeurons]) -> None:
    """P of an answer is far below 1: the axis ends at the highest of all curves."""
    model, located = run
    view = ql.show(model, located, "x0")
    top = view.curve().to_numpy().max()
    assert top < 0.5 and f">{top:.2g}</text>" in view.to_html()


def test_a_circuit_tells_by_which_tokens_answers_stand(run: tuple[Any, QRNeurons]) -> None:
    """In group x all options begin with tokens of their own; those of y all begin with a space."""
    model, located = run
    apart, alike = (ql.circuit(model, located, query) for query in ("x0", "y0"))
    first = [model.tokenizer.encode(f" {option}", add_special_tokens=False)[0] for option in apart.prompt.options]
    assert [token for token, _ in apart.starts] == first
    assert {piece for _, piece in apart.starts} == {" A", " B", " C", " D"}
    assert "cannot be told apart" not in apart.to_html()
    assert len({token for token, _ in alike.starts}) == 1 and set(alike.prompt.options) <= set(ALIKE)
    told = " and ".join(alike.prompt.options)
    assert f"{told} begin with the same token, so they cannot be told apart here." in alike.to_html()
    assert alike.writes[list("ABCD")].nunique(axis=1).eq(1).all()  # one logit for all four
    assert set(apart.attention.columns) <= {"layer", "head", "question", "rest"}  # no option is shown


def test_what_a_circuit_writes_is_what_the_first_token_loses(run: tuple[Any, QRNeurons]) -> None:
    """Without a neuron of the last layer, and with the final norm's scale held, the logit falls by what it writes."""
    model, located = run
    last = model.cfg.n_layers - 1
    found = ql.circuit(model, located, "x0", [ql.Neuron(last, 5)])
    tokens = to_tokens(model, found.prompt.text)[None]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        wrote = cache[f"blocks.{last}.mlp.hook_post"][0, -1, 5] * model.blocks[last].mlp.W_out[5]
        scaled = wrote / cache["ln_final.hook_scale"][0, -1] * model.ln_final.w
        logits = scaled @ model.W_U[:, [token for token, _ in found.starts]]
    assert found.writes.loc[0, list("ABCD")].tolist() == pytest.approx(logits.tolist(), abs=1e-5)


def test_the_explorer_shows_answers(run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    model, located = run
    explorer = ql.Explorer(model, located.asked, located)
    explorer.selected = {"query": "x0"}
    shown = ql.show(model, located, "x0")
    assert explorer.letters == pytest.approx(shown.curve().loc[1.0].to_dict(), rel=1e-5)
    assert explorer.view["right"] == "Ada" and set(explorer.view["letters"]) == set(shown.asked.options)
    assert explorer.catalog["relative"] and explorer.catalog["note"].startswith(
        "P of the answers after the query's prompt 0"
    )
    assert "geometric mean" in explorer.catalog["note"]
    page = ql.write_explorer(model, located, tmp_path / "page.html", top=1, per_group=1, progress=False)
    assert page.stat().st_size > 0


def test_the_explorer_of_letters_is_as_it_was(short_run: Any) -> None:
    _, located = short_run
    catalog = catalog_of(located)
    assert not catalog.relative and catalog.note == "P of the letters after the query's prompt 0, which is shown below."


@pytest.fixture(scope="module")
def short_run(model_of: Callable[[str], Any]) -> tuple[Any, QRNeurons]:
    model = model_of("llama")
    queries = tuple(Query(f"q{i}", "xy"[i % 2], (Prompt(f"Which? {i}\nAnswer:", "ABCD"[i % 4]),)) for i in range(8))
    return model, ql.locate(model, QuerySet(queries), QRNCAConfig(steps=2), progress=False)


def test_changes_are_named_by_what_partners_share(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    sets = {"qrnca": {query.id: located.for_query(query.id) for query in located.asked}}
    found = group_changes(ql.edit_effects(model, open_queries(), sets))
    figure = figures.changes(found, "answer")
    names = [trace.name for trace in figure.data]
    assert names[:3] == ["own query", "unrelated query, same group", "unrelated query, another group"]
    assert "P(right answer)" in figure.layout.title.text
    assert isinstance(found, pd.DataFrame) and "letter" not in str(figure.to_json())
