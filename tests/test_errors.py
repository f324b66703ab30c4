"""docs/errors.md names every error and warning of the package, and its messages are those of the calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import qrnca_lens as ql
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.data import QuerySet

PACKAGE = Path(ql.__file__).parent
PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \(`([\w.]+)`\) \| `(\w+)` \|", re.MULTILINE)
SAID = re.compile(r"^(ql\.|located\.|queries\.)(.+)\n(\w+): (.+)$", re.MULTILINE)
pytestmark = pytest.mark.usefixtures("unchecked")


def defined() -> set[str]:
    """The classes of the package that are called an error or a warning and are not private."""
    classes = (node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.name for node in classes if isinstance(node, ast.ClassDef)}
    return {name for name in names if name.endswith(("Error", "Warning")) and not name.startswith("_")}


def test_the_page_has_every_error_and_warning_and_no_other() -> None:
    named = [name for name, *_ in ROW.findall(PAGE)]
    assert len(named) == len(set(named)) and set(named) == defined()


@pytest.mark.parametrize(("name", "module", "base"), ROW.findall(PAGE))
def test_each_is_what_and_where_the_page_says(name: str, module: str, base: str) -> None:
    if module.endswith("ray_executor"):
        pytest.importorskip("ray")
    kind = getattr(import_module(module), name)
    assert kind.__base__.__name__ == base and kind.__doc__


@pytest.mark.parametrize("said", SAID.findall(PAGE), ids=lambda said: said[1][:30])
def test_the_messages_are_those_of_the_calls(
    said: tuple[str, str, str, str],
    model_of: Callable[[str], Any],
    located_of: Callable[[str], QRNeurons],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    located: QRNeurons = located_of("llama")
    queries: QuerySet = located.asked
    model = model_of("llama")
    known = {"ql": ql, "model": model, "located": located, "queries": queries}
    known["evidence"] = ql.Evidence(model, queries, located)
    start, rest, kind, message = said
    with pytest.raises(Exception) as caught:
        made = eval(start + rest, known)  # the call as the page shows it
        made.__enter__()
    assert caught.type.__name__ == kind
    told = caught.value.args[0] if isinstance(caught.value, KeyError) else str(caught.value)
    assert told == message


def test_every_message_of_the_page_is_found_here() -> None:
    assert len(SAID.findall(PAGE)) == PAGE.count("Error: ")
