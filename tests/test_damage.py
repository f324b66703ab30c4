"""Run folders in which something is not as it was written: found, named, and computed anew where it can be."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs import CONFIG, failing, same

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.kept import KeptTables
from qrnca_lens.core.store import DamagedRunError, DamageWarning, RunError, read_record, write_record, write_table
from qrnca_lens.data import QuerySet
from qrnca_lens.runs import folder, pipeline, work
from qrnca_lens.runs.pipeline import locate


@pytest.fixture(scope="module")
def finished(
    model_of: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory, asked: QuerySet
) -> tuple[Path, QRNeurons]:
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, located(model_of, asked, out)


@pytest.fixture(scope="module")
def asked(short_queries: QuerySet) -> QuerySet:
    return QuerySet(short_queries.queries[:6], "short")


@pytest.fixture
def cut(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted with three parts of two queries each."""
    monkeypatch.setattr(pipeline, "QUERIES_TOGETHER", 2)
    monkeypatch.setattr(folder, "_FLUSH_SECONDS", -1.0)
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q6"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            located(model_of, short_queries, tmp_path / "cut")
    assert sorted(path.name for path in (tmp_path / "cut" / "parts").iterdir()) == ["00000", "00001", "00002"]
    return tmp_path / "cut"


def located(model_of: Callable[[str], Any], queries: QuerySet, out: Path | None = None) -> QRNeurons:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DamageWarning)
        return locate(model_of("llama"), queries, CONFIG, out=out, progress=False)


def altered(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << (place % 8)
    path.write_bytes(data)


RESULT = [
    "asked.json",
    "clusters.parquet",
    "common_neurons.parquet",
    "gaps.parquet",
    "qr_neurons.parquet",
    "queries.parquet",
]


@pytest.mark.parametrize("name", [*RESULT, "header.json"])
def test_one_flipped_bit_is_found_wherever_it_is(name: str, finished: tuple[Path, QRNeurons], tmp_path: Path) -> None:
    """What is read is equal, or it is damaged: in no case another table."""
    out, found = finished
    shutil.copytree(out, tmp_path / "run")
    path, whole = tmp_path / "run" / name, (out / name).read_bytes()
    for place in random.Random(name).sample(range(8 * len(whole)), 30):
        path.write_bytes(whole)
        altered(path, place)
        try:
            again = QRNeurons.load(tmp_path / "run")
        except RunError as error:
            assert name in str(error), error
        else:  # a space of JSON became another one
            assert name == "header.json"
            same(again, found)


@pytest.mark.parametrize("change", ["flipped", "cut", "empty", "gone", "of another run", "without a column"])
@pytest.mark.parametrize("name", [*RESULT, "header.json"])
def test_a_damaged_result_is_named_and_made_anew(
    change: str,
    name: str,
    finished: tuple[Path, QRNeurons],
    model_of: Callable[[str], Any],
    asked: QuerySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, found = finished
    shutil.copytree(out, tmp_path / "run")
    path = tmp_path / "run" / name
    if change == "flipped":
        altered(path, 8 * (path.stat().st_size // 2))
    elif change in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 0 if change == "empty" else path.stat().st_size // 2])
    elif change == "gone":
        path.unlink()
    elif change == "of another run":
        found.restrict(list(found.queries["query"])[:4]).save(tmp_path / "other")
        shutil.copy(tmp_path / "other" / name, path)
    elif name.endswith(".parquet"):
        table = pd.read_parquet(path)
        write_table(table.drop(columns=table.columns[-1]), path)
    else:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in record.items() if key != list(record)[-1]}))
    with pytest.raises(
        DamagedRunError, match=r"make the call that wrote the folder once more|not a finished run folder"
    ) as told:
        QRNeurons.load(tmp_path / "run")
    assert name in str(told.value) or change == "of another run"
    if name in ("asked.json", "common_neurons.parquet", "qr_neurons.parquet"):
        monkeypatch.setattr(work, "attribute", None)  # what they are made of is whole
    if (name, change) == ("header.json", "gone"):  # an unfinished run, whose parts are gone
        same(located(model_of, asked, tmp_path / "run"), found)
    else:
        with pytest.warns(DamageWarning, match="what it held is made anew"):
            same(located(model_of, asked, tmp_path / "run"), found)
    same(QRNeurons.load(tmp_path / "run"), found)
    assert not (tmp_path / "run" / "parts").exists()


@pytest.mark.parametrize("change", ["flipped", "cut", "gone", "of another part", "of another run", "no record", "no folder"])
@pytest.mark.parametrize("name", ["clusters", "queries", "gaps"])
def test_a_damaged_part_is_computed_anew_and_no_other(
    change: str,
    name: str,
    cut: Path,
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = cut / "parts" / "00001"
    path = part / f"{name}.parquet"
    if change == "flipped":
        altered(path, 8 * (path.stat().st_size // 2))
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif change == "gone":
        path.unlink()
    elif change == "of another part":
        shutil.copy(cut / "parts" / "00000" / path.name, path)
    elif change == "of another run":
        record = read_record(part / "part.json")
        write_record({**record, "run": "another"}, part / "part.json")
    elif change == "no record":
        (part / "part.json").unlink()
    else:
        shutil.rmtree(part)
    computed = failing(monkeypatch, "none of them")
    if change == "no folder":
        found = located(model_of, short_queries, cut)
    else:
        with pytest.warns(DamageWarning, match=r"00001.*; the queries of this part are computed anew"):
            found = located(model_of, short_queries, cut)
    wanted = ["q2", "q3", *(f"q{i}" for i in range(6, 12))]
    assert computed == [prompt.text for key in wanted for prompt in short_queries[key].prompts]
    same(found, located(model_of, short_queries))


def test_a_damaged_manifest_is_made_anew_where_parts_or_result_tell_whose_the_folder_is(
    cut: Path,
    finished: tuple[Path, QRNeurons],
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    asked: QuerySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    altered(cut / "manifest.json", 800)
    computed = failing(monkeypatch, "none of them")
    with pytest.warns(DamageWarning, match=r"manifest\.json: .*; it is made anew"):
        same(located(model_of, short_queries, cut), located(model_of, short_queries))
    assert len(computed) == 3 * (6 + 12)
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{")
    monkeypatch.setattr(work, "attribute", None)
    with pytest.warns(DamageWarning, match=r"manifest\.json: no JSON .*; it is made anew"):
        same(located(model_of, asked, tmp_path / "run"), finished[1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="nothing else in the folder tells that it is of this run; choose another folder, or"):
        located(model_of, asked, tmp_path / "empty")


def test_what_is_newer_is_refused_and_left_alone(
    cut: Path, finished: tuple[Path, QRNeurons], model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    for place, name in ((cut, "parts/00001/part.json"), (cut, "manifest.json"), (tmp_path / "run", "header.json")):
        before = (place / name).read_text()
        newer = before.replace('"format": 3', '"format": 4')
        (place / name).write_text(newer)
        with pytest.raises(RunError, match=rf"{name}: format 4, which another version .* Upgrade qrnca_lens"):
            located(model_of, short_queries, place)
        assert (place / name).read_text() == newer
        (place / name).write_text(before)


def test_other_things_among_the_parts_are_told_and_left_alone(
    cut: Path, model_of: Callable[[str], Any], short_queries: QuerySet
) -> None:
    (cut / "parts" / "thesis.txt").write_text("mine")
    with pytest.warns(DamageWarning, match=r"thesis\.txt: not of this run; it is left alone"):
        located(model_of, short_queries, cut)
    assert [path.name for path in (cut / "parts").iterdir()] == ["thesis.txt"]


def test_another_question_for_the_same_prompts_is_another_run(
    finished: tuple[Path, QRNeurons], model_of: Callable[[str], Any], asked: QuerySet
) -> None:
    other = replace(asked["q3"], fact="another fact")
    changed = QuerySet(tuple(other if query.id == "q3" else query for query in asked), "short")
    with pytest.raises(RunError, match=r"query 'q3': other prompts, letters, group, question, answer or fact"):
        located(model_of, changed, finished[0])


def test_a_finished_run_is_opened_without_a_look_at_prompts_or_all_weights(
    finished: tuple[Path, QRNeurons], model_of: Callable[[str], Any], asked: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "check_prompts", None)
    monkeypatch.setattr(pipeline, "model_fingerprint", None)
    before = {path: path.read_bytes() for path in finished[0].iterdir()}
    same(located(model_of, asked, finished[0]), finished[1])
    assert {path: path.read_bytes() for path in finished[0].iterdir()} == before


def test_seconds_and_versions_are_those_of_all_calls(
    cut: Path, model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sum(read_record(path)["seconds"] for path in cut.glob("parts/*/part.json"))
    versions = json.loads((cut / "manifest.json").read_text())["versions"]
    monkeypatch.setattr(pipeline, "_versions", lambda: {**versions, "torch": "9.9"})
    found = located(model_of, short_queries, cut)
    assert found.about["versions"] == versions
    assert found.about["resumed_with"] == [{**versions, "torch": "9.9"}]
    assert found.about["seconds"] >= round(before, 1)
    log = (cut / "log.txt").read_text()
    assert "locating 12 queries, 0 of them done" in log and "locating 12 queries, 6 of them done" in log
    assert "finished: 12 queries located, 0 failed" in log


def test_kept_tables(tmp_path: Path) -> None:
    table, made = pd.DataFrame({"a": [1.5, 2.5]}), []

    def make() -> pd.DataFrame:
        made.append(1)
        return table

    kept = KeptTables(tmp_path / "s", written=3)
    for _ in range(2):
        pd.testing.assert_frame_equal(kept.table("t", make, lambda found: "a" in found), table)
    assert len(made) == 1 and kept.steps["t"]["seconds"] >= 0
    altered(tmp_path / "s" / "t.parquet", 800)
    with pytest.warns(DamageWarning, match=r"t\.parquet: not the bytes that were written .*; it is made anew"):
        KeptTables(tmp_path / "s", written=3).table("t", make, lambda _: True)
    assert len(made) == 2
    write_table(table, tmp_path / "s" / "foreign.parquet")
    with pytest.warns(DamageWarning, match=r"no checksum of foreign\.parquet; it is made anew"):
        KeptTables(tmp_path / "s", written=3).table("foreign", make, lambda _: True)
    (tmp_path / "s" / "tables.json").write_text("{")
    with pytest.warns(DamageWarning, match=r"tables\.json: no JSON .*; all tables beside it are made anew"):
        KeptTables(tmp_path / "s", written=3)
    (tmp_path / "s" / "tables.json").unlink()
    pd.testing.assert_frame_equal(KeptTables(tmp_path / "s", written=2).table("t", make, lambda _: True), table)
    assert len(made) == 3, "a folder of a time without checksums is read"
