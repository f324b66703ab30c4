"""The whole study: on a small sample of atlas's questions, and what it refuses, resumes and leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from handmade import effects as hand_made
from runs import CONFIG, LONG, failing
from typer.testing import CliRunner

from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.store import FORMAT, RunError, write_table
from qrnca_lens.data import Prompt, Query, QuerySet, load_queries, save_queries
from qrnca_lens.methods import METHODS, register
from qrnca_lens.methods.activation import activation_scores
from qrnca_lens.models import ModelError
from qrnca_lens.runs import work
from qrnca_lens.runs.pipeline import FailedQueriesWarning
from qrnca_lens.study import Reproduction, Subject, reproduce, subject
from qrnca_lens.study.report import write_report
from qrnca_lens.study.reproduction import Results, Sample, _claim
from qrnca_lens.study.subjects import readable
from qrnca_lens.study.tables import as_json, table4, table6

SMALL = Sample(extended=1, collateral=1, permutations=20, draws=3, probe_draws=1)
EXTRA = tuple(Query(f"n{i}", "n", (Prompt(f"Which letter is it? {i}\nAnswer:", "A"),)) for i in range(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, atlas: Any) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    done = CliRunner().invoke(app, ["reproduce", "--out", str(out), "--per-group", "4", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert str(out / "report.html") in done.output.replace("\n", "")
    return out


def test_the_record_is_complete(folder: Path) -> None:
    record = json.loads((folder / "results.json").read_text())
    assert {"about", "table3", "table4", "table5", "table6", "table7", "figure2a", "collateral", "significance"} <= set(
        record
    )
    for method in (
        "random",
        "activation",
        "knowledge-neuron",
        "knowledge-neuron-without-common",
        "activation-absolute",
        "without-ica",
        "with-common",
        "qrnca",
        "ablation",
        "contrastive",
    ):
        for name in ("domains", "languages"):
            for direction in ("boost", "suppress"):
                cell = record["table4"][method][name][direction]
                assert {"own", "same_letter", "ratio_same", "specific", "letter_share"} <= set(cell), (
                    method,
                    name,
                    direction,
                )
    assert record["table4"]["qrnca"]["domains"]["suppress"]["queries"] == 24
    assert len(record["table4_pairs"]) == len(record["table6_pairs"]) / 8 == 7
    for name in ("domains", "languages"):
        rows = [row for row in record["unseen"] if row["data set"] == name]
        assert [(row["method"], row["prompts"]) for row in rows[::2]] == [
            (method, prompts)
            for prompts in ("detection", "fresh", "held-out")
            for method in ("QRNCA", "Random, same layers")
        ]
        assert all(row["queries"] == 24 for row in rows)


def test_qrnca_beats_random_even_on_a_small_sample(folder: Path) -> None:
    table = json.loads((folder / "results.json").read_text())["table4"]
    for name in ("domains", "languages"):
        assert table["qrnca"][name]["suppress"]["own"]["mean"] < -15
        points = [table[method][name]["suppress"]["points"]["mean"] for method in ("qrnca", "random")]
        assert points[0] < points[1] - 10


def test_a_study_goes_on_and_refuses_another(folder: Path, atlas: Any) -> None:
    subjects = [subject(name, per_group=4) for name in ("domains", "languages")]
    effects = folder / "languages" / "effects.parquet"
    before = effects.read_bytes()
    effects.unlink()
    again = reproduce(atlas, subjects, folder, progress=False)
    assert effects.read_bytes() == before
    assert len(again.results["domains"].effects) == 24 * 8 * 2
    with pytest.raises(RunError, match=r"holds another study.*\n  seed: 1 here, 0 in the folder"):
        reproduce(atlas, subjects, folder, seed=1, progress=False)
    with pytest.raises(RunError, match="sample"):
        reproduce(atlas, subjects, folder, sample=Sample(extended=1), progress=False)
    with pytest.raises(RunError, match=r"What differs:\n  other prompts\.domains\.fresh: None here"):
        reproduce(atlas, [replace(subjects[0], fresh=None), subjects[1]], folder, progress=False)


@pytest.fixture
def registered() -> Iterator[Callable[[str], None]]:
    """Enter scoring functions, gone after the test."""
    keys: list[str] = []

    def enter(key: str) -> None:
        register(key, f"All about {key}", "this test")(activation_scores)
        keys.append(key)

    yield enter
    for key in keys:
        METHODS.pop(key, None)


def test_a_study_copes_with_queries_that_fail(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, queries = model_of("llama"), QuerySet((LONG, *short_queries.queries), "short")
    failing(monkeypatch, short_queries["q4"].prompts[0].text, short_queries["q7"].prompts[2].text)
    with pytest.warns(FailedQueriesWarning, match="3 of 13"):
        study = reproduce(
            model, [Subject("short", queries, (queries,))], tmp_path, config=CONFIG, sample=SMALL, progress=False
        )
    result, lost = study.results["short"], {"long", "q4", "q7"}
    assert set(result.located.failed["query"]) == lost
    for table in (result.effects, result.pairs, result.extended):
        partners = [json.loads(text) for text in (*table["same_partners"], *table["other_partners"])]
        assert not lost & {*table["query"], *(place[0] for row in partners for place in row if place)}
    assert result.unseen.empty
    own = result.effects.pivot_table("neurons", "query", "method")
    assert (own.nunique(axis=1) > 1).any()
    for rival, pair in result.pairs.groupby("rival"):
        counts = pair.pivot_table("neurons", "query", "method")
        least = own[["qrnca", rival]].min(axis=1)
        assert set(counts.columns) == {"qrnca", rival}
        assert counts.eq(least[least > 0], axis=0).all(axis=None) and len(counts) == (least > 0).sum()
    assert set(result.effects["query"]) == {q.id for q in result.located.asked}
    assert not lost & set(result.others["query"])
    assert set(result.prediction["group"]) <= {"g0", "g2"}  # two queries are left of g1
    page = write_report(study).read_text("utf-8")
    assert "Queries that failed" in page
    record = strict((tmp_path / "results.json").read_text())
    assert record["format"] == FORMAT
    assert {(row["query"], row["data set"]) for row in record["failed"]} == {(query, "short") for query in lost}
    for figure in (tmp_path / "figures").glob("*.json"):
        strict(figure.read_text())


def strict(text: str) -> Any:
    """JSON as the standard has it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_no_number_is_null_in_the_record(run: tuple[Any, QRNeurons]) -> None:
    located = run[1]
    effects = hand_made("qrnca", 0.0, [0.1], [0.2]).assign(p_before=0.0, right_before=3)
    effects = pd.concat([effects, effects.assign(factor=2.0)], ignore_index=True)
    empty = pd.DataFrame({"a": [float("nan"), float("-inf")]})
    record = as_json(
        {
            "short": Results(
                located,
                effects,
                effects,
                empty,
                empty,
                empty,
                empty.assign(group="g", neurons="n", layers="all"),
                tests=empty.assign(test="overlap"),
            )
        },
        {"seconds": float("nan")},
        empty,
    )
    json.dumps(record, allow_nan=False)
    assert record["about"]["seconds"] is None
    assert record["significance"]["short"]["overlap"] == [{"a": None, "test": "overlap"}] * 2
    assert record["table4"]["qrnca"]["short"]["suppress"]["own"]["mean"] is None  # from 0 to 0.1
    assert record["table6"][0]["%"] is None  # no prompt was answered wrongly


def test_tables_follow_the_registered_methods(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, registered: Callable[[str], None]
) -> None:
    model, subjects = model_of("llama"), [Subject("short", short_queries, (short_queries,))]

    def run() -> Reproduction:
        return reproduce(model, subjects, tmp_path, config=CONFIG, sample=SMALL, progress=False)

    before = run().results["short"]
    registered("new")
    kept = (tmp_path / "short" / "effects.parquet").stat().st_mtime_ns
    study = run()
    after = study.results["short"]
    assert set(after.extended["method"]) - set(before.extended["method"]) == {"new"}
    assert (tmp_path / "short" / "effects.parquet").stat().st_mtime_ns == kept
    assert "All about new" in set(table4(study.results, "extended")["method"])
    METHODS.pop("new")
    assert "new" in set(table4(study.results, "extended")["method"]) & set(table6(study.results, "extended")["method"])
    write_report(study)
    pd.testing.assert_frame_equal(run().results["short"].extended, before.extended)
    write_table(before.tokens.drop(columns="kind"), tmp_path / "short" / "tokens.parquet")
    pd.testing.assert_frame_equal(run().results["short"].tokens, before.tokens)


def with_group(queries: QuerySet, of: Callable[[int], str]) -> QuerySet:
    return QuerySet(tuple(replace(query, group=of(i)) for i, query in enumerate(queries)), "short")


def one_letter(queries: QuerySet) -> QuerySet:
    return QuerySet(tuple(replace(q, prompts=tuple(replace(p, letter="C") for p in q.prompts)) for q in queries), "short")


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        ([], lambda queries: queries, "no subject to reproduce"),
        (["a", "A"], lambda queries: queries, "2 subjects are called 'a'; rename one"),
        (["figures"], lambda queries: queries, "a subject cannot be called 'figures'"),
        (["results.json"], lambda queries: queries, r"cannot be called 'results\.json'"),
        (["../up"], lambda queries: queries, r"'\.\./up' cannot be the name of a file"),
        ([""], lambda queries: queries, "'' cannot be the name of a file"),
        (["a"], lambda queries: QuerySet(queries.queries[:3]), "'a' has 3 queries, split in halves.*give at least 4"),
        (["a"], lambda queries: QuerySet(queries.queries[:6]), "'a' has 6 queries, split in halves.* 3 queries are too few"),
        (["a"], lambda queries: with_group(queries, lambda i: "g"), "'a': unrelated queries .* not of g alone"),
        (["a"], lambda queries: with_group(queries, lambda i: f"g{i // 2}"), "group 'g0' has 2 queries .*give at least 3"),
        (["a"], lambda queries: QuerySet((*queries.queries[:12], replace(LONG, group="n"), *EXTRA)), "group 'n' has 2"),
        (["a"], one_letter, "'a': the right letter is C in all prompts of group 'g0'"),
    ],
)
def test_subjects_that_cannot_be_measured_are_refused_before_computing(
    names: list[str],
    change: Callable[[QuerySet], QuerySet],
    message: str,
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "attribute", None)
    queries = change(short_queries)
    with pytest.raises(ValueError, match=message):
        reproduce(
            model_of("llama"), [Subject(name, queries, (queries,)) for name in names], tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run").exists()


def test_what_else_is_refused_before_computing(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, unchecked: None
) -> None:
    with pytest.raises(ValueError, match="no rendering has query 'q0'"):
        reproduce(model_of("llama"), [Subject("a", short_queries, ())], tmp_path / "run", progress=False)
    long = QuerySet(tuple(replace(LONG, id=f"long{i}", group=f"g{i % 2}") for i in range(8)))
    with pytest.raises(ModelError, match="no query can be located: 8 of 8"):
        reproduce(model_of("llama"), [Subject("a", long, (long,))], tmp_path / "run", progress=False)
    for field, value in (("extended", 0), ("collateral", 1.5), ("permutations", True), ("draws", 0), ("probe_draws", 0)):
        with pytest.raises((ValueError, TypeError), match=f"{field} must be"):
            Sample(**{field: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda one, queries: one, r"subjects is a list, such as \[subject\('domains'\)\], not Subject"),
        (lambda one, queries: "domains", "subjects is a list, .* not 'domains'"),
        (lambda one, queries: [one, "domains"], "a list of Subject; make one with .* not 'domains'"),
        (lambda one, queries: [queries], "a list of Subject; .* not QuerySet"),
        (lambda one, queries: [replace(one, queries="domains")], "expected a QuerySet, found str"),
        (lambda one, queries: [replace(one, renderings=queries)], "expected a QuerySet, found Query"),
        (lambda one, queries: [subject(5)], "a shipped name, such as 'domains', or a file, not of 5"),
        (lambda one, queries: [subject(["domains"])], r"or a file, not of \['domains'\]"),
    ],
)
def test_what_is_no_list_of_subjects_is_refused_before_computing(
    given: Callable[..., Any],
    message: str,
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    tmp_path: Path,
    unchecked: None,
) -> None:
    one = Subject("a", short_queries, (short_queries,))
    with pytest.raises(TypeError, match=message):
        reproduce(model_of("llama"), given(one, short_queries), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_subjects_name_leaves_room_for_those_of_its_figures(short_queries: QuerySet) -> None:
    assert Subject("a" * 187, short_queries, ()).name == "a" * 187
    with pytest.raises(ValueError, match=r"called 'a+': its figures' files have longer names; rename it"):
        Subject("a" * 188, short_queries, ())


def test_a_study_of_format_1_goes_on_and_a_damaged_record_is_named(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    model, subjects, path = model_of("llama"), [Subject("short", short_queries, (short_queries,))], tmp_path / "study.json"

    def run() -> Reproduction:
        return reproduce(model, subjects, tmp_path, config=CONFIG, sample=SMALL, progress=False)

    before = run()
    record = json.loads(path.read_text())
    assert (record["format"], record["config"]["site"]) == (FORMAT, "up")
    plain = {name: value for name, value in record.items() if name not in ("format", "sha256")}
    old = {**plain, "config": {**record["config"], "site": None}}
    path.write_text(json.dumps(old))
    pd.testing.assert_frame_equal(run().results["short"].effects, before.results["short"].effects)
    for change, message in (
        ({"format": 7}, r"study\.json: format 7, which another version"),
        ({"config": 3}, r"study\.json: config: expected an object, found a whole number"),
        ({"depth": 3}, r"depth: None here, 3 in the folder"),
    ):
        path.write_text(json.dumps({"format": 2, **plain, **change}))
        with pytest.raises(RunError, match=message):
            run()
    for text, message in (
        ("[1]", "expected an object, found a list"),
        (json.dumps({**record, "seed": 7}), "not those of its"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=rf"study\.json: .*{message}.*choose another folder for the study, or delete"):
            run()


def test_the_record_of_a_study_names_the_model_s_file_which_may_be_another_later(tmp_path: Path) -> None:
    about = {"model": {"name": "m", "fingerprint": "f"}, "config": asdict(replace(CONFIG, site="up"))}
    source = {"source": {"file": "m.gguf", "sha256": "0a"}}
    _claim(tmp_path, about, source, "up")
    assert json.loads((tmp_path / "study.json").read_text())["source"] == source["source"]
    _claim(tmp_path, about, {}, "up")
    _claim(tmp_path, about, {"source": {"file": "other.gguf", "sha256": "0b"}}, "up")
    with pytest.raises(RunError, match=r"model\.fingerprint: g here, f in the folder"):
        _claim(tmp_path, {**about, "model": {"name": "m", "fingerprint": "g"}}, source, "up")


@pytest.mark.parametrize("planted", ["short", "short/located"])
def test_a_link_in_a_study_leads_nowhere(
    planted: str, model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, subjects = model_of("llama"), [Subject("short", short_queries, (short_queries,))]
    study, victim = tmp_path / "study", tmp_path / "victim"
    victim.mkdir()
    with monkeypatch.context() as patched:
        failing(patched, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            reproduce(model, subjects, study, config=CONFIG, sample=SMALL, progress=False)
    (study / planted).rename(tmp_path / "kept")
    (study / planted).symlink_to(victim)
    monkeypatch.setattr(work, "attribute", None)
    with pytest.raises(RunError, match=f"{planted} is a link; remove it, or choose another folder"):
        reproduce(model, subjects, study, config=CONFIG, sample=SMALL, progress=False)
    assert not list(victim.iterdir())


def test_subjects() -> None:
    domains = subject("domains", per_group=3)
    assert (domains.name, len(domains.queries), len(domains.renderings)) == ("domains", 18, 4)
    assert {q.id for r in domains.renderings for q in r} == {q.id for q in domains.queries}
    assert domains.fresh and domains.held_out
    rendered = [domains.queries, *domains.renderings[1:], domains.fresh]
    assert len({tuple(p.text for q in queries for p in q.prompts) for queries in rendered}) == 5
    assert [q.id for q in domains.fresh] == [q.id for q in domains.held_out] == [q.id for q in domains.queries]
    assert {p.template for q in domains.held_out for p in q.prompts} == {"en-held-out"}
    assert domains.queries.queries in {rendering.queries for rendering in domains.renderings}
    other = subject("domains", per_group=3, seed=1)
    assert other.queries.queries == load_queries("atlas/domains", seed=1).sample(3, 1).queries
    assert {query.id for query in other.queries} != {query.id for query in domains.queries}


@pytest.mark.parametrize("known", [True, False])
def test_rendered_queries_have_no_unseen_prompts(known: bool, tmp_path: Path) -> None:
    """Whether or not they name their questions."""
    queries = subject("domains", per_group=1).queries
    if not known:
        queries = QuerySet(tuple(replace(query, question="") for query in queries))
    save_queries(queries, tmp_path / "mine.jsonl")
    found = subject(str(tmp_path / "mine.jsonl"))
    assert (found.queries.fingerprint, found.fresh, found.held_out) == (queries.fingerprint, None, None)


def test_letters_count_in_the_half_that_is_fitted_on(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    fitted = {query.id for query in short_queries.split(0.5, 0)[0]}
    queries = tuple(one if one.id not in fitted else one_letter(QuerySet((one,))).queries[0] for one in short_queries)
    with pytest.raises(ValueError, match="'a': the right letter is C in all prompts of group 'g0'"):
        reproduce(model_of("llama"), [Subject("a", QuerySet(queries), (QuerySet(queries),))], tmp_path, progress=False)


def test_a_query_is_readable_where_all_its_prompts_are(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    assert len(LONG.prompts) == 2  # one that fits, one that does not
    assert readable(model_of("llama"), QuerySet((LONG, *short_queries))).queries == short_queries.queries
