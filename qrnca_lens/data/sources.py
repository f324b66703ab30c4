"""What the builders of question sets share: where their files come from, and the file that they fill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.query import Question, check_questions
from qrnca_lens.store import write_text

HUB = "hub"
_LINE_BREAKS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


def save_questions(questions: Iterable[Question], path: str | os.PathLike[str]) -> None:
    """Write questions as JSONL; `load_questions` reads them back equal. Written whole or not at all.

    Raises DataError for questions that `load_questions` would refuse, and for none at all.
    """
    items = tuple(questions)
    if not items:
        raise DataError(f"{path}: there is no question to write")
    check_questions(items)
    rows = ({key: value for key, value in asdict(item).items() if value} for item in items)
    lines = (json.dumps(row, ensure_ascii=False).translate(_LINE_BREAKS) + "\n" for row in rows)
    write_text("".join(lines), Path(path))


def hub_folder(repo: str, patterns: Sequence[str], revision: str = "main") -> Path:
    """A folder with the files of a Hugging Face data set that match `patterns`, downloaded where not yet cached.

    Raises DataError if the hub delivers none.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - the only place that reaches the hub for data

    try:
        folder = snapshot_download(repo_id=repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{repo} ({revision}): the Hugging Face hub could not deliver the data set ({reason}); "
            "download it by other means and give its folder"
        ) from error
    return Path(folder)


def existing_folder(source: str | os.PathLike[str]) -> Path:
    """`source` as the path of a folder; DataError if there is none."""
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of the data set, or 'hub' to download it")
    return folder


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pyarrow.Table:
    """These columns of a parquet file, and of `optional` those there are; DataError names the file and a missing column."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        there = pyarrow.parquet.read_schema(path).names
        for column in columns:
            if column not in there:
                raise DataError(f"{path}: column {column!r} is missing; expected {', '.join(columns)}")
        return pyarrow.parquet.read_table(path, columns=[*columns, *(name for name in optional if name in there)])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None


def text_field(row: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a field without outer white space; DataError if it is missing, empty or not a text."""
    value = row.get(key)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise DataError(f"{where}: field {key!r}: expected a text, found {found}")
    if not value.strip():
        raise DataError(f"{where}: field {key!r} is empty; expected a text")
    return value.strip()
