from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from qrnca_lens.core.claims import claim_in, claimed_config, differences, refuse_another
from qrnca_lens.core.store import (
    FORMAT,
    RunError,
    read_json,
    read_record,
    read_table,
    write_json,
    write_record,
    write_table,
    write_text,
)
from qrnca_lens.core.writing import check_folder, check_target, own_folder, plain_name, whole_file, whole_folder
from qrnca_lens.data import Prompt, Query, QuerySet, Question, save_queries
from qrnca_lens.data.readers.sources import save_questions
from qrnca_lens.study import Subject
from qrnca_lens.views.report import write_page


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a" / "run") as made:
        (made / "x").write_text("1")
        assert not (tmp_path / "a" / "run").exists()
    assert (tmp_path / "a" / "run" / "x").read_text() == "1"
    with pytest.raises(RuntimeError, match="stop"), whole_folder(tmp_path / "other") as made:
        (made / "x").write_text("1")
        raise RuntimeError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert read_json(path) == {"a": 1}
    write_table(pd.DataFrame({"a": [1, 2]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["a"].tolist() == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.parquet", "x.json"]


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RunError, match=r"x\.json: no JSON .*make the call that wrote the folder once more"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match=r"no t\.parquet there"):
        read_table(tmp_path / "t.parquet")
    for text in ('{"a": NaN}', "[1, Infinity]", "9" * 5000, "[" * 100_000, "\xff"):
        (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(RunError, match=r"x\.json: no JSON .*make the call that wrote the folder once more"):
            read_json(tmp_path / "x.json")
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(RunError, match=r"t\.parquet: column 'b' is missing \(it has a\)"):
        read_table(tmp_path / "t.parquet", ["a", "b"])
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"t\.parquet: no table"):
        read_table(tmp_path / "t.parquet")


def test_json_is_strict(tmp_path: Path) -> None:
    for value in (float("nan"), [float("inf")], {"a": {"b": -float("inf")}}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(value, tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_a_record_says_its_format(tmp_path: Path) -> None:
    write_record({"a": 1}, tmp_path / "x.json")
    assert read_record(tmp_path / "x.json") == {"format": FORMAT, "a": 1}
    for text, message in (
        ("[1]", "x.json: expected an object, found a list"),
        ('{"format": 0}', "format 0"),
        ("1", "object"),
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(RunError, match=message):
            read_record(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_record(tmp_path / "x.json") == {"format": 1, "a": 1}


def test_differences_name_the_field() -> None:
    ours, theirs = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}
    assert differences(ours, theirs) == ["a.c: 2 here, 4 in the folder", "d: 3 here, None in the folder"]


def test_a_folder_belongs_to_what_its_record_names(tmp_path: Path) -> None:
    record = tmp_path / "run" / "manifest.json"
    assert claim_in(record, "run") is None
    record.parent.mkdir()
    for left in (".manifest.json.0f.part", ".lock"):
        (record.parent / left).write_text("")
    assert claim_in(record, "run", ".lock") is None
    with pytest.raises(RunError, match=r"run holds other files; choose an empty folder for the run$"):
        claim_in(record, "run")
    write_record({"config": {"site": None}}, record)
    claim = claim_in(record, "run")
    assert claim == {"format": FORMAT, "config": {"site": None}}
    assert claimed_config(claim, record, "up") == {"site": None, "read": "letter"}
    assert claimed_config({**claim, "config": {"read": "answer"}}, record, "up") == {"read": "answer"}
    assert claimed_config({**claim, "format": 1}, record, "up") == {"site": "up", "read": "letter"}
    refuse_another(record.parent, "run", [])
    with pytest.raises(RunError, match=r"run holds another run; choose another folder. What differs:\n  a: 1.*\n  b: 2"):
        refuse_another(record.parent, "run", differences({"a": 1, "b": 2}, {}))


def writers(folder: Path) -> dict[str, Callable[[], object]]:
    """Every function that writes one file, and the name of that file as its key."""
    queries = QuerySet((Query("q", "g", (Prompt("Answer:", "A"),)),))
    question = Question("q", "g", "Which?", "this", ("a", "b", "c"))
    return {
        "a.txt": lambda: write_text("text", folder / "a.txt"),
        "a.json": lambda: write_json({}, folder / "a.json"),
        "a.parquet": lambda: write_table(pd.DataFrame({"a": [1]}), folder / "a.parquet"),
        "q.jsonl": lambda: save_queries(queries, folder / "q.jsonl"),
        "questions.jsonl": lambda: save_questions([question], folder / "questions.jsonl"),
        "page.html": lambda: write_page(folder / "page.html", "title", []),
    }


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_and_folders_keep_the_users_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for write in writers(tmp_path / "new").values():
            write()
        with whole_folder(tmp_path / "run") as made:
            write_text("x", made / "x")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o666 & ~umask}
    assert (tmp_path / "run").stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "run" / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_planted_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    folder.mkdir()
    victim.write_text("mine")
    for name, write in writers(folder).items():
        for planted in (name, f".{name}.part"):
            (folder / planted).symlink_to(victim)
        write()
        assert not (folder / name).is_symlink() and (folder / name).is_file()
        (folder / f".{name}.part").unlink()
    assert victim.read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == set(writers(folder)), "something is left over"


@pytest.mark.parametrize("target", ["empty", "nowhere"])
def test_a_folder_does_not_take_the_place_of_a_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError, match="run is there already; choose another folder"), whole_folder(tmp_path / "run"):
        raise AssertionError("the block runs")
    with pytest.raises(FileExistsError, match="run is a link; remove it"):
        own_folder(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file; remove it"):
        own_folder(tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.txt"):
        (tmp_path / name).write_text("old")
    with pytest.raises(Exception, match=r"Conversion failed|Expected bytes"):
        write_table(pd.DataFrame({"a": [1, "x", b"y"]}), tmp_path / "a.parquet")
    with pytest.raises(UnicodeEncodeError):
        write_text("half \ud800", tmp_path / "a.txt")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.parquet": "old", "a.txt": "old"}


def test_places_where_nothing_can_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    long = tmp_path / ("é" * 128 + ".html")
    for path, kind, words in (
        (tmp_path, IsADirectoryError, "is a folder; give the name of a file"),
        (tmp_path / "file" / "page.html", NotADirectoryError, "file is a file, not a folder"),
        (long, OSError, "a name of 261 bytes; at most 255"),
        (tmp_path / ("x" * 256) / "page.html", OSError, "a name of 256 bytes"),
        (tmp_path / "a\0b", ValueError, "a character of code 0"),
        (Path("/proc/page.html"), OSError, "cannot be written: /proc: "),
    ):
        with pytest.raises(kind, match=words):
            check_target(path)
    with pytest.raises(OSError, match="a name of 261 bytes"):
        write_text("x", long)
    with pytest.raises(OSError, match="a name of 256 bytes"), whole_folder(tmp_path / ("x" * 256)):
        raise AssertionError("the block runs")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for path, kind, words in (
        (tmp_path / "file", NotADirectoryError, "file is a file, not a folder; choose another"),
        (tmp_path / "file" / "run", NotADirectoryError, "run cannot be written: .*file is a file"),
        (tmp_path / "nowhere", NotADirectoryError, "nowhere is a link that leads nowhere"),
        (tmp_path / "nowhere" / "run", NotADirectoryError, "nowhere is a link that leads nowhere"),
        (long, OSError, "a name of 261 bytes"),
        (tmp_path / "a\0b", ValueError, "a character of code 0"),
        (Path("/dev/null"), NotADirectoryError, "/dev/null is a file"),
        (Path("/proc/run"), OSError, "cannot be written: /proc: .*choose another place"),
    ):
        with pytest.raises(kind, match=words):
            check_folder(path)
        with pytest.raises((OSError, ValueError)), whole_folder(path):
            raise AssertionError("the block runs")
    (tmp_path / "nowhere").unlink()
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "deep" / ("é" * 127))
    check_target(tmp_path / "new" / "deep" / ("é" * 127))
    write_text("x", tmp_path / ("é" * 127))
    assert {path.name for path in tmp_path.iterdir()} == {"file", "é" * 127}


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "a/b", "a\\b", "a\0", "x" * 256])
def test_names_made_of_a_users_text_stay_in_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        plain_name(name)
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        Subject(name, QuerySet(()), ())
