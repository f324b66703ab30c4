"""Text files of rows: JSON, JSONL and CSV in, JSONL out. Whatever is wrong with a file is a DataError with file and line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qrnca_lens.core.store import write_text
from qrnca_lens.data.errors import DataError

_LINE_END = re.compile(r"\r\n|\r|\n")
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_PLAIN = re.compile(r'[^",\r\n]*')
_LINE_BREAKS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})


class _TwiceError(ValueError):
    """A key that stands twice in one JSON object, of which `json` would silently keep the last."""


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def read_text(path: Path, missing: str = "") -> str:
    """The UTF-8 text of a file, without a byte order mark; `missing` goes on with "no such file"."""
    try:
        kind = "file" if path.is_file() else "folder or device" if path.exists() else ""
        content = path.read_bytes() if kind == "file" else b""
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); give a file that this user may read") from None
    if kind != "file":
        raise DataError(f"{path}: a {kind}; expected a file" if kind else f"{path}: no such file{missing}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """The JSON value of a whole file, or of its `line`; a field that stands twice is refused."""
    where = f"{path}" if line is None else f"{path}, line {line}"
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        expected = f"{path}, line {error.lineno}: not valid JSON ({error.msg})"
        if line is not None:
            expected = f"{where}: not valid JSON ({error.msg}); expected one object a line"
        raise DataError(expected) from None
    except _TwiceError as error:
        raise DataError(f"{where}: {'' if line is None else 'field '}{error}; ids and fields must be distinct") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply; expected an object of texts and lists of texts") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{where}: a number that cannot be read ({reason(error)})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _TwiceError(f"{key!r} stands twice")
        made[key] = value
    return made


def json_rows(path: Path, missing: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers; empty lines are passed over."""
    for line, text in enumerate(read_text(path, missing).split("\n"), 1):  # splitlines would break at U+2028 in a text
        if not text.strip():
            continue
        row = parse_json(text, path, line)
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line}: expected a JSON object, found {type(row).__name__}")
        yield line, row


def csv_records(path: Path, is_row: Callable[[list[str]], bool], missing: str = "") -> Iterator[tuple[int, list[str]]]:
    """The cells of each record of a CSV file (RFC 4180) with its first line's number; empty lines are passed over.

    A quotation mark counts only at the ends of a cell, and doubled inside; any other is refused, since it could swallow the
    rows after it. For the same reason a text in quotes may run over several lines only if not each of them, split at its
    commas, is a row of its own by `is_row`.
    """
    text = read_text(path, missing)
    position, line = 0, 1
    while position < len(text):
        start, first, cells = position, line, []
        while True:
            cell, position = _cell(text, position, f"{path}, line {line}")
            cells.append(cell)
            line += len(_LINE_END.findall(cell))
            if not text.startswith(",", position):
                break
            position += 1
        lines = [part for part in _LINE_END.split(text[start:position]) if part.strip()]
        if len(lines) > 1 and all(is_row(part.split(",")) for part in lines):
            raise DataError(
                f"{path}, line {first}: not valid CSV (a quotation mark takes lines {first} to {line} together, each of "
                "which could be a row of its own); close the mark on its line, or write the questions as JSONL"
            )
        end = _LINE_END.match(text, position)
        position, line = (end.end() if end else position), line + 1
        if lines:
            yield first, cells


def named_cells(names: Sequence[str], cells: Sequence[str], where: str) -> dict[str, str]:
    """The cells of a record by the names of their columns; DataError where there are more or fewer."""
    if len(cells) != len(names):
        raise DataError(f"{where}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}")
    return dict(zip(names, cells, strict=True))


def _cell(text: str, position: int, where: str) -> tuple[str, int]:
    """The cell that begins at `position`, and where it ends: at a comma, a line end or the end of the text."""
    quoted = text.startswith('"', position)
    found = (_QUOTED if quoted else _PLAIN).match(text, position)
    if not found:
        raise DataError(f"{where}: not valid CSV (a quotation mark opens a text that is never closed)")
    if text[found.end() : found.end() + 1] not in ("", ",", "\r", "\n"):
        fault = "a text goes on after its closing quotation mark" if quoted else "a quotation mark inside a plain text"
        raise DataError(f'{where}: not valid CSV ({fault}); put the text in quotes and write each mark in it as ""')
    return (found[1].replace('""', '"') if quoted else found[0]), found.end()


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write objects as JSONL, whole or not at all; DataError if the file cannot be written."""
    lines = (json.dumps(row, ensure_ascii=False).translate(_LINE_BREAKS) + "\n" for row in rows)
    try:
        write_text("".join(lines), Path(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be written ({reason(error)}); give another place, where this user may write"
        ) from None
