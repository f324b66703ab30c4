"""What is shown on a real language model, SmolLM2-135M-Instruct (`make real-model` brings it, `make test-real` runs)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from real_model import REAL_MODEL, SHA256
from transformers import AutoModelForCausalLM

import qrnca_lens as ql
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.rules import quadrature
from qrnca_lens.data import QuerySet
from qrnca_lens.engine.asks import asked, probability_of
from qrnca_lens.engine.integral import PathTask, integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.models import is_hooked_transformer, reader_of
from qrnca_lens.models.origin import origin_of

pytestmark = pytest.mark.real
PROMPTS = (
    "The capital of France is",
    "The chemical symbol for gold is",
    "Question: 12 + 34 = 46\n\nWhat is  naïve?\nAnswer:",
)


def test_the_file_loads_as_a_hooked_transformer_with_the_logits_of_transformers(real: Any, tmp_path: Path) -> None:
    assert is_hooked_transformer(real)
    assert (real.cfg.model_name, real.cfg.n_layers, real.cfg.d_mlp, real.cfg.d_vocab) == (REAL_MODEL.name, 30, 1536, 49152)
    assert origin_of(real) == {"file": REAL_MODEL.name, "sha256": SHA256}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=str(REAL_MODEL), attn_implementation="eager")
    for prompt in PROMPTS:
        ids = reader_of(real).tokens(prompt)[None]
        with torch.no_grad():
            wanted = theirs(ids).logits
        assert (real(ids) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_it_knows_what_its_makers_say(real: Any) -> None:
    for prompt, answer in zip(PROMPTS, (" Paris", " Au"), strict=False):
        p = real(reader_of(real).tokens(prompt)[None])[0, -1].softmax(-1)
        assert real.tokenizer.decode([p.argmax().item()]) == answer and p.max() > 0.5


def test_texts_are_read_as_the_model_reads_them(real: Any) -> None:
    for prompt in PROMPTS:
        ids = reader_of(real).tokens(prompt)
        assert ids.tolist() == real.to_tokens(prompt)[0].tolist()
        assert real.tokenizer.decode(ids) == prompt
    assert reader_of(real).pieces(reader_of(real).tokens("is 1234")) == ["is", " ", "1", "2", "3", "4"]
    assert "<|im_start|>" in real.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_the_engine_attributes_as_the_plain_path_does(real: Any) -> None:
    """The plain path in float64: in float32 its rounding is 1.3e-4 of the highest score on some CPUs (the engine's 5e-6)."""
    exact, rule = copy.deepcopy(real).double(), quadrature("right", 2).with_ends()
    ask = asked(reader_of(real).tokens(PROMPTS[0]), probability_of(reader_of(real).token(" Paris")))
    (fast,), plain = (
        integrate_by_rows(PathTask(real, "up", rule), [ask]),
        integrate_plainly(PathTask(exact, "up", rule), ask),
    )
    assert fast.scores.shape == (30, 1536)
    assert (fast.scores - plain.scores).abs().max() <= 1e-4 * plain.scores.abs().max()
    assert fast.untouched == pytest.approx(plain.untouched, rel=1e-4)
    found = ql.attribute(real, PROMPTS[0], " Paris", steps=2, site="up")
    assert torch.allclose(found.scores, fast.scores, atol=1e-5 * float(plain.scores.abs().max()))


def six_facts() -> QuerySet:
    """Two facts of each relation, which the model answers openly."""
    asked = ("capital-france", "capital-japan", "symbol-oxygen", "symbol-carbon", "language-italy", "language-russia")
    return ql.load_queries("facts/relations").keep(asked)


@pytest.fixture(scope="module")
def facts(real: Any) -> QRNeurons:
    """The neurons of six facts, read from whole answers."""
    return ql.locate(real, six_facts(), read="answer", progress=False)


def test_it_answers_openly_and_not_by_letter(real: Any) -> None:
    letters, answers = ql.check(real, six_facts()), ql.check(real, six_facts().as_open())
    assert (
        "not told from chance" in repr(letters) and letters.options.loc[letters.options["chosen"].idxmax(), "option"] == "A"
    )
    assert answers.verdict == "above chance" and len(answers.answered) >= 5


def test_an_answer_is_attributed_token_by_token(real: Any) -> None:
    prompt = "Question: Who wrote Romeo and Juliet?\nAnswer:"
    found = ql.attribute(real, prompt, answer="William Shakespeare", rule="auto")
    assert [token.text for token in found.tokens] == [" William", " Shakespeare"]
    tokens = reader_of(real).tokens(f"{prompt} William Shakespeare")
    logs = real(tokens[None])[0].log_softmax(-1)
    for k, token in enumerate(found.tokens):
        assert token.log_probability == pytest.approx(logs[len(tokens) - 3 + k, token.id].item(), abs=1e-3)
        assert token.completeness_gap.abs().max() <= 0.01
    assert torch.allclose(found.scores.sum(1) - found.completeness_gap, found.change, atol=1e-4)


def test_suppressing_a_fact_s_neurons_lowers_its_answer_and_not_another(real: Any, facts: QRNeurons) -> None:
    evidence = ql.Evidence(real, facts.asked, facts)
    sets = {key: ql.find_neurons(key, evidence) for key in ("qrnca", "random-layers")}
    effects = ql.edit_effects(real, facts.asked, sets, factors=[0.0])
    changed = {key: ql.probability_change_ratio(effects[effects["method"] == key]) for key in sets}
    own, random = changed["qrnca"].own, changed["random-layers"].own
    assert own.mean < -25 and own.ci[1] < random.ci[0]
    elsewhere = changed["qrnca"].other_letter  # of a fact of another relation
    assert abs(elsewhere.mean) < abs(own.mean) / 2


def test_the_explorer_and_a_card_at_its_size(real: Any, facts: QRNeurons, tmp_path: Path) -> None:
    query = facts.asked.queries[0]
    explorer = ql.Explorer(real, facts.asked, facts)
    explorer.selected = {"query": query.id}
    assert set(explorer.letters) == set(query.prompts[0].labels)
    page = ql.write_explorer(real, facts, tmp_path / "page.html", top=1, per_group=1, progress=False)
    assert 100_000 < page.stat().st_size < 20_000_000
    chosen = next(iter(facts.for_query(query.id)))
    card = ql.neuron(real, chosen.layer, chosen.index, located=facts)
    assert query.id in card.to_html()
