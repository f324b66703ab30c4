"""Question files: JSONL and CSV of questions, JSONL of rendered queries, and the authors' JSON. Docs: docs/data.md.

A reader returns everything or raises a DataError that names file, line and field; nothing is half loaded.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.multi_choice import DistractorPool, check_language, to_multi_choice
from qrnca_lens.data.query import Prompt, Query, QuerySet, Question, check_questions
from qrnca_lens.store import write_text

_HERE = Path(__file__).resolve()
_DATASET_FOLDERS = (_HERE.parents[1] / "_datasets", _HERE.parents[2] / "datasets")
SHIPPED = ("atlas/domains", "atlas/languages")
_QUESTION_FIELDS = ("id", "group", "question", "answer", "distractors", "language", "relation")
_PROMPT_FIELDS = ("text", "letter", "template", "options")
_QUERY_FIELDS = ("id", "group", "prompts", "question", "answer", "language", "relation")


def load_queries(source: str | os.PathLike[str], *, seed: int = 0, held_out: bool = False) -> QuerySet:
    """Queries from a shipped name ("atlas/domains", "atlas/languages") or a .jsonl, .csv or .json file.

    Free-form questions are turned into multi-choice ones with `seed`; rendered queries are taken as they stand.
    `held_out` renders the held-out template only. Raises DataError (file, line, field, what was expected).
    """
    path = shipped_path(str(source)) if str(source) in SHIPPED else Path(source)
    if path.suffix == ".json":
        return _rendered_only(read_official(path), path, held_out)
    rows = _csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path)
    if rows and "prompts" in rows[0][1]:
        queries: dict[str, Query] = {}
        for line, row in rows:
            query = _query(row, f"{path}, line {line}")
            _once(query.id, queries, f"{path}, line {line}")
            queries[query.id] = query
        return _rendered_only(QuerySet(tuple(queries.values()), path.stem), path, held_out)
    name = str(source) if str(source) in SHIPPED else path.stem
    questions = _questions(rows, path)
    pool = DistractorPool(questions)
    for (line, _), item in zip(rows, questions, strict=True):
        try:
            check_language(item)
            pool.draw(item, random.Random(0))
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
    return to_multi_choice(questions, seed=seed, held_out=held_out, name=name)


def load_questions(source: str | os.PathLike[str]) -> tuple[Question, ...]:
    """The free-form questions of a shipped name or of a .jsonl or .csv file; errors as in `load_queries`."""
    path = shipped_path(str(source)) if str(source) in SHIPPED else Path(source)
    return _questions(_csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path), path)


def shipped_path(name: str) -> Path:
    """The file of a shipped question set, in an installed package or in a checkout."""
    for folder in _DATASET_FOLDERS:
        path = folder / f"{name}.jsonl"
        if path.is_file():
            return path
    raise DataError(f"the shipped question set {name!r} is missing from this installation; install the package again")


def save_queries(queries: QuerySet, path: str | os.PathLike[str]) -> None:
    """Write rendered queries as JSONL; `load_queries` reads them back equal. Written whole or not at all."""
    write_text("".join(json.dumps(asdict(query), ensure_ascii=False) + "\n" for query in queries), Path(path))


def read_official(path: Path) -> QuerySet:
    """The authors' format: {uuid: {"sentences": [prompts], "obj_label": [letters], "relation_name": group}}."""
    try:
        data = json.loads(_text(path), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except _TwiceError as error:
        raise DataError(f"{path}: {error}; ids and fields must be distinct") from None
    if not isinstance(data, dict) or not data:
        raise DataError(f"{path}: expected a JSON object of queries by id, as in the authors' files")
    queries = []
    for key, entry in data.items():
        where = f"{path}, query {key!r}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
        sentences, letters = (_texts(entry, field, where) for field in ("sentences", "obj_label"))
        if len(sentences) != len(letters):
            raise DataError(f"{where}: {len(sentences)} 'sentences' but {len(letters)} 'obj_label'; one letter a prompt")
        group = _field(entry, "relation_name", where)
        prompts = zip(sentences, letters, strict=True)
        queries.append(_query({"id": key, "group": group, "prompts": [{"text": t, "letter": x} for t, x in prompts]}, where))
    return QuerySet(tuple(queries), path.stem)


def _rendered_only(queries: QuerySet, path: Path, held_out: bool) -> QuerySet:
    if held_out:
        raise DataError(f"{path}: holds rendered prompts; a held-out template can only be rendered from free-form questions")
    return queries


def _questions(rows: list[tuple[int, dict[str, Any]]], path: Path) -> tuple[Question, ...]:
    questions: dict[str, Question] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        _known_fields(row, _QUESTION_FIELDS, where)
        texts = {key: _field(row, key, where) for key in ("id", "group", "question", "answer")}
        _once(texts["id"], questions, where)
        extra = {key: _field(row, key, where) for key in ("language", "relation") if row.get(key)}
        item = Question(**texts, distractors=_texts(row, "distractors", where) if row.get("distractors") else (), **extra)
        try:
            check_questions([item])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        questions[item.id] = item
    if not questions:
        raise DataError(f"{path}: holds no question")
    return tuple(questions.values())


def _query(row: Mapping[str, Any], where: str) -> Query:
    _known_fields(row, _QUERY_FIELDS, where)
    prompts = row.get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(p, dict) for p in prompts):
        raise DataError(f"{where}: field 'prompts': expected a list of objects with 'text' and 'letter'")
    try:
        made = tuple(_prompt(prompt, where) for prompt in prompts)
        plain = {key: _field(row, key, where) for key in ("question", "answer", "language", "relation") if row.get(key)}
        return Query(_field(row, "id", where), _field(row, "group", where), made, **plain)
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    _known_fields(row, _PROMPT_FIELDS, where)
    template = _field(row, "template", where) if row.get("template") else ""
    options = _texts(row, "options", where) if row.get("options") else ()
    return Prompt(_field(row, "text", where), _field(row, "letter", where), template, options)


class _TwiceError(ValueError):
    """A key that stands twice in one JSON object, of which `json` would silently keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _TwiceError(f"{key!r} stands twice")
        made[key] = value
    return made


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
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {key!r}: expected a text, found {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{where}: field {key!r} is empty; expected a text")
    return value


def _texts(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: field {key!r}: expected a list of texts")
    return tuple(value)


def _text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file; shipped sets are {', '.join(SHIPPED)}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def _jsonl_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, text in enumerate(_text(path).split("\n"), 1):  # splitlines would also break at U+2028 inside a text
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {line}: not valid JSON ({error.msg}); expected one object a line") from None
        except _TwiceError as error:
            raise DataError(f"{path}, line {line}: field {error}; fields must be distinct") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line}: expected a JSON object, found {type(row).__name__}")
        rows.append((line, row))
    return rows


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise DataError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns")
        parts = [text.strip() for text in (row.get("distractors") or "").split("|") if text.strip()]
        rows.append((reader.line_num, {**row, "distractors": parts}))
    return rows
