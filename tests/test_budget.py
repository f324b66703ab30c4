from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny import GATED, save_tiny
from transformers import GPT2Config, LlamaConfig

from qrnca_lens.attribution import attribute, integrals
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.rules import quadrature
from qrnca_lens.engine import budget
from qrnca_lens.engine.asks import asked, probability_of
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.engine.integral import PathTask, integrate_by_rows
from qrnca_lens.models import check_site, load_model, to_tokens

PROMPTS = ["Question: which letter?", "Answer:", "Which letter is right? A or B?", "B", "C D"]
LARGER = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 384}


class PeakMemory:
    """The highest resident memory of this process inside the block, above that at its start, in bytes."""

    def __enter__(self) -> PeakMemory:
        self._process, self._stop, self.bytes = psutil.Process(), threading.Event(), 0
        self._start = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._start)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def estimated_and_measured(folder: Path, length: int, width: int, prompts: int) -> tuple[int, int]:
    """Bytes of the integrals of random prompts; runs in a process of its own, whose memory is fresh."""
    torch.set_num_threads(1)
    model = load_model(folder, device="cpu")
    rule = quadrature("right", 8).with_ends()
    task = PathTask(model, check_site(model, None), rule)
    asks = [asked(torch.randint(0, 320, (length,)), probability_of(1), [(-width, length)]) for _ in range(prompts)]
    integrate_by_rows(task, [asked(torch.zeros(3, dtype=torch.long), probability_of(1))])
    gc.collect()
    with PeakMemory() as memory:
        integrate_by_rows(task, asks)
    return budget.integral_cost(model, length, len(rule.nodes), width).of(prompts), memory.bytes


@pytest.mark.transformer_lens_3  # the model of the cost is that of a HookedTransformer's rows
def test_the_cost_of_a_batch_is_its_measured_peak(tmp_path: Path) -> None:
    llama = LlamaConfig(**GATED | LARGER, num_key_value_heads=2)
    gpt2 = GPT2Config(n_embd=128, n_layer=6, n_head=8, n_inner=512, vocab_size=320, n_positions=128)
    shapes = [(save_tiny("llama", tmp_path / "a", llama), 60, 12, 4), (save_tiny("gpt2", tmp_path / "b", gpt2), 100, 1, 24)]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for estimated, measured in pool.starmap(estimated_and_measured, shapes, chunksize=1):
            assert measured > 50e6
            assert 0.7 < estimated / measured < 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_prompts_go_together_as_far_as_half_of_the_free_memory_goes(
    family: str, model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(family)
    cost = budget.integral_cost(model, 40, 18, 1)
    for free, wanted in ((2 * cost.of(5), 4), (2 * cost.of(8), 8), (2 * cost.of(8) - 2, 4), (0, 1)):
        monkeypatch.setattr(budget, "free_memory", lambda device, free=free: free)
        assert budget.together(model, [7, 40], 18, 1) == wanted
    monkeypatch.setattr(budget, "free_memory", lambda device: 2**60)
    assert budget.together(model, [7, 40], 18, 1) == 64  # 4,096 rows: 18 nodes in 3 layers, 75 prompts
    assert budget.layers_at_once(model, 40, 18, 1) is None
    monkeypatch.setattr(budget, "free_memory", lambda device: 2 * budget.integral_cost(model, 40, 18, 1, 2).of(1))
    assert budget.layers_at_once(model, 40, 18, 1) == 2


def test_a_prompt_costs_more_the_longer_and_wider_it_is(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    base, reading = budget.integral_cost(model, 40, 18, 4), budget.reading_cost(model, 40, 18, 4)
    assert budget.integral_cost(model, 40, 18, 4, 1).each < base.each < budget.integral_cost(model, 80, 18, 4).each
    assert base.each < budget.integral_cost(model, 40, 18, 8).each
    assert reading.each < budget.reading_cost(model, 40, 36, 4).each < budget.integral_cost(model, 40, 36, 4).each


def test_little_memory_changes_batches_and_no_scores(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = model_of("llama"), []
    positions: Any = [(-2, -1)]
    prompts = [text for text in PROMPTS if len(text) > 1]
    wanted = attribute(model, prompts, [5] * len(prompts), steps=2, positions=positions)
    read = read_edited(model, prompts, [[(NeuronSet.of((0, 1)), 0.0)]] * 4, [lambda logits: logits[:, -1]] * 4)
    by_rows = integrate_by_rows

    def watched(task: Any, asks: Any, **kwargs: Any) -> Any:
        sizes.append((len(asks), kwargs["layers_at_once"]))
        return by_rows(task, asks, **kwargs)

    monkeypatch.setattr(integrals, "integrate_by_rows", watched)
    one = budget.integral_cost(model, 40, 3, 2)
    for free, seen in ((2 * one.of(2), (2, None)), (0, (1, 1))):
        monkeypatch.setattr(budget, "free_memory", lambda device, free=free: free)
        sizes.clear()
        found = attribute(model, prompts, [5] * len(prompts), steps=2, positions=positions)
        assert sizes[0] == seen
        for a, b in zip(found, wanted, strict=True):
            assert a.prompt == b.prompt
            assert torch.allclose(a.scores, b.scores, atol=1e-6)
    again = read_edited(model, prompts, [[(NeuronSet.of((0, 1)), 0.0)]] * 4, [lambda logits: logits[:, -1]] * 4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(again, read, strict=True))


def test_all_panels_of_a_rule_count(model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule "auto" begins with three panels of five nodes."""
    model, sizes = model_of("llama"), []
    longest = max(len(to_tokens(model, text)) for text in PROMPTS)
    free = 2 * budget.integral_cost(model, longest, 15, 1).of(3) - 2
    monkeypatch.setattr(budget, "free_memory", lambda device: free)

    def watched(task: Any, asks: Any, **kwargs: Any) -> Any:
        sizes.append(len(asks))
        return integrate_by_rows(task, asks, **kwargs)

    monkeypatch.setattr(integrals, "integrate_by_rows", watched)
    attribute(model, PROMPTS, [5] * 5, rule="auto")
    assert sizes == [2, 2, 1]


def test_free_memory_is_the_devices_own_or_a_stated_number() -> None:
    assert 0 < budget.free_memory("cpu") <= psutil.virtual_memory().total
    assert budget.free_memory("meta") == 4 * 2**30
