from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ENGINE_FAMILIES
from transformers import AutoModelForCausalLM

from qrnca_lens.attribution import AttributionError, SlowPathWarning, attribute, integrals
from qrnca_lens.attribution.targets import Choice, Continuation, OneToken, Target
from qrnca_lens.core.neurons import Neuron
from qrnca_lens.core.rules import quadrature
from qrnca_lens.editing import suppress
from qrnca_lens.engine.asks import Ask, asked, probability_of
from qrnca_lens.engine.integral import PathTask, integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.models import ModelError, OptionTokens, load_model, sites_of, to_tokens

TEXT = "Question: which letter is right? A. one B. two C. three D. four Answer:"


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
@pytest.mark.parametrize("text", [TEXT, "A"])
def test_engine_equals_the_plain_path(family: str, text: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    for site in sites_of(model):
        task = PathTask(model, site, quadrature("right", 5).with_ends())
        ask = asked(to_tokens(model, text), probability_of(40))
        fast, slow = integrate_by_rows(task, [ask])[0], integrate_plainly(task, ask)
        assert relative(fast.scores, slow.scores) < 1e-4
        assert torch.allclose(fast.at_zero, slow.at_zero, rtol=1e-4)
        assert fast.drift.max() < 1e-5
        assert fast.untouched == pytest.approx(slow.untouched, rel=1e-5)


def test_engine_equals_autograd_written_by_hand_on_hugging_face(
    model_of: Callable[[str], Any], folder_of: Callable[[str], Path]
) -> None:
    hf = AutoModelForCausalLM.from_pretrained(folder_of("llama"), attn_implementation="eager").eval()
    model, steps, target = model_of("llama"), 6, 40
    ids = to_tokens(model, TEXT)[None]
    expected = []
    for layer in hf.model.layers:
        kept: dict[str, torch.Tensor] = {}
        handle = layer.mlp.up_proj.register_forward_hook(lambda _m, _i, out, kept=kept: kept.update(f=out.detach()))
        hf(ids)
        handle.remove()
        f, total = kept["f"][0, -1], torch.zeros_like(kept["f"][0, -1])
        for k in range(1, steps + 1):
            leaf = (k / steps * f).clone().requires_grad_(True)

            def put(_m: Any, _i: Any, out: torch.Tensor, leaf: torch.Tensor = leaf) -> torch.Tensor:
                return torch.cat([out[:, :-1], leaf[None, None]], dim=1)

            handle = layer.mlp.up_proj.register_forward_hook(put)
            hf(ids).logits[0, -1].softmax(-1)[target].backward()
            handle.remove()
            assert leaf.grad is not None
            total += leaf.grad
        expected.append(f * total / steps)
    assert relative(attribute(model, TEXT, target, steps=steps).scores, torch.stack(expected)) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_the_completeness_gap_shrinks_with_steps(family: str, model_of: Callable[[str], Any]) -> None:
    gaps = [attribute(model_of(family), TEXT, 40, steps=m).completeness_gap.abs().max() for m in (16, 64, 256)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    fine = attribute(model_of(family), TEXT, 40, steps=32, rule="gauss-legendre")
    assert fine.completeness_gap.abs().max() < 1e-3 * fine.probability
    total = fine.scores.sum(1) - fine.completeness_gap
    for layer, change in enumerate(total):
        with suppress(model_of(family), [Neuron(layer, i) for i in range(fine.scores.shape[1])]):
            p = model_of(family)(to_tokens(model_of(family), TEXT)[None])[0, -1].softmax(-1)[40]
        assert fine.probability - p.item() == pytest.approx(change.item(), abs=1e-6)


def test_up_scores_equal_post_scores_in_gated_models(model_of: Callable[[str], Any]) -> None:
    up, post = (attribute(model_of("qwen2"), TEXT, 40, site=s).scores for s in ("up", "post"))
    assert relative(up, post) < 1e-4


def test_the_default_site_is_the_papers(model_of: Callable[[str], Any]) -> None:
    assert attribute(model_of("llama"), TEXT, 40, steps=2).site == "up"
    assert attribute(model_of("gpt2"), TEXT, 40, steps=2).site == "post"


def test_rules() -> None:
    right, ends, gauss = (quadrature(rule, 16) for rule in ("right", "endpoints", "gauss-legendre"))
    assert right.nodes.tolist() == [k / 16 for k in range(1, 17)]
    assert ends.nodes[0] == 0
    assert ends.nodes[-1] == 1
    for rule in (right, ends, gauss):
        assert rule.weights.sum() == pytest.approx(1)
        wide = rule.with_ends()
        assert (wide.nodes[0], wide.nodes[-1]) == (0, 1)
        assert wide.weights @ wide.nodes**3 == pytest.approx(rule.weights @ rule.nodes**3)
    assert gauss.weights @ gauss.nodes**9 == pytest.approx(1 / 10, rel=1e-5)
    with pytest.raises(ValueError, match="unknown rule 'left'; there are right, endpoints, gauss-legendre, auto"):
        quadrature("left", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 steps, not 1"):
        quadrature("endpoints", 1)
    with pytest.raises(ValueError, match="at least 1 steps, not 0"):
        quadrature("right", 0)


def _state(model: Any) -> tuple[Any, ...]:
    hooks = [(name, len(point.fwd_hooks), len(point.bwd_hooks)) for name, point in model.hook_dict.items()]
    return hooks, [p.requires_grad for p in model.parameters()], torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_nothing_is_left_behind(family: str, model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    first = next(iter(model.parameters()))
    first.requires_grad_(True)
    try:
        ids, before = to_tokens(model, TEXT)[None], _state(model)
        with torch.no_grad():
            logits = model(ids)
            attribute(model, TEXT, 40, steps=3)
            assert _state(model)[:2] == before[:2]
            assert not torch.is_grad_enabled()

            def fail(*_args: Any, **_kwargs: Any) -> None:
                raise RuntimeError("in the middle")

            monkeypatch.setattr(torch.autograd, "grad", fail)
            with pytest.raises(RuntimeError, match="in the middle"):
                attribute(model, TEXT, 40, steps=3)
            assert torch.equal(model(ids), logits)
        assert _state(model) == before
        assert first.grad is None
    finally:
        first.requires_grad_(False)


def test_a_failed_self_check_falls_back_and_says_so(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")

    def by_absolute_position(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, 5:] *= 0.5  # one-token rows never reach position 5, so only the plain path sees this edit
        return tensor

    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", by_absolute_position)]):
        with pytest.warns(SlowPathWarning, match="do not give its own logits"):
            found = attribute(model, TEXT, 40, steps=3)
        plain = integrate_plainly(
            PathTask(model, "up", quadrature("right", 3).with_ends()), asked(to_tokens(model, TEXT), probability_of(40))
        )
    assert torch.equal(found.scores, plain.scores)


def test_bfloat16_scores_agree_with_the_plain_path_and_float16_is_refused(folder_of: Callable[[str], Path]) -> None:
    model = load_model(folder_of("llama"), device="cpu", dtype=torch.bfloat16)
    task = PathTask(model, "up", quadrature("right", 4).with_ends())
    asks = [asked(to_tokens(model, text), probability_of(40)) for text in (TEXT, TEXT[-9:], TEXT[9:])]
    plain = [integrate_plainly(task, ask) for ask in asks]
    for together in (1, 3):
        for start in range(0, 3, together):
            found = integrate_by_rows(task, asks[start : start + together])
            for fast, slow in zip(found, plain[start:], strict=False):
                assert relative(fast.scores, slow.scores) < 0.1
                assert fast.drift.max() < 5e-2
    with pytest.raises(ModelError, match="gradients underflow in float16"):
        attribute(model.to(torch.float16), TEXT, 40)


def test_a_site_that_does_not_take_is_an_error(model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: PathTask, ask: Ask) -> Any:
        path = integrate_plainly(task, ask)
        return replace(path, drift=path.drift + 0.5)

    monkeypatch.setattr(integrals, "integrate_plainly", broken)
    with pytest.raises(AttributionError, match="cannot be scaled: putting its own values back changes the logits"):
        attribute(model_of("opt"), TEXT, 40, steps=2, positions="all")  # which takes the plain path


def test_interventions_stay_active_during_attribution(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    with suppress(model, Neuron(1, 7)):
        found = attribute(model, TEXT, 40, steps=3)
        plain = integrate_plainly(
            PathTask(model, "up", quadrature("right", 3).with_ends()), asked(to_tokens(model, TEXT), probability_of(40))
        )
    assert relative(found.scores, plain.scores) < 1e-4
    assert relative(found.scores, attribute(model, TEXT, 40, steps=3).scores) > 1e-3


def test_scores_that_are_no_numbers_are_an_error(model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(task: PathTask, asks: Sequence[Ask], layers_at_once: None) -> Any:
        (path,) = integrate_by_rows(task, asks)
        scores = path.scores.clone()
        scores[1, 3] = float("nan")
        return [replace(path, scores=scores)]

    monkeypatch.setattr(integrals, "integrate_by_rows", broken)
    with pytest.raises(AttributionError, match=r"layer 1: NaN or infinite scores for the prompt .*Answer:"):
        attribute(model_of("llama"), TEXT, 40, steps=2)


def test_wrong_input(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(TypeError, match=r"expected a (HookedTransformer or )?TransformerBridge, found str"):
        attribute("llama", TEXT, 40)
    with pytest.raises(ModelError, match="no site 'pre' in a model with gated MLPs"):
        attribute(model_of("llama"), TEXT, 40, site="pre")
    with pytest.raises(ModelError, match="is not one token"):
        attribute(model_of("llama"), TEXT, "xylophone")
    beyond = OptionTokens(tuple("ABCD"), (40, 41, 42, 320), leading_space=True)
    far: list[tuple[Target, str]] = [
        (OneToken(320, "far"), "'far' has the token id 320"),
        (OneToken(-1, "far"), "'far' has the token id -1"),
        (Continuation((40, 999), "far"), "'far' has the token id 999"),
        (Choice(beyond, 0), "'A' has the token id 320"),
    ]
    for target, told in far:
        with pytest.raises(ModelError, match=f"the target {told}; the vocabulary of llama has 320 tokens"):
            attribute(model_of("llama"), [TEXT, TEXT], [40, target])
    with pytest.raises(ValueError, match="unknown rule"):
        attribute(model_of("llama"), TEXT, 40, rule="left")  # type: ignore[arg-type]


def test_the_result(model_of: Callable[[str], Any]) -> None:
    found = attribute(model_of("llama"), TEXT, " B", steps=4)
    top = found.top(5)
    assert top["score"].is_monotonic_decreasing
    assert top["score"][0] == pytest.approx(found.scores.max().item())
    frame = found.to_frame()
    assert len(frame) == found.scores.numel()
    first = found.neurons(5).neurons[0]
    assert frame.loc[(frame["layer"] == first.layer) & (frame["neuron"] == first.index), "score"].item() == pytest.approx(
        found.scores.max().item()
    )
    assert "target=' B'" in repr(found)
    assert "<table" in found._repr_html_()
    assert found.target_id == model_of("llama").tokenizer.encode(" B", add_special_tokens=False)[0]
