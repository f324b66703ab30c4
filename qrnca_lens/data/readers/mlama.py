"""The language queries of the paper: facts of Multilingual LAMA (Kassner, Dufter and Schütze, EACL 2021) in six languages.

Two layouts are read, told apart by the files that are there:

- the original release (the folder `mlama1.1` of mlama1.1.zip, or the folder that holds it): for each language
  `{lang}/templates.jsonl` with rows `{"relation": "P19", "template": "[X] was born in [Y] ."}`,
  and `{lang}/P19.jsonl` and its like with rows of sub_uri, obj_uri, sub_label, obj_label, lineid, uuid;
- `m_lama` of the Hugging Face hub: parquet files anywhere in the folder, with the columns uuid, lineid, obj_uri, obj_label,
  sub_uri, sub_label, template, language, predicate_id; languages and relations beyond those needed are passed over.

A fact has the same sub_uri and obj_uri in every language (and the same uuid, and the same lineid within a relation); rows
without both uris are joined by uuid, those without it by lineid. A language's file holds only facts that have labels in it.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrnca_lens.core.values import seed_number
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.query import Question
from qrnca_lens.data.readers.formats import json_rows
from qrnca_lens.data.readers.sources import HUB, existing_folder, hub_folder, read_parquet, text_field
from qrnca_lens.data.templates import LETTERS
from qrnca_lens.data.texts import normalise

RELATIONS = {
    "birth_place": "P19",
    "employer": "P108",
    "instrument": "P1303",
    "headquarters": "P159",
    "host_country": "P17",
}
"""The relations of the paper by the names of this package, with their mLAMA (Wikidata) ids: place of birth, employer,
instrument, headquarters location, country."""

LANGUAGES = {"ar": "arabic", "en": "english", "fr": "french", "ja": "japanese", "ru": "russian", "zh": "chinese"}
"""The languages of the paper by their code, with the group of their questions."""

COUNTS = dict.fromkeys(RELATIONS, 20)
"""Facts of each relation; in six languages the paper's set of 600."""

INSTRUCTIONS = {
    "ar": "أي خيار يكمل الجملة: {sentence}",
    "en": "Which option completes the sentence: {sentence}",
    "fr": "Quelle option complète la phrase : {sentence}",
    "ja": "次の文を完成させる選択肢はどれですか: {sentence}",
    "ru": "Какой вариант дополняет предложение: {sentence}",
    "zh": "哪个选项能补全这个句子: {sentence}",
}
"""What makes a question of a sentence with a gap."""

HUB_REPO = "cis-lmu/m_lama"
_HUB_REVISIONS = ("main", "refs/convert/parquet")
_SUBJECT, _OBJECT, _GAP = "[X]", "[Y]", "___"
_PARQUET_COLUMNS = ("obj_label", "sub_label", "template", "language", "predicate_id")
_KEY_COLUMNS = ("sub_uri", "obj_uri", "uuid", "lineid")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """A fact in one language. `fact` is its identity in all languages; `subject` and `object` are those of its two ends."""

    language: str
    relation: str
    template: str
    fact: str
    subject: str
    object: str
    sub_label: str
    obj_label: str


@dataclass
class _Table:
    """The rows by language and relation, then by fact; and of each relation's subjects the objects that go with them."""

    rows: dict[tuple[str, str], dict[str, _Row]] = field(default_factory=lambda: defaultdict(dict))
    objects: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    repeated: int = 0

    def add(self, row: _Row) -> None:
        facts = self.rows[row.language, row.relation]
        self.repeated += row.fact in facts
        facts.setdefault(row.fact, row)
        self.objects[row.relation, row.subject].add(row.object)


def build_mlama(
    source: str | os.PathLike[str], *, seed: int = 0, counts: Mapping[str, int] = COUNTS
) -> tuple[Question, ...]:
    """The same facts asked in six languages, as sentences with a gap; distractors are left to `to_multi_choice`.

    `source`: a folder in one of the two layouts, or "hub". `counts`: facts of each relation (keys of `RELATIONS`), drawn
    with `seed` from those that all languages have. Facts whose subject has several objects in the relation are left out,
    since another right answer could become a distractor; the log says how many. Raises DataError (file, line, field) for
    a malformed row, a missing language and a relation with too few facts in common.
    """
    seed = seed_number(seed)
    place = _hub() if source == HUB else existing_folder(source)
    table = _Table()
    for row in _rows(place, counts):
        table.add(row)
    several: dict[str, int] = {}
    drawn = {relation: _draw(table, relation, counts[relation], seed, several, place) for relation in counts}
    if table.repeated or several:
        listed = ", ".join(f"{relation} {count}" for relation, count in several.items()) or "none"
        _log.warning(
            "mLAMA: left out %d facts whose subject has several answers (%s) and %d repeated rows",
            sum(several.values()), listed, table.repeated,
        )  # fmt: skip
    return tuple(
        _question(table.rows[language, relation][fact])
        for language in LANGUAGES
        for relation, facts in drawn.items()
        for fact in facts
    )


def _hub() -> Path:
    for revision in _HUB_REVISIONS:
        folder = hub_folder(HUB_REPO, ["*.parquet"], revision)
        if any(folder.rglob("*.parquet")):
            return folder
    raise DataError(
        f"{HUB_REPO}: the Hugging Face hub has no parquet files of it; "
        "get mlama1.1.zip from http://cistern.cis.lmu.de/mlama/ and give its folder"
    )


def _draw(table: _Table, relation: str, count: int, seed: int, several: dict[str, int], place: Path) -> list[str]:
    """`count` facts of the relation that every language has, in a fixed order; `several` notes how many were left out."""
    for language in LANGUAGES:
        if not table.rows[language, relation]:
            raise DataError(f"{place}: no fact of {RELATIONS[relation]} ({relation}) in language {language!r}")
    by_language = [table.rows[language, relation] for language in LANGUAGES]
    common = set.intersection(*(set(facts) for facts in by_language))
    single = [
        fact
        for fact in sorted(common)
        if all(len(table.objects[relation, facts[fact].subject]) == 1 for facts in by_language)
    ]
    if len(single) < len(common):
        several[relation] = len(common) - len(single)
    if len(single) < count:
        raise DataError(
            f"{place}: {RELATIONS[relation]} ({relation}): {len(single)} facts stand in all of {', '.join(LANGUAGES)}, "
            f"but the set needs {count}"
        )
    chosen = sorted(random.Random(f"{seed}/{relation}").sample(single, count))
    for language, facts in zip(LANGUAGES, by_language, strict=True):
        answers = len({normalise(facts[fact].obj_label) for fact in chosen})
        if answers < len(LETTERS):
            raise DataError(
                f"{place}: {RELATIONS[relation]} ({relation}): the facts drawn with seed {seed} have {answers} distinct "
                f"answers in language {language!r}, too few for {len(LETTERS)} options; choose another seed"
            )
    return chosen


def _question(row: _Row) -> Question:
    sentence = row.template.replace(_OBJECT, _GAP).replace(_SUBJECT, row.sub_label)
    sentence = re.sub(r"\s+([.。])$", r"\1", sentence)
    return Question(
        id=f"mlama-{row.language}-{RELATIONS[row.relation]}-{row.fact}",
        group=LANGUAGES[row.language],
        question=INSTRUCTIONS[row.language].format(sentence=sentence),
        answer=row.obj_label,
        language=row.language,
        relation=row.relation,
        fact=f"{RELATIONS[row.relation]}-{row.fact}",
    )


def _rows(folder: Path, relations: Iterable[str]) -> Iterator[_Row]:
    for place in (folder, folder / "mlama1.1"):
        if any((place / language / "templates.jsonl").is_file() for language in LANGUAGES):
            return _original_rows(place, relations)
    paths = sorted(folder.rglob("*.parquet"))
    if not paths:
        raise DataError(
            f"{folder}: no mLAMA here; expected en/templates.jsonl, en/P19.jsonl and their like (the original release) "
            "or parquet files (m_lama of the Hugging Face hub)"
        )
    return _parquet_rows(paths, relations)


def _original_rows(folder: Path, relations: Iterable[str]) -> Iterator[_Row]:
    for language in LANGUAGES:
        path = folder / language / "templates.jsonl"
        templates = {}
        for where, row in _json_lines(path):
            code = row.get("relation")
            if code not in RELATIONS.values():
                continue
            if code in templates:
                raise DataError(f"{where}: field 'relation': a second template of {code!r}; expected one")
            templates[code] = _template(row, where)
        for relation in relations:
            code = RELATIONS[relation]
            if code not in templates:
                raise DataError(f"{path}: no template of relation {code!r} ({relation})")
            for where, row in _json_lines(folder / language / f"{code}.jsonl"):
                yield _row(row, language, relation, templates[code], where)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, row in json_rows(path, ", although others of mLAMA are there"):
        yield f"{path}, line {line}", row


def _parquet_rows(paths: list[Path], relations: Iterable[str]) -> Iterator[_Row]:
    names = {RELATIONS[relation]: relation for relation in relations}
    wanted = list(itertools.product(LANGUAGES, names))  # a list: a damaged cell may be of a type that has no hash
    for path in paths:
        table = read_parquet(path, _PARQUET_COLUMNS, _KEY_COLUMNS)
        pairs = zip(table.column("language").to_pylist(), table.column("predicate_id").to_pylist(), strict=True)
        numbers = [number for number, (language, code) in enumerate(pairs) if (language, code) in wanted]
        for number, row in zip(numbers, table.take(numbers).to_pylist() if numbers else [], strict=True):
            where = f"{path}, row {number}"
            yield _row(row, row["language"], names[row["predicate_id"]], _template(row, where), where)


def _template(row: Mapping[str, Any], where: str) -> str:
    text = text_field(row, "template", where)
    if text.count(_SUBJECT) != 1 or text.count(_OBJECT) != 1:
        raise DataError(f"{where}: field 'template': expected one {_SUBJECT} and one {_OBJECT}, found {text!r}")
    return text


def _row(row: Mapping[str, Any], language: str, relation: str, template: str, where: str) -> _Row:
    sub_label, obj_label = text_field(row, "sub_label", where), text_field(row, "obj_label", where)
    if row.get("sub_uri") and row.get("obj_uri"):
        subject, target = text_field(row, "sub_uri", where), text_field(row, "obj_uri", where)
        return _Row(language, relation, template, f"{subject}-{target}", subject, target, sub_label, obj_label)
    if row.get("uuid"):
        fact = text_field(row, "uuid", where)
    elif type(row.get("lineid")) is int:
        fact = str(row["lineid"])
    else:
        raise DataError(f"{where}: expected 'sub_uri' and 'obj_uri', or 'uuid', or a number 'lineid' to know the fact by")
    return _Row(
        language, relation, template, fact, f"{language}: {normalise(sub_label)}", normalise(obj_label), sub_label, obj_label
    )
