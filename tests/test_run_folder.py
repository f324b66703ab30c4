"""The run folder of `locate`: it survives interruption, grows, and is refused where it does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs import CONFIG, FILES, as_older, failing, same

from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.store import FORMAT, DamageWarning, RunError, write_table
from qrnca_lens.data import QuerySet, save_queries
from qrnca_lens.runs import pipeline, prompts, work
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study import Subject, reproduce


def test_a_run_folder_holds_the_result(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path) -> None:
    short_queries = short_queries.sample(4, seed=7)
    found = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path / "run", progress=False)
    plain = locate(model_of("llama"), short_queries, CONFIG, progress=False)
    again = QRNeurons.load(tmp_path / "run")
    assert found.table.equals(plain.table)
    assert again.table.equals(plain.table)
    assert again.clusters.equals(plain.clusters)
    assert again.queries.equals(plain.queries)
    assert again.gaps.equals(plain.gaps)
    assert again.about["queries"]["sha256"] == short_queries.fingerprint
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["made"] == ["sample per_group=4 seed=7"]
    decided = [option_tokens(model_of("llama"), prompt.text) for query in short_queries for prompt in query.prompts]
    assert sum(form["prompts"] for form in manifest["letters"]) == len(decided) == 36
    for form in manifest["letters"]:
        alike = [options for options in decided if list(options.ids) == form["ids"]]
        assert (form["letters"], form["leading_space"]) == (list("ABCD"), alike[0].leading_space)
        assert form["prompts"] == len(alike)
        assert form["mean_mass"] == pytest.approx(sum(options.mass for options in alike) / len(alike))
        assert form["lowest_mass"] == min(options.mass for options in alike)
    assert manifest["versions"]["torch"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == FILES


def test_a_finished_run_is_not_computed_again(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    monkeypatch.setattr(work, "attribute", None)
    assert locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False).table.equals(found.table)


def test_an_interrupted_run_goes_on_where_it_was(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = work.attribute, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.extend(args[1])
        return real(*args, **kwargs)

    monkeypatch.setattr(work, "attribute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    assert not (tmp_path / "header.json").exists()
    with pytest.raises(RunError, match="not a finished run folder"):
        QRNeurons.load(tmp_path)
    first = list(calls)
    calls.clear()
    monkeypatch.setattr(work, "attribute", lambda *a, **k: (calls.extend(a[1]), real(*a, **k))[1])
    resumed = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    assert (len(first), len(calls)) == (24, 12)  # the prompts of the eight queries that run together, and the rest
    assert set(first).isdisjoint(calls)
    assert resumed.table.equals(locate(model_of("llama"), short_queries, CONFIG, progress=False).table)


def test_a_killed_run_goes_on_where_it_was(
    model_of: Callable[[str], Any], folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path
) -> None:
    save_queries(short_queries, tmp_path / "short.jsonl")
    code = (
        "import sys, time, qrnca_lens as ql, qrnca_lens.runs.work as p, qrnca_lens.runs.folder as f\n"
        "f._FLUSH_SECONDS = 0.0\n"
        "import qrnca_lens.runs.pipeline as chunks\n"
        "real, chunks.QUERIES_TOGETHER = p.attribute, 2\n"
        "p.attribute = lambda *a, **k: (time.sleep(0.1), real(*a, **k))[1]\n"
        "model, queries = ql.load_model(sys.argv[1], device='cpu'), ql.load_queries(sys.argv[2])\n"
        "ql.locate(model, queries, ql.QRNCAConfig(steps=3), out=sys.argv[3], progress=False)\n"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-c", code, str(folder_of("llama")), str(tmp_path / "short.jsonl"), str(out)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*/part.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "header.json").exists()
    assert len(list(out.glob("parts/*/part.json"))) >= 3
    resumed = locate(model_of("llama"), replace(short_queries, name="short"), CONFIG, out=out, progress=False)
    # another process may use another number of threads, which changes the last digit of a sum
    anew = locate(model_of("llama"), short_queries, CONFIG, progress=False)
    pd.testing.assert_frame_equal(resumed.table, anew.table, rtol=3e-5)  # other queries run together


def test_a_run_goes_on_with_fewer_or_more_queries(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "QUERIES_TOGETHER", 2)
    model, ids = model_of("llama"), [q.id for q in short_queries]
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q6"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    asked = failing(monkeypatch, "none of them")

    def check(chosen: list[str], computed: list[str]) -> None:
        queries = QuerySet(tuple(short_queries[key] for key in chosen), "short")
        found = locate(model, queries, CONFIG, out=tmp_path, progress=False)
        assert asked == [p.text for key in computed for p in short_queries[key].prompts]
        same(found, locate(model, queries, CONFIG, progress=False))
        assert found.about["queries"]["sha256"] == queries.fingerprint
        asked.clear()

    fewer = ["q1", "q2", "q3", "q4", "q5", "q6", "q7"]  # q0 is done and not asked for
    check(fewer, ["q6", "q7"])
    same(QRNeurons.load(tmp_path), locate(model, short_queries.keep(fewer), CONFIG, progress=False))
    asked.clear()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    check(["q7", "q2", "q3", "q4"], [])  # a finished run, some of its queries, in another order
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    check(ids, ids[8:])  # q0 was not lost
    assert not (tmp_path / "parts").exists()
    assert list(json.loads((tmp_path / "manifest.json").read_text())["queries"]) == ids
    other = replace(short_queries["q3"], group="g1")
    changed = QuerySet(tuple(other if q.id == "q3" else q for q in short_queries), "short")
    with pytest.raises(RunError, match=r"another run.*\n  query 'q3': other prompts, letters, group, question, answer or"):
        locate(model, changed, CONFIG, out=tmp_path, progress=False)


def test_a_finished_run_that_is_cut_off_while_it_grows_goes_on(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    locate(model, QuerySet(short_queries.queries[:6]), CONFIG, out=tmp_path, progress=False)
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q8"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    with pytest.raises(RunError, match="not a finished run"):
        QRNeurons.load(tmp_path)
    asked = failing(monkeypatch, "none of them")
    found = locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    assert len(asked) == 12
    same(found, locate(model, short_queries, CONFIG, progress=False))


def test_the_site_is_stored_as_it_was_scaled(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family, site in (("llama", "up"), ("gpt2", "post")):
        out = tmp_path / family
        found = locate(model_of(family), short_queries, CONFIG, out=out, progress=False)
        for name in ("manifest.json", "header.json"):
            assert json.loads((out / name).read_text())["config"]["site"] == site
        with monkeypatch.context() as patched:
            patched.setattr(work, "attribute", None)
            again = locate(model_of(family), short_queries, replace(CONFIG, site=site), out=out, progress=False)
        same(again, found)
    with pytest.raises(RunError, match=r"config\.site: gate here, up in the folder"):
        locate(model_of("llama"), short_queries, replace(CONFIG, site="gate"), out=tmp_path / "llama", progress=False)


def as_format_1(folder: Path, queries: QuerySet) -> None:
    """Rewrite the records as they were before they carried a format."""
    as_older(folder)
    whole = {"count": len(queries), "sha256": queries.fingerprint}
    for name in ("manifest.json", "header.json"):
        if (folder / name).exists():
            record = json.loads((folder / name).read_text())
            del record["format"]
            record["config"]["site"] = None
            if name == "manifest.json":
                record["queries"] = whole
            else:
                del record["failed"]
            (folder / name).write_text(json.dumps(record))


def test_folders_of_format_1_are_read_and_go_on(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, part = model_of("llama"), QuerySet(short_queries.queries[:5])
    found = locate(model, short_queries, CONFIG, out=tmp_path / "whole", progress=False)
    as_format_1(tmp_path / "whole", short_queries)
    assert QRNeurons.load(tmp_path / "whole").table.equals(found.table)
    with monkeypatch.context() as patched:
        patched.setattr(work, "attribute", None)
        same(locate(model, short_queries, replace(CONFIG, site="up"), out=tmp_path / "whole", progress=False), found)
        assert len(locate(model, part, CONFIG, out=tmp_path / "whole", progress=False).queries) == 5
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q8"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            locate(model, short_queries, CONFIG, out=tmp_path / "cut", progress=False)
    as_format_1(tmp_path / "cut", short_queries)
    with pytest.raises(RunError, match=r"queries\.count: 5 here, 12 in the folder"):
        locate(model, part, CONFIG, out=tmp_path / "cut", progress=False)
    asked = failing(monkeypatch, "none of them")
    same(locate(model, short_queries, CONFIG, out=tmp_path / "cut", progress=False), found)
    assert len(asked) == 12
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("header.json", {"format": 4}, r"header\.json: format 4, which another version .* Upgrade qrnca_lens"),
        ("header.json", {"format": "2"}, r"header\.json: format: expected a whole number, found a text"),
        ("header.json", {"config": {"depth": 1}}, r"header\.json: config: unknown field 'depth'"),
        ("header.json", {"config": {"steps": ...}}, r"header\.json: config: missing field 'steps'"),
        ("header.json", {"config": {"steps": "16"}}, r"header\.json: config, steps: expected a whole number, found a text"),
        ("header.json", {"config": {"steps": True}}, r"config, steps: expected a whole number, found True"),
        (
            "header.json",
            {"config": {"site": "down"}},
            r"config, site: expected 'up' or 'gate' or 'pre' or 'post', found a text",
        ),
        ("header.json", {"config": {"threshold": 2.0}}, r"header\.json: config: threshold must lie in"),
        ("header.json", {"config": [1]}, r"header\.json: config: expected an object, found a list"),
        ("header.json", {"config": ...}, r"header\.json: field 'config' is missing"),
        (
            "header.json",
            {"model": {"n_layers": None}},
            r"header\.json: model, n_layers: expected a whole number, found null",
        ),
        ("header.json", {"about": 1}, r"header\.json: about: expected an object, found a whole number"),
        ("header.json", {"failed": [{"query": "q"}]}, r"header\.json: failed\[0\]: missing field 'group'"),
        ("asked.json", {"queries": [{"id": 1}]}, r"asked\.json, queries\[0\]: missing field 'answer'"),
        ("asked.json", {"made": "sample"}, r"asked\.json, made: expected a list, found a text"),
        ("asked.json", {"name": ...}, r"asked\.json: missing field 'name'"),
        ("manifest.json", {"format": 9}, r"manifest\.json: format 9"),
        ("manifest.json", {"queries": {"q0": 1}}, r"manifest\.json: queries, q0: expected a text, found a whole number"),
        ("manifest.json", {"model": ...}, r"manifest\.json: field 'model' is missing"),
    ],
)
def test_damaged_records_are_named(
    name: str, change: dict[str, Any], message: str, run: tuple[Any, QRNeurons], tmp_path: Path
) -> None:
    model, located = run
    located.save(tmp_path / "run")
    folder, record = tmp_path / "run", {}
    if name == "manifest.json":
        identity = {"config": asdict(located.config), "model": asdict(located.model), "queries": {}}
        record = {"format": 2, **identity, "versions": {}}
    else:
        as_older(folder)
        record = json.loads((folder / name).read_text())
    for key, value in change.items():
        inner = {**record[key], **value} if isinstance(value, dict) and key != "queries" else value
        record[key] = {k: v for k, v in inner.items() if v is not ...} if isinstance(inner, dict) else inner
    (folder / name).write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))
    with pytest.raises(RunError, match=message):
        if name == "manifest.json":
            locate(model, located.asked, located.config, out=folder, progress=False)
        QRNeurons.load(folder)


def test_another_run_is_refused_with_the_difference(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(RunError, match=r"holds another run.*\n  config\.steps: 4 here, 3 in the folder"):
        locate(model_of("llama"), short_queries, QRNCAConfig(steps=4), out=tmp_path, progress=False)
    with pytest.raises(RunError, match=r"model\.fingerprint"):
        locate(model_of("mistral"), short_queries, CONFIG, out=tmp_path, progress=False)
    assert (tmp_path / "manifest.json").read_text() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for name in ("thesis.txt", ".film.part", "log.txt"):
        (tmp_path / "other" / name).write_text("mine")
        with pytest.raises(RunError, match="holds other files"):
            locate(model_of("llama"), short_queries, CONFIG, out=tmp_path / "other", progress=False)
        assert {path.name: path.read_text() for path in (tmp_path / "other").iterdir()} == {name: "mine"}
        (tmp_path / "other" / name).unlink()


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("x" * 256, "a name of 256 bytes; at most 255"),
        (f"{'é' * 128}/run", "a name of 256 bytes"),
        ("a\0b", "a character of code 0"),
        ("file", "file is a file, not a folder; choose another place"),
        ("file/run", "file is a file, not a folder; choose another place"),
        ("nowhere", "nowhere is a link that leads nowhere; choose another place"),
        ("/dev/null", "/dev/null is a file"),
        ("/dev/null/run", "/dev/null is a file"),
        ("/proc/run", "/proc/run cannot be written: /proc: .*; choose another place"),
        ("d/" * 3000, "too long.*; choose another folder"),
    ],
)
def test_a_place_where_no_folder_can_be_is_refused_before_any_prompt(
    place: str, words: str, model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(prompts, "option_tokens", None)
    with pytest.raises(RunError, match=words):
        locate(model_of("llama"), short_queries, CONFIG, out=tmp_path / place, progress=False)
    with pytest.raises(RunError, match=words):
        reproduce(model_of("llama"), [Subject("a", short_queries, (short_queries,))], tmp_path / place, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "nowhere"}


def test_a_link_in_a_run_folder_leads_nowhere(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run, victim = model_of("llama"), tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q8"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            locate(model, short_queries, CONFIG, out=run, progress=False)
    (run / "parts").rename(tmp_path / "kept")
    (run / "parts").symlink_to(victim)
    before = (run / "manifest.json").read_text()
    monkeypatch.setattr(work, "attribute", None)
    with pytest.raises(RunError, match="parts is a link; remove it, or choose another folder"):
        locate(model, QuerySet(short_queries.queries[:9]), CONFIG, out=run, progress=False)
    (run / "parts").unlink()
    (run / "parts").write_text("mine")
    with pytest.raises(RunError, match="parts is a file; remove it, or choose another folder"):
        locate(model, short_queries, CONFIG, out=run, progress=False)
    assert (run / "manifest.json").read_text() == before
    assert not list(victim.iterdir())


def test_other_prompts_than_the_header_names_are_refused(run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    located, asked = run[1], tmp_path / "run" / "asked.json"
    located.save(tmp_path / "run")
    as_older(tmp_path / "run")
    assert len(QRNeurons.load(tmp_path / "run").queries) == 12
    record = json.loads(asked.read_text())
    record["queries"][0]["prompts"][0]["text"] += " changed"
    asked.write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"asked\.json: its prompts are not those of queries\.sha256 in header\.json"):
        QRNeurons.load(tmp_path / "run")
    part = located.restrict(["q0", "q1", "q2", "q3", "q4", "q5"])
    part.save(tmp_path / "part")
    assert len(QRNeurons.load(tmp_path / "part").queries) == 6


def test_a_damaged_part_is_named(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        failing(patched, short_queries["q8"].prompts[0].text, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    as_older(tmp_path)
    part = tmp_path / "parts" / "clusters-00000.parquet"
    write_table(pd.read_parquet(part).assign(layer=99), part)
    with pytest.warns(DamageWarning, match=r"clusters-00000\.parquet: column 'layer'.* found 99; .* computed anew"):
        found = locate(model_of("llama"), short_queries, CONFIG, out=tmp_path, progress=False)
    same(found, locate(model_of("llama"), short_queries, CONFIG, progress=False))


def test_tables_that_do_not_fit_are_refused(run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    located = run[1]
    located.save(tmp_path / "run")
    as_older(tmp_path / "run")
    write_table(located.queries.drop(columns="gap"), tmp_path / "run" / "queries.parquet")
    with pytest.raises(RunError, match=r"queries\.parquet: column 'gap' is missing"):
        QRNeurons.load(tmp_path / "run")
    path = tmp_path / "run"
    for name, table, change, words in (
        ("queries", located.queries, {"query": "q0"}, "column 'query': 'q0' stands there twice"),
        ("queries", located.queries, {"query": list(range(12))}, "column 'query': expected a text, found 0"),
        ("queries", located.queries, {"prompts": -1}, "column 'prompts': expected a whole number from 0"),
        ("queries", located.queries, {"gap": "wide"}, "column 'gap': expected a finite number, found 'wide'"),
        (
            "clusters",
            located.clusters,
            {"attribution": float("nan")},
            "column 'attribution': expected a finite number, found nan",
        ),
        ("clusters", located.clusters, {"layer": -1}, "column 'layer': expected a whole number from 0, below .*, found -1"),
        ("clusters", located.clusters, {"layer": located.model.n_layers}, "column 'layer': expected a whole number"),
        ("clusters", located.clusters, {"neuron": located.model.d_mlp}, "column 'neuron': expected a whole number"),
        ("clusters", located.clusters, {"neuron": "3"}, "column 'neuron': expected a whole number .*, found '3'"),
        ("clusters", located.clusters, {"neuron": 0.5}, "column 'neuron': expected a whole number"),
        (
            "clusters",
            located.clusters,
            {"layer": 0, "neuron": 0},
            "column 'query', 'layer', 'neuron': .* stands there twice",
        ),
        ("clusters", located.clusters, {"group": None}, "column 'group': expected a text, found None"),
    ):
        located.clusters.pipe(write_table, path / "clusters.parquet")
        write_table(located.queries, path / "queries.parquet")
        write_table(table.assign(**change), path / f"{name}.parquet")
        with pytest.raises(RunError, match=rf"{name}\.parquet: {words}"):
            QRNeurons.load(path)
    write_table(located.clusters, path / "clusters.parquet")
    write_table(located.queries.iloc[1:], tmp_path / "run" / "queries.parquet")
    with pytest.raises(RunError, match="name different queries"):
        QRNeurons.load(tmp_path / "run")


def test_a_second_call_in_a_folder_is_told(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process and in another one, for a new folder and for one that grows; a finished one is read by many."""
    model, real, told = model_of("llama"), work.attribute, []
    code = "import sys, filelock\nfilelock.FileLock(sys.argv[1], timeout=0).acquire()"

    def attribute(*args: Any, **kwargs: Any) -> Any:
        if not told:
            with pytest.raises(
                RunError, match=rf"another call works in this folder \(process {os.getpid()} on .*, since 20.*\); wait until"
            ) as caught:
                locate(model, short_queries, CONFIG, out=out, progress=False)
            told.append(str(caught.value))
            elsewhere = subprocess.run([sys.executable, "-c", code, out / ".lock"], capture_output=True, text=True)
            assert "Timeout" in elsewhere.stderr
        return real(*args, **kwargs)

    few, out = QuerySet(short_queries.queries[:6]), tmp_path / "run"
    for queries in (few, short_queries):
        monkeypatch.setattr(work, "attribute", attribute)
        found = locate(model, queries, CONFIG, out=out, progress=False)
        assert len(told) == 1
        told.clear()
        same(found, locate(model, queries, CONFIG, out=out, progress=False))
        assert not (out / ".lock").exists()
    (out / ".lock").touch()  # what a killed process leaves
    more = QuerySet((*short_queries.queries, replace(short_queries["q0"], id="q12")))
    told.append("no second call")
    assert len(locate(model, more, CONFIG, out=out, progress=False).queries) == 13
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").touch()
    same(locate(model, few, CONFIG, out=tmp_path / "new", progress=False), locate(model, few, CONFIG, progress=False))


def test_two_threads_in_one_folder(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path) -> None:
    model = model_of("llama")
    wanted = locate(model, short_queries, CONFIG, progress=False)

    def call(_: int) -> QRNeurons | RunError:
        try:
            return locate(model, short_queries, CONFIG, out=tmp_path / "run", progress=False)
        except RunError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(call, range(4)):
            if isinstance(found, RunError):
                assert "another call works in this folder" in str(found)
            else:
                same(found, wanted)
    same(QRNeurons.load(tmp_path / "run"), wanted)
