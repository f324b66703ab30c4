from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from transformers import AutoTokenizer

import qrnca_lens as ql
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.core.values import WrongKindError
from qrnca_lens.data import LETTERS, TEMPLATES, DataError, Prompt, Query, QuerySet, Question, load_queries, save_queries
from qrnca_lens.data.readers.sources import save_questions
from qrnca_lens.data.texts import labelled_options, suggests_space
from qrnca_lens.models import to_tokens
from qrnca_lens.models.hooked import HookedTransformer, HookedTransformerConfig
from qrnca_lens.study import subject

CHATML = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]


def a_query(number: int, group: str = "x", fact: str = "", language: str = "en", prompts: int = 3) -> Query:
    options = tuple(f"{word} {number}" for word in ("red", "green", "blue", "grey"))
    made = tuple(
        Prompt(template.render(f"Which colour has {number}?", options), LETTERS[number % 4], template.key, options)
        for template in TEMPLATES[language].detection[:prompts]
    )
    return Query(f"q{number}", group, made, f"Which colour has {number}?", options[number % 4], language, "", fact)


SET = QuerySet(tuple(a_query(i, "xy"[i % 2]) for i in range(10)), "colours", ("by hand",))
WHOLE = load_queries("atlas/domains")


def tokenizer_of(template: str | None, *, bos: bool = False) -> Any:
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def model_of_chat(template: str | None, folder: Path, *, bos: bool, prepends: bool) -> Any:
    torch.manual_seed(0)
    tokenizer_of(template, bos=bos).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 12, "n_ctx": 512, "act_fn": "gelu"}
    config = HookedTransformerConfig(**shape, d_vocab=len(tokenizer), device="cpu", default_prepend_bos=prepends)
    return HookedTransformer(config, tokenizer=tokenizer)


def test_the_text_after_examples_is_as_written_by_hand() -> None:
    pair = QuerySet((a_query(0), a_query(1)), made=("by hand",))
    found = pair.with_examples(1, seed=4)
    assert found["q0"].prompts[0].text == (
        "Question: Which colour has 1?\nA. red 1\nB. green 1\nC. blue 1\nD. grey 1\nAnswer: B\n\n"
        "Question: Which colour has 0?\nA. red 0\nB. green 0\nC. blue 0\nD. grey 0\nAnswer:"
    )
    assert found.made == ("by hand", "examples k=1 seed=4") and found.name == pair.name
    for query, own in zip(found, pair, strict=True):
        for prompt, before in zip(query.prompts, own.prompts, strict=True):
            assert prompt == replace(before, text=prompt.text, rendering="examples")
            assert labelled_options(prompt.text, "") == before.options


def test_a_letter_follows_as_a_writer_puts_it() -> None:
    queries = QuerySet(tuple(a_query(i, language="ja") for i in range(2))).with_examples(1)
    first, second = (prompt.text for prompt in queries["q0"].prompts[:2])
    assert "答え: B\n\n質問" in first and "正しい選択肢はB\n\n" in second
    endings = {"Answer:": True, "is": True, "Answer: (": False, "答案：": False, "は": False, "A)": True}
    assert {text: suggests_space(text) for text in endings} == endings


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_examples_are_of_the_group_and_hang_on_no_order(k: int, seed: int, rng: random.Random) -> None:
    shuffled = list(SET.queries)
    rng.shuffle(shuffled)
    found, other = SET.with_examples(k, seed), QuerySet(tuple(shuffled)).with_examples(k, seed)
    for query in found:
        assert query == other[query.id]
        for place, prompt in enumerate(query.prompts):
            *solved, asked = prompt.text.split("\n\n")
            assert asked == SET[query.id].prompts[place].text and len(solved) == k == len(set(solved))
            near = [one.prompts[place] for one in SET if one.group == query.group and one.id != query.id]
            assert set(solved) <= {f"{one.text} {one.letter}" for one in near}


def test_other_seeds_and_queries_draw_others_and_a_subset_changes_only_what_lost_its_examples() -> None:
    first, second = (SET.with_examples(2, seed) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint
    drawn = {query.prompts[0].text.rpartition("\n\n")[0] for query in WHOLE.with_examples(1)}
    assert len(drawn) > 300  # of 552 queries
    kept = [query for query in SET if query.id != "q2"]
    smaller = QuerySet(tuple(kept)).with_examples(2)
    changed = {query.id for query in kept if smaller[query.id] != first[query.id]}
    assert changed == {query.id for query in kept if "has 2?" in first[query.id].prompts[0].text}
    assert changed


def test_no_example_is_of_the_same_fact() -> None:
    facts = QuerySet(tuple(a_query(i, fact=f"fact {i % 3}") for i in range(9)))
    for query in facts.with_examples(2):
        numbers = [int(part.split("has ")[1].split("?")[0]) for part in query.prompts[0].text.split("\n\n")]
        assert sorted(number % 3 for number in numbers) == [0, 1, 2]
    with pytest.raises(DataError, match="query 'q0': 3 examples are asked for, but group 'x' has only 2 other"):
        facts.with_examples(3)


@pytest.mark.usefixtures("unchecked")
def test_examples_that_cannot_be_are_refused() -> None:
    assert SET.with_examples(0) is SET
    with pytest.raises(DataError, match="must be at least 0, not -1"):
        SET.with_examples(-1)
    for wrong in (1.5, True, "2"):
        with pytest.raises(WrongKindError, match="k must be a whole number"):
            SET.with_examples(wrong)
    with pytest.raises(DataError, match="group 'x' has only 4 other questions"):
        SET.with_examples(5)
    with pytest.raises(DataError, match="rendered with examples already"):
        SET.with_examples(1).with_examples(1)
    with pytest.raises(DataError, match="rendered with chat already"):
        SET.as_chat(tokenizer_of(CHATML)).with_examples(1)
    short = QuerySet((a_query(0), a_query(1, prompts=2)))
    with pytest.raises(DataError, match="query 'q0': 1 examples are asked for, but group 'x' has only 0"):
        short.with_examples(1)
    bare = Query("bare", "x", (Prompt("Yes or no?\nAnswer:", "A"),) * 3)
    with pytest.raises(DataError, match="query 'bare', prompt 0, after its examples: the options that the text shows last"):
        QuerySet((bare, a_query(1))).with_examples(1)


def test_a_chat_is_as_written_by_hand() -> None:
    prompts = SET.as_chat(tokenizer_of(CHATML))["q3"].prompts
    assert prompts[0].text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQuestion: Which colour has 3?\nA. red 3\nB. green 3\n"
        "C. blue 3\nD. grey 3<|im_end|>\n<|im_start|>assistant\nThe correct option is"
    )
    assert prompts[2].options == prompts[2].shown == ("red 3", "green 3", "blue 3", "grey 3")
    assert (prompts[1].letter, prompts[1].marked, prompts[1].rendering) == ("D", "grey 3", "chat")
    text = SET.as_chat(tokenizer_of(LLAMA_3), lead="My answer:")["q3"].prompts[0].text
    assert text.startswith("<s><|head|>user<|/head|>\n\nQuestion: Which") and text.endswith("<|/head|>\n\nMy answer:")
    solved = SET.with_examples(2).as_chat(tokenizer_of(LLAMA_3))["q3"].prompts[0].text
    assert solved.count("\nAnswer: ") == 2 and "grey 3<|eot|>" in solved


@pytest.mark.parametrize("language", TEMPLATES)
def test_the_lead_is_in_the_language_of_the_question(language: str) -> None:
    chat = QuerySet((a_query(1, language=language),)).as_chat(tokenizer_of(CHATML))
    lead = TEMPLATES[language].detection[1].text.split("\n")[-1]
    assert all(prompt.text.endswith(f"assistant\n{lead}") for prompt in chat["q1"].prompts)


def test_made_tells_the_chat_and_files_keep_it(tmp_path: Path) -> None:
    chat = SET.as_chat(tokenizer_of(CHATML), lead="It is")
    assert chat.made[:-1] == SET.made and chat.made[-1].startswith("chat template=") and "lead='It is'" in chat.made[-1]
    assert chat.made != SET.as_chat(tokenizer_of(LLAMA_3), lead="It is").made
    for queries in (chat, SET.with_examples(1)):
        save_queries(queries, tmp_path / "kept.jsonl")
        again = load_queries(tmp_path / "kept.jsonl")
        assert again.queries == queries.queries
    text = (tmp_path / "kept.jsonl").read_text().replace('"examples"', '"poem"')
    (tmp_path / "kept.jsonl").write_text(text)
    with pytest.raises(DataError, match="line 1: prompt rendering 'poem' is not one of plain, examples, chat"):
        load_queries(tmp_path / "kept.jsonl")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer of .* has no chat template"),
        (
            "{{ messages[0]['content'] }}{{ raise_exception('no roles') }}",
            "query 'q0', prompt 0: the tokenizer's chat template fails .*: no roles; use the plain",
        ),
        ("{% for m in messages %}{{ m['content'][:9] }}{% endfor %}", "chat template fails"),
        ("{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}", "does not keep the question"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "chat template fails|does not keep"),
        (
            "{% for m in messages %}{{ m['content'] | replace('option is', 'option is:') }}{% endfor %}",
            "does not end in the lead",
        ),
        ("{% for m in", "chat template fails"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SET.as_chat(tokenizer_of(template))


def test_chats_that_cannot_be_are_refused() -> None:
    tokenizer = tokenizer_of(CHATML)
    with pytest.raises(TypeError, match="expected a model or a tokenizer of transformers, not 'atlas'"):
        SET.as_chat("atlas")
    with pytest.raises(DataError, match="is a chat already"):
        SET.as_chat(tokenizer).as_chat(tokenizer)
    for lead in ("It is ", "\nIt is"):
        with pytest.raises(DataError, match="begins or ends in white space"):
            SET.as_chat(tokenizer, lead=lead)
    with pytest.raises(DataError, match="field 'lead' is empty"):
        SET.as_chat(tokenizer, lead="")
    bad = {"One line": "has a single line", "Is <|im_end|> a letter?\nAnswer:": "holds '<|im_end|>', a special token"}
    for text, message in bad.items():
        with pytest.raises(DataError, match=r"query 'q', prompt 0.*" + message.replace("|", r"\|")):
            QuerySet((Query("q", "x", (Prompt(text, "A"),)),)).as_chat(tokenizer)
    other = QuerySet((replace(a_query(0), language="de"),))
    with pytest.raises(DataError, match="no lead for the assistant in language 'de'; give lead="):
        other.as_chat(tokenizer)
    assert other.as_chat(tokenizer, lead="Die Antwort ist")["q0"].prompts[0].text.endswith("Die Antwort ist")


def test_the_options_stay_where_no_line_asks_for_the_letter() -> None:
    text = "Which?\nA. one\nB. two\nC. three\nD. four"
    (prompt,) = QuerySet((Query("q", "x", (Prompt(text, "B"),)),)).as_chat(tokenizer_of(CHATML))["q"].prompts
    assert f"user\n{text}<|im_end|>" in prompt.text
    assert prompt.options == ("one", "two", "three", "four") and prompt.marked == "two"


@pytest.mark.transformer_lens_3
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("prepends", [True, False])
@pytest.mark.parametrize("template", [CHATML, LLAMA_3])
def test_a_bos_stands_once_without_a_word(template: str, prepends: bool, bos: bool, tmp_path: Path) -> None:
    """One where the model or the template has one, none else; special tokens become their ids, letters follow a space."""
    model = model_of_chat(template, tmp_path, bos=bos, prepends=prepends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = [prompt for query in SET.as_chat(model) for prompt in query.prompts]
        read = [to_tokens(model, prompt.text).tolist() for prompt in prompts]
    first = model.tokenizer.bos_token_id
    assert {ids.count(first) for ids in read} == {int(prepends or template == LLAMA_3)}
    assert all(ids[0] == first for ids in read if first in ids)
    wanted = {"<|im_start|>": 3, "<|im_end|>": 2} if template == CHATML else {"<|head|>": 2, "<|/head|>": 2, "<|eot|>": 1}
    for piece, count in wanted.items():
        assert {ids.count(model.tokenizer.convert_tokens_to_ids(piece)) for ids in read} == {count}
    forms = ql.models.reader_of(model).options(prompts[0].text, LETTERS)
    assert forms[0].leading_space and [model.tokenizer.decode([token]) for token in forms[0].ids] == [" A", " B", " C", " D"]


def test_a_tokenizer_alone_says_whether_it_adds_a_bos() -> None:
    assert not SET.as_chat(tokenizer_of(LLAMA_3, bos=True))["q0"].prompts[0].text.startswith("<s>")
    assert SET.as_chat(tokenizer_of(LLAMA_3))["q0"].prompts[0].text.startswith("<s>")


@pytest.mark.transformer_lens_3
def test_a_run_folder_refuses_the_same_queries_as_chats(tmp_path: Path) -> None:
    model = model_of_chat(CHATML, tmp_path, bos=False, prepends=False)
    config, folder, examples = QRNCAConfig(steps=1), tmp_path / "run", SET.with_examples(1)
    located = ql.locate(model, SET, config, out=folder, progress=False)
    for other in (SET.as_chat(model), examples, examples.as_chat(model)):
        with pytest.raises(ql.RunError, match="query 'q0': other prompts, letters, group, question, answer or fact here"):
            ql.locate(model, other, config, out=folder, progress=False)
    assert located.about["made"] == ["by hand"]
    chats = ql.locate(model, SET.as_chat(model), config, out=tmp_path / "chats", progress=False)
    assert chats.about["made"] == list(SET.as_chat(model).made)
    assert ql.QRNeurons.load(tmp_path / "chats").asked.queries == chats.asked.queries


def test_a_subject_has_examples_and_chats_in_all_its_sets(tmp_path: Path) -> None:
    asked = [Question(f"q{i}", "xy"[i % 2], f"What is {i}?", f"answer {i}") for i in range(12)]
    save_questions(asked, tmp_path / "own.jsonl")
    file = tmp_path / "own.jsonl"
    item, whole = subject(file, per_group=2, shots=3), load_queries(file).with_examples(3)
    assert item.fresh and item.held_out
    sets = (item.queries, *item.renderings, item.fresh, item.held_out)
    assert {prompt.rendering for queries in sets for query in queries for prompt in query.prompts} == {"examples"}
    assert [query.id for query in item.queries] == [query.id for query in subject(file, per_group=2).queries]
    assert list(item.queries) == [whole[query.id] for query in item.queries]
    chats = item.as_chat(tokenizer_of(CHATML))
    assert chats.fresh and chats.held_out and chats.name == item.name
    sets = (chats.queries, *chats.renderings, chats.fresh, chats.held_out)
    assert {prompt.rendering for queries in sets for query in queries for prompt in query.prompts} == {"chat"}
