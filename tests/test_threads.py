"""Several threads on one model object: each gets the right numbers or is told, none hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from qrnca_lens.attribution import attribute
from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Prompt
from qrnca_lens.editing import suppress
from qrnca_lens.methods import score
from qrnca_lens.models import BusyModelError, exclusive, hooked, to_tokens
from qrnca_lens.study.card import at_last, zeroed

CHOSEN = NeuronSet.of(*[(layer, i) for layer in range(3) for i in range(0, 48, 2)])
PROMPTS = [Prompt(f"Which letter is right? {i}\nAnswer:", "A") for i in range(6)]


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_one_thread_suppresses_and_another_reads(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    untouched = letter_probabilities(model, PROMPTS)
    with suppress(model, CHOSEN):
        suppressed = letter_probabilities(model, PROMPTS)
    assert not torch.allclose(untouched, suppressed, rtol=0.1)
    start = threading.Barrier(2)

    def read() -> list[torch.Tensor]:
        start.wait()
        return [letter_probabilities(model, PROMPTS) for _ in range(12)]

    def edit() -> list[torch.Tensor]:
        start.wait()
        found = []
        for _ in range(12):
            with suppress(model, CHOSEN):
                found += [letter_probabilities(model, PROMPTS[:3]), letter_probabilities(model, PROMPTS[3:])]
        return [torch.cat(found[i : i + 2]) for i in range(0, len(found), 2)]

    with ThreadPoolExecutor(2) as pool:
        reading, editing = pool.submit(read), pool.submit(edit)
    assert all(torch.allclose(p, untouched, rtol=1e-3) for p in reading.result())
    assert all(torch.allclose(p, suppressed, rtol=1e-3) for p in editing.result())


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_attributions_and_scores_in_several_threads(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    calls: list[Callable[[], torch.Tensor]] = [lambda p=p: attribute(model, p.text, " A", steps=2).scores for p in PROMPTS]
    calls += [lambda p=p: score(model, p, "log-probability") for p in PROMPTS]
    calls += [lambda p=p: score(model, p, "activation") for p in PROMPTS]
    wanted = [call() for call in calls]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda call: call(), calls))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_thread_that_would_wait_for_ever_is_told(
    family: str, model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooked, "PATIENCE", 0.1)
    model = model_of(family)
    ids = to_tokens(model, PROMPTS[0].text)[None]
    calls: list[Callable[[], Any]] = [
        lambda: letter_probabilities(model, PROMPTS),
        lambda: attribute(model, PROMPTS[0].text, " A", steps=2),
        lambda: score(model, PROMPTS[0], "ablation"),
        lambda: suppress(model, CHOSEN).__enter__(),
    ]
    blocks: list[Callable[[], Any]] = [
        lambda: suppress(model, CHOSEN),
        lambda: zeroed(model, [1], at_last),
        lambda: exclusive(model),
    ]
    with ThreadPoolExecutor(1) as pool:
        for block in blocks:
            with block():
                for call in calls:
                    with pytest.raises(
                        BusyModelError, match=rf"another thread has used {family} for 0.1 s.*leave the block"
                    ):
                        pool.submit(call).result(10)
        with suppress(model, CHOSEN), pytest.raises(BusyModelError, match=f"another thread has hooks on {family}"):
            pool.submit(model, ids).result(10)  # past the package, so the hook itself has to tell
        pool.submit(model, ids).result(10)
        with pytest.raises(RuntimeError, match="stop"), suppress(model, CHOSEN):
            raise RuntimeError("stop")
        pool.submit(letter_probabilities, model, PROMPTS).result(10)


def test_models_are_locked_one_by_one(model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooked, "PATIENCE", 0.1)
    with ThreadPoolExecutor(1) as pool, suppress(model_of("llama"), CHOSEN), exclusive(model_of("llama")):
        pool.submit(letter_probabilities, model_of("olmo2"), PROMPTS).result(10)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_block_left_in_another_thread_is_told_and_frees_the_model(
    family: str, model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooked, "PATIENCE", 0.1)
    model = model_of(family)
    untouched = letter_probabilities(model, PROMPTS)
    with ThreadPoolExecutor(1, "worker") as pool, ThreadPoolExecutor(1) as other:
        for block in (suppress(model, CHOSEN), exclusive(model)):
            pool.submit(block.__enter__).result(10)
            with pytest.raises(BusyModelError, match=rf"block on {family} was entered in thread 'worker_0' and left"):
                block.__exit__(None, None, None)
            for thread in (pool, other):
                assert torch.equal(thread.submit(letter_probabilities, model, PROMPTS).result(10), untouched)
        block = suppress(model, CHOSEN)
        pool.submit(block.__enter__).result(10)
        error = KeyError("mine")
        assert not block.__exit__(KeyError, error, None)  # the block's own error passes
        assert torch.equal(letter_probabilities(model, PROMPTS), untouched)
        outer, inner = exclusive(model), suppress(model, CHOSEN)
        pool.submit(lambda: (outer.__enter__(), inner.__enter__())).result(10)
        with pytest.raises(BusyModelError, match="left in"):
            inner.__exit__(None, None, None)
        with pytest.raises(BusyModelError, match="another thread has used"):
            letter_probabilities(model, PROMPTS)  # the outer block is the worker's still
        pool.submit(outer.__exit__, None, None, None).result(10)
        assert torch.equal(letter_probabilities(model, PROMPTS), untouched)


def test_a_thread_that_ends_in_a_block_gives_the_model_back(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooked, "PATIENCE", 0.1)
    model = model_of("llama")
    untouched = letter_probabilities(model, PROMPTS)
    for block in (exclusive(model), suppress(model, CHOSEN)):
        thread = threading.Thread(target=block.__enter__)
        thread.start()
        thread.join()
        with exclusive(model):
            pass
    with pytest.raises(BusyModelError, match="leave a block whose thread has ended"):
        letter_probabilities(model, PROMPTS)
    with pytest.raises(BusyModelError, match="its hooks are gone"):
        block.__exit__(None, None, None)
    assert torch.equal(letter_probabilities(model, PROMPTS), untouched)
