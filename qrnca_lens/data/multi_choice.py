"""From free-form questions to multi-choice queries (paper, section 3.1)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from qrnca_lens.core.values import seed_number, yes_or_no
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.query import Prompt, Query, QuerySet, Question, check_questions
from qrnca_lens.data.templates import LETTERS, TEMPLATES, Template
from qrnca_lens.data.texts import normalise


class DistractorPool:
    """The answers from which distractors are drawn: those of the same group and, where given, the same relation."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._answers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for item in questions:
            self._answers[item.group, item.relation].setdefault(normalise(item.answer), item.answer)

    def draw(self, question: Question, rng: random.Random) -> tuple[str, ...]:
        """Three distinct wrong answers: none is the right one, or marked as `also_right`, under `normalise`.

        Raises DataError if the pool is too small.
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
        return tuple(rng.sample(pool, len(LETTERS) - 1))


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


def to_multi_choice(
    questions: Sequence[Question], *, seed: int = 0, held_out: bool = False, name: str = "queries"
) -> QuerySet:
    """Queries with three prompts each (one with the held-out template if `held_out`).

    The draw of distractors and every shuffle depend on `seed` and the question's id alone, so that a subset of the
    questions with given distractors renders as it does within the whole. Raises DataError for a language without templates.
    """
    seed, held_out = seed_number(seed), yes_or_no("held_out", held_out)
    check_questions(questions)
    pool = DistractorPool(questions)
    queries = []
    for item in questions:
        check_language(item)
        rng = random.Random(f"{seed}/{item.id}")
        distractors = pool.draw(item, rng)
        templates = TEMPLATES[item.language]
        used = (templates.held_out,) if held_out else templates.detection
        if held_out:  # an option order of its own, not that of the first detection prompt
            rng = random.Random(f"{seed}/{item.id}/held-out")
        prompts = tuple(make_prompt(item, template, distractors, rng) for template in used)
        about = (item.question, item.answer, item.language, item.relation, item.fact)
        queries.append(Query(item.id, item.group, prompts, *about))
    step = f"multi-choice seed={seed}{' held-out template' * held_out}"
    return QuerySet(tuple(queries), name, (step,))
