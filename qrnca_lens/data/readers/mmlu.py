"""The domain queries of the paper: questions of six MMLU high-school test sets (Hendrycks et al., ICLR 2021).

Two layouts are read, told apart by the files that are there:

- the original release: `high_school_biology_test.csv` and its like in the folder, its `test` or its `data/test`; CSV
  without a header, six columns: question, choices A, B, C, D, letter of the right choice;
- `cais/mmlu` on the Hugging Face hub: `high_school_biology/test-00000-of-00001.parquet` and its like; columns
  question (text), subject (text), choices (list of four texts), answer (0 to 3).

Both list the same questions in the same order, so they give the same set.
"""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from qrnca_lens.core.values import seed_number
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.query import Question
from qrnca_lens.data.readers.formats import csv_records, named_cells
from qrnca_lens.data.readers.sources import HUB, existing_folder, hub_folder, read_parquet, text_field
from qrnca_lens.data.templates import LETTERS
from qrnca_lens.data.texts import has_line_break, normalise

COUNTS = {"biology": 100, "physics": 100, "chemistry": 100, "mathematics": 100, "computer science": 52, "geography": 100}
"""Questions of each group in the paper's set of 552."""

HUB_REPO = "cais/mmlu"
_CSV_FIELDS = ("question", *LETTERS, "answer")
_log = logging.getLogger(__name__)


def build_mmlu(source: str | os.PathLike[str], *, seed: int = 0, counts: Mapping[str, int] = COUNTS) -> tuple[Question, ...]:
    """The questions of the paper's six domains with MMLU's own wrong choices as distractors.

    `source`: a folder in one of the two layouts, or "hub". `counts`: questions of each group; where MMLU has more, a sample
    drawn with `seed`, in MMLU's order. An id ends in the number of the row in its file, from 0. Questions whose four choices
    are not distinct under `normalise`, or not single lines, are left out; the log says how many. Raises DataError (file,
    row, field) for a malformed row, a missing file and a subject with too few questions.
    """
    seed = seed_number(seed)
    names = [_parquet_name(group) for group in counts]
    folder = hub_folder(HUB_REPO, names) if source == HUB else existing_folder(source)
    chosen: list[Question] = []
    equal, broken = Counter[str](), Counter[str]()
    for group, path in _files(folder, counts).items():
        rows = list(_csv_questions(path, group) if path.suffix == ".csv" else _parquet_questions(path, group))
        distinct = [item for item in rows if len(set(map(normalise, _choices(item)))) == len(LETTERS)]
        fair = [item for item in distinct if not any(map(has_line_break, _choices(item)))]
        equal[group], broken[group] = len(rows) - len(distinct), len(distinct) - len(fair)
        if len(fair) < counts[group]:
            raise DataError(f"{path}: {len(fair)} usable questions, but the set needs {counts[group]} of {group}")
        drawn = random.Random(f"{seed}/{group}").sample(range(len(fair)), counts[group])
        chosen += [fair[index] for index in sorted(drawn)]
    for fault, left_out in (("choices are not distinct", equal), ("choices are not single lines", broken)):
        if left_out.total():
            listed = ", ".join(f"{group} {count}" for group, count in left_out.items() if count)
            _log.warning("MMLU: left out %d questions whose four %s (%s)", left_out.total(), fault, listed)
    return tuple(chosen)


def _choices(item: Question) -> tuple[str, ...]:
    return item.answer, *item.distractors


def _subject(group: str) -> str:
    return f"high_school_{group.replace(' ', '_')}"


def _parquet_name(group: str) -> str:
    return f"{_subject(group)}/test-00000-of-00001.parquet"


def _files(folder: Path, counts: Mapping[str, int]) -> dict[str, Path]:
    """The file of each group, in the layout that the folder has."""
    places = [{group: place / f"{_subject(group)}_test.csv" for group in counts} for place in _csv_places(folder)]
    places.append({group: folder / _parquet_name(group) for group in counts})
    for files in places:
        if any(path.is_file() for path in files.values()):
            missing = next((path for path in files.values() if not path.is_file()), None)
            if missing:
                raise DataError(f"{missing}: no such file, although others of MMLU are there")
            return files
    raise DataError(
        f"{folder}: no MMLU here; expected test/high_school_biology_test.csv and its like (the original release) "
        f"or {_parquet_name('biology')} and its like ({HUB_REPO})"
    )


def _csv_places(folder: Path) -> tuple[Path, ...]:
    return folder, folder / "test", folder / "data" / "test"


def _csv_questions(path: Path, group: str) -> Iterator[Question]:
    for number, (line, cells) in enumerate(csv_records(path, _is_row)):
        where = f"{path}, line {line}"
        row = named_cells(_CSV_FIELDS, cells, where)
        letter = text_field(row, "answer", where)
        if letter not in LETTERS:
            raise DataError(f"{where}: field 'answer': expected one of {', '.join(LETTERS)}, found {letter!r}")
        choices = [text_field(row, key, where) for key in LETTERS]
        yield _question(group, number, text_field(row, "question", where), choices, LETTERS.index(letter))


def _is_row(cells: list[str]) -> bool:
    return len(cells) >= len(_CSV_FIELDS) and cells[-1].strip(' "') in LETTERS


def _parquet_questions(path: Path, group: str) -> Iterator[Question]:
    for number, row in enumerate(read_parquet(path, ("question", "subject", "choices", "answer")).to_pylist()):
        where = f"{path}, row {number}"
        if row["subject"] != _subject(group):
            raise DataError(f"{where}: field 'subject': expected {_subject(group)!r}, found {row['subject']!r}")
        choices, answer = row["choices"], row["answer"]
        if not isinstance(choices, list) or len(choices) != len(LETTERS):
            raise DataError(f"{where}: field 'choices': expected a list of {len(LETTERS)} texts")
        if type(answer) is not int or not 0 <= answer < len(LETTERS):
            raise DataError(f"{where}: field 'answer': expected a number from 0 to {len(LETTERS) - 1}, found {answer!r}")
        texts = [text_field({"choices": text}, "choices", where) for text in choices]
        yield _question(group, number, text_field(row, "question", where), texts, answer)


def _question(group: str, number: int, question: str, choices: list[str], right: int) -> Question:
    wrong = tuple(text for index, text in enumerate(choices) if index != right)
    return Question(f"mmlu-{group.replace(' ', '-')}-{number:04}", group, question, choices[right], wrong)
