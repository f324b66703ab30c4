"""Overlap, permutation tests, promoted tokens and their figures, on made-up results with numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations as orders
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.io
import pytest
import torch
from handmade import Row, by_hand, made
from transformers import AutoModelForCausalLM

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.localization import (
    common_locations,
    concentration_test,
    group_heatmap,
    jaccard,
    layer_counts,
    layer_test,
    mean_overlap,
    overlap,
    overlap_rates,
    overlap_test,
)
from qrnca_lens.localization.shuffles import label_chunks
from qrnca_lens.localization.significance import TEST_COLUMNS, holm
from qrnca_lens.models import load_model, target_id
from qrnca_lens.readout.promoted import promoted_tokens, read_tokens, visible_token
from qrnca_lens.views.plots import figures as plots
from qrnca_lens.views.plots import localization as figures

TESTS = [overlap_test, concentration_test, layer_test]


def planted(regions: bool, n: int = 20, seed: int = 0) -> QRNeurons:
    """Three groups of `n` queries of six neurons each: from 20 neurons of the group's own layer, or from all 60."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    group_of = {}
    for i in range(3 * n):
        query, layer = f"q{i}", i % 3
        group_of[query] = f"g{layer}"
        for neuron in generator.choice(20, 6, replace=False):
            at = layer if regions else int(generator.integers(3))
            rows.append((query, at, int(neuron), float(generator.uniform(1, 2))))
    return made(rows, group_of, d_mlp=20)


def test_overlap_is_the_share_of_the_rows_set() -> None:
    shares = overlap(by_hand())
    wanted = pd.DataFrame({"x": [1, 1 / 2, np.nan], "y": [1 / 3, 1, np.nan], "z": [0, 0, np.nan]}, index=["x", "y", "z"])
    pd.testing.assert_frame_equal(shares, wanted, check_names=False)
    assert (shares.index.name, shares.columns.name) == ("group", "other group")


def test_the_mean_overlap_by_hand() -> None:
    assert mean_overlap(by_hand()) == pytest.approx((1 / 3 + 0 + 1 / 2 + 0) / 4)  # z has no set, but is another group
    assert mean_overlap(by_hand(), ["a", "d"]) == pytest.approx((1 / 2 + 0 + 1 / 2 + 0) / 4)
    assert mean_overlap(by_hand(), ["b", "c", "c"]) == 0.0


def test_jaccard_by_hand_and_symmetric() -> None:
    index = jaccard(by_hand())
    assert index.loc["x", "y"] == pytest.approx(1 / 4)
    assert index.loc["z"].isna().all()
    assert index["z"].isna().all()
    for seed in range(3):
        both = jaccard(planted(regions=False, n=4, seed=seed)).to_numpy()
        assert np.array_equal(both, both.T)
        assert np.diag(both).tolist() == [1, 1, 1]


def test_overlap_agrees_with_sets() -> None:
    located = planted(regions=False, n=3)
    shares, index = overlap(located), jaccard(located)
    for a, b in orders(located.groups, 2):
        mine, theirs = located.for_group(a), located.for_group(b)
        assert shares.loc[a, b] == pytest.approx(len(mine & theirs) / len(mine))
        assert index.loc[a, b] == pytest.approx(len(mine & theirs) / len(mine | theirs))


def test_common_neurons_by_layer() -> None:
    found = common_locations(by_hand())
    assert found[["layer", "neurons", "share"]].to_dict("list") == {
        "layer": [0, 1, 2],
        "neurons": [0, 0, 1],
        "share": [0, 0, 1],
    }
    assert found[["clustered", "expected"]].to_dict("list") == {"clustered": [2, 2, 1], "expected": [0.4, 0.4, 0.2]}
    none = common_locations(planted(regions=False, n=4))
    assert none["neurons"].sum() == none["share"].sum() == 0


def test_the_observed_statistics_are_those_of_the_tables() -> None:
    located = planted(regions=False, n=5)
    shares = overlap(located).to_numpy()
    off_diagonal = (shares.sum(axis=1) - 1) / 2
    assert overlap_test(located, 10)["observed"].tolist() == pytest.approx(off_diagonal.tolist())
    found = concentration_test(located, 10, bins=7)
    for group, observed in zip(found["group"], found["observed"], strict=True):
        cells = group_heatmap(located, group, bins=7).values
        assert observed == pytest.approx(((cells / cells.sum()) ** 2).sum())


def test_concentration_by_hand() -> None:
    located = by_hand()
    found = concentration_test(located, 20, bins=10).set_index("group")
    once, often = log(6 / 2), log(6 / 4)  # (0, 1) is in three of six clusters
    x = np.array([4 / 6 * often, 1 / 6 * once, 1 / 2 * once])
    y = np.array([(3 / 4 + 2 / 5) * often, 2 / 5 * once])
    assert found.loc["x", "observed"] == pytest.approx((x**2).sum() / x.sum() ** 2)
    assert found.loc["y", "observed"] == pytest.approx((y**2).sum() / y.sum() ** 2)
    assert found.loc["z", ["observed", "p", "p_corrected"]].isna().all()
    assert found["queries"].tolist() == [2, 2, 2]


def test_a_shuffle_equals_a_result_with_other_labels() -> None:
    located = planted(regions=False, n=4)
    number = {group: i for i, group in enumerate(located.groups)}
    labels = located.queries["group"].map(number).to_numpy(dtype=int)
    (true, shuffled), chunks = label_chunks(located, 1, 5, 10), {}
    assert true[0].tolist() == labels.tolist()
    names = dict(zip(located.queries["query"], (located.groups[i] for i in shuffled[0]), strict=True))
    dealt = QRNeurons(
        located.clusters.assign(group=located.clusters["query"].map(names)),
        located.queries.assign(group=located.queries["query"].map(names)),
        located.config,
        located.model,
    )
    for test in TESTS:
        chunks[test] = test(located, 1, seed=5).set_index("group")["permuted"]
        wanted = test(dealt, 1).set_index("group")["observed"]
        assert chunks[test].to_dict() == pytest.approx(wanted.to_dict())


def test_shuffles_keep_group_sizes_and_do_not_depend_on_blocks() -> None:
    located = made([], dict(zip("abcdefghij", "xxxxxyyyzz", strict=True)))
    whole, pieces = (np.concatenate(list(label_chunks(located, 9, 1, chunk))) for chunk in (9, 2))
    assert np.array_equal(whole, pieces)
    assert whole.shape == (10, 10)
    assert np.array_equal(whole[0], np.repeat([0, 1, 2], [5, 3, 2]))
    assert all(np.bincount(row).tolist() == [5, 3, 2] for row in whole)


@pytest.mark.parametrize("test", TESTS)
def test_planted_regions_are_found(test: Callable[..., pd.DataFrame]) -> None:
    found = test(planted(regions=True), 200, seed=1)
    assert list(found.columns) == TEST_COLUMNS
    assert found["p"].tolist() == pytest.approx([1 / 201] * 3)
    assert found["p_corrected"].tolist() == pytest.approx([3 / 201] * 3)
    outside = found["observed"] < found["low"] if test is overlap_test else found["observed"] > found["high"]
    assert outside.all()
    assert (found["low"] <= found["permuted"]).all()
    assert (found["permuted"] <= found["high"]).all()
    pd.testing.assert_frame_equal(found, test(planted(regions=True), 200, seed=1))


@pytest.mark.parametrize("test", TESTS)
def test_without_regions_p_is_spread(test: Callable[..., pd.DataFrame]) -> None:
    p = np.concatenate([test(planted(regions=False, seed=seed), 100, seed=seed)["p"] for seed in range(20)])
    assert 0.35 < p.mean() < 0.65
    assert (p < 0.05).mean() < 0.15
    assert p.min() < 0.3
    assert p.max() > 0.7


def test_identical_queries_are_never_significant() -> None:
    group_of = {f"q{i}": f"g{i % 2}" for i in range(8)}
    same = made([(query, 0, 1, 1.0) for query in group_of], group_of, common_share=1.0)
    assert overlap_test(same, 20)["p"].tolist() == [1.0, 1.0]
    assert concentration_test(same, 20)["p"].isna().all()  # a neuron of every cluster has negative naica
    halved = made([(query, 0, i % 4 // 2, 1.0) for i, query in enumerate(group_of)], group_of, common_share=1.0)
    assert overlap_test(halved, 20)["p"].tolist() == [1.0, 1.0]
    assert concentration_test(halved, 20)["p"].tolist() == [1.0, 1.0]  # two equal cells: nothing is less concentrated


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, np.nan])).tolist() == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("test", TESTS)
def test_the_tests_refuse_what_they_cannot_answer(test: Callable[..., pd.DataFrame]) -> None:
    alone = made([("a", 0, 1, 1.0)], {"a": "x", "b": "x"})
    with pytest.raises(ValueError, match="needs at least 2 groups; there are 1"):
        test(alone)
    with pytest.raises(ValueError, match="permutations must be at least 1, not 0"):
        test(by_hand(), 0)


def test_bins_are_checked() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        concentration_test(by_hand(), bins=0)


def test_a_result_without_any_qr_neuron() -> None:
    empty = made([], dict(zip("abcd", "xxyy", strict=True)))
    assert overlap(empty).isna().all(axis=None)
    for test in TESTS:
        assert test(empty, 5)["p"].isna().all()
    assert len(figures.layer_distribution(empty).data) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_promoted_tokens_are_the_rows_of_w_out_in_the_vocabulary(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    neurons = NeuronSet.of((2, 7), (0, 3), (2, 40))
    found = promoted_tokens(model, neurons, k=4)
    assert list(zip(found["layer"], found["neuron"], found["rank"], strict=True)) == [
        (n.layer, n.index, r) for n in neurons for r in (1, 2, 3, 4)
    ]
    vocabulary = len(model.tokenizer)
    with torch.no_grad():
        row = model.blocks[2].mlp.W_out[7]
        assert row.shape == (32,)
        logits, zero = (model.unembed(model.ln_final(v[None, None]))[0, 0, :vocabulary] for v in (row, 0 * row))
    best = found.head(4)
    high, low = (logits - zero).topk(4), (zero - logits).topk(4)
    assert best["promoted_logit"].tolist() == pytest.approx(high.values.tolist(), rel=1e-4)
    assert best["suppressed_logit"].tolist() == pytest.approx((-low.values).tolist(), rel=1e-4)
    spelled = [model.tokenizer.decode([i]).replace(" ", "▁") for i in high.indices.tolist()]
    pieces = model.tokenizer.convert_ids_to_tokens(high.indices.tolist())
    assert all(shown in pair for shown, *pair in zip(best["promoted"], spelled, pieces, strict=True))
    if family == "llama":
        assert zero.abs().max() == 0
        scaled = torch.nn.functional.rms_norm(row, (32,), model.ln_final.w, model.cfg.eps) @ model.W_U
        assert logits.tolist() == pytest.approx(scaled[:vocabulary].tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_norm_after_the_mlp_lies_between_a_neuron_and_the_tokens(
    family: str, model_of: Callable[[str], Any], folder_of: Callable[[str], Path]
) -> None:
    """Against the weights of transformers: W_out, post-MLP norm, final norm, head; and the MLP's input norm, if any."""
    model, hf = model_of(family), AutoModelForCausalLM.from_pretrained(folder_of(family))
    block, known = hf.model.layers[1], len(model.tokenizer)
    plus = 1 if family == "gemma2" else 0  # Gemma's norms scale by 1 + weight

    def norm(rows: torch.Tensor, module: Any) -> torch.Tensor:
        return torch.nn.functional.rms_norm(rows, (32,), module.weight + plus, model.cfg.eps)

    with torch.no_grad():
        row = norm(block.mlp.down_proj.weight[:, 7], block.post_feedforward_layernorm)
        logits = (norm(row, hf.model.norm) @ hf.lm_head.weight.T)[:known]
        embedded = hf.model.embed_tokens.weight[:known]
        seen = norm(embedded, block.pre_feedforward_layernorm) if family == "gemma2" else embedded
        gates = seen @ block.mlp.gate_proj.weight[7]
    found = promoted_tokens(model, Neuron(1, 7), k=5)
    assert found["promoted_logit"].tolist() == pytest.approx(logits.topk(5).values.tolist(), rel=1e-3)
    assert found["suppressed_logit"].tolist() == pytest.approx((-(-logits).topk(5).values).tolist(), rel=1e-3)
    read = read_tokens(model, Neuron(1, 7), k=3).query("input == 'gate'")
    assert read["raised"].tolist() == pytest.approx(gates.topk(3).values.tolist(), rel=1e-3)


def test_a_factor_lies_between_a_neuron_and_the_tokens(folder_of: Callable[[str], Path]) -> None:
    """Granite multiplies what an MLP writes; in a row so small that the norm's epsilon counts, the logits show it."""
    model, hf = load_model(folder_of("granite"), device="cpu"), AutoModelForCausalLM.from_pretrained(folder_of("granite"))
    small = 2e-3 * hf.model.layers[1].mlp.down_proj.weight[:, 7]
    with torch.no_grad():
        model.blocks[1].mlp.W_out.T[:, 7] = small
        assert torch.equal(model.blocks[1].mlp.W_out[7], small)
        written = torch.nn.functional.rms_norm(0.4 * small, (32,), hf.model.norm.weight, hf.config.rms_norm_eps)
        logits = (written @ hf.lm_head.weight.T)[: len(model.tokenizer)] / 3
    found = promoted_tokens(model, Neuron(1, 7), k=5)
    assert found["promoted_logit"].tolist() == pytest.approx(logits.topk(5).values.tolist(), rel=1e-3)


def test_a_neuron_that_writes_one_token(folder_of: Callable[[str], Path]) -> None:
    model = load_model(folder_of("llama"), device="cpu")
    token = target_id(model, " B")
    model.blocks[0].mlp.W_out.data[5] = model.W_U[:, token] / model.ln_final.w
    model.blocks[0].mlp.W_out.data[6] = -model.blocks[0].mlp.W_out.data[5]
    found = promoted_tokens(model, (Neuron(0, n) for n in (5, 6)), k=1)
    assert found["promoted"][0] == found["suppressed"][1] == "▁B"
    assert found["promoted_logit"][0] == pytest.approx(-found["suppressed_logit"][1])
    assert found["promoted_logit"][0] > 0
    everything = promoted_tokens(model, Neuron(1, 1), k=310)
    assert set(everything["promoted"]) == set(everything["suppressed"])
    assert {"<s>", "▁", "▁Answer", r"\n", r"\x00", "Ń"} <= set(everything["promoted"])
    assert everything["promoted"].map(len).min() > 0
    assert not everything["promoted"].str.contains(r"\s").any()


def test_tokens_keep_the_space_that_sentencepiece_drops() -> None:
    spelled = {("▁A", "A"): "▁A", ("A", "A"): "A", ("ĠA", " A"): "▁A", ("<0xE4>", "\ufffd"): "<0xE4>", ("▁▁", " "): "▁▁"}
    assert {pair: visible_token(*pair) for pair in spelled} == spelled
    assert visible_token("<0x0A>", " \n\u200b") == r"▁\n\u200b"


def test_promoted_tokens_refuse_bad_input(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match="the neuron set is empty"):
        promoted_tokens(model_of("llama"), NeuronSet())
    with pytest.raises(ValueError, match=r"neuron L3\.N0 is outside the model: it has layers 0 to 2 of 48 neurons each"):
        promoted_tokens(model_of("llama"), Neuron(3, 0))
    with pytest.raises(ValueError, match=r"neuron L0\.N48 is outside the model"):
        promoted_tokens(model_of("opt"), Neuron(0, 48))
    with pytest.raises(ValueError, match=r"k must lie in 1 to 310 \(the vocabulary\), not 0"):
        promoted_tokens(model_of("llama"), Neuron(0, 0), k=0)
    with pytest.raises(TypeError, match="expected a HookedTransformer"):
        promoted_tokens(object(), Neuron(0, 0))


def test_figures_carry_their_data_and_touch_no_global() -> None:
    before, located = plotly.io.templates.default, planted(regions=True, n=4)
    matrix, lines = figures.overlap_matrix(located), figures.layer_distribution(located)
    test = figures.permutation(overlap_test(located, 20))
    assert plotly.io.templates.default == before
    assert np.array_equal(np.asarray(matrix.data[0].z, dtype=float), overlap_rates(located).rates.to_numpy())
    counts = layer_counts(located)
    assert [line.name for line in lines.data] == list(located.groups)
    assert list(lines.data[1].y) == pytest.approx((counts.loc["g1"] / counts.loc["g1"].sum()).tolist())
    assert len({line.line.color for line in lines.data}) == 3
    frame = overlap_test(located, 20)
    shuffled, observed = test.data
    assert list(observed.x) == frame["observed"].tolist()
    assert (np.asarray(shuffled.x) + shuffled.error_x.array).tolist() == pytest.approx(frame["high"].tolist())
    assert (np.asarray(shuffled.x) - shuffled.error_x.arrayminus).tolist() == pytest.approx(frame["low"].tolist())
    assert test.layout.xaxis.title.text == "mean overlap with the other groups' sets"
    for figure in (matrix, lines, test, figures.layer_zoom(located, "g0", 0)):
        assert figure.layout.template.layout.colorway == plots.PALETTE
        assert figure.layout.title.text
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_a_layer_close_up() -> None:
    located = by_hand()
    once, often = log(6 / 2), log(6 / 4)
    (bar,) = figures.layer_zoom(located, "x", 0).data
    assert (list(bar.x), list(bar.y)) == ([1, 2], pytest.approx([4 / 6 * often, once / 2]))
    (everyone,) = figures.layer_zoom(located, None, 0).data
    assert sum(everyone.y) == pytest.approx(located.table.query("layer == 0")["naica"].sum())
    (coarse,) = figures.layer_zoom(located, "x", 1, bins=4).data
    assert (list(coarse.x), coarse.width, coarse.customdata.tolist()) == ([10], 3, [[1, 1, 9]])
    assert len(figures.layer_zoom(located, "z", 0).data[0].x) == 0
    with pytest.raises(KeyError, match="no group 'w' in this result; there are x, y, z"):
        figures.layer_zoom(located, "w", 0)
    with pytest.raises(ValueError, match="layer must lie in 0 to 2, not 3"):
        figures.layer_zoom(located, "x", 3)
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        figures.layer_zoom(located, "x", 0, bins=0)


def test_a_close_up_of_very_many_neurons_keeps_the_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_CELLS", 1)
    figure = figures.layer_zoom(by_hand(), "x", 0)
    assert (list(figure.data[0].x), figure.layout.title.text) == ([2], "QR neurons of layer 0: x (the strongest 1)")


def test_the_permutation_figure_wants_a_test_frame() -> None:
    with pytest.raises(ValueError, match="it lacks group, statistic"):
        figures.permutation(pd.DataFrame({"queries": [1]}))
    with pytest.raises(ValueError, match="it is empty"):
        figures.permutation(pd.DataFrame(columns=TEST_COLUMNS))
