"""Files of a run: text, JSON and parquet, each written completely or not at all. Touches no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.writing import whole_file


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says what stands in it and what to do."""


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text; readers see the old file or the new one, never a part."""
    data = text.encode("utf-8")
    with whole_file(path) as file:
        file.write(data)


def write_json(value: Any, path: Path) -> None:
    """Write JSON, keys in the order given."""
    write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", path)


def read_json(path: Path) -> Any:
    """Read JSON; RunError if the file is missing or damaged."""
    if not path.is_file():
        raise RunError(f"{path.parent}: no {path.name} there; this is not a finished run folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: damaged ({error}); delete the run folder and start again") from None


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet."""
    with whole_file(path) as file:
        table.to_parquet(file, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table; RunError if it is missing or damaged."""
    if not path.is_file():
        raise RunError(f"{path.parent}: no {path.name} there; this is not a finished run folder")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error}); delete the run folder and start again") from None


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested records, one line a field: "steps: 16 here, 8 in the folder"."""
    lines = []
    for key in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} here, {b} in the folder")
    return lines
