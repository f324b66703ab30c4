"""What the builders of question sets share: where their files come from, and the file that they fill."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.query import Question, check_questions
from qrnca_lens.data.readers.formats import reason, write_rows
from qrnca_lens.data.texts import check_text

HUB = "hub"


def save_questions(questions: Iterable[Question], path: str | os.PathLike[str]) -> None:
    """Write questions as JSONL; `load_questions` reads them back equal. Written whole or not at all.

    Raises DataError for questions that `load_questions` would refuse, for none at all, and if the file cannot be written.
    """
    items = tuple(questions)
    if not items:
        raise DataError(f"{path}: there is no question to write")
    check_questions(items)
    write_rows(({key: value for key, value in asdict(item).items() if value} for item in items), path)


def hub_folder(repo: str, patterns: Sequence[str], revision: str = "main") -> Path:
    """A folder with the files of a Hugging Face data set that match `patterns`, downloaded where not yet cached.

    Raises DataError if the hub delivers none.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - the only place that reaches the hub for data

    try:
        folder = snapshot_download(repo_id=repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{repo} ({revision}): the Hugging Face hub could not deliver the data set ({reason(error)}); "
            "download it by other means and give its folder"
        ) from error
    return Path(folder)


def existing_folder(source: str | os.PathLike[str]) -> Path:
    """`source` as the path of a folder; DataError if there is none."""
    folder = Path(source)
    try:
        there = folder.is_dir()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({reason(error)})") from None
    if not there:
        raise DataError(f"{folder}: no such folder; give the folder of the data set, or 'hub' to download it")
    return folder


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pyarrow.Table:
    """These columns of a parquet file, and of `optional` those there are; DataError names the file and a missing column."""
    try:
        there = pyarrow.parquet.read_schema(path).names
        missing = [column for column in columns if column not in there]
        wanted = [*columns, *(name for name in optional if name in there)]
        table = pyarrow.parquet.read_table(path, columns=[name for name in wanted if name in there])
        table.validate(full=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({reason(error)})") from None
    if missing:
        raise DataError(f"{path}: column {missing[0]!r} is missing; expected {', '.join(columns)}")
    return table


def text_field(row: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a field without outer white space; DataError if it is missing, empty or not a text."""
    return check_text(row.get(key), key, where).strip()
