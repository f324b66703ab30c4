from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from qrnca_lens.cli.queries import queries_app
from qrnca_lens.data import DataError, Question, load_queries, load_questions, to_multi_choice
from qrnca_lens.data.readers import mlama as mlama_module
from qrnca_lens.data.readers import mmlu as mmlu_module
from qrnca_lens.data.readers.mlama import INSTRUCTIONS, LANGUAGES, RELATIONS, build_mlama
from qrnca_lens.data.readers.mmlu import build_mmlu
from qrnca_lens.data.readers.sources import save_questions

run = CliRunner().invoke
MMLU_COUNTS = {"biology": 3, "computer science": 2}
MLAMA_COUNTS = dict.fromkeys(RELATIONS, 4)
Row = tuple[str, list[str], int]
Triple = dict[str, Any]


def mmlu_rows(group: str, count: int = 6) -> list[Row]:
    """Questions with a quotation mark, a comma and a line break in them, as MMLU has."""
    return [(f'In {group}, what is "{n}",\nexactly?', [f"{group} {n} {x}" for x in "pqrs"], n % 4) for n in range(count)]


def write_mmlu_csv(
    folder: Path, rows_of: Callable[[str], list[Row]] = mmlu_rows, counts: dict[str, int] = MMLU_COUNTS
) -> Path:
    folder.mkdir(parents=True)
    for group in counts:
        path = folder / f"high_school_{group.replace(' ', '_')}_test.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([q, *choices, "ABCD"[right]] for q, choices, right in rows_of(group))
    return folder


def write_mmlu_parquet(folder: Path, rows_of: Callable[[str], list[Row]] = mmlu_rows) -> Path:
    for group in MMLU_COUNTS:
        subject = f"high_school_{group.replace(' ', '_')}"
        (folder / subject).mkdir(parents=True)
        rows = [{"question": q, "subject": subject, "choices": c, "answer": right} for q, c, right in rows_of(group)]
        pd.DataFrame(rows).to_parquet(folder / subject / "test-00000-of-00001.parquet")
    return folder


def mlama_triples(language: str, relation: str, count: int = 8) -> list[Triple]:
    """Facts that every language has, less one that only English has."""
    facts = range(count if language == "en" else count - 1)
    return [
        {
            "sub_uri": f"Q{n}", "obj_uri": f"Q{100 + n}", "sub_label": f"{language} subject {n}",
            "obj_label": f"{language} {relation} {n}", "lineid": n, "uuid": f"{relation}-{n}",
        }
        for n in facts
    ]  # fmt: skip


def mlama_template(language: str, relation: str) -> str:
    return f"[X] {language} {relation} [Y] ."


def write_mlama(folder: Path, triples_of: Callable[[str, str], list[Triple]] = mlama_triples) -> Path:
    for language in LANGUAGES:
        (folder / language).mkdir(parents=True)
        templates = [{"relation": code, "template": mlama_template(language, code)} for code in RELATIONS.values()]
        write_lines(folder / language / "templates.jsonl", [*templates, {"relation": "P36", "template": "no slots"}])
        for code in RELATIONS.values():
            write_lines(folder / language / f"{code}.jsonl", triples_of(language, code))
    return folder


def write_lines(path: Path, rows: list[Triple]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def mlama_frame(triples_of: Callable[[str, str], list[Triple]] = mlama_triples) -> pd.DataFrame:
    """The rows of all languages and relations, with some of a language and a relation that are not needed."""
    return pd.DataFrame(
        [
            {**triple, "template": mlama_template(language, code), "language": language, "predicate_id": code}
            for language in ("af", *LANGUAGES)
            for code in ("P36", *RELATIONS.values())
            for triple in triples_of(language, code)
        ]
    )


def write_mlama_parquet(folder: Path, frame: pd.DataFrame) -> Path:
    """The frame in two files of one sub-folder."""
    (folder / "all").mkdir(parents=True)
    half = len(frame) // 2
    frame[:half].to_parquet(folder / "all" / "test-00000-of-00002.parquet")
    frame[half:].to_parquet(folder / "all" / "test-00001-of-00002.parquet")
    return folder


def test_the_counts_are_those_of_the_paper() -> None:
    assert sum(mmlu_module.COUNTS.values()) == 552
    assert sum(mlama_module.COUNTS.values()) * len(LANGUAGES) == 600


@pytest.mark.parametrize("inner", ["", "test", "data/test"])
def test_both_mmlu_layouts_give_the_same_questions(tmp_path: Path, inner: str) -> None:
    write_mmlu_csv(tmp_path / "csv" / inner)
    write_mmlu_parquet(tmp_path / "parquet")
    questions = build_mmlu(tmp_path / "csv", seed=1, counts=MMLU_COUNTS)
    assert questions == build_mmlu(tmp_path / "parquet", seed=1, counts=MMLU_COUNTS)
    assert Counter(q.group for q in questions) == MMLU_COUNTS
    assert questions != build_mmlu(tmp_path / "csv", seed=2, counts=MMLU_COUNTS)
    for q in questions:
        number = int(q.id[-4:])
        text, choices, right = mmlu_rows(q.group)[number]
        assert q.id == f"mmlu-{q.group.replace(' ', '-')}-{number:04}"
        assert (q.question, q.answer) == (text, choices[right])
        assert q.distractors == tuple(c for c in choices if c != q.answer)


def test_mmlu_rows_with_choices_of_several_lines_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def rows_of(group: str) -> list[Row]:
        listed = f"Which of {', '.join('abcdefg')},\nfor {group}?"
        return [(listed, ["one", "two\nlines", "three", "four"], 0), *mmlu_rows(group, 3)]

    with caplog.at_level(logging.WARNING):
        questions = build_mmlu(write_mmlu_csv(tmp_path / "m", rows_of), counts={"biology": 3})
    assert [q.id for q in questions] == ["mmlu-biology-0001", "mmlu-biology-0002", "mmlu-biology-0003"]
    assert caplog.messages == ["MMLU: left out 1 questions whose four choices are not single lines (biology 1)"]


def test_all_of_a_subject_is_taken_in_its_own_order(tmp_path: Path) -> None:
    questions = build_mmlu(write_mmlu_csv(tmp_path / "m"), counts={"biology": 6})
    assert [q.id for q in questions] == [f"mmlu-biology-{n:04}" for n in range(6)]


def test_mmlu_rows_with_equal_choices_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def rows_of(group: str) -> list[Row]:
        return [(f"{group}?", ["one", " ONE ", "two", "three"], 0), *mmlu_rows(group, 3)]

    folder = write_mmlu_csv(tmp_path / "m", rows_of)
    with caplog.at_level(logging.WARNING):
        questions = build_mmlu(folder, counts={"biology": 3})
    assert [q.id for q in questions] == ["mmlu-biology-0001", "mmlu-biology-0002", "mmlu-biology-0003"]
    assert caplog.messages == ["MMLU: left out 1 questions whose four choices are not distinct (biology 1)"]
    with pytest.raises(DataError, match=r"biology_test\.csv: 3 usable questions, but the set needs 4 of biology"):
        build_mmlu(folder, counts={"biology": 4})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("What?,a,b,c,A", r"line 5: expected 6 columns \(question, A, B, C, D, answer\), found 5"),
        ("What?,a,b,c,d,E", r"line 5: field 'answer': expected one of A, B, C, D, found 'E'"),
        ("What?,a,b, ,d,A", r"line 5: field 'C' is empty"),
        (",a,b,c,d,A", r"line 5: field 'question' is empty"),
        ('"What,a,b,c,d,A', r"line 5: not valid CSV"),
        ('"What,a,b,c,d,A\nWho,a,b,c,d",B', r"line 5: not valid CSV"),
        ('"What,a,b,c,d,A\nWho",a,b,c,d,B', r"line 5: not valid CSV \(a quotation mark takes lines 5 to 6 together"),
        ('What is 5" long,a,b,c,d,A', r"line 5: not valid CSV \(a quotation mark inside a plain text\)"),
    ],
)
def test_bad_mmlu_csv(tmp_path: Path, line: str, message: str) -> None:
    folder = write_mmlu_csv(tmp_path / "m", lambda group: mmlu_rows(group, 2))  # two lines a question
    path = folder / "high_school_biology_test.csv"
    path.write_text(path.read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(DataError, match=message) as error:
        build_mmlu(folder, counts={"biology": 1})
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "\u200b"}, r"row 1: field 'question' is empty"),
        ({"answer": 4}, r"row 1: field 'answer': expected a number from 0 to 3, found 4"),
        ({"choices": ["a", "b", "c"]}, r"row 1: field 'choices': expected a list of 4 texts"),
        ({"choices": ["a", "b", "c", ""]}, r"row 1: field 'choices' is empty"),
        ({"subject": "anatomy"}, r"row 1: field 'subject': expected 'high_school_biology', found 'anatomy'"),
        ({"question": None}, r"row 1: field 'question': expected a text, found nothing"),
    ],
)
def test_bad_mmlu_parquet(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_mmlu_parquet(tmp_path) / "high_school_biology" / "test-00000-of-00001.parquet"
    rows = pd.read_parquet(path).to_dict("records")
    rows[1].update(change)
    pd.DataFrame(rows).to_parquet(path)
    with pytest.raises(DataError, match=message):
        build_mmlu(tmp_path, counts={"biology": 1})


def test_missing_and_damaged_mmlu(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such folder; give the folder of the data set, or 'hub'"):
        build_mmlu(tmp_path / "none")
    with pytest.raises(DataError, match=r"no MMLU here; expected test/high_school_biology_test\.csv and its like"):
        build_mmlu(tmp_path)
    folder = write_mmlu_csv(tmp_path / "m")
    with pytest.raises(DataError, match=r"high_school_physics_test\.csv: no such file, although others of MMLU are there"):
        build_mmlu(folder)
    (folder / "high_school_biology_test.csv").write_bytes("é,a,b,c,d,A\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        build_mmlu(folder, counts={"biology": 1})
    path = write_mmlu_parquet(tmp_path / "p") / "high_school_biology" / "test-00000-of-00001.parquet"
    pd.read_parquet(path).drop(columns="choices").to_parquet(path)
    with pytest.raises(DataError, match=r"column 'choices' is missing; expected question, subject, choices, answer"):
        build_mmlu(tmp_path / "p", counts={"biology": 1})
    half = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    pyarrow.parquet.write_table(pyarrow.table(dict.fromkeys(("question", "subject", "choices", "answer"), half)), path)
    with pytest.raises(DataError, match=r"not a readable parquet file .*UTF"):
        build_mmlu(tmp_path / "p", counts={"biology": 1})
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="not a readable parquet file"):
        build_mmlu(tmp_path / "p", counts={"biology": 1})


def test_both_mlama_layouts_give_the_same_questions(tmp_path: Path) -> None:
    write_mlama(tmp_path / "zip" / "mlama1.1")
    write_mlama_parquet(tmp_path / "hub", mlama_frame())
    questions = build_mlama(tmp_path / "zip", seed=1, counts=MLAMA_COUNTS)
    assert questions == build_mlama(tmp_path / "zip" / "mlama1.1", seed=1, counts=MLAMA_COUNTS)
    assert questions == build_mlama(tmp_path / "hub", seed=1, counts=MLAMA_COUNTS)
    assert questions != build_mlama(tmp_path / "hub", seed=2, counts=MLAMA_COUNTS)
    assert Counter(q.group for q in questions) == dict.fromkeys(LANGUAGES.values(), 20)
    assert Counter(q.relation for q in questions) == dict.fromkeys(RELATIONS, 24)
    facts = {x: {q.id.removeprefix(f"mlama-{x}-") for q in questions if q.language == x} for x in LANGUAGES}
    assert all(found == facts["en"] and len(found) == 20 for found in facts.values())
    assert "P19-Q7-Q107" not in facts["en"]


def test_an_mlama_question_is_a_sentence_with_a_gap(tmp_path: Path) -> None:
    questions = build_mlama(write_mlama(tmp_path), counts={"employer": 7})
    by_id = {q.id: q for q in questions}
    assert by_id["mlama-fr-P108-Q3-Q103"] == Question(
        id="mlama-fr-P108-Q3-Q103", group="french", question="Quelle option complète la phrase : fr subject 3 fr P108 ___.",
        answer="fr P108 3", language="fr", relation="employer", fact="P108-Q3-Q103",
    )  # fmt: skip
    assert set(INSTRUCTIONS) == set(LANGUAGES)
    for query in to_multi_choice(questions):
        assert {o.rsplit(" ", 1)[0] for o in query.prompts[0].options} == {f"{query.language} P108"}


@pytest.mark.parametrize("dropped", [["sub_uri", "obj_uri"], ["sub_uri", "obj_uri", "uuid"]])
def test_facts_join_by_uuid_or_lineid_without_uris(tmp_path: Path, dropped: list[str]) -> None:
    whole = build_mlama(write_mlama(tmp_path / "a"), counts={"employer": 7})
    joined = build_mlama(write_mlama_parquet(tmp_path / "b", mlama_frame().drop(columns=dropped)), counts={"employer": 7})
    assert [(q.question, q.answer) for q in joined] == [(q.question, q.answer) for q in whole]


def test_facts_with_several_answers_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def triples_of(language: str, relation: str) -> list[Triple]:
        rows = mlama_triples(language, relation)
        extra = {**rows[0], "obj_uri": "Q999", "obj_label": "another", "lineid": 99, "uuid": f"{relation}-99"}
        return [*rows, *([extra] if language == "en" else []), rows[1]]

    folder = write_mlama(tmp_path, triples_of)
    with caplog.at_level(logging.WARNING):
        questions = build_mlama(folder, counts={"employer": 6})
    assert "mlama-en-P108-Q0-Q100" not in {q.id for q in questions}
    assert caplog.messages == ["mLAMA: left out 1 facts whose subject has several answers (employer 1) and 6 repeated rows"]
    with pytest.raises(DataError, match=r"P108 \(employer\): 6 facts stand in all of ar, en, .*but the set needs 7"):
        build_mlama(folder, counts={"employer": 7})


def test_missing_mlama(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no mLAMA here; expected en/templates\.jsonl, en/P19\.jsonl"):
        build_mlama(tmp_path)
    folder = write_mlama(tmp_path / "m")
    with pytest.raises(DataError, match=r"P19 \(birth_place\): 7 facts stand in all of ar, .*but the set needs 20"):
        build_mlama(folder)
    (folder / "ja" / "P19.jsonl").unlink()
    with pytest.raises(DataError, match=r"ja/P19\.jsonl: no such file, although others of mLAMA are there"):
        build_mlama(folder, counts=MLAMA_COUNTS)
    (folder / "ja" / "templates.jsonl").unlink()
    with pytest.raises(DataError, match=r"ja/templates\.jsonl: no such file"):
        build_mlama(folder, counts=MLAMA_COUNTS)
    frame = mlama_frame()
    write_mlama_parquet(tmp_path / "p", frame[frame["language"] != "ru"])
    with pytest.raises(DataError, match=r"no fact of P19 \(birth_place\) in language 'ru'"):
        build_mlama(tmp_path / "p", counts=MLAMA_COUNTS)
    write_mlama_parquet(tmp_path / "q", frame.drop(columns="sub_label"))
    with pytest.raises(DataError, match=r"column 'sub_label' is missing"):
        build_mlama(tmp_path / "q", counts=MLAMA_COUNTS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("zh/P108.jsonl", "{broken", r"line 1: not valid JSON"),
        ("zh/P108.jsonl", "[1]", r"line 1: expected a JSON object, found list"),
        ("zh/P108.jsonl", '{"sub_label": "a", "obj_label": " ", "lineid": 1}', r"line 1: field 'obj_label' is empty"),
        (
            "zh/P108.jsonl",
            '{"sub_label": 1, "obj_label": "b", "lineid": 1}',
            r"field 'sub_label': expected a text, found int",
        ),
        ("zh/P108.jsonl", '{"sub_label": "a", "obj_label": "b"}', r"line 1: expected 'sub_uri' and 'obj_uri', or 'uuid'"),
        ("zh/templates.jsonl", '{"relation": "P108", "template": "[X] a"}', r"field 'template': expected one \[X\] and one"),
        ("zh/P108.jsonl", "[" * 100_000, r"line 1: nested too deeply"),
        ("zh/P108.jsonl", '{"lineid": 1' + "0" * 5_000 + "}", r"line 1: a number that cannot be read"),
        ("zh/P108.jsonl", '{"lineid": 1, "lineid": 2}', r"line 1: field 'lineid' stands twice"),
        ("zh/P108.jsonl", '{"sub_label": "\\ud800", "obj_label": "b"}', r"line 1: field 'sub_label': half a character"),
        ("zh/P108.jsonl", '{"sub_label": "a", "obj_label": "b", "lineid": true}', r"line 1: expected 'sub_uri' and"),
        (
            "zh/templates.jsonl",
            '{"relation": "P108", "template": "[X] a [Y]"}\n{"relation": "P108", "template": "[X] b [Y]"}',
            r"line 2: field 'relation': a second template of 'P108'",
        ),
        ("zh/templates.jsonl", "", r"no template of relation 'P108' \(employer\)"),
    ],
)
def test_bad_mlama_rows(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write_mlama(tmp_path) / name
    path.write_text(text + "\n", "utf-8")
    with pytest.raises(DataError, match=message) as error:
        build_mlama(tmp_path, counts={"employer": 4})
    assert str(path) in str(error.value)


def test_too_few_distinct_answers(tmp_path: Path) -> None:
    def triples_of(language: str, relation: str) -> list[Triple]:
        return [{**row, "obj_label": f"{language} {row['lineid'] % 3}"} for row in mlama_triples(language, relation)]

    with pytest.raises(DataError, match=r"P108 \(employer\): the facts drawn with seed 0 have 3 distinct answers"):
        build_mlama(write_mlama(tmp_path, triples_of), counts={"employer": 6})


def test_the_hub_is_asked_for_the_files_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(**call: Any) -> str:
        asked.append(call)
        name = "mmlu" if call["repo_id"] == "cais/mmlu" else "empty" if call["revision"] == "main" else "mlama"
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    write_mmlu_parquet(tmp_path / "mmlu")
    write_mlama_parquet(tmp_path / "mlama", mlama_frame())
    assert len(build_mmlu("hub", counts=MMLU_COUNTS)) == 5
    assert asked[0]["repo_type"] == "dataset"
    assert "high_school_computer_science/test-00000-of-00001.parquet" in asked[0]["allow_patterns"]
    assert len(build_mlama("hub", counts=MLAMA_COUNTS)) == 120
    assert [call["revision"] for call in asked[1:]] == ["main", "refs/convert/parquet"]

    def unreachable(**_: Any) -> str:
        raise OSError("no connection\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(DataError, match=r"cais/mmlu \(main\): .*could not deliver the data set \(no connection\); download"):
        build_mmlu("hub")


def test_questions_round_trip(tmp_path: Path) -> None:
    odd = Question("q-1", "g", "A line\nbreak,\u2028another\x85 and «это»?", "yes", ("no", "maybe", "never"))
    plain = Question("q-2", "g", "Why?", "because", language="fr", relation="r")
    path = tmp_path / "out.jsonl"
    save_questions([odd, plain], path)
    assert load_questions(path) == (odd, plain)
    assert "это" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    with pytest.raises(DataError, match="there is no question to write"):
        save_questions([], path)
    with pytest.raises(DataError, match="'q-2' stands twice"):
        save_questions([plain, plain], path)
    assert load_questions(path) == (odd, plain)


def test_build_commands(tmp_path: Path) -> None:
    write_mmlu_csv(tmp_path / "mmlu", lambda group: mmlu_rows(group, 101), mmlu_module.COUNTS)
    write_mlama(tmp_path / "mlama", lambda language, relation: mlama_triples(language, relation, 22))
    for name, groups in (("mmlu", mmlu_module.COUNTS), ("mlama", dict.fromkeys(LANGUAGES.values(), 100))):
        out = tmp_path / "made" / f"{name}.jsonl"
        told = run(queries_app, ["build", name, "--from", str(tmp_path / name), "--out", str(out), "--seed", "4"])
        assert told.exit_code == 0, told.output
        assert f"Wrote {sum(groups.values())} questions to {out}" in told.output
        queries = load_queries(out)
        assert Counter(q.group for q in queries) == groups
        assert all(len(q.prompts) == 3 for q in queries)


def test_free_form_and_show(tmp_path: Path) -> None:
    own, out = tmp_path / "own.csv", tmp_path / "own.jsonl"
    own.write_text("id,group,question,answer,distractors\na,g,Why?,yes,no|maybe|never\nb,[h],Who?,me,you|her|him\n", "utf-8")
    told = run(queries_app, ["build", "free-form", str(own), "--out", str(out), "--seed", "3"])
    assert told.exit_code == 0, told.output
    assert "Wrote 2 queries with 6 prompts" in told.output
    assert "[h]" in told.output
    queries = load_queries(out)
    assert queries.queries == load_queries(own, seed=3).queries
    told = run(queries_app, ["show", str(out), "--id", "b"])
    assert told.exit_code == 0, told.output
    for prompt in queries["b"].prompts:
        assert f"{prompt.text} {prompt.letter}" in told.output
    assert "2 questions by group" in told.output
    assert "Why?" in run(queries_app, ["show", str(out)]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "mmlu", "--from", "none", "--out", "x.jsonl"], "Error: none: no such folder"),
        (["build", "mlama", "--from", ".", "--out", "x.jsonl"], "Error: .: no mLAMA here"),
        (["build", "free-form", "none.csv", "--out", "x.jsonl"], "Error: none.csv: no such file"),
        (["show", "atlas/domains", "--id", "none"], "Error: no query 'none' in atlas/domains"),
    ],
)
def test_command_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(queries_app, arguments)
    assert told.exit_code == 1
    assert told.output.startswith(message)
    assert told.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
