"""`locate`: what it refuses, and what it does with queries that fail. Its run folder: test_run_folder.py."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from runs import CONFIG, LONG, failing, same

from qrnca_lens.attribution import letters
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.models import BusyModelError, ModelError
from qrnca_lens.runs import prompts, work
from qrnca_lens.runs.pipeline import FailedQueriesWarning, locate


def test_a_query_that_fails_is_recorded_and_left_out(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bad = model_of("llama"), short_queries["q4"]
    others = short_queries.keep(q.id for q in short_queries if q.id != "q4")
    plain = locate(model, others, CONFIG, progress=False)
    queries = QuerySet((LONG, *short_queries.queries), "short")
    failing(monkeypatch, bad.prompts[1].text)
    with pytest.warns(FailedQueriesWarning, match=r"2 of 13 queries failed; the first, 'long', at prompt 1: the prompt has"):
        found = locate(model, queries, CONFIG, out=tmp_path / "run", progress=False)
    assert found.failed[["query", "group", "prompt"]].to_numpy().tolist() == [["long", "g0", 1], ["q4", "g1", 1]]
    assert "context holds 128" in found.failed["reason"][0]
    assert found.failed["reason"][1].startswith("layer 1: NaN")
    pd.testing.assert_frame_equal(found.table, plain.table, rtol=3e-5)  # |C| is 11; other prompts run together
    assert [q.id for q in found.asked] == list(found.queries["query"]) == [q.id for q in others]
    assert "11 queries in 3 groups, 2 more failed" in repr(found)
    assert "2 more failed" in found._repr_html_()
    with pytest.raises(KeyError, match="query 'q4' failed and has no neurons: layer 1: NaN"):
        found.for_query("q4")
    assert not (tmp_path / "run" / "parts").exists()
    same(QRNeurons.load(tmp_path / "run"), found)
    found.save(tmp_path / "copy")
    same(QRNeurons.load(tmp_path / "copy"), found)
    monkeypatch.setattr(work, "attribute", None)
    with pytest.warns(FailedQueriesWarning, match="2 of 13"):
        same(locate(model, queries, CONFIG, out=tmp_path / "run", progress=False), found)
    same(locate(model, others, CONFIG, out=tmp_path / "run", progress=False), plain)


def test_the_real_engine_s_nan_is_such_a_failure(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model = model_of("llama")
    token = model.tokenizer.encode("~", add_special_tokens=False)[-1]
    odd = Query("odd", "g1", (Prompt("Which letter? ~\nAnswer:", "B"),))

    def spoil(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.where((tensor == model.embed.W_E[token]).all(-1, keepdim=True), torch.nan, tensor)

    with model.hooks(fwd_hooks=[("hook_embed", spoil)]), pytest.warns(FailedQueriesWarning, match="1 of 13 .*'odd'.*NaN"):
        found = locate(model, QuerySet((*short_queries.queries, odd)), CONFIG, progress=False)
    assert list(found.failed["query"]) == ["odd"]
    pd.testing.assert_frame_equal(found.table, locate(model, short_queries, CONFIG, progress=False).table, rtol=3e-5)


def test_a_run_where_all_fail_says_so_and_is_tried_again(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    with monkeypatch.context() as patched:
        failing(patched)
        with pytest.raises(
            ModelError, match=r"no query can be located: 12 of 12 queries failed; the first, 'q0', at prompt 0"
        ):
            locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    assert not (tmp_path / "header.json").exists()
    with monkeypatch.context() as patched:
        failing(patched, *[q.prompts[0].text for q in short_queries.queries[:9]])
        with pytest.raises(
            ValueError, match=r"9 of 12 queries failed; the first, 'q0'.*Of those left, 3 queries are too few"
        ):
            locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    asked = failing(monkeypatch, "none of them")
    found = locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    assert len(asked) == 27  # the nine that had failed; the three that had not are kept
    assert found.failed.empty
    long = QuerySet(tuple(replace(LONG, id=f"long{i}") for i in range(4)))
    with pytest.raises(ModelError, match=r"no query can be located: 4 of 4 .*'long0', at prompt 1: the prompt has"):
        locate(model, long, CONFIG, out=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match=r"4 of 5 .* Of those left, 1 queries are too few"):
        locate(model, QuerySet((*long.queries, short_queries["q0"])), CONFIG, out=tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, ModelError])
def test_an_unforeseen_error_of_single_queries_is_their_failure(
    error: type[Exception],
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, bad = model_of("llama"), ("q0", "q1", "q3", "q4", "q5", "q6")  # two at the start, then several in a row
    with monkeypatch.context() as patched:
        failing(patched, *[short_queries[key].prompts[1].text for key in bad], error=error)
        with pytest.warns(FailedQueriesWarning, match=r"6 of 12 queries failed; the first, 'q0', at prompt 1: "):
            found = locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    assert found.failed[["query", "prompt"]].to_numpy().tolist() == [[key, 1] for key in bad]
    assert all(("" if error is ModelError else f"{error.__name__}: layer 1") in reason for reason in found.failed["reason"])
    others = short_queries.keep(q.id for q in short_queries if q.id not in bad)
    pd.testing.assert_frame_equal(found.table, locate(model, others, CONFIG, progress=False).table, rtol=3e-5)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_an_unforeseen_error_of_the_first_three_queries_stops(
    error: type[Exception],
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    with monkeypatch.context() as patched:
        asked = failing(patched, error=error)
        with pytest.raises(error, match="layer 1: NaN") as caught:
            locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    assert len(asked) == 3
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["at query 'q2', prompt 0"]
    same(
        locate(model, short_queries, CONFIG, out=tmp_path, progress=False),
        locate(model, short_queries, CONFIG, progress=False),
    )


def test_an_unforeseen_error_while_the_letters_are_found(
    model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, real, bad = model_of("llama"), prompts.option_tokens, {short_queries["q5"].prompts[2].text}

    def option_tokens(model: Any, prompt: Prompt) -> Any:
        if prompt.text in bad:
            raise torch.OutOfMemoryError("no memory")
        return real(model, prompt)

    monkeypatch.setattr(prompts, "option_tokens", option_tokens)
    with pytest.warns(FailedQueriesWarning, match=r"1 of 12 .*'q5', at prompt 2: OutOfMemoryError: no memory"):
        assert list(locate(model, short_queries, CONFIG, progress=False).failed["query"]) == ["q5"]
    bad |= {prompt.text for query in short_queries for prompt in query.prompts}
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        locate(model, short_queries, CONFIG, progress=False)


def test_the_letters_of_all_prompts_are_read_together(
    model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails is told as if each had been read by itself."""
    model, read, real, bad = model_of("llama"), [], letters.last_positions, set()

    def last_positions(model: Any, texts: list[str], *given: Any, **named: Any) -> Any:
        read.append(len(texts))
        if bad & set(texts):
            raise torch.OutOfMemoryError("no memory")
        return real(model, texts, *given, **named)

    monkeypatch.setattr(letters, "last_positions", last_positions)

    def new(mark: str) -> QuerySet:
        asked = (LONG, *short_queries)
        return QuerySet(tuple(replace(q, prompts=tuple(replace(p, text=mark + p.text) for p in q.prompts)) for q in asked))

    found = prompts.check_prompts(model, new("a"))
    assert read == [37] and [failure.query for failure in found.failed] == ["long"]
    queries = new("b")
    bad.add(queries["q5"].prompts[1].text)
    found = prompts.check_prompts(model, queries)
    assert read[1:3] == [37, 1]
    assert [(f.query, f.prompt, f.reason[:16]) for f in found.failed][1:] == [("q5", 1, "OutOfMemoryError")]
    assert [*found.targets] == [query.id for query in short_queries if query.id != "q5"]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, BusyModelError, TypeError])
def test_what_concerns_everything_stops_at_once(
    error: type[BaseException], model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = failing(monkeypatch, error=error)
    with pytest.raises(error):
        locate(model_of("llama"), short_queries, CONFIG, progress=False)
    assert len(asked) == (error is not KeyboardInterrupt)  # which the batch lets through


def test_wrong_input_is_refused_before_computing(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "attribute", None)
    model = model_of("llama")
    with pytest.raises(ValueError, match="give at least 4 queries"):
        locate(model, QuerySet(short_queries.queries[:3]), out=tmp_path / "a", progress=False)
    with pytest.raises(ModelError, match="no site 'pre'"):
        locate(model, short_queries, QRNCAConfig(site="pre"), out=tmp_path / "a", progress=False)
    with pytest.raises(ModelError, match=r"load it in float32 or bfloat16"):
        locate(copy.deepcopy(model).half(), short_queries, out=tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()
