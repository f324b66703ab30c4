"""Question files: JSONL and CSV of questions, JSONL of rendered queries, and the authors' JSON. Docs: docs/data.md.

A reader returns everything or raises a DataError that names file, line and field; nothing is half loaded.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qrnca_lens.core.values import given_path, seed_number, yes_or_no
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.multi_choice import DistractorPool, Distractors, check_distractors, check_language, to_multi_choice
from qrnca_lens.data.query import Prompt, Query, QuerySet, Question, check_query_set, check_questions
from qrnca_lens.data.readers.formats import csv_records, json_rows, named_cells, parse_json, read_text, write_rows
from qrnca_lens.data.templates import TEMPLATES
from qrnca_lens.data.texts import check_names, check_text, check_texts

_HERE = Path(__file__).resolve()
_DATASET_FOLDERS = (_HERE.parents[2] / "_datasets", _HERE.parents[3] / "datasets")
ATLAS_SETS = ("atlas/domains", "atlas/languages")
"""What the shipped model was trained on."""
SHIPPED = (*ATLAS_SETS, "facts/relations")
_REQUIRED = ("id", "group", "question", "answer")
_QUESTION_FIELDS = (*_REQUIRED, "distractors", "language", "relation", "also_right", "fact")
_PROMPT_FIELDS = ("text", "letter", "template", "options", "read", "rendering")
_LISTS = ("distractors", "also_right")
_MISSING = f"; shipped sets are {', '.join(SHIPPED)}"
_QUERY_FIELDS = ("id", "group", "prompts", "question", "answer", "language", "relation", "fact")


def load_queries(
    source: str | os.PathLike[str], *, seed: int = 0, held_out: bool = False, distractors: Distractors | None = None
) -> QuerySet:
    """Queries from a shipped name ("atlas/domains", "atlas/languages", "facts/relations") or a .jsonl, .csv or .json file.

    Free-form questions are turned into multi-choice ones with `seed`; rendered queries are taken as they stand.
    `held_out` renders the held-out template only. `distractors`: "any" or "same form" (`to_multi_choice`); if not given,
    "any" for a shipped name, whose prompts atlas was trained and measured on, and "same form" for a file. Raises DataError
    (file, line, field, what was expected), TypeError where `held_out` is not True or False and ValueError for other
    `distractors`.
    """
    held_out, seed = yes_or_no("held_out", held_out), seed_number(seed)
    drawn = None if distractors is None else check_distractors(distractors)
    shipped, path = _path_of(source)
    if path.suffix.lower() == ".json":
        return _rendered_only(read_official(path), path, held_out, drawn)
    rows = _rows(path)
    if rows and "prompts" in rows[0][1]:
        queries: dict[str, Query] = {}
        for line, row in rows:
            query = _query(row, f"{path}, line {line}")
            _once(query.id, queries, f"{path}, line {line}")
            queries[query.id] = query
        check_names("group", zip(_places(rows, path), (query.group for query in queries.values()), strict=True))
        return _rendered_only(QuerySet(tuple(queries.values()), path.stem), path, held_out, drawn)
    name = str(source) if shipped else path.stem
    drawn = drawn or ("any" if shipped else "same form")
    questions = _questions(rows, path)
    pool = DistractorPool(questions)
    for (line, _), item in zip(rows, questions, strict=True):
        try:
            check_language(item)
            pool.draw(item, random.Random(0))
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    return to_multi_choice(questions, seed=seed, held_out=held_out, distractors=drawn, name=name)


def load_questions(source: str | os.PathLike[str]) -> tuple[Question, ...]:
    """The free-form questions of a shipped name or of a .jsonl or .csv file; errors as in `load_queries`."""
    path = _path_of(source)[1]
    return _questions(_rows(path), path)


def _path_of(source: str | os.PathLike[str]) -> tuple[bool, Path]:
    """Whether a source is a shipped name, and its file. TypeError for what is neither a text nor a path."""
    path = given_path("source", source)
    return (True, shipped_path(str(source))) if str(source) in SHIPPED else (False, path)


def shipped_path(name: str) -> Path:
    """The file of a shipped question set, in an installed package or in a checkout."""
    for folder in _DATASET_FOLDERS:
        path = folder / f"{name}.jsonl"
        if path.is_file():
            return path
    raise DataError(f"the shipped question set {name!r} is missing from this installation; install the package again")


def save_queries(queries: QuerySet, path: str | os.PathLike[str]) -> None:
    """Write rendered queries as JSONL; `load_queries` reads them back equal. Written whole or not at all.

    Raises DataError for a set without queries and if the file cannot be written.
    """
    check_query_set(queries)
    path = given_path("path", path)
    if not len(queries):
        raise DataError(f"{path}: there is no query to write")
    write_rows((asdict(query) for query in queries), path)


def read_official(path: Path) -> QuerySet:
    """The authors' format: {uuid: {"sentences": [prompts], "obj_label": [letters], "relation_name": group}}.

    In their language set an entry has the answer's text, "ori_label", and a relation, "relation", as well, and its group is
    the code of a language.
    """
    data = parse_json(read_text(path, _MISSING), path)
    if not isinstance(data, dict) or not data:
        raise DataError(f"{path}: expected a JSON object of queries by id, as in the authors' files")
    queries = []
    for key, entry in data.items():
        where = f"{path}, query {key!r}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
        sentences, letters = (check_texts(entry.get(field), field, where) for field in ("sentences", "obj_label"))
        if len(sentences) != len(letters):
            raise DataError(f"{where}: {len(sentences)} 'sentences' but {len(letters)} 'obj_label'; one letter a prompt")
        group = _field(entry, "relation_name", where)
        prompts = [{"text": text, "letter": letter} for text, letter in zip(sentences, letters, strict=True)]
        about = {"answer": entry.get("ori_label"), "relation": entry.get("relation")}
        language = {"language": group} if group in TEMPLATES else {}
        queries.append(_query({"id": key, "group": group, "prompts": prompts, **about, **language}, where))
    check_names("group", ((f"{path}, query {query.id!r}", query.group) for query in queries))
    return QuerySet(tuple(queries), path.stem)


def _rendered_only(queries: QuerySet, path: Path, held_out: bool, distractors: Distractors | None) -> QuerySet:
    if held_out:
        raise DataError(f"{path}: holds rendered prompts; a held-out template can only be rendered from free-form questions")
    if distractors:
        raise DataError(
            f"{path}: holds rendered prompts; distractors can only be drawn for free-form questions, so leave "
            f"distractors={distractors!r} out"
        )
    return queries


def _places(rows: list[tuple[int, dict[str, Any]]], path: Path) -> list[str]:
    return [f"{path}, line {line}" for line, _ in rows]


def _questions(rows: list[tuple[int, dict[str, Any]]], path: Path) -> tuple[Question, ...]:
    questions: dict[str, Question] = {}
    for where, (_, row) in zip(_places(rows, path), rows, strict=True):
        _known_fields(row, _QUESTION_FIELDS, where)
        texts = {key: _field(row, key, where) for key in _REQUIRED}
        _once(texts["id"], questions, where)
        texts |= {key: _field(row, key, where) for key in ("language", "relation", "fact") if _given(row, key)}
        wrong, right = (_list(row, key, where) for key in _LISTS)
        try:
            item = Question(**texts, distractors=wrong, also_right=right)
            check_questions([item])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        questions[item.id] = item
    if not questions:
        raise DataError(f"{path}: holds no question")
    for field in ("group", "relation"):
        check_names(field, zip(_places(rows, path), (getattr(item, field) for item in questions.values()), strict=True))
    return tuple(questions.values())


def _query(row: Mapping[str, Any], where: str) -> Query:
    _known_fields(row, _QUERY_FIELDS, where)
    prompts = row.get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(p, dict) for p in prompts):
        raise DataError(f"{where}: field 'prompts': expected a list of objects with 'text' and 'letter'")
    try:
        made = tuple(_prompt(prompt, where) for prompt in prompts)
        plain = {key: _field(row, key, where) for key in _QUERY_FIELDS[3:] if _given(row, key)}
        return Query(_field(row, "id", where), _field(row, "group", where), made, **plain)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    _known_fields(row, _PROMPT_FIELDS, where)
    named: dict[str, Any] = {key: _field(row, key, where) for key in ("template", "read", "rendering") if _given(row, key)}
    return Prompt(_field(row, "text", where), _field(row, "letter", where), options=_list(row, "options", where), **named)


def _once(key: str, known: Mapping[str, Any], where: str) -> None:
    if key in known:
        raise DataError(f"{where}: field 'id': {key!r} stands twice; ids must be distinct")


def _known_fields(row: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [key for key in row if key not in known]
    if unknown:
        raise DataError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(known)}")


def _field(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f"{where}: field {key!r} is missing; expected a text")
    return check_text(row[key], key, where)


def _given(row: Mapping[str, Any], key: str) -> bool:
    """Whether an optional text is there; in CSV an empty cell is none."""
    return row.get(key) not in (None, "")


def _list(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The texts of an optional list."""
    return () if row.get(key) is None else check_texts(row[key], key, where)


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    kind = path.suffix.lower()
    if kind == ".csv":
        return _csv_rows(path)
    if kind == ".jsonl":
        return list(json_rows(path, _MISSING))
    read_text(path, _MISSING)
    raise DataError(
        f"{path}: a file ending in {path.suffix!r}; expected .jsonl or .csv for questions, .jsonl or .json for prompts"
    )


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    records = csv_records(path, lambda cells: len(cells) >= len(_REQUIRED), _MISSING)
    first, header = next(records, (1, []))
    _check_header(header, f"{path}, line {first}")
    rows = []
    for line, cells in records:
        where = f"{path}, line {line}"
        row: dict[str, Any] = {**named_cells(header, cells, where)}
        for key in _LISTS:
            if key in row:
                row[key] = [text.strip() for text in row[key].split("|")] if row[key].strip() else []
        rows.append((line, row))
    return rows


def _check_header(header: list[str], where: str) -> None:
    if "" in header:
        raise DataError(f"{where}: column {header.index('') + 1} has no name; expected {', '.join(_QUESTION_FIELDS)}")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column {twice[0]!r} stands twice; columns must be distinct")
    _known_fields(dict.fromkeys(header), _QUESTION_FIELDS, where)
