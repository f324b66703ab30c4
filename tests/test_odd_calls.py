"""No odd call of a public name ends in a raw error or is taken: `odd_calls` has the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from odd_calls import CALLS, FOR_METHODS, MADE_HERE, World, fault, odd_calls, parameters, run_valid, things

from qrnca_lens.clustering import QRNeurons

pytestmark = pytest.mark.usefixtures("unchecked")
NOT_RUN = {"RayExecutor", "reproduce", "transfer", "write_explorer", "predict_from_neurons", "load_model", "subject"}
"""Their valid calls take long, and stand in tests of their own."""
REFUSED = {"QRNeurons.load", "QuerySet.as_chat", "status_of", "study.Subject.as_chat"}
"""The tests' folder holds no run, and their tokenizer has no chat template."""


@pytest.fixture(scope="module")
def world(
    model_of: Callable[[str], Any], located_of: Callable[[str], QRNeurons], tmp_path_factory: pytest.TempPathFactory
) -> World:
    folder = tmp_path_factory.mktemp("world")
    (folder / "file").write_text("x", encoding="utf-8")
    return World(model_of("llama"), located_of("llama"), folder)


@pytest.fixture(autouse=True)
def _away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are in an empty folder, and nobody is asked for a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_every_public_name_stands_in_the_table() -> None:
    names = set(things())
    assert not names - set(CALLS) - MADE_HERE - FOR_METHODS, "give these an entry in tests/odd_calls.py"
    assert not set(CALLS) - names - {"RayExecutor"}, "these are no public names any more"


@pytest.mark.parametrize("name", [name for name in CALLS if name in things()])
def test_every_odd_call_is_refused_by_the_package(name: str, world: World) -> None:
    unknown = set(CALLS[name].kinds) - set(parameters(things()[name]))
    assert not unknown, "no such parameters"
    told = [f"{odd.name}: {wrong}" for odd in odd_calls(name, world) if (wrong := fault(odd))]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("name", [name for name in CALLS if name in things() and name not in NOT_RUN])
def test_the_valid_call_is_not_refused(name: str, world: World) -> None:
    """Else an odd call could be refused for another reason than what is odd in it."""
    if name in REFUSED:
        pytest.skip("there is nothing to read, or no template")
    run_valid(name, world)
