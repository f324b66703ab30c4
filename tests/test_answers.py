"""Answers of any length: their tokens, P and log P of them, integrals token by token, and runs that are read from them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import as_older
from tiny import ENGINE_FAMILIES

import qrnca_lens as ql
from qrnca_lens.attribution import attribute
from qrnca_lens.attribution.answers import answer_of, answer_probabilities, edited_answers
from qrnca_lens.attribution.options import answers, edited_options, option_probabilities, target_of
from qrnca_lens.attribution.targets import Answer
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.rules import quadrature
from qrnca_lens.core.store import RunError
from qrnca_lens.data import DataError, Prompt, Query, QuerySet, load_queries, save_queries
from qrnca_lens.data.texts import space_before
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.editing.partners import partners_of
from qrnca_lens.engine.asks import asked, log_probability_of
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.engine.refinement import PathTask
from qrnca_lens.methods.registry import score
from qrnca_lens.models import ModelError, reader_of, sites_of, to_tokens
from qrnca_lens.runs.pipeline import locate

PROMPT = "Question: which is right?\nAnswer:"
OPTIONS = ("one two", "three", "four and a half", "zero")
SOME = NeuronSet.of((0, 3), (2, 1))
CONFIG = QRNCAConfig(steps=2)


def open_queries(count: int = 8) -> QuerySet:
    """Multi-choice queries of two groups, whose questions can be put openly."""
    made = []
    for i in range(count):
        shown = [f"{text} {i}" for text in OPTIONS]
        lines = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", shown, strict=True))
        prompt = Prompt(f"Q {i}?\n{lines}Answer:", "ABCD"[i % 4], options=tuple(shown))
        made.append(Query(f"q{i}", f"g{i % 2}", (prompt,), f"Which is number {i}?", shown[i % 4]))
    return QuerySet(tuple(made), "open")


def log_p(model: Any, prompt: str, ids: tuple[int, ...]) -> list[float]:
    """log P of each token, from one plain run of the whole text."""
    tokens = to_tokens(model, prompt)
    logits = model(torch.cat([tokens, torch.tensor(ids)])[None])[0].float().log_softmax(-1)
    return [logits[len(tokens) - 1 + k, token].item() for k, token in enumerate(ids)]


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_every_token_is_integrated_at_its_own_last_position(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    ids = answer_of(model, PROMPT, "four and a half").ids
    assert len(ids) > 2
    tokens = to_tokens(model, PROMPT)
    task = PathTask(model, sites_of(model)[0], quadrature("right", 4).with_ends())
    wanted = [
        integrate_plainly(task, asked(torch.cat([tokens, tokens.new_tensor(ids[:k])]), log_probability_of(token)))
        for k, token in enumerate(ids)
    ]
    for reduce, share in (("mean", 1 / len(ids)), ("sum", 1.0)):
        found = attribute(model, PROMPT, answer="four and a half", reduce=reduce, steps=4)
        scores = share * sum(path.scores for path in wanted)
        assert (found.scores - scores).norm() < 5e-5 * scores.norm()
        for token, path, id in zip(found.tokens, wanted, ids, strict=True):
            assert (token.id, token.weight) == (id, share)
            assert token.log_probability == pytest.approx(path.untouched, rel=1e-4)
            assert torch.allclose(token.change, path.untouched - path.at_zero, atol=1e-4)
            assert torch.allclose(token.completeness_gap, path.scores.sum(1) - token.change, atol=1e-4)
        assert torch.allclose(found.scores.sum(1) - found.completeness_gap, found.change, atol=1e-6)
        whole = sum(token.weight * token.change for token in found.tokens)
        assert torch.allclose(found.change, whole, atol=1e-4)
        assert found.log_probability == pytest.approx(share * sum(log_p(model, PROMPT, ids)), rel=1e-4)
        assert found.probability == pytest.approx(math.exp(sum(log_p(model, PROMPT, ids)) / len(ids)), rel=1e-4)


def test_auto_leaves_a_hundredth_of_a_nat_a_token(model_of: Callable[[str], Any]) -> None:
    found = attribute(model_of("llama"), PROMPT, answer="four and a half", rule="auto")
    assert all(token.completeness_gap.abs().max() <= 0.01 for token in found.tokens)
    assert not found.rough_layers
    coarse = attribute(model_of("llama"), PROMPT, answer="four and a half", steps=1)
    limit = coarse.completeness_gap.abs() > 0.01
    assert coarse.rough_layers == tuple(limit.nonzero().flatten().tolist()) != ()
    assert "0.01 nats a token" in repr(coarse) and "nats over" in repr(coarse)


def test_an_answer_against_another(model_of: Callable[[str], Any]) -> None:
    model = model_of("qwen2")
    parts = [attribute(model, PROMPT, answer=text, steps=3) for text in ("four and a half", "three")]
    found = attribute(model, PROMPT, answer="four and a half", against="three", steps=3)
    assert torch.allclose(found.scores, parts[0].scores - parts[1].scores, atol=1e-6)
    assert torch.allclose(found.completeness_gap, parts[0].completeness_gap - parts[1].completeness_gap, atol=1e-5)
    assert found.log_probability == pytest.approx(parts[0].log_probability - parts[1].log_probability, abs=1e-5)
    assert found.against == "three" and found.probability == pytest.approx(parts[0].probability)
    same = attribute(model, PROMPT, answer="three", against="three", steps=3)
    assert same.scores.abs().max() == 0 and same.log_probability == 0


def test_many_answers_together(model_of: Callable[[str], Any]) -> None:
    model, prompts = model_of("llama"), [PROMPT, "A short answer:", PROMPT]
    together = attribute(model, prompts, answer=["three", "one two", "zero"], steps=2)
    for prompt, text, found in zip(prompts, ["three", "one two", "zero"], together, strict=True):
        alone = attribute(model, prompt, answer=text, steps=2)
        assert (found.scores - alone.scores).norm() < 1e-5 * alone.scores.norm()
        assert (found.prompt, found.target, found.target_ids) == (prompt, text, alone.target_ids)
    mixed = attribute(model, [PROMPT, PROMPT], [answer_of(model, PROMPT, "three"), 40], steps=2)
    assert torch.allclose(mixed[0].scores, together[0].scores, atol=1e-5) and not mixed[1].tokens


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_probabilities_are_geometric_means(family: str, model_of: Callable[[str], Any]) -> None:
    model, prompt = model_of(family), Prompt(PROMPT, "B", options=OPTIONS, read="answer")
    (found,) = answer_probabilities(model, [prompt])
    for p, text in zip(found.tolist(), OPTIONS, strict=True):
        logs = log_p(model, PROMPT, answer_of(model, PROMPT, text).ids)
        assert p == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-4)
    assert torch.equal(option_probabilities(model, [prompt])[0], found)
    aim = target_of(model, prompt)
    assert isinstance(aim, Answer) and aim.ids == answer_of(model, PROMPT, "three").ids


def by_hand(model: Any, text: str, factor: float) -> float:
    """P of an answer, every token read at the end of a text of its own with some neurons scaled there."""
    ids, logs = answer_of(model, PROMPT, text).ids, []
    for place, token in enumerate(ids):
        whole = torch.cat([to_tokens(model, PROMPT), torch.tensor(ids[:place], dtype=torch.long)])
        with ql.scale(model, SOME, factor):
            logs.append(model(whole[None])[0, -1].float().log_softmax(-1)[token].item())
    return math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_an_edit_scales_what_is_attributed(family: str, model_of: Callable[[str], Any]) -> None:
    """Each token's own last position, by rows, in a block and by hand alike."""
    model, prompt = model_of(family), Prompt(PROMPT, "B", options=OPTIONS, read="answer")
    (found,) = edited_answers(model, [prompt], [[(SOME, 0.0), (SOME, 2.0), (NeuronSet(), 0.0)]])
    assert found.shape == (4, 4) and torch.allclose(found[3], found[0], rtol=1e-5)
    for row, factor in ((1, 0.0), (2, 2.0)):
        wanted = torch.tensor([by_hand(model, text, factor) for text in OPTIONS])
        assert torch.allclose(found[row], wanted, rtol=1e-4)
        with ql.scale(model, SOME, factor):
            assert torch.allclose(option_probabilities(model, [prompt])[0], wanted, rtol=1e-4)
    assert not torch.allclose(found[1], found[0], rtol=1e-3)
    assert torch.allclose(edited_options(model, [prompt], [[(SOME, 0.0)]])[0][1], found[1], rtol=1e-5)


def test_a_prompt_given_as_tokens_is_not_read_again(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    tokens = to_tokens(model, PROMPT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attribute(model, tokens, answer="three", steps=2)
    assert torch.equal(found.scores, attribute(model, PROMPT, answer="three", steps=2).scores)
    with pytest.raises(ModelError, match="the model's context holds 128"):
        attribute(model, torch.full((128,), 40), answer="four and a half")


def test_an_answer_of_a_special_token_is_refused(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    with pytest.raises(ModelError, match="holds the special token"):
        attribute(model, PROMPT, answer=f"three{model.tokenizer.bos_token}")


@pytest.mark.parametrize(
    ("prompt", "answer", "space"),
    [
        ("Answer:", "Paris", " "),
        ("The answer is", "Paris", " "),
        ("The answer is ", "Paris", ""),
        ("The answer is (", "Paris", ""),
        ("答え:", "東京", ""),
        ("正しい答えは", "Paris", ""),
        ("答案：", "Paris", ""),
        ("الجواب الصحيح هو", "القاهرة", " "),
        ("Ответ:", "Париж", " "),
        ("Answer:", " Paris", ""),
    ],
)
def test_the_space_before_an_answer(prompt: str, answer: str, space: str) -> None:
    assert space_before(prompt, answer) == space


def test_the_tokens_of_an_answer_are_those_of_the_whole_text(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    for prompt, text in ((PROMPT, "one two"), ("The answer is", "D"), ("答え:", "二")):
        ids = reader_of(model).answer(prompt, text)
        whole = model.to_tokens(prompt + space_before(prompt, text) + text)[0].tolist()
        assert [*to_tokens(model, prompt).tolist(), *ids] == whole


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_answer_is_refused(text: str, model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match=r"the answer to .*Answer.* is empty"):
        attribute(model_of("llama"), PROMPT, answer=text)


def test_bad_answers_are_refused_before_anything_runs(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ModelError, match=r"\d+ tokens, the model's context holds 128"):
        attribute(model, PROMPT, answer="four and a half " * 20)
    for given, words in (
        ({}, "give a target or an answer"),
        ({"targets": 40, "answer": "three"}, "give a target or an answer"),
        ({"targets": 40, "against": "three"}, "against and reduce are about answers"),
        ({"targets": 40, "reduce": "sum"}, "against and reduce are about answers"),
        ({"answer": ["three", "one"]}, "one prompt has one answer"),
        ({"answer": "three", "reduce": "max"}, "reduce must be one of mean, sum"),
    ):
        with pytest.raises(ValueError, match=words):
            attribute(model, PROMPT, **given)
    with pytest.raises(ValueError, match="2 prompts and one answer"):
        attribute(model, [PROMPT, PROMPT], answer="three")  # type: ignore[call-overload]


def test_open_prompts_of_a_set(tmp_path: Path) -> None:
    queries = open_queries()
    opened = queries.as_open()
    assert (queries.read, opened.read, opened.as_open()) == ("letter", "answer", opened)
    assert opened.made == ("open prompts",)
    for query, before in zip(opened, queries, strict=True):
        assert [prompt.template for prompt in query.prompts] == ["en-open-1", "en-open-2", "en-open-3"]
        for prompt in query.prompts:
            assert query.question in prompt.text and not any(option in prompt.text for option in prompt.options)
            assert prompt.options == before.prompts[0].options and prompt.marked == query.answer
    (held_out,) = {prompt.template for query in queries.as_open(held_out=True) for prompt in query.prompts}
    assert held_out == "en-open-held-out"
    save_queries(opened, tmp_path / "open.jsonl")
    assert load_queries(tmp_path / "open.jsonl").queries == opened.queries
    other = replace(
        opened.queries[0], prompts=(replace(opened.queries[0].prompts[0], options=("a", "b", "c", "d")),), answer=""
    )
    kept = replace(opened.queries[0], prompts=opened.queries[0].prompts[:1])
    assert QuerySet((other,)).fingerprint != QuerySet((kept,)).fingerprint  # the options are what is compared


def test_every_language_has_open_templates() -> None:
    for name in ("atlas/domains", "atlas/languages"):
        for query in load_queries(name).as_open():
            assert len({prompt.text for prompt in query.prompts}) == 3
            assert all(prompt.text.count(query.question) == 1 for prompt in query.prompts)


def test_what_cannot_be_put_openly_is_refused(short_queries: QuerySet) -> None:
    with pytest.raises(DataError, match="query 'q0': field 'question' is empty"):
        short_queries.as_open()
    first = open_queries().queries[0]
    bare = replace(first, prompts=(Prompt("Q?\nAnswer:", "A"),))
    with pytest.raises(DataError, match="the options of its first prompt are not known"):
        QuerySet((bare,)).as_open()
    with pytest.raises(DataError, match="no open templates for 'tlh'"):
        QuerySet((replace(first, language="tlh"),)).as_open()
    with pytest.raises(DataError, match="expected 4 texts, found 0"):
        Prompt("The answer is", "A", read="answer")
    with pytest.raises(DataError, match="'read': 'text' is none of letter, answer"):
        Prompt("The answer is", "A", read="text")  # type: ignore[arg-type]
    opened = open_queries().as_open().queries[0]
    with pytest.raises(DataError, match="open prompts beside"):
        replace(first, prompts=(*first.prompts, *opened.prompts))
    with pytest.raises(DataError, match="open prompts beside"):
        QuerySet((first, replace(opened, id="other")))
    chat = replace(first, prompts=(replace(first.prompts[0], rendering="chat"),))
    with pytest.raises(DataError, match="rendered with chat already; make them open first"):
        QuerySet((chat,)).as_open()


def test_partners_of_open_prompts_share_the_group_or_do_not() -> None:
    opened = open_queries(12).as_open()
    for query in opened:
        found = partners_of(opened, 0)[query.id]
        for kind, same in ((found.same, True), (found.other, False)):
            assert len(kind) == 3 and None not in kind
            for place in kind:
                assert place is not None and place[0] != query.id
                assert (opened[place[0]].group == query.group) is same


def test_a_run_that_is_read_from_answers(model_of: Callable[[str], Any], tmp_path: Path) -> None:
    model, queries = model_of("llama"), open_queries()
    located = locate(model, queries, CONFIG, read="answer", out=tmp_path / "run", progress=False)
    assert located.config.read == "answer" and located.asked == queries.as_open()
    assert "read from whole answers" in repr(located)
    for row in located.queries.itertuples():
        prompts = located.asked[row.query].prompts
        p = option_probabilities(model, prompts)
        assert row.probability == pytest.approx(p[:, prompts[0].right].mean().item(), rel=1e-4)
    first = located.asked.queries[0]
    found = [attribute(model, prompt.text, answer=first.answer, steps=2).scores for prompt in first.prompts]
    clusters = located.clusters[located.clusters["query"] == first.id].set_index(["layer", "neuron"])["attribution"]
    (layer, neuron), score = clusters.idxmax(), clusters.max()
    assert score == pytest.approx(sum(scores[layer, neuron].item() for scores in found), rel=1e-3)
    assert QRNeurons.load(tmp_path / "run").config == located.config
    again = locate(model, queries.as_open(), replace(CONFIG, read="answer"), out=tmp_path / "run", progress=False)
    assert again.table.equals(located.table)
    with pytest.raises(RunError, match="read: letter here, answer in the folder"):
        locate(model, queries, CONFIG, out=tmp_path / "run", progress=False)
    with pytest.raises(DataError, match="give read='answer'"):
        locate(model, queries.as_open(), CONFIG, progress=False)
    with pytest.raises(ValueError, match="read must be one of letter, answer"):
        locate(model, queries, CONFIG, read="text", progress=False)  # type: ignore[arg-type]


def test_gaps_of_answers_are_measured_in_nats(model_of: Callable[[str], Any]) -> None:
    located = locate(model_of("llama"), open_queries(), CONFIG, read="answer", progress=False)
    assert set(located.rough["query"]) == set(located.queries.loc[located.queries["gap"] > 0.05, "query"])
    rows = located.gaps
    above = rows[(rows["gap"].abs() > 0.1 * rows["change"].abs()) & (rows["gap"].abs() > 0.01)]
    assert len(located.missed_layers) == len(above)


def test_runs_of_a_time_before_answers_are_read(located_of: Callable[[str], QRNeurons], tmp_path: Path) -> None:
    located_of("llama").save(tmp_path / "old")
    as_older(tmp_path / "old")
    for name in ("header.json", "asked.json"):
        record = json.loads((tmp_path / "old" / name).read_text())
        for prompt in [prompt for query in record.get("queries", ()) for prompt in query["prompts"]]:
            del prompt["read"], prompt["rendering"]
        record.get("config", {}).pop("read", None)
        (tmp_path / "old" / name).write_text(json.dumps(record))
    found = QRNeurons.load(tmp_path / "old")
    assert found.config.read == "letter" and found.asked == located_of("llama").asked


def test_effects_on_open_prompts(model_of: Callable[[str], Any]) -> None:
    model, opened = model_of("llama"), open_queries().as_open()
    frame = edit_effects(model, opened, {"some": {"q1": SOME}}, factors=[0.0])
    (row,) = frame.to_dict("records")
    prompts = opened["q1"].prompts
    found = edited_answers(model, prompts, [[(SOME, 0.0)]] * 3)
    p = torch.stack(found)[:, :, prompts[0].right]
    assert row["p_before"] == pytest.approx(p[:, 0].mean().item(), rel=1e-5)
    assert row["p_after"] == pytest.approx(p[:, 1].mean().item(), rel=1e-5)
    assert row["log_p_after"] == pytest.approx(p[:, 1].log().mean().item(), rel=1e-5)
    right = torch.stack(found).argmax(-1) == prompts[0].right
    assert row["right_before"] == int(right[:, 0].sum())
    assert row["right_to_wrong"] == int((right[:, 0] & ~right[:, 1]).sum())
    for kind, same in (("same", True), ("other", False)):
        places = json.loads(row[f"{kind}_partners"])
        assert all((opened[query].group == "g1") is same for query, _ in places)
        asking = [opened[query].prompts[place] for query, place in places]
        partner = torch.stack(
            [
                rows[:, prompt.right]
                for prompt, rows in zip(asking, edited_answers(model, asking, [[(SOME, 0.0)]] * 3), strict=True)
            ]
        )
        assert row[f"p_{kind}_after"] == pytest.approx(partner[:, 1].mean().item(), rel=1e-5)
        assert row[f"log_p_{kind}_before"] == pytest.approx(partner[:, 0].log().mean().item(), rel=1e-5)


def test_the_two_kinds_are_kept_apart(model_of: Callable[[str], Any]) -> None:
    model, opened = model_of("llama"), open_queries().as_open()
    prompts = [query.prompts[0] for query in opened]
    with pytest.raises(ValueError, match="an open prompt has no letter after it"):
        ql.letter_probabilities(model, prompts)
    with pytest.raises(ValueError, match="some of the prompts are open"):
        option_probabilities(model, [*prompts, open_queries().queries[0].prompts[0]])
    table = answers(model, opened)
    assert table["mass"].isna().all() and set(table["answer"]) <= set("ABCD")
    check = ql.check(model, opened)
    assert check.answers["mass"].isna().all() and set(check.answers["right"]) == {query.answer for query in opened}
    assert len(check.options) == 0 and check.answers["is_right"].tolist() == table["right"].tolist()


@pytest.mark.parametrize("key", ["random", "activation", "activation-absolute", "gradient", "contrastive", "ablation"])
def test_methods_score_answers(key: str, model_of: Callable[[str], Any]) -> None:
    """Each against the mean over tokens that its definition asks for."""
    model, prompt = model_of("llama"), open_queries().as_open().queries[1].prompts[0]
    found = score(model, prompt, key)
    aim = target_of(model, prompt)
    assert found.shape == (3, 48)
    if key == "gradient":
        wanted = attribute(model, prompt.text, aim, steps=1).scores
    elif key == "contrastive":
        p = option_probabilities(model, [prompt])[0]
        p[prompt.right] = -1
        wanted = attribute(model, prompt.text, answer=prompt.marked, against=prompt.options[int(p.argmax())]).scores
    elif key == "ablation":
        (rows,) = edited_options(model, [prompt], [[(NeuronSet.of((1, 7)), 0.0)]])
        wanted = found.clone()
        wanted[1, 7] = rows[0, prompt.right] - rows[1, prompt.right]
    elif key == "random":
        wanted = score(model, prompt, key)
    else:
        tokens = to_tokens(model, prompt.text)
        whole = torch.cat([tokens, torch.tensor(aim.ids[:-1], dtype=torch.long)])
        _, cache = model.run_with_cache(whole[None])
        posts = torch.stack([cache[f"blocks.{layer}.mlp.hook_post"][0, len(tokens) - 1 :].mean(0) for layer in range(3)])
        wanted = posts if key == "activation" else posts.abs()
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-4)
