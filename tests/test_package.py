"""What holds for all modules of the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qrnca_lens

ROOT = Path(qrnca_lens.__file__).parent
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
PROJECT = ROOT.parent / "pyproject.toml"


@pytest.mark.skipif(not PROJECT.is_file(), reason="an installed package has no pyproject.toml")
def test_whatever_is_imported_is_declared() -> None:
    listed = PROJECT.read_text("utf-8").split("\ndependencies = [")[1].split("\n]")[0]
    declared = set(re.findall(r'^ +"([\w-]+)', listed, re.MULTILINE))
    imported = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.partition(".")[0] for name in names}
    others = imported - set(sys.stdlib_module_names) - {"qrnca_lens"}
    assert {"scikit-learn" if name == "sklearn" else name for name in others} <= declared


def test_no_function_hides_its_module() -> None:
    """`from room.name import name` would put the function in the place of the module."""
    named = {
        path: [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)] for path, tree in TREES.items()
    }
    assert [path.name for path, names in named.items() if path.stem in names] == []


def test_functions_take_the_model_first() -> None:
    """Then what they work on. The commands of `cli` take what a terminal gives."""
    for path, tree in TREES.items():
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef) and path.parent.name != "cli"):
            given = [ast.unparse(one.annotation) if one.annotation else "" for one in function.args.args]
            taking = [place for place, kind in enumerate(given) if kind.startswith("HookedModel")]
            assert taking in ([], [0]) or function.name.startswith("_"), f"{path.name}: {function.name}"


def test_the_rooms_are_the_same_in_the_docs_the_contract_and_the_tree() -> None:
    document = (PROJECT.parent / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|(.*)", document.split("## The rooms")[1].split("##")[0], re.MULTILINE)
    told = [room for room, _ in rows]
    contract = PROJECT.read_text("utf-8").split("layers = [")[1].split("]")[0]
    assert told == [room for room in reversed(re.findall(r'"(\w+)"', contract)) if room != "_version"]
    tree = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("__pycache__", "_datasets")}
    assert set(told) == tree
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == {"__init__.py", "_version.py"}
    for named in set(re.findall(r"`((?:\w+/)+\w+\.py)`", document)):
        assert (ROOT / named).is_file() or (ROOT.parent / named).is_file(), named
    for room, row in rows:
        missing = [name for name in re.findall(r"`(\w+\.py)`", row) if not (ROOT / room / name).is_file()]
        missing += [name for name in re.findall(r"`(\w+)/`", row) if not (ROOT / room / name).is_dir()]
        assert missing == [], room


@pytest.mark.skipif(not PROJECT.is_file(), reason="an installed package has no docs")
def test_modules_that_texts_name_are_there() -> None:
    """`room.module` or `room.name`, in docstrings and documents."""
    rooms = {path.name: path for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    for path in (*TREES, *(PROJECT.parent / "docs").glob("*.md"), PROJECT.parent / "README.md"):
        for room, name in re.findall(rf"`(?:qrnca_lens\.)?({'|'.join(rooms)})\.(?!json)(\w+)", path.read_text("utf-8")):
            there = (rooms[room] / f"{name}.py").is_file() or (rooms[room] / name).is_dir()
            assert there or name in (rooms[room] / "__init__.py").read_text("utf-8"), f"{path.name}: {room}.{name}"


@pytest.mark.skipif(not PROJECT.is_file(), reason="an installed package has no notebooks")
def test_notebooks_leave_the_engine_alone() -> None:
    for path in (PROJECT.parent / "notebooks").glob("*.ipynb"):
        assert "qrnca_lens.engine" not in path.read_text("utf-8"), path.name


def test_clustering_needs_no_transformer_lens() -> None:
    code = "import sys, qrnca_lens.clustering; sys.exit('transformer_lens' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
