"""Whose a folder is: a record in it says for what it was made, and a folder that was made for something else is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrnca_lens.core.store import DamagedRunError, RunError, field_of, read_record


def claim_in(record: Path, kind: str, *beside: str) -> dict[str, Any] | None:
    """What the record of a folder says, None for a folder without one that is empty or not there.

    `kind` names what such folders are for ("run"). A process that is killed before the record is there leaves a hidden part
    of it, and what begins with one of `beside` or is a hidden part of such; these do not count. RunError for other files.
    """
    if record.is_file():
        return read_record(record)
    folder, ours = record.parent, (*beside, *(f".{name}" for name in (f"{record.name}.", *beside)))
    if folder.is_dir() and any(not there.name.startswith(ours) for there in folder.iterdir()):
        raise RunError(f"{folder} holds other files; choose an empty folder for the {kind}")
    return None


def whole_claim_in(record: Path, kind: str, *beside: str) -> dict[str, Any] | None:
    """As `claim_in`; RunError for a damaged record, since nothing else tells what the folder was made for."""
    try:
        return claim_in(record, kind, *beside)
    except DamagedRunError as error:
        raise RunError(
            f"{error.what}, so that nothing tells what the folder was made for; choose another folder for the {kind}, or "
            "delete this one"
        ) from None


def claimed_config(claim: dict[str, Any], record: Path, default_site: str) -> dict[str, Any]:
    """The configuration that a claim names; in one of format 1 a site of null is the model's default. RunError for none.

    One of a time before answers could be read is about letters.
    """
    config = {**field_of(dict[str, Any], claim, "config", record)}
    config.setdefault("read", "letter")
    if claim["format"] == 1 and config.get("site", "") is None:
        return {**config, "site": default_site}
    return config


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


def refuse_another(folder: Path, kind: str, changed: Sequence[str]) -> None:
    """RunError that lists how what the folder was made for differs from what is asked for, if it does."""
    if changed:
        raise RunError(f"{folder} holds another {kind}; choose another folder. What differs:\n  " + "\n  ".join(changed))
