"""Targets by themselves: logits worked out by hand, and on a model what the model itself says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrnca_lens.attribution.options import letter_probabilities, option_tokens, target_of
from qrnca_lens.attribution.targets import Choice, Continuation, OneToken, Target, is_right, likeliest
from qrnca_lens.data import LETTERS, Prompt
from qrnca_lens.models import ModelError, OptionTokens, target_id, to_tokens

ONE, TWO = [0.5, 0.25, 0.125, 0.125], [0.1, 0.6, 0.1, 0.2]
OPTIONS = OptionTokens(("x", "y", "z"), (1, 2, 3), True)


def logits_of(*positions: list[float]) -> torch.Tensor:
    """Logits [read, token] of these probabilities; a constant more changes nothing."""
    return torch.tensor(positions).log() + 3


@pytest.mark.parametrize(
    ("target", "positions", "probability", "right", "name"),
    [
        (OneToken(1, " B"), [ONE], 0.25, False, " B"),
        (OneToken(0, " A"), [ONE], 0.5, True, " A"),
        (Choice(OPTIONS, 0), [ONE], 0.25, True, "x"),  # the likeliest of the options, though not of all tokens
        (Choice(OPTIONS, 2), [ONE], 0.125, False, "z"),
        (Continuation((0, 1), "one two"), [ONE, TWO], 0.5 * 0.6, True, "one two"),
        (Continuation((0, 3), "one"), [ONE, TWO], 0.5 * 0.2, False, "one"),
        (Continuation((1, 1), "two"), [ONE, TWO], 0.25 * 0.6, False, "two"),
    ],
)
def test_by_hand(target: Target, positions: list[list[float]], probability: float, right: bool, name: str) -> None:
    logits = logits_of(*positions)
    assert (target.name, target.reads) == (name, len(positions))
    assert target.objective(logits).item() == pytest.approx(probability, rel=1e-6)
    assert target.verdict(logits).item() is right
    rows = torch.stack([logits, torch.zeros_like(logits)])[:, None]
    assert target.objective(rows).tolist() == [
        [pytest.approx(probability, rel=1e-6)],
        [pytest.approx(0.25 ** len(positions))],
    ]
    assert target.verdict(rows)[0].tolist() == [right]
    assert target.objective(logits.bfloat16()).dtype == torch.float32


def test_the_options_of_a_choice() -> None:
    choice = Choice(OPTIONS, 1)
    assert choice.names == ("x", "y", "z")
    assert choice.probabilities(logits_of(ONE)).tolist() == pytest.approx(ONE[1:], rel=1e-6)


def test_the_answer_from_the_options_probabilities() -> None:
    """What tables keep gives the verdict of the target; of equal options the first is the answer."""
    p = torch.tensor([[0.25, 0.5, 0.125], [0.125, 0.25, 0.25], [0.25, 0.125, 0.125]])
    assert likeliest(p).tolist() == [1, 1, 0]
    assert is_right(p, torch.tensor([1, 2, 0])).tolist() == [True, False, True]
    logits = torch.cat([torch.ones(3, 1), p], dim=1).log()[:, None]
    for right in range(3):
        assert is_right(p, right).tolist() == Choice(OPTIONS, right).verdict(logits).tolist()


def test_what_is_no_target_is_refused() -> None:
    for right in (-1, 3):
        with pytest.raises(ValueError, match=f"there are options 0 to 2, so none is right with {right}"):
            Choice(OPTIONS, right)
    with pytest.raises(ValueError, match="the continuation '' has no tokens"):
        Continuation((), "")
    for target, count in ((OneToken(1, " B"), 2), (Choice(OPTIONS, 0), 3), (Continuation((0, 1), "ab"), 1)):
        for ask in (target.objective, target.verdict):
            with pytest.raises(ValueError, match=f"is read at {target.reads} positions; these logits are of {count}"):
                ask(torch.zeros(5, count, 4))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30), count=st.integers(1, 4))
def test_targets_agree_where_they_mean_the_same(seed: int, scale: float, count: int) -> None:
    logits = scale * torch.randn(3, count, 7, generator=torch.Generator().manual_seed(seed))
    ids = tuple(logits[0].argmax(-1).tolist())
    options = OptionTokens(tuple("abcd"), (6, 2, 0, 4), False)
    for token in range(7):
        one, last = OneToken(token, "t"), logits[:, :1]
        alone = Continuation((token,), "t")
        assert torch.equal(alone.objective(last), one.objective(last))
        assert torch.equal(alone.verdict(last), one.verdict(last))
        if token in options.ids:
            choice = Choice(options, options.ids.index(token))
            assert torch.equal(choice.objective(last), one.objective(last))
            assert not (one.verdict(last) & ~choice.verdict(last)).any()
    both = torch.stack([OneToken(token, "t").objective(logits[:, [k]]) for k, token in enumerate(ids)])
    assert torch.allclose(Continuation(ids, "t").objective(logits), both.prod(0), rtol=1e-5)
    assert Continuation(ids, "t").verdict(logits)[0].item()


def test_the_gradient_of_a_continuation() -> None:
    """d log P / d logits is 1 at each token less P of every token at its position."""
    logits = logits_of(ONE, TWO).requires_grad_(True)
    Continuation((2, 3), "t").objective(logits).log().backward()
    wanted = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]]) - torch.tensor([ONE, TWO])
    assert logits.grad is not None
    assert torch.allclose(logits.grad, wanted, atol=1e-6)


def test_targets_on_a_model(model_of: Callable[[str], Any]) -> None:
    model, prompt = model_of("llama"), Prompt("Which letter is right?\nAnswer:", "C")
    tokens = to_tokens(model, prompt.text)
    logits = model(tokens[None])
    choice = target_of(model, prompt)
    assert choice == Choice(option_tokens(model, prompt.text), 2)
    assert isinstance(choice, Choice)
    assert (choice.names, choice.name) == (LETTERS, "C")
    assert torch.allclose(choice.probabilities(logits[:, -1:]), letter_probabilities(model, [prompt]), rtol=1e-4)
    assert target_of(model, " A") == OneToken(target_id(model, " A"), " A")
    assert target_of(model, target_id(model, " A")) == OneToken(target_id(model, " A"), " A")
    with pytest.raises(ModelError, match="'xylophone' is not one token"):
        target_of(model, "xylophone")
    said = model.generate(tokens[None], max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)[0]
    continuation = Continuation(tuple(said[-3:].tolist()), "said")
    last = model(said[None, :-1])[:, -3:]
    each = [model(said[None, : len(said) - k])[0, -1].softmax(-1)[said[len(said) - k]].item() for k in (3, 2, 1)]
    assert continuation.objective(last).item() == pytest.approx(each[0] * each[1] * each[2], rel=1e-4)
    assert continuation.verdict(last).item()
