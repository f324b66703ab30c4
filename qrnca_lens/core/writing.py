"""How files and folders come to be: whole or not at all, with the user's umask, never through a link that lies there.

What is in the making has a name that cannot be foreseen and is created anew (O_EXCL, O_NOFOLLOW) beside its target. A link
in the target's place is replaced itself; what it points to is left alone. Links on the way there are followed, so that a
folder of runs may lie on another disk.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_IN_THE_MAKING = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_LONGEST = 255  # bytes of a name, on all common file systems


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which becomes `path` when the block ends well; until then readers see the old one. Makes its folder.

    However the block ends, nothing else is left behind. Raises what `check_target` raises, and OSError with the file's name
    where the disk is full.
    """
    _check_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        with os.fdopen(os.open(part, _NEW, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def tidy(folder: Path) -> None:
    """Remove what killed processes left in the making, which is known by its name (`_beside`). Nobody else may be writing in
    the folder."""
    for left in (path for path in folder.iterdir() if _IN_THE_MAKING.fullmatch(path.name)):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well.

    FileExistsError if `path` is there and not empty, or a link; else what `check_folder` raises.
    """
    _check_name(path)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(f"{path} is there already; choose another folder")
    check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _beside(path)
    made.mkdir()
    try:
        yield made
        if path.is_dir():
            path.rmdir()
        made.rename(path)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold. Leaves nothing behind.

    Raises IsADirectoryError for a folder, NotADirectoryError for a file on the way there, OSError for a name that is too
    long and for a place where nothing can be written.
    """
    _check_file(path)
    _probe(path, path.absolute().parents)


def check_folder(path: Path) -> None:
    """Refuse a folder that could not be made, before the work whose results it is to hold. Leaves nothing behind.

    One that is there passes, also where nothing can be written into it: it may hold all that is asked for.
    Raises NotADirectoryError for a file, or one on the way there, and for a link that leads nowhere, ValueError for a
    character of code 0, OSError for a name that is too long and for a place where nothing can be made.
    """
    _check_name(path)
    if not path.is_dir():
        _probe(path, (path.absolute(), *path.absolute().parents))


def plain_name(name: str) -> str:
    """`name` if it can be the name of a file or folder, so that it stays inside its folder; else ValueError."""
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0") or len(os.fsencode(name)) > _LONGEST - 55:
        raise ValueError(f"{name!r} cannot be the name of a file; give a short one without '/' and '\\'")
    return name


def own_folder(path: Path) -> Path:
    """Make the folder if it is not there. FileExistsError for a link, which would lead elsewhere, and for a file."""
    if path.is_symlink() or path.is_file():
        kind = "link" if path.is_symlink() else "file"
        raise FileExistsError(f"{path} is a {kind}; remove it, or choose another folder")
    path.mkdir(exist_ok=True)
    return path


def _check_file(path: Path) -> None:
    _check_name(path)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")


def _check_name(path: Path) -> None:
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} cannot be a path: it holds a character of code 0")
    for part in path.parts:
        if len(os.fsencode(part)) > _LONGEST:
            raise OSError(f"{part[:20]}…: a name of {len(os.fsencode(part))} bytes; at most {_LONGEST} are possible")


def _probe(path: Path, way: Iterable[Path]) -> None:
    """Make a file, and remove it, in the first place of the way that is there: `path` or what is above it."""
    folder = next(place for place in way if place.is_symlink() or place.exists())
    if not folder.is_dir():
        kind = "a file, not a folder" if folder.exists() else "a link that leads nowhere"
        raise NotADirectoryError(f"{path} cannot be written: {folder} is {kind}; choose another place")
    probe = _beside(folder / "probe")
    try:
        os.close(os.open(probe, _NEW, 0o666))
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {folder}: {error.strerror}; choose another place") from None
    probe.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
