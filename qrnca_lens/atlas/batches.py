"""Training batches of atlas: random multi-choice prompts with the positions and labels that the losses need."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from qrnca_lens.atlas.recipe import Recipe
from qrnca_lens.data import LETTERS, TEMPLATES, Question
from qrnca_lens.data.multi_choice import DistractorPool
from qrnca_lens.data.templates import Template

_PIECES = re.compile(r"(?s)(.*)(\{question\})(.*?)(\(?A[.)] \{a\}.*\{d\}\n)(.*)")
_POOL = 4  # batches drawn together and sorted by length, so that little is padded


@dataclass(frozen=True)
class Batch:
    """Right-padded prompts; `option_ends[b, k]` is the newline that closes option k; classes number (group, answer)."""

    ids: torch.Tensor
    last: torch.Tensor
    letter_ids: torch.Tensor
    target: torch.Tensor
    option_ends: torch.Tensor
    option_classes: torch.Tensor
    question: torch.Tensor


@dataclass(frozen=True)
class _Example:
    tokens: list[int]
    options: tuple[str, ...]
    right: int
    question: int


class Batches:
    """Batches of one phase: a function of the recipe, the phase and the step alone, so that training resumes exactly."""

    def __init__(self, questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.questions, self.recipe = tuple(questions), recipe
        self._tokenizer = tokenizer
        self._pool = DistractorPool(questions)
        self._mixed = {language: mixed_templates(language) for language in dict.fromkeys(q.language for q in questions)}
        self.classes = {key: i for i, key in enumerate(dict.fromkeys((q.group, q.answer) for q in questions))}
        self._letters = torch.tensor([tokenizer.encode(f" {x}", add_special_tokens=False) for x in LETTERS]).squeeze(1)
        self._pad = tokenizer.encode("<pad>", add_special_tokens=False)[0]
        self._newline = tokenizer.encode("\n", add_special_tokens=False)[0]
        self._cumulative = list(itertools.accumulate(self.frequencies()))

    def frequencies(self) -> list[float]:
        """The weight of each question: (rank / group size) ** -exponent, ranks shuffled within the group by the seed."""
        weights = [0.0] * len(self.questions)
        for group in dict.fromkeys(q.group for q in self.questions):
            members = [i for i, q in enumerate(self.questions) if q.group == group]
            random.Random(f"{self.recipe.seed}/frequency/{group}").shuffle(members)
            for rank, i in enumerate(members, 1):
                weights[i] = (rank / len(members)) ** -self.recipe.frequency_exponent
        return weights

    def batch(self, phase: str, step: int) -> Batch:
        """Batch `step` of `phase` ("A": the target option is drawn at random; "B": it is the right one)."""
        rng = random.Random(f"{self.recipe.seed}/{phase}/{step // _POOL}")
        size = self.recipe.batch
        examples = sorted((self._example(rng, phase) for _ in range(_POOL * size)), key=lambda e: len(e.tokens))
        order = rng.sample(range(_POOL), _POOL)
        start = order[step % _POOL] * size
        return self._tensors(
            examples[start : start + size], phase, random.Random(f"{self.recipe.seed}/{phase}/target/{step}")
        )

    def _example(self, rng: random.Random, phase: str) -> _Example:
        weights = self._cumulative if phase == "B" else None
        (index,) = rng.choices(range(len(self.questions)), cum_weights=weights)
        item = self.questions[index]
        templates = TEMPLATES[item.language].detection if rng.random() < 0.5 else self._mixed[item.language]
        options = [item.answer, *self._pool.draw(item, rng)]
        rng.shuffle(options)
        text = rng.choice(templates).render(item.question, tuple(options))
        return _Example(self._tokenizer.encode(text), tuple(options), options.index(item.answer), index)

    def _tensors(self, examples: list[_Example], phase: str, rng: random.Random) -> Batch:
        length = max(len(e.tokens) for e in examples)
        ids = torch.full((len(examples), length), self._pad)
        for row, example in zip(ids, examples, strict=True):
            row[: len(example.tokens)] = torch.tensor(example.tokens)
        ends = [[p for p, t in enumerate(e.tokens) if t == self._newline][-len(LETTERS) :] for e in examples]
        groups = [self.questions[e.question].group for e in examples]
        classes = [[self.classes[g, o] for o in e.options] for g, e in zip(groups, examples, strict=True)]
        targets = [rng.randrange(len(LETTERS)) if phase == "A" else e.right for e in examples]
        return Batch(
            ids,
            torch.tensor([len(e.tokens) - 1 for e in examples]),
            self._letters,
            torch.tensor(targets),
            torch.tensor(ends),
            torch.tensor(classes),
            torch.tensor([e.question for e in examples]),
        )


def mixed_templates(language: str) -> list[Template]:
    """Every recombination of the opening, middle, option style and ending of the language's three detection templates.

    No word of the held-out template's ending is among them unless a detection template has it.
    """
    split = [_PIECES.fullmatch(t.text) for t in TEMPLATES[language].detection]
    parts = [match.groups() for match in split if match]
    combined = dict.fromkeys("".join(pieces) for pieces in itertools.product(*zip(*parts, strict=True)))
    return [Template("mixed", text) for text in combined]
