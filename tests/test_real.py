"""What is shown on a real language model, SmolLM2-135M-Instruct (`make real-model` brings it, `make test-real` runs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from real_model import REAL_MODEL, SHA256
from transformers import AutoModelForCausalLM

import qrnca_lens as ql
from qrnca_lens.core.rules import quadrature
from qrnca_lens.engine.asks import asked, probability_of
from qrnca_lens.engine.integral import PathTask, integrate_by_rows
from qrnca_lens.engine.plain import integrate_plainly
from qrnca_lens.models import is_hooked_transformer, reader_of
from qrnca_lens.models.origin import origin_of

pytestmark = pytest.mark.real
PROMPTS = (
    "The capital of France is",
    "The chemical symbol for gold is",
    "Question: 12 + 34 = 46\n\nWhat is  naïve?\nAnswer:",
)


def test_the_file_loads_as_a_hooked_transformer_with_the_logits_of_transformers(real: Any, tmp_path: Path) -> None:
    assert is_hooked_transformer(real)
    assert (real.cfg.model_name, real.cfg.n_layers, real.cfg.d_mlp, real.cfg.d_vocab) == (REAL_MODEL.name, 30, 1536, 49152)
    assert origin_of(real) == {"file": REAL_MODEL.name, "sha256": SHA256}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=str(REAL_MODEL), attn_implementation="eager")
    for prompt in PROMPTS:
        ids = reader_of(real).tokens(prompt)[None]
        with torch.no_grad():
            wanted = theirs(ids).logits
        assert (real(ids) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_it_knows_what_its_makers_say(real: Any) -> None:
    for prompt, answer in zip(PROMPTS, (" Paris", " Au"), strict=False):
        p = real(reader_of(real).tokens(prompt)[None])[0, -1].softmax(-1)
        assert real.tokenizer.decode([p.argmax().item()]) == answer and p.max() > 0.5


def test_texts_are_read_as_the_model_reads_them(real: Any) -> None:
    for prompt in PROMPTS:
        ids = reader_of(real).tokens(prompt)
        assert ids.tolist() == real.to_tokens(prompt)[0].tolist()
        assert real.tokenizer.decode(ids) == prompt
    assert reader_of(real).pieces(reader_of(real).tokens("is 1234")) == ["is", " ", "1", "2", "3", "4"]
    assert "<|im_start|>" in real.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_the_engine_attributes_as_the_plain_path_does(real: Any) -> None:
    task = PathTask(real, "up", quadrature("right", 2).with_ends())
    ask = asked(reader_of(real).tokens(PROMPTS[0]), probability_of(reader_of(real).token(" Paris")))
    (fast,), plain = integrate_by_rows(task, [ask]), integrate_plainly(task, ask)
    assert fast.scores.shape == (30, 1536)
    assert (fast.scores - plain.scores).abs().max() <= 1e-4 * plain.scores.abs().max()
    assert fast.untouched == pytest.approx(plain.untouched, rel=1e-4)
    found = ql.attribute(real, PROMPTS[0], " Paris", steps=2, site="up")
    assert torch.allclose(found.scores, fast.scores, atol=1e-5 * float(plain.scores.abs().max()))
