"""What every command hands on to the public functions: the defaults (the paper's among them) and each option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from handmade import by_hand, planted_queries
from tiny import tiny_tokenizer
from typer.testing import CliRunner

from qrnca_lens import attribution, data, models, study
from qrnca_lens.atlas.recipe import Recipe
from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.data import save_queries
from qrnca_lens.data.readers import mlama, mmlu
from qrnca_lens.data.readers.sources import save_questions
from qrnca_lens.runs import checking, forecast, pipeline
from qrnca_lens.runs.answering import Check, Reading
from qrnca_lens.study import card, demo, report, tables, verdicts
from qrnca_lens.study import forecast as study_forecast
from qrnca_lens.views.explorer import page

QUERIES = planted_queries("AABBCCDD", "xy")
CHECKED = Check.of("tiny", [Reading(query, ((0.4, 0.3, 0.2, 0.1),)) for query in QUERIES])
SHOWN = pd.DataFrame({"a": [1]})
Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def calls() -> Calls:
    return []


@pytest.fixture
def standing(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a function that only notes what it is given, and returns `gives`, in the place of another."""

    def stand(module: Any, name: str, gives: Any) -> None:
        def note(*arguments: Any, **named: Any) -> Any:
            calls.append((name, arguments, named))
            return gives

        monkeypatch.setattr(module, name, note)

    stand(models, "load_model", "the model")
    monkeypatch.setattr(forecast, "estimate", lambda *given: f"estimate of {given[0]} for {len(given[1])} queries")
    monkeypatch.setattr(study_forecast, "estimate_tables", lambda model, item: f"what {model} takes for {item.name}")
    monkeypatch.setattr(checking, "check", lambda model, queries: CHECKED)
    return stand


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


LOCATED = {
    "steps": ("--steps", "5"),
    "rule": ("--rule", "gauss-legendre"),
    "site": ("--site", "post"),
    "threshold": ("--threshold", "0.25"),
    "top": ("--top", "7"),
    "common_share": ("--common-share", "0.5"),
}
VALUES = {"steps": 5, "rule": "gauss-legendre", "site": "post", "threshold": 0.25, "top": 7, "common_share": 0.5}


def test_locate(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    """Without options the paper's m = 16, t = 0.2, v = 20, u = 30 % and its rule; then each option alone."""
    standing(data, "load_queries", QUERIES)
    standing(pipeline, "locate", by_hand())
    base, paper = (
        ("locate", "--queries", "mine", "--out", str(tmp_path / "run")),
        QRNCAConfig(16, "right", None, 0.2, 20, 0.3),
    )
    assert "QRNeurons(6 queries" in run(*base)
    queried, loaded, located = calls
    assert queried == ("load_queries", ("mine",), {"seed": 0, "distractors": None})
    assert loaded == ("load_model", ("atlas",), {"device": None})
    here = {"engine": "local", "fail_fast": False}
    assert located == ("locate", ("the model", QUERIES, paper), {"out": tmp_path / "run", **here})
    for name, option in LOCATED.items():
        run(*base, *option)
        config = calls[-1][1][2]
        assert {key: getattr(config, key) for key in VALUES} == {
            key: VALUES[key] if key == name else getattr(paper, key) for key in VALUES
        }
    others = ("--seed", "3", "--per-group", "2", "--model", "another", "--device", "cpu", "--distractors", "any")
    run(*base, *others)
    queried, loaded, located = calls[-3:]
    assert queried == ("load_queries", ("mine",), {"seed": 3, "distractors": "any"})
    assert loaded == ("load_model", ("another",), {"device": "cpu"})
    assert located[1][1].queries == QUERIES.sample(2, 3).queries != QUERIES.sample(2, 0).queries


def test_chats_and_solved_questions(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    """Examples come from the whole set and before the sample, the chat after both."""
    model = SimpleNamespace(tokenizer=tiny_tokenizer(bos=False))
    model.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    queries = data.to_multi_choice(
        [data.Question(f"q{i}", "xy"[i % 2], f"What is {i}?", f"answer {i}", ("a", "b", "c")) for i in range(8)]
    )
    standing(data, "load_queries", queries)
    standing(models, "load_model", model)
    standing(pipeline, "locate", by_hand())
    given = ("--shots", "2", "--seed", "5", "--per-group", "2")
    solved = queries.with_examples(2, 5).sample(2, 5)
    run("locate", "--queries", "mine", "--out", str(tmp_path / "run"), *given)
    assert calls[-1][1][1] == solved
    run("locate", "--queries", "mine", "--out", str(tmp_path / "run"), *given, "--chat")
    assert calls[-1][1][1] == solved.as_chat(model)
    first = queries.with_examples(1).as_chat(model).queries[0]
    told = run("queries", "show", "mine", "--shots", "1", "--chat", "--model", "another")
    assert calls[-1] == ("load_model", ("another",), {})
    assert first.prompts[0].text.startswith("[user] Question") and all(f"{p.text} {p.letter}" in told for p in first.prompts)


def test_attribute(standing: Callable[..., None], calls: Calls) -> None:
    tops: list[int] = []
    standing(attribution, "attribute", SimpleNamespace(top=lambda k: tops.append(k) or SHOWN))
    run("attribute", "--prompt", "Which?\\nAnswer:", "--target", " B")
    assert calls[1] == ("attribute", ("the model", "Which?\nAnswer:", " B"), {"steps": 16, "rule": "right"})
    run("attribute", "--prompt", "a", "--target", "b", "--steps", "3", "--rule", "endpoints", "--top", "4", "--model", "m")
    assert calls[2:] == [
        ("load_model", ("m",), {"device": None}),
        ("attribute", ("the model", "a", "b"), {"steps": 3, "rule": "endpoints"}),
    ]
    assert tops == [20, 4]


def test_card(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    """The shipped model has recall layers of its own; for another all layers count."""
    standing(card, "measure_card", SimpleNamespace(to_markdown=lambda: "# Measured"))
    told = run("card")
    assert "# Measured" in told and "Locating atlas/domains: estimate of the model for 150 queries\n" in told
    assert calls[0] == ("load_model", ("atlas",), {"device": None})
    assert calls[1] == ("measure_card", ("the model",), {"recall_layers": Recipe().recall_layers, "per_group": None})
    run("card", "another", "--per-group", "3", "--out", str(tmp_path / "card.md"), "--device", "cpu")
    assert calls[2] == ("load_model", ("another",), {"device": "cpu"})
    assert calls[3] == ("measure_card", ("the model",), {"recall_layers": None, "per_group": 3})
    assert (tmp_path / "card.md").read_text() == "# Measured"


def test_explore(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    located, written = by_hand(), tmp_path / "page.html"
    written.write_text("x" * 2**20)
    located.save(tmp_path / "run")
    standing(page, "write_explorer", written)
    assert "(1.0 MiB)" in run("explore", str(tmp_path / "run"))
    ((_, arguments, named),) = calls
    assert arguments[1].clusters.equals(located.clusters)
    assert (arguments[0], arguments[2:], named) == (None, (Path("explorer.html"),), {"top": 3, "per_group": 6})
    run("explore", str(tmp_path / "run"), "--top", "4", "--per-group", "5", "--model", "m", "--out", "other.html")
    assert calls[1] == ("load_model", ("m",), {"device": None})
    assert calls[2][1][::2] == ("the model", Path("other.html")) and calls[2][2] == {"top": 4, "per_group": 5}


def test_reproduce(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    item = SimpleNamespace(name="mine", queries=QUERIES)
    standing(study, "subject", item)
    standing(study, "reproduce", SimpleNamespace(results={}, model="tiny"))
    standing(report, "write_report", tmp_path / "report.html")
    standing(verdicts, "statements", pd.DataFrame({"statement": ["it holds"]}))
    standing(tables, "failed", pd.DataFrame({"query": ["q7"]}))
    out = tmp_path / "study"
    told = run("reproduce", "--out", str(out))
    assert "Tables of mine: what the model takes for mine\nTables of mine" in told
    assert "Locating mine: estimate of the model for 8 queries\n" in told
    assert "it holds" in told and "q7" in told and "Numbers:" in told
    assert calls[:4] == [
        ("subject", ("domains",), {"seed": 0, "per_group": None, "distractors": None, "shots": 0, "read": "letter"}),
        ("subject", ("languages",), {"seed": 0, "per_group": None, "distractors": None, "shots": 0, "read": "letter"}),
        ("load_model", ("atlas",), {"device": None}),
        ("reproduce", ("the model", [item] * 2, out), {"config": QRNCAConfig(), "seed": 0, "engine": "local"}),
    ]
    calls.clear()
    others = ("--seed", "4", "--per-group", "5", "--model", "m", "--distractors", "same form", "--shots", "2")
    run("reproduce", "--out", str(out), "--queries", "languages, b.csv", *others)
    assert calls[:4] == [
        ("subject", ("languages",), {"seed": 4, "per_group": 5, "distractors": "same form", "shots": 2, "read": "letter"}),
        ("subject", ("b.csv",), {"seed": 4, "per_group": 5, "distractors": "same form", "shots": 2, "read": "letter"}),
        ("load_model", ("m",), {"device": None}),
        ("reproduce", ("the model", [item] * 2, out), {"config": QRNCAConfig(), "seed": 4, "engine": "local"}),
    ]


def test_demo(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    frames = {name: pd.DataFrame({name: [f"the {name}"]}) for name in ("neurons", "edits", "effect", "counts")}
    standing(demo, "run_demo", SimpleNamespace(query=QUERIES["q2"], located="the run", page=tmp_path / "p.html", **frames))
    told = run("demo")
    assert calls == [("load_model", ("atlas",), {}), ("run_demo", (Path("runs/demo"),), {"model": "the model"})]
    assert told.startswith("Locating atlas/domains: estimate of the model for 72 queries\n")
    assert "One question, of median effect (q2, x)" in told and f"{QUERIES['q2'].prompts[0].text} B" in told
    order = [told.index(f"the {name}") for name in frames]
    assert order == sorted(order) and f"Page: {tmp_path / 'p.html'}" in told
    run("demo", "--out", "elsewhere")
    assert calls[-1] == ("run_demo", (Path("elsewhere"),), {"model": "the model"})


def test_queries(standing: Callable[..., None], calls: Calls, tmp_path: Path) -> None:
    questions = tuple(data.Question(f"q{i}", "xy"[i % 2], f"What is {i}?", f"answer {i}", ("a", "b", "c")) for i in range(3))
    for module in (mmlu, mlama):
        name = f"build_{module.__name__.rpartition('.')[2]}"
        standing(module, name, questions)
        command, out = name.removeprefix("build_"), tmp_path / f"{name}.jsonl"
        assert "Wrote 3 questions" in run("queries", "build", command, "--from", "there", "--out", str(out))
        run("queries", "build", command, "--from", "hub", "--out", str(out), "--seed", "9")
        assert calls[-2:] == [(name, ("there",), {"seed": 0}), (name, ("hub",), {"seed": 9})]
    save_questions(questions, tmp_path / "questions.jsonl")
    for seed in ((), ("--seed", "6")):
        command = ("queries", "build", "free-form", str(tmp_path / "questions.jsonl"), "--out", str(tmp_path / "made.jsonl"))
        assert "Wrote 3 queries with 9 prompts" in run(*command, *seed)
        wanted = data.to_multi_choice(questions, seed=6 if seed else 0, name="questions")
        assert data.load_queries(tmp_path / "made.jsonl").queries == wanted.queries
    save_queries(QUERIES, tmp_path / "some.jsonl")
    told = run("queries", "show", str(tmp_path / "some.jsonl"))
    assert f"{QUERIES['q0'].prompts[0].text}A" in told and "q0, group x" in told and "8 questions by group" in told
    assert "q3, group y" in run("queries", "show", str(tmp_path / "some.jsonl"), "--id", "q3")
    standing(data, "load_queries", QUERIES)
    run("queries", "show", "mine", "--seed", "2")
    assert calls[-1] == ("load_queries", ("mine",), {"seed": 2, "distractors": None})
