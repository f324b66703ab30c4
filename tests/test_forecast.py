from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from typer.testing import CliRunner

import qrnca_lens as ql
from qrnca_lens.attribution import attribute, integrals, letters
from qrnca_lens.attribution.options import target_of
from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.data import Prompt, QuerySet, save_queries
from qrnca_lens.engine import budget
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.engine.integral import integrate_by_rows
from qrnca_lens.engine.rows import groups
from qrnca_lens.models import ModelError, to_tokens
from qrnca_lens.models.hooked import is_hooked_transformer
from qrnca_lens.runs import forecast
from qrnca_lens.study import Subject
from qrnca_lens.study.forecast import estimate_tables, estimate_transfer
from qrnca_lens.study.reproduction import Sample


def test_an_estimate_counts_what_there_is(
    model_of: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    lengths = [len(to_tokens(model, prompt.text)) for query in short_queries for prompt in query.prompts]
    cost = budget.integral_cost(model, max(lengths), 4, 1)  # the nodes 1/3, 2/3 and both ends
    monkeypatch.setattr(budget, "free_memory", lambda device: 2 * cost.of(9))
    found = ql.estimate(model, short_queries, QRNCAConfig(steps=3))
    assert (found.prompts, found.tokens, found.longest) == (36, sum(lengths), max(lengths))
    size = 8 if is_hooked_transformer(model) else 1
    assert (found.rows, found.together, found.memory) == (36 * 4 * 3, size, cost.of(size))
    assert found.seconds
    assert found.seconds > 0
    fine = ql.estimate(model, short_queries, QRNCAConfig(rule="auto", steps=128))
    assert fine.rows == 36 * 125 * 3  # 25 panels of five nodes
    line = str(replace(found, together=8, tokens=12345, memory=3 * 2**29, seconds=7200.0))
    assert line.startswith("36 prompts, 12,345 tokens")
    assert line.endswith("8 prompts together, about 1.5 GiB above the model, about 2 hours")
    assert "12,345" in replace(found, tokens=12345)._repr_html_()


def test_an_estimate_is_of_the_batches_that_run(
    model_of: Callable[[str], Any],
    folder_of: Callable[[str], Path],
    short_queries: QuerySet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight queries of three prompts go together, in a bridge no two prompts; those timed have their own targets."""
    config, sizes, targets = QRNCAConfig(steps=2), [], []
    by_rows, plain_attribute = integrate_by_rows, attribute

    def watched(task: Any, asks: Any, **kwargs: Any) -> Any:
        sizes.append(max(map(len, groups(task.model, asks))))
        return by_rows(task, asks, **kwargs)

    def asked(model: Any, texts: Any, letters: Any, **kwargs: Any) -> Any:
        targets.extend(zip(texts, letters, strict=True))
        return plain_attribute(model, texts, letters, **kwargs)

    monkeypatch.setattr(budget, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(forecast, "attribute", asked)
    for model in (model_of("llama"), TransformerBridge.boot_transformers(str(folder_of("llama")), device="cpu").eval()):
        found = ql.estimate(model, short_queries, config)
        with monkeypatch.context() as patched:
            patched.setattr(integrals, "integrate_by_rows", watched)
            ql.locate(model, short_queries, config, progress=False)
        assert found.together == max(sizes) == (24 if is_hooked_transformer(model) else 1)
        longest = max(len(to_tokens(model, prompt.text)) for query in short_queries for prompt in query.prompts)
        assert found.memory == budget.integral_cost(model, longest, 3, 1).of(found.together)
        sizes.clear()
    right = {prompt.text: target_of(model, prompt).ids[0] for query in short_queries for prompt in query.prompts}
    assert targets
    assert all(right[text] == target.ids[0] for text, target in targets)


def test_what_cannot_be_run_is_not_counted(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model, (first, *rest) = model_of("llama"), short_queries
    long = replace(first, prompts=(*first.prompts[:2], Prompt("word " * 200, "A")))
    assert ql.estimate(model, QuerySet((long, *rest), "short"), QRNCAConfig(steps=1)).prompts == 33
    assert ql.estimate(model, QuerySet((long,), "short")).prompts == 0
    with pytest.raises(ModelError, match="no site 'pre'"):
        ql.estimate(model, short_queries, QRNCAConfig(site="pre"))


def test_the_time_is_unknown_where_prompts_have_no_scores(folder_of: Callable[[str], Path], short_queries: QuerySet) -> None:
    model = ql.load_model(folder_of("llama"), device="cpu")
    with torch.no_grad():
        model.blocks[1].mlp.W_in[0, 0] = float("nan")
    found = ql.estimate(model, short_queries)
    assert found.seconds is None
    assert str(found).endswith("an unknown time")


@pytest.mark.parametrize("command", ["locate", "reproduce"])
def test_a_dry_run_says_what_it_takes_and_stops(
    command: str, folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path
) -> None:
    save_queries(short_queries, tmp_path / "short.jsonl")
    arguments = ["--model", str(folder_of("llama")), "--queries", str(tmp_path / "short.jsonl"), "--device", "cpu"]
    done = CliRunner().invoke(app, [command, *arguments, "--out", str(tmp_path / "run"), "--dry-run"])
    assert done.exit_code == 0
    assert "36 prompts, " in done.stdout
    assert not (tmp_path / "run").exists()


def test_locate_says_first_what_it_takes(folder_of: Callable[[str], Path], short_queries: QuerySet, tmp_path: Path) -> None:
    save_queries(short_queries, tmp_path / "short.jsonl")
    arguments = ["--model", str(folder_of("llama")), "--queries", str(tmp_path / "short.jsonl"), "--device", "cpu"]
    done = CliRunner().invoke(app, ["locate", *arguments, "--out", str(tmp_path / "run"), "--steps", "1"])
    assert done.exit_code == 0
    assert done.stderr.index("Check(") < done.stderr.index("\nLocating short: ")
    assert "36 prompts, " in done.stderr
    assert "36 prompts, " not in done.stdout


def test_the_tables_of_a_study_are_foretold(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted is within a third of the edits that `reproduce` then makes; the methods that edit neuron by neuron
    are left out of both."""
    model, sample = model_of("llama"), Sample(2, 1, 20, 3, 2, single_neurons=1)
    item = Subject("short", short_queries, (short_queries,), held_out=short_queries)
    told, made = estimate_tables(model, item, sample), []

    def counted(of: Any, prompts: Any, edits: Any, readings: Any, **options: Any) -> Any:
        made.append((len(prompts), sum(map(len, edits))))
        return read_edited(of, prompts, edits, readings, **options)

    monkeypatch.setattr(letters, "read_edited", counted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ql.reproduce(model, [item], tmp_path, config=QRNCAConfig(steps=3), sample=sample, progress=False)
    edits = sum(count for _, count in made)
    assert 2 / 3 < told.edits / edits < 3 / 2
    assert told.seconds and told.readings > sum(count for count, _ in made)
    assert str(replace(told, readings=1234, edits=56789, seconds=7200.0)) == (
        "1,234 prompts to read, 56,789 edits of a prompt, about 2 hours"
    )
    twice = estimate_transfer(model, short_queries, short_queries)
    assert twice.edits == 4 * 3 * 72 + 6 * 36 * 2 * 13 and twice.readings == 2 * 72 + 6 * 36
