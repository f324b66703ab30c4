"""Questions, and queries: multi-choice questions rendered into prompts. Frozen values, no model.

`Question` is a row of a file: a free-form question with its long answer. `Query` is what the method works on:
the same question as |Q| rendered prompts, each with the letter of the right option (paper, section 3.1).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast, get_args

import pandas as pd

from qrnca_lens.core.shown import TITLE, shortened, visible
from qrnca_lens.core.values import (
    WrongKindError,
    all_of,
    given_text,
    listed,
    number,
    one_of,
    seed_number,
    told,
    whole_number,
    yes_or_no,
)
from qrnca_lens.data.chat import Chat
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.examples import with_solved
from qrnca_lens.data.templates import LETTERS, OPEN_TEMPLATES
from qrnca_lens.data.texts import (
    check_distinct_options,
    check_labels,
    check_names,
    check_one_line,
    check_options,
    check_text,
    check_texts,
    labelled_options,
    normalise,
    space_before,
    suggests_space,
)

Read: TypeAlias = Literal["letter", "answer"]
"""What a prompt's answer is read from: the right option's letter, or its own text."""
ALL_GROUPS = "all groups"
"""What views call the sum over the groups; no group may be called so."""
Rendering: TypeAlias = Literal["plain", "examples", "chat"]
"""How a prompt is put: as its template has it, after solved questions, or as a chat (of either)."""


@dataclass(frozen=True)
class Question:
    """One free-form question and its answer.

    `distractors` holds three or more wrong answers, or is empty: then they are drawn from the answers of the same group
    (and of the same `relation`, where one is given), but for those in `also_right`, which would answer the question as well.
    `language` picks the templates. `fact` names what is asked where several questions ask the same, as in several languages.
    Raises DataError for a field of another type and for half a character.
    """

    id: str
    group: str
    question: str
    answer: str
    distractors: tuple[str, ...] = ()
    language: str = "en"
    relation: str = ""
    also_right: tuple[str, ...] = ()
    fact: str = ""

    def __post_init__(self) -> None:
        where = f"question {told(self.id)}"
        for field in ("id", "group", "question", "answer"):
            check_text(getattr(self, field), field, where)
        for field in ("language", "relation", "fact"):
            check_text(getattr(self, field), field, where, empty=True)
        for field in ("distractors", "also_right"):
            object.__setattr__(self, field, check_texts(getattr(self, field), field, where))
        check_group(self.group, where)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. It ends where the letter of the right option is to follow or, where `read` is "answer" (an open
    prompt), the right option's own text.

    `options`: the four texts of A to D, or none where they are not known; an open prompt has them, and does not show them.
    Raises DataError for a letter that is none of these, an empty text, options that are not four different single lines (of
    the text, in their order), a text that labels other options at the starts of its lines (`texts.labelled_options`), and an
    unknown `read` or `rendering`. The text of a chat is not searched for labels, as its template may go on in the line of an
    option: its options are `options` alone.
    """

    text: str
    letter: str
    template: str = ""
    options: tuple[str, ...] = ()
    read: Read = "letter"
    rendering: Rendering = "plain"

    def __post_init__(self) -> None:
        if not isinstance(self.letter, str) or self.letter not in LETTERS:
            raise DataError(f"prompt letter {told(self.letter)} is not one of {', '.join(LETTERS)}")
        if not isinstance(self.read, str) or self.read not in get_args(Read):
            raise DataError(f"a prompt's field 'read': {told(self.read)} is none of {', '.join(get_args(Read))}")
        check_text(self.text, "text", "a prompt")
        check_text(self.template, "template", "a prompt", empty=True)
        object.__setattr__(self, "options", check_texts(self.options, "options", "a prompt"))
        if not isinstance(self.rendering, str) or self.rendering not in get_args(Rendering):
            raise DataError(f"prompt rendering {told(self.rendering)} is not one of {', '.join(get_args(Rendering))}")
        if self.read == "answer":
            check_distinct_options(self.options, "an open prompt")
            return
        if self.options:
            check_options(self.options, self.text, "a prompt")
        if self.rendering != "chat":
            check_labels(self.options, self.text, "a prompt")

    @property
    def shown(self) -> tuple[str, ...]:
        """The four options, from `options` or else from the labels in the text; () if neither tells."""
        return self.options if self.options or self.rendering == "chat" else labelled_options(self.text, "a prompt")

    @property
    def marked(self) -> str:
        """The option that the letter stands for; "" where the options are not known."""
        options = self.shown
        return options[self.right] if options else ""

    @property
    def solved(self) -> str:
        """The text and its right letter, or of an open prompt the answer, after a space where a writer puts one."""
        if self.read == "answer":
            return f"{self.text}{space_before(self.text, self.marked)}{self.marked}"
        return f"{self.text}{' ' * suggests_space(self.text)}{self.letter}"

    @property
    def names(self) -> tuple[str, ...]:
        """What the options are called, in their order: the letters, of which `letter` is one."""
        return LETTERS

    @property
    def labels(self) -> tuple[str, ...]:
        """What views call the options, in their order, no two alike: the letters, or in an open prompt, where a letter says
        nothing, the options' texts in one line, cut as titles are where that leaves them different."""
        if self.read == "letter":
            return self.names
        whole = tuple(visible(option) for option in self.options)
        cut = tuple(shortened(option, TITLE) for option in whole)
        return cut if len(set(cut)) == len(cut) else whole

    @property
    def right(self) -> int:
        """The index of the right option."""
        return self.names.index(self.letter)


@dataclass(frozen=True)
class Query:
    """A multi-choice question with its prompts, one per template. `question` and `answer` are "" for pre-rendered data.

    Raises DataError if it has no prompt, or one whose letter does not stand for the answer (where both are known), or two
    whose letters stand for different options, and for open prompts beside others.
    """

    id: str
    group: str
    prompts: tuple[Prompt, ...]
    question: str = ""
    answer: str = ""
    language: str = "en"
    relation: str = ""
    fact: str = ""

    def __post_init__(self) -> None:
        where = f"query {told(self.id)}"
        for field in ("id", "group"):
            check_text(getattr(self, field), field, where)
        for field in ("question", "answer", "language", "relation", "fact"):
            check_text(getattr(self, field), field, where, empty=True)
        check_group(self.group, where)
        prompts = all_of(f"{where}: field 'prompts'", self.prompts, Prompt, "a list of Prompt")
        object.__setattr__(self, "prompts", prompts)
        if not self.prompts:
            raise DataError(f"{where} has no prompt")
        _check_one_read(where, self.prompts)
        right, why = self.answer, f"the answer is {self.answer!r}"
        for prompt in self.prompts:
            marked = prompt.marked
            if marked and not right:
                right, why = marked, f"{prompt.letter} stands for {marked!r} in another"
            if marked and normalise(marked) != normalise(right):
                raise DataError(f"{where}: field 'letter': {prompt.letter} stands for {marked!r} in a prompt, but {why}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the query says: its prompts with their options, question, answer, group, fact and the rest."""
        return hashlib.sha256(json.dumps(asdict(self), ensure_ascii=False).encode()).hexdigest()

    @property
    def unit(self) -> str:
        """What counts as one observation: the fact that the query asks for, where it is named, else the query itself."""
        return self.fact or self.id

    @property
    def read(self) -> Read:
        """What the answers of its prompts are read from."""
        return self.prompts[0].read


@dataclass(frozen=True)
class QuerySet:
    """An ordered collection of queries with distinct ids. `made` tells the steps and seeds that it came by, in order.

    Raises DataError for an id that stands twice, groups that only look the same, open prompts beside others, and a name or
    step of half a character.
    """

    queries: tuple[Query, ...]
    name: str = "queries"
    made: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_text(self.name, "name", f"query set {told(self.name)}")
        object.__setattr__(self, "made", check_texts(self.made, "made", f"query set {self.name!r}"))
        queries = all_of("queries", self.queries, Query, "a list of Query; load them with qrnca_lens.load_queries")
        object.__setattr__(self, "queries", queries)
        twice = [key for key, count in Counter(query.id for query in self.queries).items() if count > 1]
        if twice:
            raise DataError(f"{self.name}: query id {twice[0]!r} stands twice; ids must be distinct")
        check_names("group", ((f"{self.name}, query {query.id!r}", query.group) for query in self.queries))
        _check_one_read(self.name, [query.prompts[0] for query in self.queries])

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[Query]:
        return iter(self.queries)

    def __getitem__(self, query_id: str) -> Query:
        try:
            return self._by_id[query_id]
        except (KeyError, TypeError):  # what cannot be a key is no id either
            raise KeyError(f"no query {query_id!r} in {self.name} ({len(self)} queries)") from None

    @cached_property
    def _by_id(self) -> dict[str, Query]:
        return {query.id: query for query in self.queries}

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The groups in order of first appearance."""
        return tuple(dict.fromkeys(query.group for query in self.queries))

    @property
    def read(self) -> Read:
        """What the answers of its prompts are read from; "letter" for a set without queries."""
        return self.queries[0].read if self.queries else "letter"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ids, groups, prompt texts, letters and the options of open prompts: two sets with the same fingerprint
        give the same results."""
        rows = [[q.id, q.group, [_identity(p) for p in q.prompts]] for q in self.queries]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def for_group(self, *groups: str) -> QuerySet:
        """The queries of these groups; DataError names the groups there are if one is unknown."""
        unknown = [group for group in groups if not isinstance(group, str) or group not in self.groups]
        if unknown:
            raise DataError(f"{self.name}: no group {told(unknown[0])}; there are {', '.join(self.groups)}")
        return self._where(lambda query: query.group in groups, f"groups {', '.join(groups)}")

    def sample(self, per_group: int, seed: int = 0) -> QuerySet:
        """At most `per_group` queries of each group, drawn with `seed`, in the set's own order."""
        per_group, seed = whole_number("per_group", per_group), seed_number(seed)
        if per_group < 1:
            raise DataError(f"per_group must be at least 1, not {per_group}")
        chosen = self._drawn(seed, lambda size: min(per_group, size))
        return self._where(lambda query: query.id in chosen, f"sample per_group={per_group} seed={seed}")

    def split(self, detection: float = 0.5, seed: int = 0) -> tuple[QuerySet, QuerySet]:
        """Disjoint detection and held-out sets; in every group the share `detection` (rounded) goes to the first."""
        detection, seed = number("the detection share", detection), seed_number(seed)
        if not 0 < detection < 1:
            raise DataError(f"the detection share must lie between 0 and 1, not {detection}")
        first = self._drawn(seed, lambda size: round(detection * size))
        step = f"split detection={detection} seed={seed}"
        return (
            self._where(lambda query: query.id in first, f"{step} detection"),
            self._where(lambda query: query.id not in first, f"{step} held out"),
        )

    def as_open(self, *, held_out: bool = False) -> QuerySet:
        """The same questions in open prompts, three wordings of each (the held-out one alone if `held_out`): they show no
        option and end before the answer (`templates.OPEN_TEMPLATES`).

        The options stay known, in the order of the query's first prompt, so that the answers can be compared. The set itself
        where its prompts are open already. Raises DataError for a query that lacks question or options or whose language
        has no such templates.
        """
        held_out = yes_or_no("held_out", held_out)
        if self.read == "answer" and len(self):
            return self
        queries = tuple(replace(query, prompts=_open_prompts(query, held_out)) for query in self)
        return QuerySet(queries, self.name, (*self.made, f"open prompts{' held-out template' * held_out}"))

    def with_examples(self, k: int, seed: int = 0) -> QuerySet:
        """Every prompt after `k` solved prompts of other questions of its group, each with its right letter.

        The examples of a query are drawn by `seed` and ids alone, whatever the order of the set; each is of another unit
        than the query and the other examples. All prompts of the query have the same examples, at the prompt's own place
        among theirs. They come from this set: take them before a sample. Raises DataError for more than the group has, k
        below 0 and prompts with examples or chats already; k = 0 gives the set itself.
        """
        k, seed = whole_number("k", k), seed_number(seed)
        if k < 0:
            raise DataError(f"k, the number of examples, must be at least 0, not {k}")
        if k == 0:
            return self
        return QuerySet(with_solved(self.queries, k, seed), self.name, (*self.made, f"examples k={k} seed={seed}"))

    def as_chat(self, model: Any, lead: str | None = None) -> QuerySet:
        """Every prompt as a chat, by the template of the model's tokenizer (or of a tokenizer itself).

        The user's turn is the prompt without its last line, which asks for the letter; the assistant's turn ends in `lead`,
        "The correct option is" in the query's language if not given (of an open prompt that last line), and the letter or
        answer is to follow it. What a template adds by
        itself, such as a system prompt, stays. Raises TypeError for what is no model, and DataError for a tokenizer without
        a template, one that fails or changes the turns, special tokens in a prompt, prompts of one line and chats.
        """
        chat = Chat.of(model, lead)
        return QuerySet(chat.rendered(self.queries), self.name, (*self.made, chat.step))

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt: query, group, language, template, letter, question, answer, text."""
        return pd.DataFrame(
            [
                (q.id, q.group, q.language, p.template, p.letter, q.question, q.answer, p.text)
                for q in self.queries
                for p in q.prompts
            ],
            columns=["query", "group", "language", "template", "letter", "question", "answer", "text"],
        )

    def keep(self, ids: Iterable[str], how: str = "chosen") -> QuerySet:
        """The queries with these ids, in the set's own order; ids that it lacks are passed over. TypeError for one text.

        `made` tells how they were found: "12 chosen queries".
        """
        kept, how = set(listed("ids", ids)), given_text("how", how)
        return self._where(lambda query: query.id in kept, f"{len(kept)} {how} queries")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def _drawn(self, seed: int, count: Callable[[int], int]) -> set[str]:
        """The ids of `count(size)` queries of each group of `size` queries; the draw of a group depends on no other."""
        drawn: set[str] = set()
        by_group: dict[str, list[str]] = {}
        for query in self.queries:
            by_group.setdefault(query.group, []).append(query.id)
        for group, ids in by_group.items():
            drawn.update(random.Random(f"{seed}/{group}").sample(ids, count(len(ids))))
        return drawn

    def _where(self, keep: Callable[[Query], bool], step: str) -> QuerySet:
        return QuerySet(tuple(query for query in self.queries if keep(query)), self.name, (*self.made, step))


def _open_prompts(query: Query, held_out: bool) -> tuple[Prompt, ...]:
    where, first = f"query {query.id!r}", query.prompts[0]
    if first.rendering != "plain":
        raise DataError(
            f"{where}: its prompts are rendered with {first.rendering} already; make them open first (as_open), then take "
            "examples and chats"
        )
    remedy = "open prompts are made of a question and four options, so give those (docs/data.md)"
    if not query.question:
        raise DataError(f"{where}: field 'question' is empty; {remedy}")
    if not first.shown:
        raise DataError(f"{where}: the options of its first prompt are not known; {remedy}")
    if query.language not in OPEN_TEMPLATES:
        known = ", ".join(OPEN_TEMPLATES)
        raise DataError(f"{where}: field 'language': no open templates for {query.language!r}; there are {known}")
    templates = OPEN_TEMPLATES[query.language]
    used = (templates.held_out,) if held_out else templates.detection
    return tuple(Prompt(t.render_open(query.question), first.letter, t.key, first.shown, "answer") for t in used)


def _identity(prompt: Prompt) -> list[Any]:
    """What results depend on: the options of a letter's prompt stand in its text."""
    return [prompt.text, prompt.letter, *([list(prompt.options)] if prompt.read == "answer" else [])]


def _check_one_read(where: str, prompts: Sequence[Prompt]) -> None:
    if len({prompt.read for prompt in prompts}) > 1:
        raise DataError(f"{where}: holds open prompts beside prompts that ask for a letter; keep them in sets of their own")


def check_read(read: str) -> Read:
    """What answers are read from; ValueError for anything else."""
    return cast("Read", one_of("read", read, get_args(Read)))


def check_query_set(queries: object) -> None:
    """TypeError for anything but a QuerySet, such as the name of one or a list of queries."""
    if not isinstance(queries, QuerySet):
        raise WrongKindError(f"expected a QuerySet, found {type(queries).__name__}; load them with qrnca_lens.load_queries")


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """The texts of several prompts; TypeError for anything else, such as a single prompt or texts."""
    if (
        isinstance(prompts, str)
        or not isinstance(prompts, Sequence)
        or not all(isinstance(prompt, Prompt) for prompt in prompts)
    ):
        raise WrongKindError(f"expected a list of Prompt, found {told(prompts)}; give the prompts of a query, query.prompts")
    return [prompt.text for prompt in prompts]


def check_group(group: str, where: str) -> None:
    """Refuse a group that is called like the sum over all of them."""
    if normalise(group) == ALL_GROUPS:
        raise DataError(f"{where}: field 'group': {ALL_GROUPS!r} means the sum over all groups; call the group otherwise")


def check_questions(questions: Iterable[Question]) -> None:
    """Refuse what cannot become a set of fair multi-choice questions: DataError names the question and the field."""
    items = all_of("questions", questions, Question, "a list of Question, as load_questions gives")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"question id {item.id!r} stands twice; ids must be distinct")
        seen.add(item.id)
        _check_options_of(item)
    check_names("group", ((f"question {item.id!r}", item.group) for item in items))
    check_names("relation", ((f"question {item.id!r}", item.relation) for item in items))


def _check_options_of(item: Question) -> None:
    where = f"question {item.id!r}"
    check_one_line(item.answer, "answer", where)
    for text in item.distractors:
        check_one_line(text, "distractors", where)
    wrong = {normalise(text): text for text in item.distractors}
    if normalise(item.answer) in wrong:
        raise DataError(f"{where}: the answer {item.answer!r} stands among the distractors")
    both = [text for text in item.also_right if normalise(text) in wrong]
    if both:
        raise DataError(f"{where}: {both[0]!r} stands in 'also_right' and among the distractors")
    if wrong and len(wrong) < len(LETTERS) - 1:
        raise DataError(
            f"{where}: fewer than {len(LETTERS)} distinct options (1 answer + {len(wrong)} distinct distractors)"
        )
