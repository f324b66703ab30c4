from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qrnca_lens.store import (
    FORMAT,
    RunError,
    differences,
    read_json,
    read_record,
    read_table,
    whole_folder,
    write_json,
    write_record,
    write_table,
)


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
    with pytest.raises(RunError, match=r"x\.json: damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match=r"no t\.parquet there"):
        read_table(tmp_path / "t.parquet")
    for text in ('{"a": NaN}', "[1, Infinity]", "9" * 5000, "[" * 100_000, "\xff"):
        (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(RunError, match=r"x\.json: damaged"):
            read_json(tmp_path / "x.json")
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(RunError, match=r"t\.parquet: column 'b' is missing \(it has a\)"):
        read_table(tmp_path / "t.parquet", ["a", "b"])
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"t\.parquet: damaged"):
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
