"""What is looked up and drawn at size gives what the plain way gives: here the plain way stands, for small sets."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import LETTERS, DataError, Prompt, Query, QuerySet, Question
from qrnca_lens.data.forms import by_form
from qrnca_lens.data.multi_choice import DistractorPool, Distractors
from qrnca_lens.data.texts import normalise

_ANSWERS = [
    "12 km",
    "7",
    "x = 2",
    "H2O",
    "NaCl",
    "Paris",
    "the Hague",
    "paris",
    "a long phrase of five",
    "It ends. Here, yes.",
]


def plain_draw(
    questions: list[Question], question: Question, rng: random.Random, distractors: Distractors
) -> tuple[str, ...]:
    """Every answer of the pool looked at for every question."""
    answers: dict[str, str] = {}
    for item in questions:
        if (item.group, item.relation) == (question.group, question.relation):
            answers.setdefault(normalise(item.answer), item.answer)
    right = {normalise(text) for text in (question.answer, *question.also_right)}
    pool = [text for key, text in answers.items() if key not in right]
    drawn: list[str] = []
    for tier in [pool] if distractors == "any" else by_form(question.answer, pool):
        drawn += rng.sample(tier, min(len(tier), 3 - len(drawn)))
    return tuple(drawn)


@pytest.mark.parametrize("distractors", ["any", "same form"])
@pytest.mark.parametrize("size", [24, 40, 300])
def test_distractors_are_those_of_the_plain_way(size: int, distractors: Distractors) -> None:
    rng = random.Random(size)
    answers = [f"{rng.choice(_ANSWERS)} {'' if rng.random() < 0.3 else rng.randrange(size)}".strip() for _ in range(size)]
    questions = [
        Question(
            f"q{i}", f"g{i % 2}", "Which?", answer, relation=f"r{i % 3 // 2}", also_right=tuple(rng.sample(answers, i % 3))
        )
        for i, answer in enumerate(answers)
    ]
    pool, compared = DistractorPool(questions), 0
    for item in questions:
        wanted = plain_draw(questions, item, random.Random(item.id), distractors)
        if len(wanted) < 3:
            with pytest.raises(DataError, match="fewer than 4 distinct options"):
                pool.draw(item, random.Random(item.id), distractors)
            continue
        assert pool.draw(item, random.Random(item.id), distractors) == wanted
        compared += 1
    assert compared > size / 3


def some(size: int) -> QuerySet:
    queries = [
        Query(f"q{i}", f"g{i % 7}", tuple(Prompt(f"{t} {i}:", LETTERS[i % 4]) for t in "ab"), fact=f"f{i // 2}")
        for i in range(size)
    ]
    random.Random(0).shuffle(queries)
    return QuerySet(tuple(queries))


def test_queries_are_found_and_drawn_as_by_the_plain_way() -> None:
    queries = some(100)
    for query in queries:
        assert queries[query.id] is query
    for odd in ("q100", ""):
        with pytest.raises(KeyError, match="no query"):
            queries[odd]
    for per_group in (1, 5, 50):
        wanted: set[str] = set()
        for group in queries.groups:
            ids = [query.id for query in queries if query.group == group]
            wanted |= set(random.Random(f"3/{group}").sample(ids, min(per_group, len(ids))))
        assert {query.id for query in queries.sample(per_group, 3)} == wanted


def test_examples_depend_on_seed_and_ids_alone() -> None:
    queries = some(60)
    before = {query.id: query.prompts[0].text for query in queries.with_examples(3, seed=5)}
    backwards = QuerySet(queries.queries[::-1]).with_examples(3, seed=5)
    assert {query.id: query.prompts[0].text for query in backwards} == before
    assert {query.id: query.prompts[0].text for query in queries.with_examples(3, seed=6)} != before
    gone = "q11"
    changed = {
        q.id
        for q in queries.keep({q.id for q in queries} - {gone}).with_examples(3, seed=5)
        if q.prompts[0].text != before[q.id]
    }
    assert changed == {key for key, text in before.items() if "a 11:" in text and key != gone}
    by_id = {query.id: query for query in queries}
    used: dict[str, int] = {}
    for key, text in before.items():
        shown = [line.split()[1].rstrip(":") for line in text.split("\n\n")]
        assert shown[-1] == key[1:] and len(shown) == 4
        examples = [by_id[f"q{number}"] for number in shown[:-1]]
        assert len({one.unit for one in (*examples, by_id[key])}) == 4
        assert {one.group for one in examples} == {by_id[key].group}
        for one in examples:
            used[one.id] = used.get(one.id, 0) + 1
    assert len(used) > 40, "a few queries are the examples of all"


def test_neurons_of_a_query_are_those_of_the_plain_way(run: tuple[Any, Any]) -> None:
    located = run[1]
    for query in located.queries["query"]:
        plain = located.table[located.table["query"] == query]
        assert located.for_query(query) == NeuronSet.from_frame(plain)
    with pytest.raises(KeyError, match="no query"):
        located.for_query("nothing")
