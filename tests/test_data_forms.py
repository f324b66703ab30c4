"""The form of an option, distractors drawn by it, and the questions whose right option it gives away."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qrnca_lens.cli.app import app
from qrnca_lens.data import (
    DataError,
    Prompt,
    Query,
    QuerySet,
    Question,
    form_shares,
    given_away,
    load_queries,
    load_questions,
    to_multi_choice,
)
from qrnca_lens.data.forms import COLUMNS, FORMS, by_form, form
from qrnca_lens.data.readers.files import shipped_path
from qrnca_lens.data.readers.sources import save_questions

OF_FORM = {
    "number": (
        "7", "-273.15 degrees", "\u22125", "about 24 hours", "около 24 часов", "6.02 x 10^23", "30 %", "$5 million",
        "9:3:3:1", "1 024", "½", "9.8 m/s^2", "+14.4 L atm", "12 March 1945", "1914-1918",
        "24小时", "约24小时", "1945年", "٢٤ ساعة", "５"
    ),
    "formula": (
        "F = ma", "q = 0", "E=mc²", "x²", "-b/a", "a - bi", "n!", "O(log n)", "f'(g(x)) times g'(x)", "cos x + i sin x",
        "4 pi r^2", "2x", "7+2x", "CnH2n+2", "a[i] == max", "(1, 5)", r"\frac{5}{11}", "当x=1时"
    ),
    "symbol": ("K", "Au", "CH4", "H₂O", "Ca(OH)2", "NaCl", "ATP", "WHERE", "ФБР", "BBC"),
    "name": (
        "Bonn", "Isaac Newton and Gottfried Leibniz", "the Suez Canal", "La Haye", "de Gaulle", "École",
        "Organisation des Nations unies", "Южная Корея", "Би-би-си", "Yahoo!", "Apple Inc.", "Apollo 11", "\u00abBonn\u00bb"
    ),
    "term": ("thymine", "amino acids", "it loses electrons", "hinterland.", "iron(III) oxide", "un violon", "баян",
             "نينتندو", "كي جي بي", "任天堂", "欧洲核子研究组织", "テキサス・インスツルメンツ", "ประเทศไทย"),
    "phrase": ("it neither terminates nor repeats", "an amino group, -NH2", "by reflection across the line y = x",
               "an extra copy of chromosome 21", "دار سك العملة الملكية", "这个城市是由河流和山脉组成的"),
    "sentence": ("Phospholipids are water soluble.", "Это было давно уже!", "هل هذا هو الجواب؟",
                 "这个城市是由河流和山脉组成的。", "word " * 13),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in OF_FORM.items() for text in texts])
def test_the_form_of_a_text_is_told_by_what_is_seen(kind: str, text: str) -> None:
    assert form(text) == kind


def test_others_stand_in_the_order_of_their_forms_and_then_their_own() -> None:
    texts = {"number": "7", "formula": "x = 1", "symbol": "BBC", "name": "Bonn", "term": "ions", "phrase": "one of them all"}
    others = ["BBC", "one of them all", "K", "ions", "x = 1", "Bonn", "7"]
    assert {kind: form(text) for kind, text in texts.items()} == {kind: kind for kind in texts}
    assert by_form("y = 2", others) == [["x = 1"], ["BBC", "K", "7"], ["Bonn"], ["ions"], ["one of them all"]]
    assert by_form("It was never there at all.", others)[0] == ["one of them all"]
    assert tuple(OF_FORM) == FORMS


def asked(*answers: str, **more: Any) -> list[Question]:
    return [Question(f"q{i}", "g", f"question {i}?", answer, **more) for i, answer in enumerate(answers)]


WORDY = ("they are free to move", "it lies in the cell", "one of the two halves", "the rest of the day")


def drawn(questions: list[Question], key: str, **more: Any) -> set[str]:
    """The distractors of a question over many seeds, three at a time."""
    found: set[str] = set()
    for seed in range(40):
        query = to_multi_choice(questions, seed=seed, **more)[key]
        assert query.answer in query.prompts[0].options
        found |= set(query.prompts[0].options) - {query.answer}
    return found


def test_distractors_are_of_the_answers_form_where_the_group_has_three() -> None:
    formulas = ("F = ma", "E = mc^2", "V = IR", "PV = nRT", "x^2")
    questions = asked(*formulas, *WORDY)
    assert drawn(questions, "q0") == set(formulas[1:])
    assert drawn(questions, "q6") == set(WORDY) - {WORDY[1]}
    assert drawn(questions, "q0", distractors="any") == {*formulas[1:], *WORDY}
    marked = [replace(questions[0], also_right=("e = MC^2",)), *questions[1:]]
    assert drawn(marked, "q0") == set(formulas[2:])


def test_where_the_group_has_fewer_the_nearest_forms_fill_up() -> None:
    """Two other formulas are in every draw; the third is one of the number and the symbol, a place away on either side."""
    questions = asked("F = ma", "E = mc^2", "V = IR", "42", "Au", "Bonn", *WORDY)
    for seed in range(20):
        assert {"E = mc^2", "V = IR"} < set(to_multi_choice(questions, seed=seed)["q0"].prompts[0].options)
    assert drawn(questions, "q0") == {"E = mc^2", "V = IR", "42", "Au"}
    other = [replace(item, group="h") for item in asked("x = 1", "y = 2", "z = 3")]  # the group of others is of no help
    assert drawn([*questions, *(replace(item, id=f"h-{item.id}") for item in other), *named("h", WORDY)], "q0") == {
        "E = mc^2", "V = IR", "42", "Au"
    }  # fmt: skip


def named(group: str, answers: tuple[str, ...]) -> list[Question]:
    return [Question(f"{group}{i}", group, f"question {i}?", answer) for i, answer in enumerate(answers)]


def test_given_distractors_are_drawn_whatever_their_form() -> None:
    given = ("Bonn", "one of the two halves", "7", "x = 1", "y = 2", "z = 3")
    questions = asked("F = ma", distractors=given)
    assert drawn(questions, "q0") == set(given)
    alike, plain = to_multi_choice(questions, seed=3), to_multi_choice(questions, seed=3, distractors="any")
    assert alike.queries == plain.queries


def test_draws_come_back_from_seed_and_id() -> None:
    questions = asked("F = ma", "E = mc^2", "V = IR", "PV = nRT", "x^2", *WORDY)
    ways: tuple[dict[str, Any], ...] = ({}, {"held_out": True}, {"distractors": "any"})
    for more in ways:
        once, again, other = (to_multi_choice(questions, seed=seed, **more) for seed in (5, 5, 6))
        assert once == again and once.fingerprint != other.fingerprint
    backwards = to_multi_choice([questions[0], *questions[1:5]], seed=5)  # the pool of its form is the same
    assert backwards["q0"].prompts == to_multi_choice(questions, seed=5)["q0"].prompts


SHIPPED = {
    ("atlas/domains", 0, False): "ec80ffe84e53275c5e368326b71e5cb0eab7ff9e307916882336937f95b80dae",
    ("atlas/domains", 7, False): "bcd367278b69cdd187b43083f062e26f108350aea78e15f914d97e624322de0d",
    ("atlas/domains", 0, True): "ddb617a00e9dc71bc20d96b43b9a742de4fb620f601edcc928162737c7a19aeb",
    ("atlas/languages", 0, False): "0f44449cdbc368314af60bcb59bae6f80aa5f36c0507cb8ef85c1fadb93865a8",
    ("atlas/languages", 7, False): "130f80eb3b4208cc90dc7f0e5ede6810d591f92ea97f85cb46d180a5c1a8f1de",
    ("atlas/languages", 0, True): "6cbc7c58000a5af5a57d59e89ef038c3fb1e2ba06313027a574d5d13b08ede01",
}
"""The prompts that atlas's published numbers were measured on."""


@pytest.mark.parametrize(("name", "seed", "held_out"), SHIPPED)
def test_the_shipped_sets_render_as_they_did(name: str, seed: int, held_out: bool) -> None:
    queries = load_queries(name, seed=seed, held_out=held_out)
    assert queries.fingerprint == SHIPPED[name, seed, held_out]
    assert queries == load_queries(name, seed=seed, held_out=held_out, distractors="any")
    assert queries.made == (f"multi-choice seed={seed}{' held-out template' * held_out}",)


def test_a_file_draws_by_form_unless_told_otherwise() -> None:
    file = shipped_path("atlas/domains")
    alike = load_queries(file)
    assert alike.queries == load_queries("atlas/domains", distractors="same form").queries
    assert alike.queries == to_multi_choice(load_questions(file)).queries
    assert alike.made == ("multi-choice seed=0 distractors of the same form",)
    assert load_queries(file, distractors="any").fingerprint == SHIPPED["atlas/domains", 0, False]
    questions = load_questions(file)
    for item, query in zip(questions, alike, strict=True):
        marked = {item.answer, *item.also_right}
        kin = [other for other in questions if other.group == item.group and form(other.answer) == form(item.answer)]
        there = sum(other.answer not in marked for other in kin)
        options = set(query.prompts[0].options) - {item.answer}
        assert sum(form(text) == form(item.answer) for text in options) == min(3, there), item.id


@pytest.mark.usefixtures("unchecked")
def test_other_distractors_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    save_questions(asked("a", "b", "c", "d"), file)
    for wrong in ("same", "", True, 3, ["any"]):
        for use in (
            lambda value: load_queries("atlas/domains", distractors=value),
            lambda value: load_queries(file, distractors=value),
            lambda value: to_multi_choice([], distractors=value),
        ):
            with pytest.raises(ValueError, match=r"distractors must be one of 'any', 'same form', not "):
                use(wrong)
    rendered = {"id": "a", "group": "g", "prompts": [{"text": "Why?", "letter": "A"}]}
    file.write_text(json.dumps(rendered))
    with pytest.raises(DataError, match=r"own\.jsonl: holds rendered prompts; distractors .* leave distractors='any' out"):
        load_queries(file, distractors="any")


def query(key: str, group: str, *lists: str, letters: str = "A") -> Query:
    """A query with a prompt for each list of four options; letters in turn."""
    prompts = []
    for i, options in enumerate(lists):
        shown = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", options.split(","), strict=True))
        prompts.append(Prompt(f"Which?\n{shown}\nAnswer:", letters[i % len(letters)]))
    return Query(key, group, tuple(prompts))


@pytest.mark.usefixtures("unchecked")
def test_what_the_form_gives_away_by_hand() -> None:
    """f1: one formula among terms. f2: two formulas. f3: the right one is a term, alone among formulas. l1: alike in its
    first prompt, alone in its second. plain: no option is known."""
    plain = Query("plain", "languages", (Prompt("Which?", "A"),))
    queries = QuerySet((
        query("f1", "domains", "x = 1,ions,salt,acid"),
        query("f2", "domains", "x = 1,y = 2,salt,acid"),
        query("f3", "domains", "x = 1,y = 2,z = 3,acid", letters="D"),
        query("l1", "languages", "Bonn,Pisa,lute,drum", "drum,lute,Bonn,horn", letters="AC"),
        plain,
    ))  # fmt: skip
    assert given_away(queries) == ("f1", "f3", "l1")
    shares = form_shares(queries)
    assert list(shares.columns) == COLUMNS
    assert shares.to_numpy().tolist() == [
        ["domains", 3, 3, 2, pytest.approx(2 / 3)],
        ["languages", 2, 1, 1, 1.0],
        ["all groups", 5, 4, 3, 0.75],
    ]
    assert form_shares(QuerySet((plain,)))["share"].isna().all()
    wrong: Any = queries.queries
    for use in (given_away, form_shares):
        with pytest.raises(TypeError, match="expected a QuerySet, found tuple"):
            use(wrong)


def test_what_the_forms_give_away_of_atlas_s_questions() -> None:
    """The numbers of docs/atlas.md, seed 0."""
    counts = {name: form_shares(load_queries(f"atlas/{name}"))["given away"].tolist() for name in ("domains", "languages")}
    assert counts == {"domains": [20, 19, 25, 29, 16, 20, 129], "languages": [2, 1, 2, 2, 3, 1, 11]}
    assert form_shares(load_queries("atlas/domains", distractors="same form"))["given away"].iloc[-1] == 2


@pytest.mark.usefixtures("unchecked")
def test_the_command_line_draws_and_tells(tmp_path: Path) -> None:
    file, out = tmp_path / "own.jsonl", tmp_path / "made.jsonl"
    save_questions(asked("F = ma", "E = mc^2", "V = IR", "PV = nRT", *WORDY), file)
    run = CliRunner(env={"COLUMNS": "200"}).invoke
    for options, mode in (
        (["--distractors", "any"], "any"),
        ([], "same form"),
        (["--distractors", "same form"], "same form"),
    ):
        wanted: Any = mode
        build = run(app, ["queries", "build", "free-form", str(file), "--out", str(out), "--seed", "4", *options])
        assert build.exit_code == 0, build.output
        queries = load_queries(out)
        assert queries.queries == load_queries(file, seed=4, distractors=wanted).queries
        shown = run(app, ["queries", "show", str(file), "--seed", "4", *options])
        row = form_shares(queries).iloc[0]
        for output in (build.output, shown.output):
            words = output.replace("│", " ").replace("|", " ").split()
            start = words.index("g", words.index("share"))
            assert words[start : start + 5] == ["g", "8", "8", str(row["given away"]), f"{row['share']:.1%}"]
    wrong = run(app, ["queries", "show", str(file), "--distractors", "some"])
    assert wrong.exit_code == 1 and "distractors must be one of 'any', 'same form', not 'some'" in wrong.output


AUTHORS = {"ar": "بون", "en": "Bonn", "fr": "Bonn", "ja": "ボン", "ru": "Бонн", "zh": "波恩"}
"""Where the one asked for was born, in each language."""


def language_file(folder: Path, queries: int = 12, change: Callable[[dict[str, Any]], None] = lambda entry: None) -> Path:
    """A file in the form of the authors' language set: the wrong options change with every prompt."""
    file, data = folder / "language_qa.json", {}
    for code, right in AUTHORS.items():
        for number in range(queries):
            sentences, letters = [], []
            for prompt in range(3):
                place = (number + prompt) % 4
                options = [f"{code} {number} {prompt} {i}" for i in range(3)]
                options.insert(place, right)
                shown = "\n".join(f" {x}. {text}" for x, text in zip("ABCD", options, strict=True))
                sentences.append(f"Question {number}, {prompt}: born in [Y].\n{shown}\n\nResponse:")
                letters.append("ABCD"[place])
            entry = {"sentences": sentences, "obj_label": letters, "relation_name": code}
            data[f"{code}-{number}"] = entry | {"ori_label": right, "relation": "P19" if number % 2 else "P108"}
            change(data[f"{code}-{number}"])
    file.write_text(json.dumps(data), "utf-8")
    return file


def test_the_authors_language_set_tells_answer_relation_and_language(tmp_path: Path) -> None:
    queries = load_queries(language_file(tmp_path))
    assert queries.groups == tuple(AUTHORS) and len(queries) == 72
    for query in queries:
        assert (query.answer, query.language) == (AUTHORS[query.group], query.group)
        assert query.relation == ("P19" if int(query.id.split("-")[1]) % 2 else "P108")
        assert {prompt.marked for prompt in query.prompts} == {query.answer}
    assert len(queries.sample(5, seed=1)) == 30
    assert form_shares(queries)["options known"].tolist() == [12] * 6 + [72]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ori_label", "Ulm", r"query 'ar-0': field 'letter': A stands for 'بون' in a prompt, but the answer is 'Ulm'"),
        ("ori_label", 3, r"query 'ar-0': field 'answer': expected a text, found int"),
        ("relation", ["P19"], r"query 'ar-0': field 'relation': expected a text, found list"),
        ("obj_label", ["A", "B", "B"], r"query 'ar-0': field 'letter': B stands for 'ar 0 2 1' in a prompt, but the ans"),
    ],
)
def test_what_does_not_fit_in_the_authors_language_set_is_named(
    tmp_path: Path, field: str, value: Any, message: str
) -> None:
    file = language_file(tmp_path, change=lambda entry: entry.update({field: value}))
    with pytest.raises(DataError, match=message) as error:
        load_queries(file)
    assert str(error.value).startswith(str(file))


def test_the_authors_language_set_is_measured(tmp_path: Path, atlas: Any) -> None:
    from qrnca_lens.clustering import QRNCAConfig
    from qrnca_lens.runs.pipeline import locate
    from qrnca_lens.study import paper
    from qrnca_lens.study.subjects import check_subjects, subject

    item = subject(str(language_file(tmp_path)), per_group=6, seed=2)
    assert (item.name, len(item.queries), item.renderings) == ("language_qa", 36, (item.queries,))
    assert paper.data_set(item.queries.groups) == "languages"
    check_subjects(atlas, [item], QRNCAConfig(), 0)
    located = locate(atlas, item.queries.sample(1), QRNCAConfig(steps=1), progress=False)
    assert located.groups == tuple(AUTHORS) and located.failed.empty
