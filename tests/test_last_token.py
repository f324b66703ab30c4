from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny import ENGINE_FAMILIES

from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.editing import scale
from qrnca_lens.engine.last_token import LastToken, factors_of, scaled_logits
from qrnca_lens.models import to_tokens

TEXT = "Question: which letter is right? A. one B. two C. three D. four Answer:"
EDITS = [(NeuronSet.of((0, 3), (2, 1)), 0.0), (NeuronSet.of((1, 7)), 2.5), (NeuronSet(), 0.0), (NeuronSet.of((2, 40)), -1.0)]


@pytest.mark.parametrize("family", [*ENGINE_FAMILIES, "opt"])
def test_rows_equal_interventions_on_the_whole_prompt(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    last, ids = LastToken(model, TEXT), to_tokens(model, TEXT)[None]
    rows = last.scaled(factors_of(model, EDITS), batch=3)
    assert torch.allclose(last.logits, model(ids)[0, -1], atol=1e-4)
    for row, (neurons, factor) in zip(rows, EDITS, strict=True):
        if len(neurons):
            with scale(model, neurons, factor):
                assert torch.allclose(row, model(ids)[0, -1], atol=1e-4)
        else:
            assert torch.allclose(row, last.logits, atol=1e-4)


@pytest.mark.parametrize("family", [*ENGINE_FAMILIES, "opt"])
def test_prompts_of_different_lengths_run_together(family: str, model_of: Callable[[str], Any]) -> None:
    model, texts = model_of(family), [TEXT, TEXT.replace("three", "three and a half"), "Answer:"]
    found = scaled_logits(model, texts, factors_of(model, EDITS))
    assert found.shape[:2] == (3, len(EDITS))
    for text, rows in zip(texts, found, strict=True):
        for row, (neurons, factor) in zip(rows, EDITS, strict=True):
            with scale(model, neurons, factor) if len(neurons) else nullcontext():
                assert torch.allclose(row, model(to_tokens(model, text)[None])[0, -1], atol=1e-4)


def test_a_hook_the_rows_cannot_see_takes_the_whole_prompt(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")

    def by_absolute_position(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, 5:] *= 0.5
        return tensor

    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", by_absolute_position)]):
        row = LastToken(model, TEXT).scaled(factors_of(model, EDITS[:1]))[0]
        with scale(model, *EDITS[0]):
            wanted = model(to_tokens(model, TEXT)[None])[0, -1]
    assert torch.allclose(row, wanted, atol=1e-4)


def test_bad_rows(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="no layer to scale"):
        LastToken(model_of("llama"), TEXT).scaled({})
    with pytest.raises(ValueError, match="is outside the model"):
        factors_of(model_of("llama"), [(NeuronSet.of((0, 48)), 0.0)])
