from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qrnca_lens.store import RunError, differences, read_json, read_table, whole_folder, write_json, write_table


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


def test_differences_name_the_field() -> None:
    ours, theirs = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}
    assert differences(ours, theirs) == ["a.c: 2 here, 4 in the folder", "d: 3 here, None in the folder"]
