"""Input that cannot be worked with has its own error, and no integral and no edit is computed before it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qrnca_lens as ql
from qrnca_lens.attribution import answers, integrated
from qrnca_lens.data import DataError, QuerySet
from qrnca_lens.models import ModelError
from qrnca_lens.runs import work


@pytest.fixture(autouse=True)
def _nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*args: object, **kwargs: object) -> None:
        pytest.fail("something is computed first")

    monkeypatch.setattr(integrated, "integrate", computed)
    monkeypatch.setattr(answers, "integrate", computed)
    monkeypatch.setattr(work, "attribute", computed)


@pytest.fixture(scope="module")
def asked() -> QuerySet:
    """Questions with options, two groups of four."""
    found = ql.load_queries("atlas/domains")
    return found.for_group(*found.groups[:2]).sample(4)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("", "the answer to 'Answer:' is empty; give a text"),
        (" \n", "the answer to 'Answer:' is empty; give a text"),
        ("word " * 200, r"tokens, the model's context holds 128"),
    ],
)
def test_an_answer_that_is_empty_or_too_long(answer: str, told: str, model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    with pytest.raises(ModelError, match=told):
        ql.attribute(model, "Answer:", answer=answer)
    with pytest.raises(ModelError, match=told):
        ql.attribute(model, ["Answer:", "Answer:"], answer=[" a", answer])
    with pytest.raises(ModelError, match=told):
        ql.attribute(model, "Answer:", answer=" a", against=answer)


def test_a_tokenizer_without_a_chat_template(asked: QuerySet, model_of: Callable[[str], Any]) -> None:
    with pytest.raises(DataError, match="has no chat template, so prompts cannot become chats; use the plain prompts"):
        asked.as_chat(model_of("llama"))


@pytest.mark.parametrize("k", [4, 5, 2**31 - 1])
def test_more_examples_than_the_group_has(k: int, asked: QuerySet) -> None:
    told = f"{k} examples are asked for, but group .* has only 3 other questions of as many prompts; ask for at most 3"
    with pytest.raises(DataError, match=told):
        asked.with_examples(k)


def test_queries_without_question_or_options(
    short_queries: QuerySet, model_of: Callable[[str], Any], tmp_path: Path
) -> None:
    model = model_of("llama")
    for call in (
        lambda: ql.locate(model, short_queries, read="answer", out=tmp_path / "run", progress=False),
        lambda: ql.estimate(model, short_queries, ql.QRNCAConfig(read="answer")),
        lambda: ql.transfer(model, short_queries, tmp_path / "both", progress=False),
        short_queries.as_open,
    ):
        with pytest.raises(
            DataError, match="query 'q0': field 'question' is empty; open prompts are made of a question and"
        ):
            call()
    assert not list(tmp_path.iterdir())


def test_a_model_of_letters_alone_asked_for_answers(asked: QuerySet, atlas: Any, tmp_path: Path) -> None:
    for call in (
        lambda: ql.locate(atlas, asked, read="answer", out=tmp_path / "run", progress=False),
        lambda: ql.estimate(atlas, asked, ql.QRNCAConfig(read="answer")),
    ):
        with pytest.raises(ModelError, match="letters"):
            call()
    assert not list(tmp_path.iterdir())


def test_sets_without_queries(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path) -> None:
    model = model_of("llama")
    for none in (short_queries.for_group(), short_queries.keep([])):
        for call in (
            lambda none=none: ql.locate(model, none, out=tmp_path / "run", progress=False),
            lambda none=none: ql.check(model, none),
            lambda none=none: ql.edit_effects(model, none, {}),
            lambda none=none: ql.transfer(model, none, tmp_path / "both", progress=False),
        ):
            with pytest.raises(ValueError, match=r"queries|query"):
                call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["mps", 5, "gpu", "cuda:9", "cpu:7", True, "", [], 10**30])
def test_devices_that_are_none(device: Any, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((ModelError, ValueError, TypeError), match="device"):
        ql.load_model(folder_of("llama"), device=device)
