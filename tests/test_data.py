from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.attribution.options import answers
from qrnca_lens.data import (
    LETTERS,
    TEMPLATES,
    DataError,
    Prompt,
    Query,
    QuerySet,
    Question,
    load_queries,
    load_questions,
    save_queries,
    to_multi_choice,
)
from qrnca_lens.data.multi_choice import DistractorPool
from qrnca_lens.data.texts import has_line_break, labelled_options, normalise
from qrnca_lens.editing.collateral import other_queries
from qrnca_lens.editing.effects import edit_effects
from qrnca_lens.runs.pipeline import locate

ROW = {"id": "a", "group": "g", "question": "Why?", "answer": "yes", "distractors": ["no", "maybe", "never"]}
QUERY = {"id": "a", "group": "g", "prompts": [{"text": "Why?", "letter": "A"}]}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows), "utf-8")
    return path


def test_the_shipped_sets_have_the_promised_counts() -> None:
    domains, languages = load_questions("atlas/domains"), load_questions("atlas/languages")
    assert Counter(q.group for q in domains) == {
        "biology": 100, "physics": 100, "chemistry": 100, "mathematics": 100, "computer science": 52, "geography": 100,
    }  # fmt: skip
    assert Counter(q.group for q in languages) == dict.fromkeys(
        ("arabic", "english", "french", "japanese", "russian", "chinese"), 100
    )
    assert Counter(q.relation for q in languages) == dict.fromkeys(
        ("birth_place", "host_country", "employer", "instrument", "headquarters"), 120
    )
    for group in {q.group for q in domains}:
        answers = [q.answer for q in domains if q.group == group]
        assert sum(len(a.split()) >= 4 for a in answers) >= len(answers) / 2
        assert len({normalise(a) for a in answers}) == len(answers)
        assert len({normalise(q.question) for q in domains if q.group == group}) == len(answers)


def test_no_answer_stands_twice_in_a_relation_of_a_language() -> None:
    keys = [(q.language, q.relation, normalise(q.answer)) for q in load_questions("atlas/languages")]
    assert len(set(keys)) == len(keys)


def test_every_mark_names_another_answer_of_its_pool_and_none_is_drawn() -> None:
    for name in ("atlas/domains", "atlas/languages"):
        questions = load_questions(name)
        answers, pool = {(q.group, q.relation, q.answer) for q in questions}, DistractorPool(questions)
        for q in questions:
            assert q.answer not in q.also_right
            assert all((q.group, q.relation, text) in answers for text in q.also_right)
            drawn = {text for seed in range(200) for text in pool.draw(q, random.Random(seed))} if q.also_right else set()
            assert drawn.isdisjoint(q.also_right)


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("chem-004", "chem-012"), ("chem-010", "chem-012"), ("chem-011", "chem-012"), ("chem-012", "chem-010"),
        ("chem-018", "chem-017"), ("chem-061", "chem-056"), ("phys-034", "phys-009"), ("phys-055", "phys-093"),
        ("phys-093", "phys-055"), ("phys-093", "phys-094"), ("cs-036", "cs-020"), ("cs-052", "cs-029"),
        ("math-007", "math-005"), ("bio-056", "bio-050"), ("math-054", "math-061"), ("bio-064", "bio-067"),
        ("phys-001", "phys-002"), ("chem-009", "chem-056"), ("chem-010", "chem-057"), ("phys-053", "phys-058"),
        ("phys-054", "phys-058"), ("bio-010", "bio-007"), ("bio-069", "bio-007"), ("cs-040", "cs-021"),
        ("cs-037", "cs-019"), ("math-008", "math-005"), ("phys-007", "phys-006"),
        ("fr-instrument-07", "fr-instrument-19"), ("ru-instrument-07", "ru-instrument-19"),
    ],
)  # fmt: skip
def test_answers_that_fit_each_others_question_exclude_each_other(question: str, other: str) -> None:
    by_id = {q.id: q for name in ("atlas/domains", "atlas/languages") for q in load_questions(name)}
    assert by_id[other].answer in by_id[question].also_right


def test_a_mark_leaves_the_draws_of_other_questions_as_they_are() -> None:
    plain = [Question(f"q{i}", "g", f"question {i}?", f"answer {i}") for i in range(6)]
    marked = [replace(plain[0], also_right=("ANSWER  4",)), *plain[1:]]
    for seed in range(30):
        before, after = to_multi_choice(plain, seed=seed), to_multi_choice(marked, seed=seed)
        assert after.queries[1:] == before.queries[1:]
        assert "answer 4" not in after["q0"].prompts[0].options
    with pytest.raises(
        DataError, match=r"'q0': fewer than 4 distinct options \(group 'g' has 2 other answers that are wrong"
    ):
        to_multi_choice([replace(plain[0], also_right=("answer 1", "answer 2", "answer 3")), *plain[1:]])
    with pytest.raises(DataError, match=r"'NO' stands in 'also_right' and among the distractors"):
        to_multi_choice([replace(plain[0], also_right=("NO",), distractors=("no", "maybe", "never"))])


def test_no_fact_stands_twice() -> None:
    """Across relations a seat is asked for once in a language; across domains no answer of several words stands twice."""

    def shared(texts: list[str]) -> int:
        return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False))))

    languages = load_questions("atlas/languages")
    for language in {q.language for q in languages}:
        mine = [q for q in languages if q.language == language]
        seats = [q.question for q in mine if q.relation == "headquarters"]
        head, tail = shared(seats), shared([text[::-1] for text in seats])
        for seat in (text[head : len(text) - tail] for text in seats):
            assert sum(seat in q.question for q in mine) == 1, seat
    answers = Counter(normalise(q.answer) for q in load_questions("atlas/domains"))
    assert not [answer for answer, count in answers.items() if count > 1 and " " in answer]


def test_newton_is_asked_for_after_his_seat_in_parliament() -> None:
    asked = [q.question for q in load_questions("atlas/languages") if q.id.endswith("employer-17")]
    assert len(asked) == 6
    assert all("1710" in text for text in asked)


def test_every_language_asks_the_same_hundred_facts() -> None:
    facts: dict[str, set[str]] = {}
    for q in load_questions("atlas/languages"):
        facts.setdefault(q.language, set()).add(q.id.removeprefix(f"{q.language}-"))
    assert len(facts) == 6
    assert all(keys == facts["en"] and len(keys) == 100 for keys in facts.values())


@pytest.mark.parametrize("name", ["atlas/domains", "atlas/languages"])
def test_every_shipped_row_becomes_a_fair_query(name: str) -> None:
    for q in load_questions(name):
        assert q.question == q.question.strip()
        assert q.answer == q.answer.strip()
        assert not has_line_break(q.question + q.answer)
        assert q.language in TEMPLATES
    for query in load_queries(name, seed=3):
        assert len(query.prompts) == 3
        for prompt in query.prompts:
            assert len({normalise(o) for o in prompt.options}) == 4
            assert prompt.options[LETTERS.index(prompt.letter)] == query.answer
            assert all(option in prompt.text for option in prompt.options)
            assert query.question in prompt.text
        assert len({frozenset(p.options) for p in query.prompts}) == 1


@pytest.mark.parametrize("name", ["atlas/domains", "atlas/languages"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_labels_of_every_template_are_read(name: str, seed: int) -> None:
    for held_out in (False, True):
        for query in load_queries(name, seed=seed, held_out=held_out):
            for prompt in query.prompts:
                assert labelled_options(prompt.text, "a prompt") == prompt.options
                assert replace(prompt, options=()).marked == prompt.marked == query.answer


def test_questions_that_hold_lists_of_their_own_are_rendered() -> None:
    lists = ("A. p\nB. q\nC. r\nD. s", "(A) p\n(B) q", "A) p\nC) r", "D. s\nB. q", "A. Einstein", "B. p\u2028C. q\r\nA. r")
    for text, language in product(lists, TEMPLATES):
        item = Question("q", "g", f"Which holds?\n{text}", "A. p", ("B. q", "C. r", "(D) s"), language)
        for held_out in (False, True):
            (query,) = to_multi_choice([item], held_out=held_out)
            assert all(prompt.marked == "A. p" for prompt in query.prompts)
            replace(query, prompts=tuple(replace(prompt, options=()) for prompt in query.prompts))


def test_letters_are_spread_and_seeds_reproduce() -> None:
    first, again, other = (load_queries("atlas/domains", seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.fingerprint == again.fingerprint != other.fingerprint
    letters = Counter(p.letter for q in first for p in q.prompts)
    assert all(abs(letters[x] - 414) < 70 for x in LETTERS)


def test_the_held_out_template_is_its_own() -> None:
    for language, templates in TEMPLATES.items():
        texts = {t.text for t in (*templates.detection, templates.held_out)}
        assert len(texts) == 4, language
    held = load_queries("atlas/languages", held_out=True)
    assert {p.template for q in held for p in q.prompts} == {f"{x}-held-out" for x in TEMPLATES}


def test_the_held_out_prompt_has_an_order_of_its_own() -> None:
    first, held = load_queries("atlas/domains", seed=4), load_queries("atlas/domains", seed=4, held_out=True)
    same = [a.prompts[0].options == b.prompts[0].options for a, b in zip(first, held, strict=True)]
    assert sum(same) < 552 / 10  # 1 in 24 by chance
    assert all(set(a.prompts[0].options) == set(b.prompts[0].options) for a, b in zip(first, held, strict=True))


def test_a_set_tells_how_it_came_by() -> None:
    detection, _ = load_queries("atlas/domains", seed=3).sample(4, seed=1).split(0.5, seed=2)
    assert detection.made == (
        "multi-choice seed=3",
        "sample per_group=4 seed=1",
        "split detection=0.5 seed=2 detection",
    )


def test_filter_sample_split_and_frame() -> None:
    queries = load_queries("atlas/domains")
    assert queries.for_group("biology").groups == ("biology",)
    assert len(queries.sample(5, seed=1)) == 30
    assert queries.sample(5, seed=1) == queries.sample(5, seed=1) != queries.sample(5, seed=2)
    detection, held_out = queries.split(0.5, seed=0)
    assert {q.id for q in detection}.isdisjoint(q.id for q in held_out)
    assert len(detection) + len(held_out) == 552
    assert Counter(q.group for q in detection)["computer science"] == 26
    assert queries.to_frame().shape == (3 * 552, 8)
    with pytest.raises(DataError, match="no group 'alchemy'; there are biology"):
        queries.for_group("alchemy")


def test_rendered_queries_round_trip(tmp_path: Path) -> None:
    queries = load_queries("atlas/languages", seed=5).sample(2)
    save_queries(queries, tmp_path / "out.jsonl")
    assert load_queries(tmp_path / "out.jsonl").queries == queries.queries
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@settings(deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(normalise),
        min_size=5,
        max_size=9,
    )
)
def test_distractors_never_equal_the_answer(answers: list[str]) -> None:
    questions = [Question(f"q{i}", "g", f"question {i}", a) for i, a in enumerate(answers)]
    if len({normalise(a) for a in answers}) < 4:
        with pytest.raises(DataError, match="fewer than 4 distinct options"):
            to_multi_choice(questions)
        return
    for query in to_multi_choice(questions):
        for prompt in query.prompts:
            assert len({normalise(o) for o in prompt.options}) == 4


def test_line_breaks_inside_texts_survive(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('id,group,question,answer,distractors\na,g,"one\ntwo",yes,no|maybe|never\n', "utf-8")
    assert load_questions(path)[0].question == "one\ntwo"
    query = Query("u", "g", (Prompt("line\u2028separator\u0085here", "A"),))
    save_queries(QuerySet((query,)), tmp_path / "u.jsonl")
    assert load_queries(tmp_path / "u.jsonl").queries == (query,)


def test_csv_questions(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("id,group,question,answer,distractors\na,g,Why?,yes,no|maybe|never\n", "utf-8")
    (query,) = load_queries(path)
    assert sorted(query.prompts[0].options) == ["maybe", "never", "no", "yes"]


def test_the_authors_format(tmp_path: Path) -> None:
    entry = {
        "sentences": ["Q one\n A. x\nResponse:", "Q two Response:"],
        "obj_label": ["C", "A"],
        "relation_name": "biology",
    }
    path = tmp_path / "official.json"
    path.write_text(json.dumps({"uuid-1": entry, "uuid-2": {**entry, "relation_name": "physics"}}), "utf-8")
    queries = load_queries(path)
    assert queries.groups == ("biology", "physics")
    assert queries["uuid-1"].prompts[0] == Prompt("Q one\n A. x\nResponse:", "C")
    with pytest.raises(DataError, match="held-out template can only be rendered from free-form"):
        load_queries(path, held_out=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((ROW, ROW), r"line 2: field 'id': 'a' stands twice"),
        (({**ROW, "distractors": ["no", " NO ", "never"]},), r"line 1: .*fewer than 4 distinct options"),
        (({**ROW, "distractors": ["no", "YES", "never"]},), r"line 1: .*'yes' stands among the distractors"),
        (({**ROW, "question": "  "},), r"line 1: field 'question' is empty"),
        (({k: v for k, v in ROW.items() if k != "answer"},), r"line 1: field 'answer' is missing"),
        (({**ROW, "answer": 3},), r"line 1: field 'answer': expected a text, found int"),
        (({**ROW, "distractors": "no"},), r"line 1: field 'distractors': expected a list"),
        (({**ROW, "topic": "x"},), r"line 1: unknown field 'topic'"),
        ((ROW, "{broken"), r"line 2: not valid JSON"),
        ((ROW, "[1]"), r"line 2: expected a JSON object, found list"),
        ((), r"holds no question"),
        (({**ROW, "language": "xx"},), r"line 1: .*field 'language': no templates for language 'xx'; there are en"),
        ((ROW, {k: v for k, v in ROW.items() if k != "distractors"} | {"id": "b", "group": "h"}), r"line 2: .*fewer than 4"),
        (('{"id": "a", "id": "b"}',), r"line 1: field 'id' stands twice"),
        ((QUERY, QUERY), r"line 2: field 'id': 'a' stands twice"),
        (
            ({**QUERY, "prompts": [{"text": "t", "letter": "A", "options": "abcd"}]},),
            r"line 1: field 'options': expected a list",
        ),
        (({**QUERY, "prompts": [{"text": "t", "letter": "A", "style": "x"}]},), r"line 1: unknown field 'style'"),
        (({**QUERY, "answer": 3},), r"line 1: field 'answer': expected a text, found int"),
    ],
)
def test_bad_rows_name_file_line_and_field(tmp_path: Path, rows: tuple[object, ...], message: str) -> None:
    path = write(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(DataError, match=message) as error:
        load_queries(path)
    assert str(path) in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file; shipped sets are atlas/domains"):
        load_queries(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        load_queries(tmp_path / "latin.jsonl")
    (tmp_path / "bad.json").write_text(
        json.dumps({"u": {"sentences": ["x"], "obj_label": ["A", "B"], "relation_name": "b"}})
    )
    with pytest.raises(DataError, match=r"query 'u': 1 'sentences' but 2 'obj_label'"):
        load_queries(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps({"u": {"sentences": ["x"], "obj_label": ["E"], "relation_name": "b"}}))
    with pytest.raises(DataError, match=r"query 'u': prompt letter 'E' is not one of A, B, C, D"):
        load_queries(tmp_path / "bad.json")
    (tmp_path / "short.csv").write_text("id,group,question,answer\na,g,Why?\n")
    with pytest.raises(DataError, match=r"line 2: expected 4 columns"):
        load_queries(tmp_path / "short.csv")


def test_doubles_in_the_authors_format_are_refused(tmp_path: Path) -> None:
    entry = json.dumps({"sentences": ["x"], "obj_label": ["A"], "relation_name": "b"})
    (tmp_path / "twice.json").write_text(f'{{"u": {entry}, "u": {entry}}}')
    with pytest.raises(DataError, match=r"twice\.json: 'u' stands twice"):
        load_queries(tmp_path / "twice.json")


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_query_set_or_prompt_is_a_type_error(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model: Any = model_of("llama")
    for queries, found in (
        ("atlas/domains", "str"),
        (list(short_queries), "list"),
        (short_queries["q1"], "Query"),
        (None, "N"),
    ):
        for use in (
            lambda given: locate(model, given, progress=False),
            lambda given: answers(model, given),
            lambda given: edit_effects(model, given, {}, factors=(0.0,)),
            lambda given: other_queries(model, given, {}, 0.0),
        ):
            with pytest.raises(
                TypeError, match=rf"expected a QuerySet, found {found}.*; load them with qrnca_lens\.load_qu"
            ):
                use(queries)
    prompt: Any = short_queries["q1"].prompts[0]
    for prompts in (["text"], "text", prompt, [prompt, "text"], short_queries):
        with pytest.raises(
            TypeError, match=r"expected a list of Prompt, found .*; give the prompts of a query, query\.prompts"
        ):
            letter_probabilities(model, prompts)


@pytest.mark.usefixtures("unchecked")
def test_held_out_is_true_or_false(tmp_path: Path) -> None:
    given: Any
    for given in ("no", 0, 1, None, "False"):
        for use in (
            lambda value: load_queries("atlas/domains", held_out=value),
            lambda value: load_queries(write(tmp_path / "own.jsonl", QUERY), held_out=value),
            lambda value: to_multi_choice([], held_out=value),
        ):
            with pytest.raises(TypeError, match=r"held_out must be True or False, not "):
                use(given)
    held: Any = np.bool_(True)
    assert load_queries(write(tmp_path / "own.jsonl", ROW), held_out=held)["a"].prompts[0].template == "en-held-out"


def test_query_sets_refuse_doubles() -> None:
    query = Query("a", "g", (Prompt("text", "A"),))
    with pytest.raises(DataError, match="query id 'a' stands twice"):
        QuerySet((query, query))
    with pytest.raises(DataError, match="has no prompt"):
        Query("a", "g", ())
    with pytest.raises(KeyError, match="no query 'b'"):
        QuerySet((query,))["b"]
