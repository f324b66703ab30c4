"""From free-form questions to multi-choice queries (paper, section 3.1)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args, overload

from qrnca_lens.core.values import seed_number, told, yes_or_no
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.forms import by_form, form
from qrnca_lens.data.query import Prompt, Query, QuerySet, Question, check_questions
from qrnca_lens.data.templates import LETTERS, TEMPLATES, Template
from qrnca_lens.data.texts import normalise

Distractors = Literal["any", "same form"]
"""What is drawn: any answers of the pool, or those of the right answer's form (`forms.form`) as far as there are some."""


class _Without(Sequence[str]):
    """Some texts but for a few of them, given by their places among these; nothing is copied."""

    def __init__(self, texts: Sequence[str], gone: Iterable[int]) -> None:
        self._texts, self._gone = texts, sorted(gone)

    def __len__(self) -> int:
        return len(self._texts) - len(self._gone)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        for gone in self._gone:
            place += gone <= place
        return self._texts[place]


class _Answers:
    """The distinct answers of one group and relation, in their order, and by form: the nearest forms first."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._known: dict[str | None, list[tuple[list[str], dict[str, int]]]] = {}

    def add(self, answer: str) -> None:
        self._texts.setdefault(normalise(answer), answer)

    def but_for(self, right: set[str], near: str | None) -> list[_Without]:
        """All answers but those that are right (normalised): in one tier, or by how near their form is to that of a text."""
        tiers = self._tiers(near)
        return [_Without(texts, (places[key] for key in right if key in places)) for texts, places in tiers]

    def _tiers(self, near: str | None) -> list[tuple[list[str], dict[str, int]]]:
        """The tiers, which are the same for all texts of a form, each with the places of its normalised texts."""
        key = None if near is None else form(near)
        if key not in self._known:
            texts = list(self._texts.values())
            tiers = [texts] if near is None else by_form(near, texts)
            self._known[key] = [(tier, {normalise(text): place for place, text in enumerate(tier)}) for tier in tiers]
        return self._known[key]


class DistractorPool:
    """The answers from which distractors are drawn: those of the same group and, where given, the same relation."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._answers: dict[tuple[str, str], _Answers] = defaultdict(_Answers)
        for item in questions:
            self._answers[item.group, item.relation].add(item.answer)

    def draw(self, question: Question, rng: random.Random, distractors: Distractors = "any") -> tuple[str, ...]:
        """Three distinct wrong answers: none is the right one, or marked as `also_right`, under `normalise`.

        "same form": of the right answer's form, and where there are fewer than three, all of them and then of the nearest
        forms. The question's own distractors are drawn whatever their form. Raises DataError if the pool is too small.
        """
        tiers: Sequence[Sequence[str]]
        if question.distractors:
            tiers = [list({normalise(text): text for text in question.distractors}.values())]
        else:
            right = {normalise(text) for text in (question.answer, *question.also_right)}
            near = None if distractors == "any" else question.answer
            tiers = self._answers[question.group, question.relation].but_for(right, near)
        wrong = sum(map(len, tiers))
        if wrong < len(LETTERS) - 1:
            raise DataError(
                f"question {question.id!r}: fewer than {len(LETTERS)} distinct options (group {question.group!r} has "
                f"{wrong} other answers that are wrong here); give 'distractors' or add questions to the group"
            )
        drawn: list[str] = []
        for tier in tiers:
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
    if not isinstance(distractors, str) or distractors not in get_args(Distractors):
        raise ValueError(
            f"distractors must be one of {', '.join(map(repr, get_args(Distractors)))}, not {told(distractors)}"
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
