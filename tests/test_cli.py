from __future__ import annotations

import io
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from rich.progress import Progress
from runs import LONG
from typer.testing import CliRunner

from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.terminal import Description, _PlainFormatter, progress_bar, say, say_table
from qrnca_lens.core.values import WrongKindError
from qrnca_lens.data import Prompt, Query, QuerySet, Question, load_questions, save_queries
from qrnca_lens.data.readers.sources import save_questions
from qrnca_lens.runs import checking, forecast
from qrnca_lens.study.prediction import COLUMNS
from qrnca_lens.study.reproduction import Sample

run = CliRunner().invoke


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from qrnca_lens.cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'plotly', 'pandas', 'circuitsvis'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, qrnca_lens as ql; assert 'locate' in dir(ql) and ql.__version__ and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import qrnca_lens as ql

    assert set(ql.__all__) == {"__version__", *ql._PUBLIC}
    assert all(getattr(ql, name) is not None for name in ql.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = ql.nonsense


def test_locate_writes_a_run_folder(
    folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_queries(short_queries, tmp_path / "short.jsonl")
    arguments = ["--model", str(folder_of("llama")), "--queries", str(tmp_path / "short.jsonl"), "--device", "cpu"]
    done = run(app, ["locate", *arguments, "--out", str(tmp_path / "run"), "--steps", "2"])
    assert done.exit_code == 0, done.output
    located = QRNeurons.load(tmp_path / "run")
    assert located.config.steps == 2
    assert "QRNeurons(12 queries in 3 groups" in done.output
    refused = run(app, ["locate", *arguments, "--out", str(tmp_path / "run"), "--steps", "3"])
    assert refused.exit_code == 1
    assert "config.steps: 3 here, 2 in the folder" in refused.output
    monkeypatch.setattr(checking, "check", None)  # a finished run is opened without a prompt read or timed
    monkeypatch.setattr(forecast, "estimate", None)
    again = run(app, ["locate", *arguments, "--out", str(tmp_path / "run"), "--steps", "2"])
    assert again.exit_code == 0 and again.output.splitlines()[-2:] == done.output.splitlines()[-2:]


def test_locate_tells_what_failed(folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path) -> None:
    save_queries(QuerySet((LONG, *short_queries.queries)), tmp_path / "short.jsonl")
    arguments = ["--model", str(folder_of("llama")), "--queries", str(tmp_path / "short.jsonl"), "--device", "cpu"]
    done = run(app, ["locate", *arguments, "--out", str(tmp_path / "run"), "--steps", "2"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    told = done.output.split("Queries that failed and are left out")[1]
    assert "long" in told
    assert "context holds 128" in told
    assert "12 queries in 3 groups, 1 more failed" in told
    save_queries(QuerySet(tuple(replace(LONG, id=f"q{i}") for i in range(4))), tmp_path / "long.jsonl")
    arguments[3] = str(tmp_path / "long.jsonl")
    refused = run(app, ["locate", *arguments, "--out", str(tmp_path / "other")])
    assert refused.exit_code == 1
    assert "Error: no query can be located: 4 of 4 queries failed" in refused.output
    assert "Traceback" not in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--queries", "atlas/domains", "--model", "/no/such/folder"], "no such folder"),
        (["--queries", "atlas/domains", "--threshold", "2"], "threshold must lie in"),
        (["--queries", "atlas/domains", "--rule", "left"], "unknown rule 'left'"),
    ],
)
def test_errors_are_one_line_and_write_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(app, ["locate", "--out", str(tmp_path / "run"), *arguments])
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_attribute_explains_one_prompt(folder_of: Callable[[str], Path]) -> None:
    model = str(folder_of("gpt2"))
    done = run(app, ["attribute", "--model", model, "--prompt", "Which?\\nAnswer:", "--target", " B", "--top", "3"])
    assert done.exit_code == 0, done.output
    assert "target=' B'" in done.output


def test_the_demo_tells_its_story(tmp_path: Path, atlas: Any) -> None:
    done = run(app, ["demo", "--out", str(tmp_path / "demo")], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    page = tmp_path / "demo" / "report.html"
    assert str(page) in done.output
    located = QRNeurons.load(tmp_path / "demo")
    assert len(located.queries) == 72
    assert located.groups == ("biology", "physics", "chemistry", "mathematics", "computer science", "geography")
    text = page.read_text("utf-8")
    assert "Its QR neurons" in text
    assert "untouched" in done.output


ODD = "[b]x[/red] \x1b[31m\x07 \u202e :bug:"
SHOWN = r"[b]x[/red] \x1b[31m\x07 \u202e :bug:"
NAME, NAME_SHOWN = ODD.replace("/", ""), SHOWN.replace("/", "")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, folder_of: Callable[[str], Path]) -> Path:
    """A folder of an odd name with a model, questions and queries of odd names, groups and ids."""
    folder = tmp_path_factory.mktemp("odd") / ODD
    folder.mkdir(parents=True)
    shutil.copytree(folder_of("llama"), folder / f"model {NAME}")
    prompts = [(Prompt(f"{ODD} {i}\nAnswer:", "ABCD"[i % 4]), Prompt(f"{i}\nAnswer:", "ABCD"[i % 3])) for i in range(12)]
    queries = QuerySet(tuple(Query(f"q{i} {ODD}", f"g{i % 3} {ODD}", prompts[i], f"{ODD} {i}") for i in range(12)))
    save_queries(queries, folder / f"{NAME}.jsonl")
    questions = [Question(f"q {ODD}", f"g {ODD}", f"What is {ODD}?", f"it {ODD}", ("a", "b", "c"))]
    save_questions(questions, folder / "questions.jsonl")
    return folder


def check_plain(done: Any, *shown: str) -> None:
    """The command ended well and said `shown`, with nothing that a terminal would obey."""
    assert done.exit_code == 0, done.output
    assert not {"\x1b", "\x07", "\u202e", "🐛"} & set(done.output)
    for text in shown:
        assert text in done.output


def test_every_command_shows_text_as_text(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"COLUMNS": "400"}
    place, model = str(odd).replace(ODD, SHOWN), ["--model", str(odd / f"model {NAME}")]
    queries = ["--queries", str(odd / f"{NAME}.jsonl")]
    done = run(app, ["locate", *model, *queries, "--steps", "2", "--out", str(odd / "run")], env=wide)
    check_plain(done, f"g0 {SHOWN}", f"Run folder: {place}/run")
    done = run(
        app, ["explore", str(odd / "run"), *model, "--top", "1", "--per-group", "1", "--out", str(odd / "p.html")], env=wide
    )
    check_plain(done, f"{place}/p.html  (")
    done = run(app, ["attribute", *model, "--prompt", f"{ODD}:", "--target", "[b]"], env=wide)
    assert done.exit_code == 1 and "Error: the target '[b]' is not one token" in done.output
    done = run(app, ["attribute", *model, "--prompt", f"{ODD}:", "--target", "[", "--steps", "1"], env=wide)
    check_plain(done, "Neurons for '['", "target='['")
    done = run(
        app, ["queries", "build", "free-form", str(odd / "questions.jsonl"), "--out", str(odd / "made.jsonl")], env=wide
    )
    check_plain(done, f"g {SHOWN}", f"prompts to {place}/made.jsonl")
    done = run(app, ["queries", "show", str(odd / "made.jsonl")], env=wide)
    check_plain(done, f"q {SHOWN}, group g {SHOWN}", f"What is {SHOWN}?")
    monkeypatch.setattr(
        "qrnca_lens.study.card.measure_card", lambda *_, **__: SimpleNamespace(to_markdown=lambda: f"# {ODD}\n")
    )
    done = run(app, ["card", str(odd / f"model {NAME}"), "--out", str(odd / "new" / "card.md")], env=wide)
    check_plain(done, f"# {SHOWN}\n")
    assert (odd / "new" / "card.md").read_text("utf-8") == f"# {ODD}\n"
    for build in ("mmlu", "mlama"):
        monkeypatch.setattr(
            f"qrnca_lens.data.readers.{build}.build_{build}", lambda *_, **__: load_questions(odd / "questions.jsonl")
        )
        done = run(app, ["queries", "build", build, "--from", "x", "--out", str(odd / f"{build}.jsonl")], env=wide)
        check_plain(done, f"g {SHOWN}", f"Wrote 1 questions to {place}/{build}.jsonl")


def test_reproduce_shows_text_as_text(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Sample(extended=1, collateral=1, permutations=9)
    monkeypatch.setattr("qrnca_lens.study.reproduction.Sample", lambda: small)
    monkeypatch.setattr("qrnca_lens.study.reproduction._prediction", lambda *_: pd.DataFrame(columns=COLUMNS))
    arguments = ["--model", str(odd / f"model {NAME}"), "--queries", str(odd / f"{NAME}.jsonl"), "--out", str(odd / "study")]
    done = run(app, ["reproduce", *arguments], env={"COLUMNS": "400"})
    check_plain(done, NAME_SHOWN, f"Page: {str(odd).replace(ODD, SHOWN)}/study/report.html")


@pytest.mark.parametrize(
    "arguments",
    [
        ["locate", "--queries", ODD, "--out", ODD],
        ["queries", "show", ODD],
        ["queries", "show", "atlas/domains", "--id", ODD],
        ["queries", "build", "free-form", ODD, "--out", ODD],
        ["queries", "build", "mmlu", "--from", ODD, "--out", ODD],
        ["queries", "build", "mlama", "--from", ODD, "--out", ODD],
        ["explore", ODD],
        ["reproduce", "--queries", ODD, "--out", ODD],
        ["card", "atlas", "--out", f"/proc/{ODD}"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(ODD, "odd"),
)
def test_errors_show_text_as_text(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(app, arguments, env={"COLUMNS": "400"})
    assert done.exit_code in (1, 2) and "Traceback" not in done.output
    assert not {"\x1b", "\x07", "\u202e", "🐛"} & set(done.output)
    assert "[b]x[/red]" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["locate", f"--{ODD}"], [ODD], ["card", "atlas", ODD]])
def test_usage_errors_obey_no_escape(arguments: list[str]) -> None:
    done = run(app, arguments)
    assert done.exit_code == 2 and not {"\x1b", "\x07"} & set(done.output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card", "--out", "x" * 256], "a name of 256 bytes"),
        (["card", "--out", "."], "is a folder; give the name of a file"),
        (["queries", "build", "mmlu", "--from", "hub", "--out", "/proc/x"], "/proc/x cannot be written"),
        (["locate", "--queries", "atlas/domains", "--out", "/dev/null/x"], "/dev/null is a file, not a folder"),
        (["reproduce", "--out", "/proc/x"], "/proc/x cannot be written"),
        (["attribute", "--prompt", "a", "--target", "b", "--top", "0"], "'--top'"),
        (["locate", "--queries", "atlas/domains", "--out", "run", "--seed", "-1"], "'--seed'"),
        (
            ["locate", "--queries", "atlas/domains", "--out", "run", "--threshold", "nan"],
            "threshold must be a finite number",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qrnca_lens.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    done = run(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code in (1, 2) and message in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EOFError(), "Error: a file or an input ends too early; make or download it again\n"),
        (EOFError("Ran out of input"), "Error: a file or an input ends too early (Ran out of input); make"),
        (MemoryError(), "Error: not enough memory; take fewer"),
        (MemoryError("Unable to allocate 9 PiB"), "Error: not enough memory (Unable to allocate 9 PiB); take fewer"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore"), "Error: not enough memory (CUDA out of memory.); take"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), "Error: not enough memory (DefaultCPU"),
        (WrongKindError("top must be a whole number, not 'x'"), "Error: top must be a whole number, not 'x'\n"),
    ],
)
def test_errors_of_the_machine_and_of_a_users_values_are_one_line(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("qrnca_lens.models.load_model", fail)
    done = run(app, ["attribute", "--prompt", "a", "--target", "b"])
    assert done.exit_code == 1 and words in done.output and done.output.count("\n") == 1


@pytest.mark.parametrize("error", [TypeError("'NoneType' object is not iterable"), RuntimeError("x"), RecursionError()])
def test_faults_of_the_program_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("qrnca_lens.models.load_model", fail)
    assert run(app, ["attribute", "--prompt", "a", "--target", "b"]).exception is error


def test_the_log_goes_to_the_stderr_of_the_moment() -> None:
    code = (
        "import io, sys, warnings, qrnca_lens.core.terminal as t\n"
        "real, sys.stderr = sys.stderr, io.StringIO()\n"
        "t.plain_log(); sys.stderr.close(); sys.stderr = real\n"
        "t.plain_log(); warnings.warn('second')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "WARNING: UserWarning: second"  # neither the place nor the line of code


def test_a_progress_bar_and_the_log_show_text_as_text() -> None:
    bar = Progress()
    bar.add_task(ODD)
    assert Description()(bar.tasks[0]).plain == SHOWN
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (ODD,), None)
    assert _PlainFormatter("%(levelname)s: %(message)s").format(record) == f"WARNING: {SHOWN}"
    with progress_bar(True) as shown:
        assert type(shown.columns[0]) is Description


def test_a_narrow_or_ascii_terminal_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    say_table("title", [("name", False), ("n", True)], [("x" * 90, 1)])
    say("y" * 90)
    told = capsys.readouterr().out
    assert told.count("x") == 90 and "y" * 90 in told
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("Zürich 日本")
    stream.flush()
    assert stream.buffer.getvalue() == b"Z\\xfcrich \\u65e5\\u672c\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("package", "code", "message"),
    [
        ("anywidget", "ql.show, ql.neuron, ql.circuit, ql.write_explorer; ql.Explorer", "the package 'anywidget'"),
        ("sklearn", "ql.QRNeurons", "the package 'scikit-learn' is not installed; pip install scikit-learn"),
        ("plotly", "ql.plots", "the package 'plotly' is not installed; pip install plotly"),
        ("circuitsvis", "ql.show; from qrnca_lens.views.components import library; library()", "pip install circuitsvis"),
    ],
)
def test_a_missing_package_is_told_with_the_way_to_install_it(package: str, code: str, message: str) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; import qrnca_lens as ql; {code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ModuleNotFoundError: {message}" in done.stderr or (package == "circuitsvis" and message in done.stderr)


def test_a_command_without_its_package_ends_in_one_line() -> None:
    script = "import sys; sys.modules['plotly'] = None; from qrnca_lens.cli.app import app; app(['demo'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Error: the package 'plotly' is not installed; pip install plotly\n")
