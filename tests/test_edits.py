from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny import ENGINE_FAMILIES

from qrnca_lens.attribution import SlowPathWarning
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.editing import scale
from qrnca_lens.engine import edits as engine_edits
from qrnca_lens.engine.edits import Edit, read_edited
from qrnca_lens.models import to_tokens

TEXT = "Question: which letter is right? A. one B. two C. three D. four Answer:"
TEXTS = [TEXT, TEXT.replace("three", "three and a half"), "Answer:"]
EDITS = [
    [(NeuronSet.of((0, 3), (2, 1)), 0.0), (NeuronSet.of((1, 7)), 2.5), (NeuronSet(), 0.0), (NeuronSet.of((2, 40)), -1.0)],
    [(NeuronSet.of((2, 4)), 3.0), (NeuronSet.of((0, 5)), 0.0)],
    [],
]


def whole(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1]


def by_intervention(model: Any, text: str, edits: list[Edit], **where: Any) -> torch.Tensor:
    """The logits untouched and under every edit, by `scale` on the whole prompt."""
    rows = []
    for neurons, factor in [(NeuronSet(), 1.0), *edits]:
        with scale(model, neurons, factor, **where) if len(neurons) else nullcontext():
            rows.append(model(to_tokens(model, text)[None])[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_rows_equal_interventions_on_whole_prompts(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    found = read_edited(model, TEXTS, EDITS, [whole] * 3)
    assert [len(rows) for rows in found] == [5, 3, 1]
    for text, edits, rows in zip(TEXTS, EDITS, found, strict=True):
        assert torch.allclose(rows, by_intervention(model, text, edits), atol=1e-4)


def test_edits_at_all_positions(model_of: Callable[[str], Any]) -> None:
    model = model_of("mistral-window")
    found = read_edited(model, TEXTS, EDITS, [whole] * 3, positions="all")
    for text, edits, rows in zip(TEXTS, EDITS, found, strict=True):
        assert torch.allclose(rows, by_intervention(model, text, edits, positions="all"), atol=1e-4)


def test_rows_run_in_pieces(model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = read_edited(model_of("llama"), TEXTS, EDITS, [whole] * 3)
    monkeypatch.setattr(engine_edits, "_ROWS", 2)
    for rows, expected in zip(read_edited(model_of("llama"), TEXTS, EDITS, [whole] * 3), wanted, strict=True):
        assert torch.allclose(rows, expected, atol=1e-5)


def test_a_hook_the_rows_cannot_see_takes_the_whole_prompt(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")

    def by_absolute_position(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, 5:] *= 0.5
        return tensor

    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", by_absolute_position)]):
        with pytest.warns(SlowPathWarning, match="for 2 of 3 prompts"):  # "Answer:" has no position 5
            found = read_edited(model, TEXTS, EDITS, [whole] * 3)
        for text, edits, rows in zip(TEXTS, EDITS, found, strict=True):
            assert torch.allclose(rows, by_intervention(model, text, edits), atol=1e-4)


def test_bad_edits(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="is outside the model"):
        read_edited(model_of("llama"), [TEXT], [[(NeuronSet.of((0, 48)), 0.0)]], [whole])
    with pytest.raises(ValueError, match="factor"):
        read_edited(model_of("llama"), [TEXT], [[(NeuronSet.of((0, 4)), float("nan"))]], [whole])
    assert read_edited(model_of("llama"), [], [], []) == []
