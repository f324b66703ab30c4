"""From free-form questions to multi-choice queries (paper, section 3.1)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from qrnca_lens.core.values import seed_number, yes_or_no
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.forms import by_form
from qrnca_lens.data.query import Prompt, Query, QuerySet, Question, check_questions
from qrnca_lens.data.templates import LETTERS, TEMPLATES, Template
from qrnca_lens.data.texts import normalise

Distractors = Literal["any", "same form"]
"""What is drawn: any answers of the pool, or those of the right answer's form (`forms.form`) as far as there are some."""


class DistractorPool:
    """The answers from which distractors are drawn: those of the same group and, where given, the same relation."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for item in questions:
            self._answers[item.group, item.relation].setdefault(normalise(item.answer), item.answer)

    def draw(self, question: Question, rng: random.Random, distractors: Distractors = "any") -> tuple[str, ...]:
        """Three distinct wrong answers: none is the right one, or marked as `also_right`, under `normalise`.

        "same form": of the right answer's form, and where there are fewer than three, all of them and then of the nearest
        forms. The question's own distractors are drawn whatever their form. Raises DataError if the pool is too small.
        """
        if question.distractors:
            pool = list({normalise(text): text for text in question.distractors}.values())
        else:
            right = {normalise(text) for text in (question.answer, *question.also_right)}
            pool = [text for key, text in self._answers[question.group, question.relation].items() if key not in right]
        if len(pool) < len(LETTERS) - 1:
            raise DataError(
                f"question {question.id!r}: fewer than {len(LETTERS)} distinct options (group {question.group!r} has "
                f"{len(pool)} other answers that are wrong here); give 'distractors' or add questions to the group"
            )
        whole = distractors == "any" or question.distractors
        drawn: list[str] = []
        for tier in [pool] if whole else by_form(question.answer, pool):
            drawn += rng.sample(tier, min(len(tier), len(LETTERS) - 1 - len(drawn)))
        return tuple(drawn)


def make_prompt(question: Question, template: Template, distractors: Sequence[str], rng: random.Random) -> Prompt:
    """Shuffle the answer among the distractors and render the template."""
    options = [question.answer, *distractors]
    rng.shuffle(options)
    letter = LETTERS[options.index(question.answer)]
    return Prompt(template.render(question.question, tuple(options)), letter, template.key, tuple(options))


def check_language(question: Question) -> None:
    """DataError for a language that has no templates."""
    if question.language not in TEMPLATES:
        raise DataError(
            f"question {question.id!r}: field 'language': no templates for language {question.language!r}; "
            f"there are {', '.join(TEMPLATES)}"
        )


def check_distractors(distractors: Distractors) -> Distractors:
    """`distractors`, if it is one of the two; ValueError names them otherwise."""
    if distractors not in get_args(Distractors):
        raise ValueError(
            f"distractors must be one of {', '.join(map(repr, get_args(Distractors)))}, not {distractors!r:.80}"
        )
    return distractors


def to_multi_choice(
    questions: Sequence[Question],
    *,
    seed: int = 0,
    held_out: bool = False,
    distractors: Distractors = "same form",
    name: str = "queries",
) -> QuerySet:
    """Queries with three prompts each (one with the held-out template if `held_out`).

    The draw of distractors and every shuffle depend on `seed`, `distractors` and the question's id alone, so that a subset
    of the questions with given distractors renders as it does within the whole. Raises DataError for a language without
    templates, and ValueError for other `distractors` than "any" and "same form" (`DistractorPool.draw`).
    """
    seed, held_out, distractors = seed_number(seed), yes_or_no("held_out", held_out), check_distractors(distractors)
    check_questions(questions)
    pool = DistractorPool(questions)
    queries = []
    for item in questions:
        check_language(item)
        rng = random.Random(f"{seed}/{item.id}")
        wrong = pool.draw(item, rng, distractors)
        templates = TEMPLATES[item.language]
        used = (templates.held_out,) if held_out else templates.detection
        if held_out:  # an option order of its own, not that of the first detection prompt
            rng = random.Random(f"{seed}/{item.id}/held-out")
        prompts = tuple(make_prompt(item, template, wrong, rng) for template in used)
        about = (item.question, item.answer, item.language, item.relation, item.fact)
        queries.append(Query(item.id, item.group, prompts, *about))
    form = "" if distractors == "any" else " distractors of the same form"
    step = f"multi-choice seed={seed}{' held-out template' * held_out}{form}"
    return QuerySet(tuple(queries), name, (step,))
