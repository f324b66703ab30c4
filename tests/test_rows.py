"""Scaling at "last" in padded batches: every row of a batch gives what the row gives alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from qrnca_lens.attribution import attribute
from qrnca_lens.attribution.letters import letter_probabilities, option_tokens
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import Prompt
from qrnca_lens.editing import enhance, suppress
from qrnca_lens.engine.activity import token_activations
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.engine.padding import row_ends
from qrnca_lens.models import is_hooked_transformer, to_tokens

CHOSEN = NeuronSet.of(*[(layer, i) for layer in range(3) for i in range(0, 48, 3)])
TEXTS = ["Question: which letter is right? A. one B. two Answer:", "Answer:", "Which letter is right? Answer:"]
HOOKED = ["llama", "gpt2", "mistral-window"]
BRIDGES = ["opt", "olmo2", "mpt"]


def rows_of(model: Any, side: str, pad: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts as one padded batch, and its mask."""
    rows = [to_tokens(model, text) for text in TEXTS]
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(0, len(tokens)) if side == "right" else slice(longest - len(tokens), longest)
        ids[row, where], mask[row, where] = tokens, 1
    return ids, mask


def alone(model: Any) -> list[torch.Tensor]:
    return [model(to_tokens(model, text)[None])[0, -1] for text in TEXTS]


def check(model: Any, logits: torch.Tensor, mask: torch.Tensor, wanted: list[torch.Tensor]) -> None:
    for row, (found, real, one) in enumerate(zip(logits, mask, wanted, strict=True)):
        assert torch.allclose(found[real.nonzero().max()], one, atol=1e-4), (row, TEXTS[row])


@contextmanager
def tokenizer_of(model: Any, **changes: Any) -> Iterator[None]:
    """The model with another tokenizer for a while."""
    name = "_tokenizer" if hasattr(model, "_tokenizer") else "tokenizer"
    before = getattr(model, name)
    other = copy.deepcopy(before)
    for key, value in changes.items():
        setattr(other, key, value)
    setattr(model, name, other)
    try:
        yield
    finally:
        setattr(model, name, before)


@pytest.mark.parametrize("family", [*HOOKED, *BRIDGES])
def test_each_row_of_a_padded_batch_is_scaled_at_its_own_last_token(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    untouched = alone(model)
    with suppress(model, CHOSEN):
        wanted = alone(model)
        assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(wanted, untouched, strict=True))
        for side in ("right", "left"):
            ids, mask = rows_of(model, side)
            check(model, model(ids, attention_mask=mask), mask, wanted)
            check(model, model.run_with_cache(ids, attention_mask=mask)[0], mask, wanted)
            check(model, model.run_with_hooks(ids, attention_mask=mask, fwd_hooks=[]), mask, wanted)
        ids, mask = rows_of(model, "right")
        check(model, model(ids), mask, wanted)
        check(model, model.run_with_cache(ids)[0], mask, wanted)
        check(model, model(TEXTS), mask, wanted)
        with suppress(model, Neuron(1, 1)):
            both = alone(model)
            check(model, model(ids), mask, both)
        check(model, model(ids), mask, wanted)
    assert all(torch.equal(a, b) for a, b in zip(alone(model), untouched, strict=True))
    assert not {"forward", "generate"} & (set(vars(model)) | set(vars(getattr(model, "original_model", model))))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_strings_padded_on_the_left(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    with tokenizer_of(model, padding_side="left"), suppress(model, CHOSEN):
        _, mask = rows_of(model, "left")
        check(model, model(TEXTS), mask, alone(model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "olmo2"])
@pytest.mark.parametrize("pad_token", ["</s>", "<s>", None])
def test_padding_that_may_be_text_is_refused_unless_a_mask_tells(
    family: str, pad_token: str | None, model_of: Callable[[str], Any]
) -> None:
    model = model_of(family)
    with tokenizer_of(model, pad_token=pad_token):
        ids, mask = rows_of(model, "right", pad=0 if pad_token == "<s>" else 1)
        with suppress(model, CHOSEN):
            wanted = alone(model)
            with pytest.raises(
                ValueError, match=r"row 1 ends in .*so where the row ends cannot be known; pass attention_mask"
            ):
                model(ids)
            check(model, model(ids, attention_mask=mask), mask, wanted)
            left, left_mask = rows_of(model, "left", pad=1)
            check(model, model(left, attention_mask=left_mask), left_mask, wanted)
            ended = torch.cat([to_tokens(model, TEXTS[0]), torch.tensor([1])])[None]
            assert torch.allclose(model(ended), model(ended, attention_mask=torch.ones_like(ended)), atol=1e-5)
        with suppress(model, CHOSEN, positions="all"):
            assert model(ids).isfinite().all()
        assert model(ids).isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "olmo2"])
@pytest.mark.parametrize("pad", [0, 1])
def test_padding_with_bos_or_eos_beside_a_padding_token_is_refused_unless_a_mask_tells(
    family: str, pad: int, model_of: Callable[[str], Any]
) -> None:
    model = model_of(family)
    ids, mask = rows_of(model, "right", pad=pad)
    text = to_tokens(model, TEXTS[0])
    with suppress(model, CHOSEN):
        wanted = alone(model)
        for batch in (ids, ids[1:2], torch.stack([text, torch.cat([text[:-1], torch.tensor([pad])])])):
            with pytest.raises(ValueError, match=r"row . ends in .*where the row ends cannot be known; pass attention_mask"):
                model(batch)
        check(model, model(ids, attention_mask=mask), mask, wanted)
        # texts that end in the token themselves, and rows that the padding token tells apart
        ended = torch.cat([text, torch.tensor([pad])])[None]
        one = model(ended, attention_mask=torch.ones_like(ended))[0, -1]
        for rows in (1, 2):
            assert torch.allclose(model(ended.expand(rows, -1))[:, -1], one.expand(rows, -1), atol=1e-4)
        short = torch.full_like(ended, 2)
        short[0, : mask[1].sum()] = ids[1, : mask[1].sum()]
        both, both_mask = torch.cat([ended, short]), torch.ones(2, ended.shape[1], dtype=torch.long)
        both_mask[1, mask[1].sum() :] = 0
        check(model, model(both), both_mask, [one, wanted[1]])


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_several_rows_of_a_pass_that_is_not_watched_are_refused(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    inner = model if is_hooked_transformer(model) else model.original_model
    before = inner.forward
    ids, mask = rows_of(model, "right")
    one = to_tokens(model, TEXTS[0])[None]

    def logits(given: Any) -> torch.Tensor:
        return getattr(given, "logits", given)

    with suppress(model, CHOSEN):
        for masked in ({}, {"attention_mask": mask}):
            with pytest.raises(ValueError, match=r"3 rows pass .*taken before the block.*call the model itself"):
                before(ids, **masked)
        assert torch.allclose(logits(before(one)), model(one), atol=1e-4)
        check(model, logits(inner.forward(ids, attention_mask=mask)), mask, alone(model))
        with pytest.raises(ValueError, match="3 rows pass a part of the model"):
            model.blocks[0](torch.zeros(3, 5, model.cfg.d_model))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_rows_without_an_end_are_refused(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    ids, mask = rows_of(model, "right")
    with suppress(model, CHOSEN):
        with pytest.raises(ValueError, match="row 1 is all padding"):
            model(ids, attention_mask=mask * torch.tensor([[1], [0], [1]]))
        with pytest.raises(ValueError, match="row 2 is all padding"):
            model(torch.cat([ids[:2], torch.full_like(ids[:1], 2)]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "olmo2"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_from_several_prompts(family: str, use_cache: bool, model_of: Callable[[str], Any]) -> None:
    model, texts = model_of(family), TEXTS[:2]
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "return_type": "tokens"}
    how |= {"use_past_kv_cache": use_cache, "stop_at_eos": False}
    for pad_token in ("<pad>", "</s>"):
        with tokenizer_of(model, pad_token=pad_token), enhance(model, CHOSEN, 3.0):
            together = model.generate(texts, **how)[:, -4:]
            each = [model.generate(to_tokens(model, text)[None], **how)[0, -4:] for text in texts]
            steps = to_tokens(model, texts[0])[None]
            if not use_cache:  # every step by hand, its prompt's last position scaled
                for _ in range(4):
                    steps = torch.cat([steps, model(steps)[:, -1:].argmax(-1)], dim=1)
                assert torch.equal(each[0], steps[0, -4:])
        assert torch.equal(together, torch.stack(each))


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_generation_goes_on_from_text_that_looks_like_padding(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    how: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with tokenizer_of(model, pad_token="</s>"), enhance(model, CHOSEN, 3.0):
        ids = torch.cat([to_tokens(model, TEXTS[0]), torch.tensor([1, 1])])[None]
        steps = ids
        for _ in range(3):
            steps = torch.cat([steps, model(steps, attention_mask=torch.ones_like(steps))[:, -1:].argmax(-1)], dim=1)
        if family == "olmo2":  # a HookedTransformer masks the last tokens of such a prompt of its own accord
            assert torch.equal(model.generate(ids, use_past_kv_cache=False, **how), steps)
        assert model.generate(ids.expand(2, -1), use_past_kv_cache=False, **how).shape == (2, ids.shape[1] + 3)


def test_embeddings_and_residuals_keep_the_last_position(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    ids = to_tokens(model, TEXTS[0])[None]
    with suppress(model, NeuronSet.of((1, 3), (2, 4))):
        resid = model(ids, stop_at_layer=1)
        assert torch.allclose(model(resid, start_at_layer=1), model(ids), atol=1e-5)
        model(*rows_of(model, "right")[:1])  # a padded pass leaves nothing behind
        assert torch.allclose(model(resid, start_at_layer=1), model(ids), atol=1e-5)
    bridge = model_of("olmo2")
    with suppress(bridge, CHOSEN):
        ids = to_tokens(bridge, TEXTS[0])[None]
        assert torch.allclose(bridge(bridge.embed(ids)), bridge(ids), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_package_reads_every_prompt_at_its_own_end_under_an_edit(family: str, model_of: Callable[[str], Any]) -> None:
    """Also with a tokenizer that pads with its EOS, and prompts that end in it."""
    model = model_of(family)
    with tokenizer_of(model, pad_token="</s>"):
        texts = [f"{text}</s>" for text in TEXTS] + TEXTS
        edits, reading = [(NeuronSet.of((2, 1)), 0.0)], [lambda logits: logits[:, -1]]
        with suppress(model, CHOSEN):
            together = read_edited(model, texts, [edits] * len(texts), reading * len(texts))
            for rows, text in zip(together, texts, strict=True):
                assert torch.allclose(rows, read_edited(model, [text], [edits], reading)[0], atol=1e-4)
            for (_, values), text in zip(token_activations(model, texts, Neuron(1, 3)), texts, strict=True):
                assert torch.allclose(values, token_activations(model, [text], Neuron(1, 3))[0][1], atol=1e-5)
                assert values[-1] == 0
            prompts = [Prompt(text, "A") for text in texts]
            each = torch.cat([letter_probabilities(model, [prompt]) for prompt in prompts])
            assert torch.allclose(letter_probabilities(model, prompts), each, rtol=1e-3)
            p = letter_probabilities(model, [Prompt(f"{TEXTS[0]}</s></s>", "A")])[0, 0].item()
            letter = option_tokens(model, f"{TEXTS[0]}</s></s>").id_of("A")
            assert attribute(model, f"{TEXTS[0]}</s></s>", letter, steps=2).probability == pytest.approx(p, rel=1e-4)


def test_watching_leaves_no_trace_after_an_exception(model_of: Callable[[str], Any]) -> None:
    for family in ("llama", "olmo2"):
        model = model_of(family)
        with pytest.raises(RuntimeError, match="stop"), row_ends(model), row_ends(model):
            raise RuntimeError("stop")
        assert not {"forward", "generate"} & (set(vars(model)) | set(vars(getattr(model, "original_model", model))))
