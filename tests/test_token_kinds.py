"""Which kinds of tokens common neurons promote, against neurons of the same layers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import made

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data.stop_words import ALL_STOP_WORDS, STOP_WORDS
from qrnca_lens.models import load_model, target_id
from qrnca_lens.readout.promoted import strongest
from qrnca_lens.readout.token_kinds import KIND_COLUMNS, KINDS, _kind, common_token_test, vocabulary_kinds


def with_common(*common: tuple[int, int]) -> QRNeurons:
    """Four queries that have these neurons in common."""
    rows = [(query, *neuron, 1.0) for query in "abcd" for neuron in common]
    return made(rows, dict(zip("abcd", "xxyy", strict=True)), d_mlp=48)


def top_texts(model: Any, layer: int, k: int) -> list[list[str]]:
    """The `k` most promoted tokens of every neuron of a layer, without spaces."""
    with torch.no_grad():
        logits = model.unembed(model.ln_final(model.blocks[layer].mlp.W_out[None]))[0, :, : len(model.tokenizer)]
    return [[model.tokenizer.decode([i]).strip() for i in row] for row in logits.topk(k).indices.tolist()]


@pytest.fixture(scope="module")
def writers(folder_of: Callable[[str], Path]) -> Any:
    """A tiny Llama whose neurons (1, 5) and (2, 9) write " B" and (1, 6) writes ":"."""
    model = load_model(folder_of("llama"), device="cpu")
    for (layer, neuron), text in {(1, 5): " B", (2, 9): " B", (1, 6): ":"}.items():
        model.blocks[layer].mlp.W_out.data[neuron] = model.W_U[:, target_id(model, text)] / model.ln_final.w
    return model


def test_the_kind_of_a_text() -> None:
    kinds = {"B": 0, "E": None, "b": None, "A": 0, "a": 1, "The": 1, "les": 1, "это": 1, "في": 1, "の": 1, "的": 1}
    kinds |= {".": 2, "--": 2, "。": 2, "+=": 2, "a.": None, "": None, "March": None, "\ufffd": None, "<s>": None}
    for text, kind in kinds.items():
        assert _kind(text) == tuple(i == kind for i in range(3)), text
    assert set(STOP_WORDS) == {"en", "fr", "ru", "ar", "ja", "zh"}
    assert all(word == unicodedata.normalize("NFC", word.lower()).strip() for word in ALL_STOP_WORDS)


def test_the_vocabulary_s_kinds(model_of: Callable[[str], Any]) -> None:
    model = model_of("llama")
    kinds = vocabulary_kinds(model)
    assert kinds.shape == (len(model.tokenizer), 3) and kinds.sum(axis=1).max() == 1
    pieces = [model.tokenizer.convert_ids_to_tokens(i) for i in np.flatnonzero(kinds[:, 0]).tolist()]
    assert set(pieces) == {space + letter for space in ("", "Ġ") for letter in "ABCD"}
    assert kinds[target_id(model, ":"), 2]


def test_planted_letters_against_all_others_of_the_layer(writers: Any) -> None:
    """With every other neuron of the layer as a control."""
    found = common_token_test(writers, with_common((1, 5)), k=1, controls=47)
    assert list(found.columns) == KIND_COLUMNS and tuple(found["kind"]) == KINDS
    top = top_texts(writers, 1, 1)
    for kind, row in enumerate(found.itertuples(index=False)):
        hits = [_kind(text)[kind] for (text,) in top]
        assert (row.neurons, row.found, row.of, row.share) == (1, hits[5], 1, hits[5])
        assert found["random share"][kind] == pytest.approx((sum(hits) - hits[5]) / 47)
        assert row.p == pytest.approx(sum(hits) / 48 if hits[5] else 1.0, abs=0.02)
    assert found["found"].tolist() == [1, 0, 0]
    assert found["vocabulary share"].tolist() == vocabulary_kinds(writers).mean(axis=0).tolist()
    pd.testing.assert_frame_equal(found, common_token_test(writers, with_common((1, 5)), k=1, controls=47))


def test_controls_match_the_layers_of_the_common_neurons(writers: Any) -> None:
    """Two common neurons in layer 1 and one in layer 2: all 46 and 47 others, weighed 2 to 1."""
    common = [(1, 5), (1, 6), (2, 9)]
    found = common_token_test(writers, with_common(*common), k=2, controls=10_000)
    letters = np.array(
        [[[t in tuple("ABCD") for t in top] for top in top_texts(writers, layer, 2)] for layer in (1, 2)]
    ).mean(axis=2)
    ours = np.array([letters[layer - 1, index] for layer, index in common])
    assert found["found"][0] == 2 * ours.sum() >= 2 and found["of"].tolist() == [6] * 3
    others = [np.delete(letters[0], [5, 6]).mean(), np.delete(letters[1], 9).mean()]
    assert found["random share"][0] == pytest.approx((2 * others[0] + others[1]) / 3)
    assert found["found"][2] >= 1 and found["p"][2] < 1
    assert (found["p_corrected"] >= found["p"]).all() and found["p"][0] < 0.2


def test_random_neurons_are_not_told_apart(model_of: Callable[[str], Any]) -> None:
    generator, p = np.random.default_rng(0), []
    for _ in range(12):
        chosen = [(int(layer), int(index)) for layer, index in generator.integers(0, (3, 48), (6, 2))]
        p += common_token_test(model_of("llama"), with_common(*set(chosen)), controls=60)["p"].tolist()
    assert np.mean(np.array(p) < 0.05) < 0.15 and np.mean(p) > 0.4


def test_batches_of_neurons_make_no_difference(model_of: Callable[[str], Any]) -> None:
    model = model_of("gpt2")
    every = NeuronSet.of(*((layer, index) for layer in range(3) for index in range(80)))
    values, ids = strongest(model, every, 4)
    assert values.shape == ids.shape == (240, 8)
    for row in (0, 127, 128, 239):
        alone = strongest(model, NeuronSet((every.neurons[row],)), 4)
        torch.testing.assert_close(alone[0][0], values[row])
        assert torch.equal(alone[1][0], ids[row])


def test_nothing_common_and_bad_input(model_of: Callable[[str], Any]) -> None:
    none = common_token_test(model_of("llama"), made([("a", 0, 1, 1.0)], dict(zip("abcd", "xxyy", strict=True))))
    assert none[["neurons", "found", "of"]].to_numpy().sum() == 0
    assert none[["share", "random share", "p", "p_corrected"]].isna().all(axis=None)
    assert none["vocabulary share"].tolist() == vocabulary_kinds(model_of("llama")).mean(axis=0).tolist()
    with pytest.raises(ValueError, match=r"neuron L1\.N48 is outside the model"):
        common_token_test(model_of("llama"), with_common((1, 48)))
    with pytest.raises(ValueError, match="k must lie in 1 to 310, not 311"):
        common_token_test(model_of("llama"), with_common((1, 5)), k=311)
    with pytest.raises(ValueError, match="controls must be at least 1, not 0"):
        common_token_test(model_of("llama"), with_common((1, 5)), controls=0)
