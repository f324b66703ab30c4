"""HookedTransformers that a user has made: read as they read themselves; what folded weights change, and what not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import CONFIG
from tiny import sentencepiece_tokenizer, tiny_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qrnca_lens.attribution import attribute
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.models import ModelError, load_model, reader_of, sites_of, to_tokens
from qrnca_lens.models.hooked import HookedTransformer, HookedTransformerConfig
from qrnca_lens.readout.contributions import PromptRun, direct_writes
from qrnca_lens.readout.promoted import promoted_tokens, read_tokens
from qrnca_lens.runs.pipeline import locate

pytestmark = pytest.mark.transformer_lens_3
TEXT = "Which letter is right?\nAnswer:"
PARTS = [*"AB: \n(é▁", "<s>", "</s>", "<pad>", "Answer"]
KINDS = ("adds a BOS", "adds none", "space before", "no BOS", "no padding")


def tokenizer_of(kind: str, folder: Path) -> PreTrainedTokenizerBase:
    made = sentencepiece_tokenizer() if kind == "space before" else tiny_tokenizer(bos=kind == "adds a BOS")
    if kind == "no BOS":
        made.bos_token = None
    if kind == "no padding":
        made.pad_token = None
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def own(tokenizer: PreTrainedTokenizerBase | None, prepends: bool) -> Any:
    torch.manual_seed(1)
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "n_ctx": 64, "act_fn": "gelu"}
    config = HookedTransformerConfig(**shape, d_vocab=320, device="cpu", default_prepend_bos=prepends)
    return HookedTransformer(config, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def owns(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], Any]:
    """A model for each kind of tokenizer, BOS setting, padding side, and way to give it the tokenizer."""
    root, made = tmp_path_factory.mktemp("own"), {}
    for kind in KINDS:
        for prepends in (True, False):
            for side in ("right", "left"):
                for later in (True, False):
                    tokenizer = tokenizer_of(kind, root / kind)
                    tokenizer.padding_side = side
                    model = own(None if later else tokenizer, prepends)
                    if later:
                        model.set_tokenizer(tokenizer)
                    made[kind, prepends, side, later] = model
    return made


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore:the prompt begins with")
def test_texts_become_what_to_tokens_makes_of_them(data: Any, parts: list[str], owns: dict[tuple[Any, ...], Any]) -> None:
    """But for what docs/models.md tells: of two BOS at the start one is kept."""
    model = owns[data.draw(st.sampled_from(sorted(owns, key=str)))]
    text = "".join(parts)
    wanted, bos = model.to_tokens(text)[0].tolist(), model.tokenizer.bos_token_id
    if text.startswith(model.tokenizer.bos_token) and wanted[:2] == [bos, bos]:
        wanted = wanted[1:]
    assert reader_of(model).tokens(text).tolist() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_bos_is_read_exactly_where_the_setting_says_so(kind: str, owns: dict[tuple[Any, ...], Any]) -> None:
    for (of, prepends, *_), model in owns.items():
        if of == kind:
            ids = to_tokens(model, TEXT).tolist()
            assert (ids[0] == model.tokenizer.bos_token_id) is prepends
            assert ids[prepends:] == model.tokenizer.encode(TEXT, add_special_tokens=False)
            assert reader_of(model).record()["prepends_bos"] is prepends


@pytest.mark.parametrize("prepends", [True, False])
@pytest.mark.parametrize(("first", "then"), [("no BOS", "adds a BOS"), ("adds a BOS", "plain")])
def test_a_tokenizer_that_was_replaced_behind_the_models_back_is_told(
    first: str, then: str, prepends: bool, tmp_path: Path
) -> None:
    model = own(tokenizer_of(first, tmp_path / "first"), prepends)
    if first == "no BOS":
        model.cfg.tokenizer_prepends_bos = False
    to_tokens(model, TEXT)
    model.tokenizer = tokenizer_of(then, tmp_path / "then")
    adds = then == "adds a BOS"
    assert (model.to_tokens(" A")[0].tolist()[:1] == [0]) is adds or not prepends  # why: lost, doubled or there all the same
    with pytest.raises(ModelError, match=rf"tokenizer_prepends_bos is {not adds}, but the tokenizer .* = {adds}, or give"):
        to_tokens(model, TEXT)
    model.cfg.tokenizer_prepends_bos = adds
    assert (to_tokens(model, TEXT)[0].item() == 0) is prepends
    model.set_tokenizer(tokenizer_of("adds none", tmp_path / "again"))
    assert (to_tokens(model, TEXT)[0].item() == 0) is prepends


def test_an_eos_that_transformer_lens_takes_for_a_bos_is_told(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    model = own(tokenizer_of("adds a BOS", tmp_path), prepends=False)
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0  # as its set_tokenizer concludes
    with pytest.raises(ModelError, match="tokenizer_prepends_bos is True, but the tokenizer puts no '<s>' before a text"):
        to_tokens(model, TEXT)


# folded and centred weights


FOLDED = {"fold_ln": (True, False, False), "centre W_U": (False, False, True), "all": (True, True, True)}


@pytest.fixture(scope="module")
def folded_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Any, Any]]:
    """A tiny model raw and processed as `HookedTransformer.from_pretrained` does."""
    from tiny import save_tiny

    root, folders = tmp_path_factory.mktemp("folded"), {}

    def get(family: str, how: str) -> tuple[Any, Any]:
        folder = folders.setdefault(family, root / family)
        if not folder.exists():
            save_tiny(family, folder)
        raw, other = (load_model(folder, device="cpu") for _ in range(2))
        fold_ln, centre_writing, centre_unembed = FOLDED[how]
        other.process_weights_(fold_ln, centre_writing and family != "llama", centre_unembed)
        return raw, other

    return get


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("how", FOLDED)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_folding_leaves_probabilities_and_scores_of_every_site(
    family: str, how: str, folded_of: Callable[[str, str], tuple[Any, Any]]
) -> None:
    raw, folded = folded_of(family, how)
    ids = to_tokens(raw, TEXT)[None]
    assert torch.equal(to_tokens(folded, TEXT), ids[0])
    assert off(folded(ids).softmax(-1), raw(ids).softmax(-1)) < 1e-4
    assert (off(folded(ids), raw(ids)) > 1e-3) is (how != "fold_ln")  # every position's logits are shifted by a number
    for site in sites_of(raw):
        one, other = (attribute(model, TEXT, " A", steps=3, site=site) for model in (folded, raw))
        assert off(one.scores, other.scores) < 1e-4


def test_folding_leaves_the_neurons_of_a_run(folded_of: Callable[[str, str], tuple[Any, Any]], short_queries: Any) -> None:
    raw, folded = (locate(model, short_queries, CONFIG, progress=False) for model in folded_of("llama", "all"))
    merged = [
        set(zip(run.clusters["query"], run.clusters["layer"], run.clusters["neuron"], strict=True)) for run in (raw, folded)
    ]
    assert len(merged[0] ^ merged[1]) <= 0.01 * len(merged[0])  # rounding at the threshold
    assert raw.model.fingerprint != folded.model.fingerprint


@pytest.mark.parametrize("how", FOLDED)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_centring_shifts_what_a_neuron_writes_and_keeps_its_order(
    family: str, how: str, folded_of: Callable[[str, str], tuple[Any, Any]]
) -> None:
    raw, folded = folded_of(family, how)
    for neuron in (Neuron(0, 3), Neuron(1, 5), Neuron(2, 7)):
        one, other = (promoted_tokens(model, neuron, k=20) for model in (folded, raw))
        pd.testing.assert_frame_equal(one[["promoted", "suppressed"]], other[["promoted", "suppressed"]])
        shifts = torch.tensor(
            (one[["promoted_logit", "suppressed_logit"]] - other[["promoted_logit", "suppressed_logit"]]).values
        )
        assert off(shifts, shifts.mean().expand_as(shifts)) < 1e-3 if how != "fold_ln" else shifts.abs().max() < 1e-4
        if how != "fold_ln":
            assert shifts.abs().max() > 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_centring_shifts_direct_writes_to_all_options_alike(
    family: str, folded_of: Callable[[str, str], tuple[Any, Any]]
) -> None:
    found = []
    for model in folded_of(family, "all"):
        run, options = PromptRun(model, to_tokens(model, TEXT), 2), option_tokens(model, TEXT)
        found.append(direct_writes(run, NeuronSet((Neuron(1, 5), Neuron(2, 7))), options))
    shift = (found[1] - found[0])[list("ABCD")]
    assert shift.abs().to_numpy().max() > 1e-5
    assert (shift.sub(shift["A"], axis=0).abs().to_numpy() < 1e-4 * found[0][list("ABCD")].abs().to_numpy().max()).all()
    assert found[1]["activation"].tolist() == pytest.approx(found[0]["activation"].tolist(), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_folding_a_norm_moves_its_bias_out_of_what_a_neuron_reads(
    family: str, folded_of: Callable[[str, str], tuple[Any, Any]]
) -> None:
    """An RMSNorm has none; of a LayerNorm it goes into b_in, which `read_tokens` leaves out, so all tokens shift alike."""
    raw, folded = (read_tokens(model, Neuron(1, 5), k=20) for model in folded_of(family, "fold_ln"))
    pd.testing.assert_frame_equal(folded[["input", "raised_by", "lowered_by"]], raw[["input", "raised_by", "lowered_by"]])
    shift = torch.tensor((folded[["raised", "lowered"]] - raw[["raised", "lowered"]]).to_numpy())
    assert (shift - shift.mean()).abs().max() < 1e-4
    assert bool(shift.abs().max() > 1e-3) is (family == "gpt2")
