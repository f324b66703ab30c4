from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from browsing import Watched, chromium
from handmade import planted_model
from real_model import REAL_MODEL
from tiny import save_tiny

from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.models import load_model
from qrnca_lens.models.hooked import HookedTransformer
from qrnca_lens.runs.pipeline import locate

torch.set_num_threads(1)  # the models are tiny; more threads only wait for one another


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under TransformerLens 4 everything runs but what its bridges have no part in (docs/models.md)."""
    if HookedTransformer is None:
        for item in items:
            if item.get_closest_marker("transformer_lens_3"):
                item.add_marker(pytest.mark.skip(reason="about HookedTransformers, or bridges of TransformerLens 3"))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random checkpoint, written once a session."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny(family, root / family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def model_of(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """A tiny model, loaded once a session."""
    loaded: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in loaded:
            loaded[family] = load_model(folder_of(family), device="cpu")
        return loaded[family]

    return get


@pytest.fixture(scope="session")
def atlas() -> Any:
    return load_model("atlas", device="cpu")


@pytest.fixture(scope="session")
def real() -> Any:
    """SmolLM2-135M-Instruct, for tests with the marker `real`."""
    if not REAL_MODEL.is_file():
        pytest.fail(f"{REAL_MODEL} is not there: run make real-model", pytrace=False)
    return load_model(REAL_MODEL, device="cpu")


@pytest.fixture(scope="session")
def planted(folder_of: Callable[[str], Path]) -> Any:
    """`handmade.planted_model`: every mark has its letter, and its neuron; without that the answer is D."""
    return planted_model(folder_of("llama"))


@pytest.fixture(scope="session")
def short_queries() -> QuerySet:
    """Twelve queries in three groups whose prompts fit the tiny models."""
    return QuerySet(
        tuple(
            Query(
                f"q{i}",
                f"g{i % 3}",
                tuple(Prompt(f"Which letter is right? {7 * i + j}\nAnswer:", "ABCD"[(i + j) % 4]) for j in range(3)),
            )
            for i in range(12)
        ),
        "short",
    )


@pytest.fixture(scope="session")
def located_of(model_of: Callable[[str], Any], short_queries: QuerySet) -> Callable[[str], QRNeurons]:
    """A run of a family's tiny model over the short queries, made once a session."""
    made: dict[str, QRNeurons] = {}

    def get(family: str) -> QRNeurons:
        if family not in made:
            made[family] = locate(model_of(family), short_queries, QRNCAConfig(steps=2), progress=False)
        return made[family]

    return get


@pytest.fixture
def run(model_of: Callable[[str], Any], located_of: Callable[[str], QRNeurons]) -> tuple[Any, QRNeurons]:
    """The tiny Llama and its run over the short queries."""
    return model_of("llama"), located_of("llama")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked, as in a session of a user's, so that the package's own errors are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(params=(1280, 390))
def watched(browser: Any, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """An empty page, wide and narrow."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    context.set_default_timeout(20_000)
    yield Watched(context.new_page())
    context.close()
