"""The rows of bridges against the plain path and against interventions on whole prompts; hooks; what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from qrnca_lens.attribution import SlowPathWarning, attribute
from qrnca_lens.attribution.letters import options_of
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.core.rules import quadrature
from qrnca_lens.editing import scale, suppress
from qrnca_lens.engine import bridge_cache
from qrnca_lens.engine.asks import Ask, asked, probability_of
from qrnca_lens.engine.edits import Edit, read_edited
from qrnca_lens.engine.integral import PathIntegral, PathTask, integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.models import check_hooked, checks, load_model, sites_of, to_tokens
from qrnca_lens.models.hooked import HookedTransformer

TEXT = "Question: which letter is right? A. one B. two C. three D. four Answer:"
TEXTS = [TEXT, "A", TEXT.replace("three", "three and a half")]
LOADED = ["opt", "phi", "llama-bias", "gemma2", "olmo2", "gemma3", "granite", "exaone4", "glm4"]
LOADED += ["mpt"] if HookedTransformer is None else []  # the bridge of TransformerLens 3 ignores the cache
BOOTED = ["llama", "mistral-window", "qwen2-window", "gpt2", "gpt-neox"]
EDITS: list[list[Edit]] = [
    [(NeuronSet.of((0, 3), (2, 1)), 0.0), (NeuronSet.of((1, 7)), 2.5), (NeuronSet(), 0.0), (NeuronSet.of((2, 40)), -1.0)],
    [(NeuronSet.of((2, 4)), 3.0), (NeuronSet.of((0, 5)), 0.0)],
    [],
]
pytestmark = pytest.mark.filterwarnings("error::qrnca_lens.attribution.SlowPathWarning")


@pytest.fixture(scope="module")
def bridge_of(folder_of: Callable[[str], Path], model_of: Callable[[str], Any]) -> Callable[[str], Any]:
    """A tiny bridge: as `load_model` gives it, or booted where that gives a HookedTransformer."""
    booted: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family in LOADED:
            return model_of(family)
        if family not in booted:
            booted[family] = TransformerBridge.boot_transformers(str(folder_of(family)), device="cpu").eval()
        return booted[family]

    return get


def asks_of(model: Any, positions: Any = "last") -> list[Ask]:
    return [asked(to_tokens(model, text), probability_of(40 + i), positions) for i, text in enumerate(TEXTS)]


def task_of(model: Any, site: Any = None) -> PathTask:
    return PathTask(model, site or sites_of(model)[0], quadrature("right", 4).with_ends())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def check_equal(found: PathIntegral, wanted: PathIntegral) -> None:
    assert relative(found.scores, wanted.scores) < 2e-5
    assert torch.allclose(found.at_zero, wanted.at_zero, rtol=2e-4)
    assert found.untouched == pytest.approx(wanted.untouched, rel=2e-5)
    assert found.drift.max() < 1e-5


@pytest.mark.parametrize("family", [*LOADED, *BOOTED])
def test_rows_equal_the_plain_path(family: str, bridge_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridge_of(family)
    for site, length in zip(sites_of(model), (64, 4, 5), strict=False):
        monkeypatch.setattr(bridge_cache, "_LENGTH", length)
        task = task_of(model, site)
        for ask, path in zip(asks_of(model), integrate_by_rows(task, asks_of(model)), strict=True):
            check_equal(path, integrate_plainly(task, ask))
        one = asks_of(model)[:1]
        assert (
            relative(integrate_by_rows(task, one, layers_at_once=1)[0].scores, integrate_by_rows(task, one)[0].scores) < 1e-5
        )
    together = attribute(model, TEXTS, [40, 41, 42], steps=4)
    for found, ask in zip(together, asks_of(model), strict=True):
        assert relative(found.scores, integrate_plainly(task_of(model), ask).scores) < 2e-5


@pytest.mark.parametrize("family", [*LOADED, *BOOTED])
def test_edited_rows_equal_interventions_on_whole_prompts(family: str, bridge_of: Callable[[str], Any]) -> None:
    model = bridge_of(family)
    for text, edits, rows in zip(
        TEXTS, EDITS, read_edited(model, TEXTS, EDITS, [lambda logits: logits[:, -1]] * 3), strict=True
    ):
        for row, (neurons, factor) in zip(rows, [(NeuronSet(), 1.0), *edits], strict=True):
            with scale(model, neurons, factor) if len(neurons) else nullcontext():
                assert torch.allclose(row, model(to_tokens(model, text)[None])[0, -1], atol=1e-4)


def louder_at_the_end(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return torch.cat([tensor[:, :-1], 1.5 * tensor[:, -1:]], dim=1)


@pytest.mark.parametrize("family", ["opt", "granite", "gpt2", "llama"])
def test_hooks_around_the_attention_stay_fast(family: str, bridge_of: Callable[[str], Any]) -> None:
    model = bridge_of(family)
    untouched = attribute(model, TEXT, 40, steps=4).scores
    hooks = model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", louder_at_the_end)])
    with hooks, suppress(model, Neuron(1, 7)), suppress(model, Neuron(2, 3), positions=[(0, 2), (18, 21)]):
        found = attribute(model, TEXT, 40, steps=4).scores
        assert relative(found, integrate_plainly(task_of(model), asks_of(model)[0]).scores) < 2e-5
    assert relative(found, untouched) > 1e-3


@pytest.mark.parametrize("part", ["hook_z", "q.hook_out", "o.hook_in"])
def test_a_hook_inside_the_attention_leads_to_the_plain_path_and_is_told_once(
    part: str, folder_of: Callable[[str], Path]
) -> None:
    model = TransformerBridge.boot_transformers(str(folder_of("llama")), device="cpu").eval()

    def doubled(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return 2 * tensor

    with model.hooks(fwd_hooks=[(f"blocks.1.attn.{part}", doubled)]):
        with pytest.warns(SlowPathWarning, match=r"inside the attention of block 1, .*told once.* for 3 of 3 prompts"):
            found = attribute(model, TEXTS, [40, 41, 42], steps=4)
        for path, ask in zip(found, asks_of(model), strict=True):
            assert relative(path.scores, integrate_plainly(task_of(model), ask).scores) < 1e-6
        attribute(model, TEXT, 40, steps=4)
    with pytest.warns(SlowPathWarning, match="more than the last position"):
        attribute(model, TEXT, 40, steps=2, positions="all")
    attribute(model, TEXT, 40, steps=2, positions="all")


@pytest.mark.transformer_lens_3
def test_a_model_that_ignores_the_cache_takes_the_plain_path_and_is_told_once(folder_of: Callable[[str], Path]) -> None:
    model = load_model(folder_of("mpt"), device="cpu")
    with pytest.warns(SlowPathWarning, match=r"does not keep keys and values in the cache .* told once"):
        found = attribute(model, TEXT, 40, steps=4)
    assert relative(found.scores, integrate_plainly(task_of(model), asks_of(model)[0]).scores) < 1e-6
    attribute(model, TEXT, 40, steps=4)


def test_a_hook_that_reads_other_positions_leads_to_the_plain_path(bridge_of: Callable[[str], Any]) -> None:
    model = bridge_of("opt")

    def by_absolute_position(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, 5:] *= 0.5
        return tensor

    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", by_absolute_position)]):
        with pytest.warns(SlowPathWarning, match="do not give its own logits"):
            found = attribute(model, TEXT, 40, steps=4)
        assert relative(found.scores, integrate_plainly(task_of(model), asks_of(model)[0]).scores) < 1e-6


@pytest.mark.parametrize("at", ["mask", "objective", "backward"])
def test_nothing_is_left_behind_after_an_exception(
    at: str, bridge_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = bridge_of("granite"), []

    def state() -> Any:
        hooks = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
        return hooks, [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]

    def fail(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise KeyError("in the middle")

    asks, before, logits = asks_of(model), state(), model(to_tokens(model, TEXT)[None])
    if at == "objective":
        asks[1] = Ask(asks[1].tokens, fail, asks[1].scaled)
    else:
        monkeypatch.setattr(*{"mask": (bridge_cache, "_mask"), "backward": (torch.autograd, "grad")}[at], fail)
    with pytest.raises(KeyError, match="in the middle"):
        integrate_by_rows(task_of(model), asks)
    assert calls
    assert state() == before
    assert torch.equal(model(to_tokens(model, TEXT)[None]), logits)


def test_an_edit_of_a_bridge_comes_back_after_the_letters_were_chosen(bridge_of: Callable[[str], Any]) -> None:
    model = bridge_of("olmo2")
    ids = to_tokens(model, TEXT)[None]
    with suppress(model, NeuronSet.of((1, 7), (2, 1))):
        edited = model(ids)
        options_of(model, [TEXT])
        assert torch.equal(model(ids), edited)
    assert not torch.allclose(model(ids), edited, atol=1e-4)


def test_hooks_on_a_model_of_ones_own_wait_for_the_test_of_its_neurons(folder_of: Callable[[str], Path]) -> None:
    """The test runs two tokens, which a hook that counts on more would not survive."""
    model = TransformerBridge.boot_transformers(str(folder_of("llama")), device="cpu")
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda out, hook: out[:, [5]])]):
        check_hooked(model)
    assert model not in checks._TESTED
    check_hooked(model)
    assert model in checks._TESTED
