"""Files and texts that are odd or hostile: the right reading, or a DataError that names file, line and field."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrnca_lens.data import (
    DataError,
    Prompt,
    Query,
    QuerySet,
    Question,
    load_queries,
    load_questions,
    save_queries,
    to_multi_choice,
)
from qrnca_lens.data.readers.formats import read_text
from qrnca_lens.data.readers.mlama import build_mlama
from qrnca_lens.data.readers.sources import save_questions
from qrnca_lens.data.texts import normalise

HEADER = "id,group,question,answer,distractors"
GIVEN = "no|maybe|never"
ROW = {"id": "a", "group": "g", "question": "Why?", "answer": "yes", "distractors": ["no", "maybe", "never"]}
PROMPT = {"text": "Why?\nA. no\nB. yes\nC. maybe\nD. never\nAnswer:", "letter": "B"}
OPTIONS = ["no", "yes", "maybe", "never"]
QUERY = {"id": "a", "group": "g", "prompts": [PROMPT]}


def csv_file(folder: Path, *lines: str, name: str = "own.csv") -> Path:
    path = folder / name
    path.write_bytes("\n".join((*lines, "")).encode())
    return path


def jsonl_file(folder: Path, *rows: object) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((f'a,g,"Why?,yes,{GIVEN}', f'b,g,"Who?",me,{GIVEN}'), r"line 2: not valid CSV \(a text goes on after its clos"),
        (
            (f'a,g,"Why?,yes,{GIVEN}', f"b,g,Who?,me,{GIVEN}"),
            r"line 2: not valid CSV \(a quotation mark opens .* never clo",
        ),
        ((f'a,g,"Why?,yes,{GIVEN}', f'b,g,who",me,{GIVEN}'), r"line 2: not valid CSV .* takes lines 2 to 3 together"),
        (
            (f'a,g,"Why?,yes,{GIVEN}', "", f"b,g,x,y,{GIVEN}", f'c,g,who",me,{GIVEN}'),
            r"line 2: .* takes lines 2 to 5",
        ),
        ((f'a,g,"Why, though?,yes,{GIVEN}', f'b,h,who",me,{GIVEN}'), r"line 2: .* takes lines 2 to 3 together"),
        (
            (f'a,g,5" or 6"?,5,{GIVEN}',),
            r"line 2: not valid CSV \(a quotation mark inside a plain text\); put the",
        ),
        ((f'a,g, "Why, oh?",5,{GIVEN}',), r"line 2: not valid CSV \(a quotation mark inside a plain text\)"),
        ((f"a,g,Why?,yes,{GIVEN}", f"b,g,Why,yes,no,{GIVEN}"), r"line 3: expected 5 columns .*, found 6"),
        *(
            ((f'a,g,"Why?,yes{short}', f'b,g,Who?",me,{GIVEN}', f"c,g,What?,it,{GIVEN}"), r"takes lines 2 to 3 together")
            for short in (f",{GIVEN}", "")
        ),
        (("a,g,Why?,yes,no||maybe|never",), r"line 2: field 'distractors' holds an empty text"),
    ],
)
def test_a_stray_quote_or_comma_never_merges_rows(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = csv_file(tmp_path, HEADER, *lines)
    for read in (load_queries, load_questions):
        with pytest.raises(DataError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "columns", ["id,group,question,answer", f"{HEADER},language", f"{HEADER},language,relation,also_right"]
)
def test_lines_without_their_optional_cells_are_rows_too(tmp_path: Path, columns: str) -> None:
    rows = ('a,g,"Why?,yes,no|maybe|never', 'b,g,Who?",me,no|maybe|never,en', "c,g,What?,it,no|maybe|never,en")
    with pytest.raises(DataError, match=r"line 2: not valid CSV .* takes lines 2 to 3 together"):
        load_questions(csv_file(tmp_path, columns, *rows))
    with pytest.raises(DataError, match=r"line 1: not valid CSV .* takes lines 1 to 2 together"):
        load_questions(csv_file(tmp_path, 'id,group,question,answer,"language', 'a,g,Why?,yes,en"', "b,g,Who?,me,en"))


def test_quotes_commas_and_line_breaks_in_quotes_are_read(tmp_path: Path) -> None:
    path = csv_file(
        tmp_path, HEADER, f'a,g,"Say ""one,\r\ntwo"", and\nthree",yes,{GIVEN}', "", f'"b",g,Who?,"me, of course",{GIVEN}'
    )
    first, second = load_questions(path)
    assert first.question == 'Say "one,\r\ntwo", and\nthree'
    assert (second.id, second.answer, second.distractors) == ("b", "me, of course", ("no", "maybe", "never"))
    csv_file(tmp_path, HEADER, f'a,g,"one\ntwo",yes,{GIVEN}', f"b,g,,me,{GIVEN}")
    with pytest.raises(DataError, match=r"own\.csv, line 4: field 'question' is empty"):
        load_questions(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,group,question,answer,answer", r"line 1: column 'answer' stands twice"),
        ("id,group,question,answer,", r"line 1: column 5 has no name"),
        ("id,group,question,answer,topic", r"line 1: unknown field 'topic'; expected id, group"),
        ("id;group;question;answer;distractors", r"line 1: unknown field 'id;group;question;answer;distractors'"),
    ],
)
def test_bad_headers(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_questions(csv_file(tmp_path, header, f"a,g,Why?,yes,{GIVEN}"))


def test_texts_of_any_length_are_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    assert load_questions(csv_file(tmp_path, HEADER, f"a,g,{long},yes,{GIVEN}"))[0].question == long
    assert load_questions(csv_file(tmp_path, HEADER, f'a,g,"{long}",yes,{GIVEN}'))[0].question == long
    assert load_questions(jsonl_file(tmp_path, {**ROW, "question": long}))[0].question == long


def test_endings_in_capitals_and_unknown_ones(tmp_path: Path) -> None:
    for name in ("own.CSV", "own.Csv"):
        assert load_questions(csv_file(tmp_path, HEADER, f"a,g,Why?,yes,{GIVEN}", name=name))[0].answer == "yes"
    lines = csv_file(tmp_path, json.dumps(ROW), name="own.JSONL")
    assert len(load_queries(lines)) == len(load_questions(lines)) == 1
    official = {"u": {"sentences": ["x"], "obj_label": ["A"], "relation_name": "b"}}
    assert load_queries(csv_file(tmp_path, json.dumps(official), name="own.JSON")).groups == ("b",)
    for name in ("own.txt", "own", "own.tsv", "own.json"):
        with pytest.raises(DataError, match=r"a file ending in '.*'; expected \.jsonl or \.csv for questions"):
            load_questions(csv_file(tmp_path, json.dumps(ROW), name=name))
    with pytest.raises(DataError, match=r"none: no such file; shipped sets are"):
        load_queries(tmp_path / "none")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[" * 100_000, r"line 1: nested too deeply"),
        ('{"id": ' + "[" * 100_000 + "]" * 100_000 + "}", r"line 1: nested too deeply"),
        ('{"id": 1' + "0" * 5_000 + "}", r"line 1: a number that cannot be read"),
        ('{"id": NaN}', r"line 1: field 'id': expected a text, found float"),
        ({**ROW, "answer": None}, r"line 1: field 'answer': expected a text, found nothing"),
        ({**ROW, "language": 0}, r"line 1: field 'language': expected a text, found int"),
        ({**ROW, "distractors": False}, r"line 1: field 'distractors': expected a list"),
        ({**ROW, "distractors": ""}, r"line 1: field 'distractors': expected a list"),
        ({**ROW, "also_right": "no"}, r"line 1: field 'also_right': expected a list"),
        ({**ROW, "question": "\u200b \u00ad"}, r"line 1: field 'question' is empty"),
        ({**ROW, "answer": "\u2800"}, r"line 1: field 'answer' is empty"),
        ({**ROW, "answer": "\ufff9\ufffa \ufffb"}, r"line 1: field 'answer' is empty"),
        ({**ROW, "distractors": ["no", "maybe", "\u2800 \u2800"]}, r"line 1: field 'distractors' holds an empty text"),
        *(
            ({**ROW, field: "yes \ud83d"}, rf"line 1: .*field '{field}': half a character .* at position 4")
            for field in ("id", "group", "question", "answer", "relation")
        ),
        ({**ROW, "distractors": ["no", "\udc00", "never"]}, r"line 1: field 'distractors': half a character"),
        ({**QUERY, "prompts": [{**PROMPT, "text": "\ud800"}]}, r"line 1: field 'text': half a character"),
        *(
            ({**ROW, "answer": f"yes{mark}B. no"}, r"line 1: .*field 'answer': .* has a line break; an option")
            for mark in "\n\r\x0b\x0c\x85\u2028\u2029"
        ),
        ({**ROW, "distractors": ["no", "maybe\n", "never"]}, r"field 'distractors': 'maybe\\n' has a line break"),
        ({**ROW, "group": "All  Groups"}, r"line 1: .*field 'group': 'all groups' means the sum over all groups"),
        ({**QUERY, "group": "all groups"}, r"line 1: .*field 'group': 'all groups' means the sum over all groups"),
        (
            {**QUERY, "answer": "no", "prompts": [{**PROMPT, "options": OPTIONS}]},
            r"line 1: .*field 'letter': B stands for 'yes' in a prompt, but the answer is 'no'",
        ),
        ({**QUERY, "prompts": [{**PROMPT, "options": ["no", "yes"]}]}, r"field 'options': expected 4 texts, found 2"),
        ({**QUERY, "prompts": [{**PROMPT, "options": [*OPTIONS, "x"]}]}, r"field 'options': expected 4 texts, found 5"),
        ({**QUERY, "prompts": [{**PROMPT, "options": ["no", "yes", "NO", "never"]}]}, r"fewer than 4 distinct options"),
        (
            {**QUERY, "prompts": [{**PROMPT, "options": ["no", "yes", "perhaps", "never"]}]},
            r"'perhaps' \(option C\)",
        ),
        (
            {**QUERY, "prompts": [{**PROMPT, "options": ["yes", "no", "maybe", "never"]}]},
            r"'no' \(option B\) does",
        ),
    ],
)
def test_odd_rows_are_data_errors(tmp_path: Path, row: object, message: str) -> None:
    path = jsonl_file(tmp_path, row)
    with pytest.raises(DataError, match=message) as error:
        load_queries(path)
    assert str(error.value).startswith(str(path))


def test_odd_official_files_are_data_errors(tmp_path: Path) -> None:
    entry = {"sentences": ["x"], "obj_label": ["A"], "relation_name": "b"}
    for text, message in (
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5_000, "a number that cannot be read"),
        (json.dumps({"u": {**entry, "sentences": ["\ud800"]}}), r"query 'u': field 'sentences': half a character"),
        (json.dumps({"\udfff": entry}), r"half a character"),
        (
            json.dumps({"u": entry, "v": {**entry, "relation_name": "b "}}),
            r"query 'v': field 'group': 'b ' differs from 'b'",
        ),
    ):
        with pytest.raises(DataError, match=message):
            load_queries(csv_file(tmp_path, text, name="own.json"))


def same(*texts: str) -> bool:
    return len({normalise(text) for text in texts}) == 1


def test_options_that_read_the_same_are_the_same() -> None:
    assert same("Zürich", "Zu\u0308rich", "ZÜRICH", "\u200eZürich\u200f", "Zü\u00adrich", "\ufeffZürich", "Ｚürich")
    assert same("New York", "New\u00a0York", "new \u3000 york", "New\u2060 York", "New York\x00")
    assert same("القاهرة", "\u202bالقاهرة\u202c", "\u061cالقاهرة")
    assert same("می\u200cخواهم", "میخواهم")
    assert same("ガ", "ｶﾞ", "カ\u3099")
    assert same("office", "o\ufb03ce")
    assert same("straße", "STRASSE")
    assert same("-5", "\u22125", "\u20115", "\u20105", "\uff0d5", "\u20135")
    assert same("Alzheimer's", "Alzheimer\u2019s", "Alzheimer\u2018s", "ALZHEIMER\u02bcS", "Alzheimer\uff07s")
    assert same('"so"', "\u201cso\u201d", "\u201eso\u201c")
    assert same("محمد", "محـــمد", "محمـد")
    assert same("New York", "New\u2800York", "New York\u2800", "\ufff9New York\ufffa\ufffb")
    for one, two in (
        ("x²", "x2"),
        ("½", "1/2"),
        ("H₂O", "H2O"),
        ("①", "1"),
        ("ℝ", "R"),
        ("й", "и"),
        ("résumé", "resume"),
        ("-5", "5"),
        ("-5", "— 5"),
    ):
        assert not same(one, two)


@pytest.mark.parametrize(
    "twin", ["Zu\u0308rich", "Zürich\u200e", "Zü\u200drich", "Zü\u00adrich", "Zürich\u2800", "\ufff9Zürich"]
)
def test_two_right_answers_are_refused(tmp_path: Path, twin: str) -> None:
    path = jsonl_file(tmp_path, {**ROW, "answer": "Zürich", "distractors": [twin, "Bern", "Basel", "Genf"]})
    with pytest.raises(DataError, match=r"line 1: .*'Zürich' stands among the distractors"):
        load_queries(path)
    path = jsonl_file(tmp_path, {**ROW, "answer": "Bern", "distractors": [twin, "Zürich", "Basel"]})
    with pytest.raises(DataError, match=r"line 1: .*fewer than 4 distinct options"):
        load_queries(path)
    drawn = [Question(f"q{i}", "g", "Where?", text) for i, text in enumerate(("Zürich", twin, "Bern", "Basel", "Genf"))]
    for query in to_multi_choice(drawn):
        assert len({normalise(option) for option in query.prompts[0].options}) == 4


@pytest.mark.parametrize("twin", ["physics ", "Physics", "physics\u200b", "ｐhysics"])
@pytest.mark.parametrize("field", ["group", "relation"])
def test_names_that_look_the_same_are_refused_with_both_lines(tmp_path: Path, twin: str, field: str) -> None:
    rows = [{**ROW, field: "physics"}, {**ROW, "id": "b", field: "other"}, {**ROW, "id": "c", field: twin}]
    with pytest.raises(DataError, match=rf"line 3: field '{field}': .* differs from 'physics' \(.*line 1\) only in case"):
        load_queries(jsonl_file(tmp_path, *rows))
    questions = [Question(**{**row, "distractors": tuple(row["distractors"])}) for row in rows]
    with pytest.raises(DataError, match=rf"question 'c': field '{field}': .* differs from 'physics' \(question 'a'\)"):
        to_multi_choice(questions)
    if field == "group":
        with pytest.raises(DataError, match=r"line 2: field 'group': .* differs from 'physics' \(.*line 1\)"):
            load_queries(jsonl_file(tmp_path, {**QUERY, "group": "physics"}, {**QUERY, "id": "b", "group": twin}))
        with pytest.raises(DataError, match=r"query 'b': field 'group': .* differs from 'physics' \(queries, query 'a'\)"):
            QuerySet(tuple(Query(key, group, (Prompt("text", "A"),)) for key, group in (("a", "physics"), ("b", twin))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Question("a", "g", "Why?", "\ud800"), r"question 'a': field 'answer': half a character"),
        (lambda: Question("a", "g", "Why?", 3), r"question 'a': field 'answer': expected a text, found int"),
        (lambda: Question("a", "g", "Why?", "yes", "abc"), r"question 'a': field 'distractors': expected a list of texts"),
        (lambda: Question("a", "all groups", "Why?", "yes"), r"question 'a': field 'group': 'all groups' means"),
        (lambda: Prompt("\udead", "A"), r"a prompt: field 'text': half a character"),
        (
            lambda: Prompt(PROMPT["text"], "A", options=("no", "yes", "maybe\u2028", "never")),
            r"'options': .* has a line break",
        ),
        (lambda: Prompt(PROMPT["text"], "A", options=("no", "yes")), r"field 'options': expected 4 texts, found 2"),
        (lambda: Query("a", "g", (Prompt("t", "A"),), answer="\ud800"), r"query 'a': field 'answer': half a character"),
        (lambda: Query("a", " ", (Prompt("t", "A"),)), r"query 'a': field 'group' is empty"),
        (
            lambda: Query("a", "g", (Prompt(PROMPT["text"], "B", options=tuple(OPTIONS)),), answer="no"),
            r"query 'a': field 'letter': B stands for 'yes' in a prompt, but the answer is 'no'",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_values_made_in_python_get_the_same_checks(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def prompt_of(
    *options: str, letter: str = "B", form: str = "{}. {}", given: Any = None, head: str = "Why?"
) -> dict[str, Any]:
    lines = [form.format(*pair) for pair in zip("ABCD", options, strict=False)]
    return {"text": "\n".join((head, *lines, "Answer:")), "letter": letter} | ({"options": given} if given else {})


SWAPPED = {"text": "Why?\nB. no\nA. yes\nC. maybe\nD. never\nAnswer:", "letter": "B", "options": OPTIONS}


@pytest.mark.parametrize(
    ("prompts", "answer", "message"),
    [
        *(
            ([prompt_of("no", "yes", "maybe", "never", form=form, letter=letter)], "no", rf"{letter} stands for '{marked}'")
            for form in ("{}. {}", "({}) {}", "{}) {}", " {}.\t{} ", "\u200f{}) {}", "({}) {}\r")
            for letter, marked in (("B", "yes"), ("D", "never"))
        ),
        (
            [PROMPT, prompt_of("yes", "no", "maybe", "never")],
            "yes",
            "B stands for 'no' in a prompt, but the answer is 'yes'",
        ),
        ([SWAPPED], "yes", "labelled B, A, C, D; expected A, B, C, D, each on a line of its own, in this order"),
        ([{**SWAPPED, "options": None}], "no", "labelled B, A, C, D"),
        (
            [prompt_of("no", "yes", "never", "maybe", given=["no", "yes", "never", "Answer:"])],
            "yes",
            "option D is 'Answer:'",
        ),
        (
            [prompt_of("no way", "yes", "maybe", "never", given=OPTIONS)],
            "yes",
            "option A is 'no', but the text shows 'no way'",
        ),
        (
            [{**PROMPT, "options": OPTIONS}, {**PROMPT, "letter": "C", "options": OPTIONS}],
            "",
            "but B stands for 'yes' in an",
        ),
        ([PROMPT, {**PROMPT, "letter": "A"}], "", "A stands for 'no' in a prompt, but B stands for 'yes' in another"),
        ([PROMPT, {"text": "Why?", "letter": "A"}, prompt_of("yes", "no", "maybe", "never")], "", "B stands for 'no'"),
        ([prompt_of("no", "yes", letter="D")], "", "options labelled A, B; expected A, B, C, D"),
        ([prompt_of("no", "yes", "maybe", letter="D")], "", "options labelled A, B, C; expected"),
        ([prompt_of("no", "yes", form="({}) {}", head="A. Einstein asked:")], "", "options labelled A, B; expected"),
        ([prompt_of("no", "yes", form="({}) {}", head="A. a\nB. b\nC. c\nD. d")], "", "options labelled A, B; expected"),
        ([{"text": "Why?\nB. yes\nC. maybe\nD. never\nAnswer:", "letter": "A"}], "", "options labelled B, C, D; expected"),
    ],
)
def test_a_letter_stands_for_the_answer_that_the_text_shows(
    tmp_path: Path, prompts: list[dict[str, Any]], answer: str, message: str
) -> None:
    path = jsonl_file(tmp_path, {**QUERY, "answer": answer, "prompts": prompts})
    with pytest.raises(DataError, match=rf"line 1: .*{message}"):
        load_queries(path)
    if not answer and not any("options" in prompt for prompt in prompts):
        entry = {
            "sentences": [p["text"] for p in prompts],
            "obj_label": [p["letter"] for p in prompts],
            "relation_name": "g",
        }
        with pytest.raises(DataError, match=rf"query 'u': .*{message}"):
            load_queries(csv_file(tmp_path, json.dumps({"u": entry}), name="own.json"))


@pytest.mark.parametrize(
    "prompt",
    [
        prompt_of("no", "YES ", "maybe", "never", form="({}) {}"),
        prompt_of("no", "yes", "maybe", "never", head="A. Einstein asked:\nwhy?", given=OPTIONS),
        prompt_of("no", "yes", "maybe", "never", head="Which holds?\nA. p\nB. q\nB. r", given=OPTIONS),
        prompt_of("no", "yes", "maybe", "never", form="{}) {}", head="Which?\nA. p\nB. q\n(A) r"),
        {"text": "Why?\nA. no  B. yes\nC. maybe  D. never\nAnswer:", "letter": "B"},
        {"text": "A. Einstein asked why.\nno\nyes\nmaybe\nnever\n:", "letter": "B", "options": OPTIONS},
        {"text": "Why? A.D. 1\n1. no\n2. yes\nA or B, Answer:", "letter": "B"},
    ],
)
def test_labels_in_a_question_and_other_layouts_pass(tmp_path: Path, prompt: dict[str, Any]) -> None:
    assert load_queries(jsonl_file(tmp_path, {**QUERY, "answer": "yes", "prompts": [PROMPT, prompt]}))["a"].answer == "yes"


def test_a_name_of_half_a_character_is_refused(tmp_path: Path) -> None:
    for row in (ROW, QUERY):
        path = tmp_path / os.fsdecode(b"q\xff.jsonl")
        path.write_text(json.dumps(row), "utf-8")
        with pytest.raises(DataError, match=r"query set 'q\\udcff': field 'name': half a character"):
            load_queries(path)
    for broken, field in ({"name": "\udcff"}, "name"), ({"made": ("\udcff",)}, "made"):
        with pytest.raises(DataError, match=rf"query set .*: field '{field}': half a character"):
            QuerySet((), **broken)


def test_a_right_query_passes(tmp_path: Path) -> None:
    row = {**QUERY, "answer": "YES", "prompts": [{**PROMPT, "options": OPTIONS}, PROMPT]}
    assert load_queries(jsonl_file(tmp_path, row))["a"].answer == "YES"


def test_files_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("n" * 300 + ".jsonl")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("a file, not a folder")
    queries = QuerySet((Query("a", "g", (Prompt("text", "A"),)),))
    for use, message in (
        (lambda: load_queries(long), r"n\.jsonl: (cannot be read \(File name too long\)|no such file)"),
        (lambda: build_mlama(tmp_path / ("n" * 300)), r"n: (cannot be read \(File name too long\)|no such folder)"),
        (lambda: load_queries(tmp_path / "folder.csv"), r"folder\.csv: a folder or device; expected a file"),
        (lambda: load_queries(os.devnull + ".csv"), r"null\.csv: no such file"),
        (lambda: read_text(Path(os.devnull)), r"null: a folder or device; expected a file"),
        (lambda: save_queries(queries, long), r"n\.jsonl: cannot be written \(n{20}…: a name of 306 bytes"),
        (lambda: save_questions([Question("a", "g", "Why?", "y")], long), r"cannot be written \(n{20}…: a name of 306"),
        (lambda: save_queries(queries, tmp_path / "file" / "own.jsonl"), r"own\.jsonl: cannot be written \("),
        (lambda: save_queries(QuerySet(()), tmp_path / "own.jsonl"), r"there is no query to write"),
    ):
        with pytest.raises(DataError, match=message):
            use()
    path = jsonl_file(tmp_path, ROW)

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"own\.jsonl: cannot be read \(Permission denied\); give a file that this user may"):
        load_queries(path)
