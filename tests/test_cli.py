from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import LONG
from typer.testing import CliRunner

from qrnca_lens.cli import app
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import QuerySet, save_queries

run = CliRunner().invoke


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from qrnca_lens.cli import app\n"
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


def test_locate_writes_a_run_folder(folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path) -> None:
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
