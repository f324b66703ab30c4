"""Many prompts in one batch against one at a time and against the plain path; hooks of others; what is left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import ENGINE_FAMILIES

from qrnca_lens.attribution import AttributionError, SlowPathWarning, attribute
from qrnca_lens.attribution.options import target_of
from qrnca_lens.attribution.targets import Continuation, OneToken
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.rules import quadrature
from qrnca_lens.data import Prompt
from qrnca_lens.editing import suppress
from qrnca_lens.engine.asks import Ask, asked, chosen_positions, probability_of
from qrnca_lens.engine.batches import in_batches, is_out_of_memory
from qrnca_lens.engine.integral import PathIntegral, PathTask, integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.engine.texts import Texts
from qrnca_lens.models import ModelError, sites_of, to_tokens

TEXT = "Question: which letter is right? A. one B. two C. three D. four Answer:"
ROWS_OF_MANY = pytest.mark.transformer_lens_3  # in bridges rows are single tokens, run by other code
POSITIONS = ["last", *(pytest.param(where, marks=ROWS_OF_MANY) for where in ("all", 0, [(0, 1), (-1, 1)]))]
TEXTS = [TEXT, "A", TEXT.replace("three", "three and a half"), "Answer: what?", TEXT]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))  # out of a window's sight all scores are 0


def task_of(model: Any, site: str | None = None, steps: int = 4) -> PathTask:
    return PathTask(model, site or sites_of(model)[0], quadrature("right", steps).with_ends())  # type: ignore[arg-type]


def asks_of(model: Any, texts: Sequence[str], positions: Any = "last") -> list[Ask]:
    return [asked(to_tokens(model, text), probability_of(40 + i), positions) for i, text in enumerate(texts)]


def check_equal(found: Sequence[PathIntegral], wanted: Sequence[PathIntegral], limit: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert relative(one.scores, other.scores) < limit
        assert torch.allclose(one.at_zero, other.at_zero, rtol=10 * limit)
        assert one.untouched == pytest.approx(other.untouched, rel=limit)
        assert one.drift.max() < 1e-5


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_a_batch_equals_the_plain_path(family: str, positions: Any, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    texts = TEXTS if not isinstance(positions, list) else [text for text in TEXTS if len(to_tokens(model, text)) > 2]
    positions = [(0, 1), (2, 3)] if isinstance(positions, list) else positions
    for site in sites_of(model):
        task, asks = task_of(model, site), asks_of(model, texts, positions)
        check_equal(integrate_by_rows(task, asks), [integrate_plainly(task, ask) for ask in asks], 2e-5)


@pytest.mark.transformer_lens_3
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_batch_equals_one_at_a_time(data: st.DataObject, model_of: Callable[[str], Any]) -> None:
    """Over families, lengths (and so paddings), batch sizes, positions, groups of layers and prompts within prompts."""
    model = model_of(data.draw(st.sampled_from(ENGINE_FAMILIES)))
    whole = data.draw(st.lists(st.lists(st.integers(3, 319), min_size=1, max_size=40), min_size=1, max_size=5))
    ids = [*whole, *(prompt[: data.draw(st.integers(1, len(prompt)))] for prompt in whole[:2])]
    asks = []
    for k, prompt in enumerate(ids):
        position = data.draw(st.sampled_from(["last", "all", 0, len(prompt) - 1, [(0, len(prompt))]]))
        asks.append(asked(torch.tensor(prompt), probability_of(40 + k), position))
    task = task_of(model, data.draw(st.sampled_from(sites_of(model))), steps=2)
    together = integrate_by_rows(task, asks, layers_at_once=data.draw(st.integers(1, 3)))
    check_equal(together, [integrate_by_rows(task, [ask])[0] for ask in asks], 1e-5)


@pytest.mark.transformer_lens_3
def test_prompts_within_a_prompt_share_its_text(model_of: Callable[[str], Any]) -> None:
    model, ids = model_of("llama"), to_tokens(model_of("llama"), TEXT)
    asks = [asked(ids[:size], probability_of(40)) for size in (9, len(ids), 4, 9)]
    read: list[torch.Size] = []
    with pytest.MonkeyPatch.context() as patched:
        forward = model.forward
        patched.setattr(model, "forward", lambda *a, **k: (read.append(a[0].shape), forward(*a, **k))[1])
        texts = Texts(model, asks, "up")
    assert read[0] == (1, len(ids))
    for ask, logits in zip(asks, texts.logits, strict=True):
        assert torch.allclose(logits[-1], model(ask.tokens[None])[0, -1], atol=1e-5)
    task = task_of(model)
    check_equal(integrate_by_rows(task, asks), [integrate_plainly(task, ask) for ask in asks], 1e-5)


def test_logits_are_held_for_a_part_of_the_rows_only(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, asks = task_of(model_of("llama")), asks_of(model_of("llama"), TEXTS)
    wanted = integrate_by_rows(task, asks)
    monkeypatch.setattr("qrnca_lens.engine.integral.LOGITS", 1)
    check_equal(integrate_by_rows(task, asks), wanted, 2e-6)


def zero_position(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[:, 5] = 0
    return tensor


def add_a_sequence(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return tensor + torch.linspace(-1, 1, 22 * tensor.shape[-1], dtype=torch.float32).reshape(22, -1)


def knock_out_attention(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[:, :, -1, 3] = 0
    return tensor


def first_position(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[:, 0] *= 0.5
    return tensor


def first_of_batch(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[0] *= 0.5
    return tensor


HOOKS = [
    ("blocks.1.hook_resid_pre", zero_position),
    ("blocks.1.hook_resid_mid", add_a_sequence),
    ("blocks.1.attn.hook_pattern", knock_out_attention),
    ("blocks.0.hook_mlp_out", first_position),
    ("ln_final.hook_normalized", first_position),
]


@pytest.mark.parametrize(("name", "function"), HOOKS, ids=[f"{name}-{function.__name__}" for name, function in HOOKS])
def test_hooks_that_rows_cannot_carry_lead_to_the_plain_path(
    name: str, function: Any, model_of: Callable[[str], Any]
) -> None:
    model = model_of("llama")
    texts = [TEXT, TEXT.replace("A.", "B."), TEXT]
    assert {len(to_tokens(model, text)) for text in texts} == {22}
    with model.hooks(fwd_hooks=[(name, function)]):
        with pytest.warns(SlowPathWarning, match=r"plain path for 3 of 3 prompts"):
            found = attribute(model, texts, [40, 41, 42], steps=3)
        for i, ask in enumerate(asks_of(model, texts)):
            assert relative(found[i].scores, integrate_plainly(task_of(model, steps=3), ask).scores) < 1e-6
    untouched = attribute(model, TEXT, 40, steps=3).scores
    assert (relative(found[0].scores, untouched) > 1e-4) == name.startswith("blocks")


@pytest.mark.transformer_lens_3
def test_a_hook_on_one_row_of_a_batch_is_refused(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", first_of_batch)]),
        pytest.warns(SlowPathWarning),
        pytest.raises(AttributionError, match="putting its own values back changes the logits"),
    ):
        attribute(model, [TEXT, "A"], [40, 41], steps=3)


@pytest.mark.transformer_lens_3  # in bridges every hook inside an attention leads to the plain path
@pytest.mark.parametrize("point", ["hook_attn_scores", "hook_pattern"])
def test_frozen_attention_is_not_attributed_as_if_it_were_free(point: str, model_of: Callable[[str], Any]) -> None:
    """Detaching changes gradients alone, which the check of the logits does not see."""
    model = model_of("gpt2")
    with model.hooks(fwd_hooks=[(f"blocks.{k}.attn.{point}", lambda tensor, hook: tensor.detach()) for k in range(3)]):
        with pytest.warns(SlowPathWarning, match=f"a hook at blocks.0.attn.{point}, .*told once.* for 1 of 1 prompts"):
            frozen = attribute(model, TEXT, 40, steps=3).scores
        attribute(model, TEXT, 40, steps=1)
        plain = integrate_plainly(task_of(model, steps=3), asks_of(model, [TEXT])[0])
    assert relative(frozen, plain.scores) < 1e-6
    assert relative(frozen, attribute(model, TEXT, 40, steps=3).scores) > 1e-3


@pytest.mark.transformer_lens_3  # a bridge's prompts run alone
def test_torchs_own_hooks_lead_to_the_plain_path(model_of: Callable[[str], Any]) -> None:
    model = model_of("gpt2")
    handle = model.embed.register_forward_hook(lambda module, given, out: torch.cat([out[:, :-1], out[:, -1:] + 1], dim=1))
    try:
        with pytest.warns(SlowPathWarning, match=r"hook of torch's on embed, .*told once.* for 2 of 2 prompts"):
            found = attribute(model, [TEXT, "A"], [40, 41], steps=3)
        for path, ask in zip(found, asks_of(model, [TEXT, "A"]), strict=True):
            assert relative(path.scores, integrate_plainly(task_of(model, steps=3), ask).scores) < 1e-6
    finally:
        handle.remove()


def at_the_end(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    return torch.cat([tensor[:, :-1], 1.5 * tensor[:, -1:] + 0.1], dim=1)


def without_a_head(tensor: torch.Tensor, hook: object) -> torch.Tensor:
    tensor[:, :, 1] = 0
    return tensor


@pytest.mark.filterwarnings("error::qrnca_lens.attribution.SlowPathWarning")
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("blocks.1.hook_mlp_out", at_the_end),
        ("blocks.0.hook_resid_pre", at_the_end),
        ("blocks.1.hook_resid_pre", at_the_end),
        pytest.param("blocks.1.attn.hook_z", without_a_head, marks=ROWS_OF_MANY),
    ],
)
def test_hooks_that_rows_can_carry_stay_fast(name: str, function: Any, model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    with model.hooks(fwd_hooks=[(name, function)]):
        found = attribute(model, TEXTS, [40, 41, 42, 43, 44], steps=3)
        for path, ask in zip(found, asks_of(model, TEXTS), strict=True):
            assert relative(path.scores, integrate_plainly(task_of(model, steps=3), ask).scores) < 1e-5


@pytest.mark.filterwarnings("error::qrnca_lens.attribution.SlowPathWarning")
@pytest.mark.parametrize(("name", "without"), [("blocks.1.hook_mlp_out", [1]), ("ln_final.hook_normalized", [0, 1, 2])])
def test_layers_whose_output_a_hook_replaces_have_no_scores(
    name: str, without: list[int], model_of: Callable[[str], Any]
) -> None:
    model = model_of("llama")
    with model.hooks(fwd_hooks=[(name, lambda tensor, hook: torch.full_like(tensor, 0.5))]):
        found = attribute(model, TEXTS, [40, 41, 42, 43, 44], steps=3)
        plain = [integrate_plainly(task_of(model, steps=3), ask) for ask in asks_of(model, TEXTS)]
    for path, other in zip(found, plain, strict=True):
        assert relative(path.scores, other.scores) < 1e-5
        assert [layer for layer in range(3) if not path.scores[layer].any()] == without


@pytest.mark.transformer_lens_3
@pytest.mark.filterwarnings("error::qrnca_lens.attribution.SlowPathWarning")
@pytest.mark.parametrize("edited", ["last", "all", 1, [(0, 2), (-1, 22)]], ids=str)
@pytest.mark.parametrize("positions", POSITIONS[:3], ids=str)
def test_edits_at_positions_are_carried(edited: Any, positions: Any, model_of: Callable[[str], Any]) -> None:
    """Rows are suffixes of many lengths; some edited positions lie before them."""
    model, two = model_of("llama"), Continuation((40, 57), "two")
    texts = [TEXT, TEXT.replace("A.", "B."), TEXT] if isinstance(edited, list) else [TEXT, "Answer: what?", TEXT]
    aims = [OneToken(40, "one"), OneToken(41, "one"), OneToken(42, "one") if isinstance(edited, list) else two]
    aims = aims if positions == "last" else aims[:2]
    with suppress(model, NeuronSet.of((0, 3), (1, 5), (2, 7)), positions=edited):
        found = attribute(model, texts[: len(aims)], aims, steps=3, positions=positions)
        for path, text, aim in zip(found, texts, aims, strict=False):
            ids = torch.cat([to_tokens(model, text), torch.tensor(aim.ids[:-1], dtype=torch.long)])
            plain = integrate_plainly(task_of(model, steps=3), asked(ids, aim.objective, positions, aim.reads))
            assert relative(path.scores, plain.scores) < 1e-5


def test_one_prompt_or_a_list(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    many = attribute(model, [TEXT, to_tokens(model, TEXTS[2])], [" A", 41], steps=3)
    assert [(a.target, a.target_id, a.prompt[-7:]) for a in many][1][1:] == (41, "Answer:")
    assert relative(many[0].scores, attribute(model, TEXT, " A", steps=3).scores) < 1e-5
    assert attribute(model, [], []) == []
    for prompts, targets, told in [
        (TEXT, [" A"], "one prompt has one target"),
        ([TEXT], " A", "1 prompts and one target"),
        ([TEXT, TEXT], [" A"], "2 prompts and 1 targets"),
    ]:
        with pytest.raises(ValueError, match=told):
            attribute(model, prompts, targets)
    with pytest.raises(ModelError, match="the prompt is empty"):
        attribute(model, [TEXT, ""], [" A", " B"])


def test_positions_of_a_prompt(unchecked: None) -> None:
    assert chosen_positions(-1, 5) == (4,)
    assert chosen_positions(2, 5) == (2,)
    assert chosen_positions([(3, 5), (0, 1), (-2, 5)], 5) == (0, 3, 4)
    assert asked(torch.arange(5), probability_of(0), "last", reads=3).scaled == (2,)
    assert asked(torch.arange(5), probability_of(0), [(3, 4)], reads=3).start == 2
    for bad, error in [(5, ValueError), (-6, ValueError), ([(2, 2)], ValueError), ([], ValueError), ("first", ValueError)]:
        with pytest.raises(error, match=r"give 'last', 'all', a position or spans"):
            chosen_positions(bad, 5)  # type: ignore[arg-type]
    for bad in (1.5, True, [3], [(1, 2, 3)], [(0.5, 1)]):
        with pytest.raises(TypeError):
            chosen_positions(bad, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [pytest.param("hook", marks=ROWS_OF_MANY), "objective", "backward"])
def test_nothing_is_left_behind_after_an_exception(at: str, model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    first = next(iter(model.parameters()))
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    grad, first.requires_grad = first.requires_grad, True
    calls = []

    def fail(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise KeyError("in the middle")

    try:
        asks = asks_of(model, TEXTS)
        with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyError, match="in the middle"):
            if at == "hook":
                patched.setattr("qrnca_lens.engine.rows.mixed_values", fail)
            elif at == "objective":
                asks[3] = Ask(asks[3].tokens, fail, asks[3].scaled)
            else:
                patched.setattr(torch.autograd, "grad", fail)
            integrate_by_rows(task_of(model), asks)
        assert calls
        assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before
        assert first.requires_grad
        assert first.grad is None
    finally:
        first.requires_grad = grad


def test_a_batch_that_is_too_large_is_halved_and_the_work_goes_on() -> None:
    sizes = []

    def run(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return [item * 2 for item in items]

    assert [x for part in in_batches(range(11), 8, run) for x in part] == [2 * i for i in range(11)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    with pytest.raises(MemoryError):
        list(in_batches([1], 4, lambda _: (_ for _ in ()).throw(MemoryError())))  # type: ignore[arg-type,return-value]
    with pytest.raises(RuntimeError, match="else"):
        list(in_batches([1, 2], 2, lambda _: (_ for _ in ()).throw(RuntimeError("else"))))  # type: ignore[arg-type,return-value]
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_prompt_that_does_not_fit_goes_on_with_fewer_layers_at_once(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tried = model_of("llama"), []
    expected = attribute(model, TEXT, 40, steps=4)

    def small(task: PathTask, asks: Sequence[Ask], *, layers_at_once: int | None) -> list[PathIntegral]:
        tried.append((len(asks), layers_at_once))
        if len(asks) > 1 or layers_at_once != 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return integrate_by_rows(task, asks, layers_at_once=layers_at_once)

    monkeypatch.setattr("qrnca_lens.attribution.integrals.integrate_by_rows", small)
    found = attribute(model, [TEXT, TEXT], [40, 40], steps=4)
    assert all(relative(one.scores, expected.scores) < 1e-5 for one in found)
    halves = [None, 2, 1] if model.cfg.n_layers > 2 else [None, 1]
    assert tried == [(2, None), *[(1, layers) for layers in halves] * 2]

    def never(*_: object, **__: object) -> list[PathIntegral]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("qrnca_lens.attribution.integrals.integrate_by_rows", never)
    with pytest.raises(torch.OutOfMemoryError):
        attribute(model, TEXT, 40, steps=4)


def test_a_continuation_is_attributed_as_its_tokens_are_predicted(model_of: Callable[[str], Any]) -> None:
    """P of two tokens after a prompt, the prompt's last position scaled; against the plain path and by single tokens."""
    model = model_of("llama")
    prompt, aim = to_tokens(model, TEXT), Continuation((40, 57), "two")
    found, other = attribute(model, [TEXT, TEXTS[2]], [aim, OneToken(40, "one")], steps=4)
    text = torch.cat([prompt, torch.tensor([40])])
    plain = integrate_plainly(task_of(model), asked(text, aim.objective, reads=2))
    assert relative(found.scores, plain.scores) < 1e-5
    p = [model(ids[None])[0, -1].softmax(-1) for ids in (prompt, text)]
    assert found.probability == pytest.approx((p[0][40] * p[1][57]).item(), rel=1e-4)
    assert (found.target, found.target_ids, found.target_id, found.prompt) == ("two", (40, 57), 40, TEXT)
    assert relative(other.scores, attribute(model, TEXTS[2], 40, steps=4).scores) < 1e-5
    last = attribute(model, TEXT, aim, steps=4, positions=-1)  # of the token that is run after the prompt
    plain = integrate_plainly(task_of(model), asked(text, aim.objective, -1, reads=2))
    assert relative(last.scores, plain.scores) < 1e-5
    assert (found.positions, last.positions) == ("last", -1)
    assert "positions=-1" in repr(last)
    assert "positions" not in repr(found)
    choice = target_of(model, Prompt(TEXT, "B"))
    assert relative(attribute(model, TEXT, choice, steps=4).scores, attribute(model, TEXT, " B", steps=4).scores) < 1e-6
