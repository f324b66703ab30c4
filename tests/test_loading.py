from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import GATED, save_tiny, tiny_tokenizer
from transformer_lens.model_bridge import TransformerBridge

import qrnca_lens as ql
from qrnca_lens.attribution import SlowPathWarning
from qrnca_lens.data import Prompt
from qrnca_lens.engine.agreement import drift_of
from qrnca_lens.engine.edits import read_edited
from qrnca_lens.models import ModelError, check_hooked, checks, load_model
from qrnca_lens.models.hooked import HOOKED_CLASSES, HookedTransformer, HookedTransformerConfig

TEXT = "Which letter is right?\nAnswer:"
Folder = Callable[..., Path]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def copy_of(folder_of: Callable[[str], Path], tmp_path: Path) -> Folder:
    """A copy of a tiny checkpoint, its weights and configuration changed."""

    def make(
        family: str = "llama", weights: Callable[[Weights], Weights] | None = None, config: dict[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder_of(family), folder)
        if weights:
            changed = weights(load_file(folder / "model.safetensors"))
            kept = {key: value.clone().contiguous() for key, value in changed.items()}
            save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        for key, value in (config or {}).items():
            edit(folder / "config.json", **{key: value})
        return folder

    return make


def edit(path: Path, **fields: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**values, **fields}.items() if value != "drop"}))


# weights that do not fit


@pytest.mark.parametrize(
    ("weights", "config", "named"),
    [
        (
            lambda w: {f"base_model.model.{k}": v for k, v in w.items()},
            {},
            "missing: lm_head.weight.* unexpected: base_model",
        ),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, {}, r"unexpected: module\.lm_head\.weight"),
        (lambda w: {k: v for k, v in w.items() if "layers.1." not in k}, {}, r"missing: model\.layers\.1\.input_layernorm"),
        (lambda w: {k: v for k, v in w.items() if "lm_head" not in k}, {}, r"missing: lm_head\.weight\)"),
        (lambda w: {k: v for k, v in w.items() if k != "model.norm.weight"}, {}, r"missing: model\.norm\.weight\)"),
        (
            lambda w: {**w, "model.layers.0.mlp.up_proj.bias": torch.ones(48)},
            {},
            r"unexpected: model\.layers\.0\.mlp\.up_proj",
        ),
        (None, {"num_hidden_layers": 2}, r"unexpected: model\.layers\.2\."),
        (None, {"num_hidden_layers": 4}, r"missing: model\.layers\.3\."),
        (None, {"intermediate_size": 64}, r"of another shape: .*down_proj.weight \(32, 48\) in the files, \(32, 64\)"),
        (None, {"num_key_value_heads": 2}, "of another shape: .*k_proj"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights: Any, config: Any, named: str, copy_of: Folder) -> None:
    with pytest.raises(ModelError, match=f"the weights do not fit config.json .*{named}"):
        load_model(copy_of("llama", weights, config), device="cpu")


def test_buffers_that_older_checkpoints_hold_are_passed_over(copy_of: Folder, model_of: Callable[[str], Any]) -> None:
    rotary = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    ids = torch.arange(9)[None]
    assert torch.equal(load_model(copy_of("llama", lambda w: w | rotary), device="cpu")(ids), model_of("llama")(ids))
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 128, 128) for i in range(3)}
    bare = copy_of("gpt2", lambda w: {k.removeprefix("transformer."): v for k, v in w.items()} | masks)
    assert torch.equal(load_model(bare, device="cpu")(ids), model_of("gpt2")(ids))


def test_a_configuration_without_architectures_is_read_by_its_type(copy_of: Folder, model_of: Callable[[str], Any]) -> None:
    model = load_model(copy_of(config={"architectures": None}), device="cpu")
    assert torch.equal(model(torch.arange(9)[None]), model_of("llama")(torch.arange(9)[None]))


# what gives other logits


@pytest.mark.transformer_lens_3
def test_a_bridge_that_disagrees_with_transformers_is_refused_with_the_number(tmp_path: Path) -> None:
    families = {
        "cohere": transformers.CohereConfig(**GATED, num_key_value_heads=2),
        "cohere2": transformers.Cohere2Config(**GATED, num_key_value_heads=2, sliding_window=8),
        "hunyuan": transformers.HunYuanDenseV1Config(**GATED, num_key_value_heads=2, head_dim=8),
    }
    for family, config in families.items():
        with pytest.raises(
            ModelError, match=r"gives other logits than transformers \(off by \d+\.\d% of the largest logit\)"
        ):
            load_model(save_tiny(family, tmp_path / family, config), device="cpu")


@pytest.mark.parametrize("family", ["phi", "mpt", "gemma2", "opt", "olmo2", "llama", "gpt2"])
def test_generate_with_and_without_the_cache_is_the_same(family: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(family)
    ids = torch.randint(3, 320, (1, 9), generator=torch.Generator().manual_seed(1))
    wanted = ids
    for _ in range(15):
        wanted = torch.cat([wanted, model(wanted)[:, -1].argmax(-1)[None]], dim=1)
    for cached in (True, False):
        made = model.generate(
            ids, max_new_tokens=15, do_sample=False, stop_at_eos=False, use_past_kv_cache=cached, verbose=False
        )
        assert torch.equal(made, wanted)


@pytest.mark.transformer_lens_3
@pytest.mark.parametrize("family", ["qwen2", "gemma", "gpt2", "llama"])
def test_folding_and_centring_keep_the_probabilities(family: str, folder_of: Callable[[str], Path]) -> None:
    model = load_model(folder_of(family), device="cpu")
    ids = torch.arange(5, 25)[None]
    before = model(ids).log_softmax(-1)
    assert model.W_U.untyped_storage().data_ptr() != model.W_E.untyped_storage().data_ptr()
    model.process_weights_(center_writing_weights=family == "gpt2")  # an RMSNorm does not undo a shift
    assert torch.allclose(model(ids).log_softmax(-1), before, atol=1e-3)


# models without the neurons that the method is about


MIXTURES = {
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "qwen2_moe": {"num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 16},
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures_of_experts_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(kind, tmp_path / kind, transformers.AutoConfig.for_model(kind, **GATED, **MIXTURES[kind]))
    with pytest.raises(ModelError, match=rf"a mixture-of-experts model \({kind}\)"):
        load_model(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    with pytest.raises(ModelError, match="has no dense MLP with neurons in every layer"):
        ql.attribute(bridge, TEXT, " A")


def test_a_state_space_model_is_refused_by_name(tmp_path: Path) -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=320)
    with pytest.raises(
        ModelError, match=r"has no dense MLP with neurons in every layer: it has no hook point blocks\.0\.mlp"
    ):
        load_model(save_tiny("mamba", tmp_path / "mamba", config), device="cpu")


@pytest.mark.transformer_lens_3
def test_hooked_transformers_without_dense_mlps_are_refused(model_of: Callable[[str], Any]) -> None:
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_vocab": 320, "n_ctx": 64, "act_fn": "silu"}
    for fields, why in (
        ({"attn_only": True}, "it has attention only"),
        ({"d_mlp": 24, "num_experts": 4, "experts_per_token": 2, "gated_mlp": True}, "it is a mixture of experts"),
    ):
        model = HookedTransformer(HookedTransformerConfig(**shape, **fields, device="cpu"))
        model.tokenizer = model_of("llama").tokenizer
        with pytest.raises(ModelError, match=why):
            check_hooked(model)


@pytest.mark.parametrize("family", ["mpt", "phi", "gemma2", "olmo2"])
def test_a_bridge_whose_hook_point_holds_something_else_is_refused(family: str, folder_of: Callable[[str], Path]) -> None:
    check_hooked(TransformerBridge.boot_transformers(str(folder_of(family)), device="cpu"))
    bridge = TransformerBridge.boot_transformers(str(folder_of(family)), device="cpu")
    mlp = type(bridge.blocks[0].mlp)
    for other, named in ((torch.ones(7, 32), "is not what a W_out multiplies"), (None, "is not what its W_out multiplies")):
        with pytest.MonkeyPatch.context() as patch:
            weights = bridge.blocks[0].mlp.W_out
            patch.setattr(
                mlp, "W_out", property(lambda self, w=weights, o=other: o if o is not None else w + 0.1), raising=False
            )
            with pytest.raises(ModelError, match=named):
                check_hooked(bridge)


@pytest.mark.parametrize("family", ["llama", "gpt2", pytest.param("opt", marks=pytest.mark.transformer_lens_3)])
def test_neurons_that_do_not_write_what_their_w_out_says_are_refused(
    family: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder_of(family), device="cpu")
    monkeypatch.setattr(checks, "_TESTED", WeakSet())
    check_hooked(model)
    monkeypatch.setattr(checks, "_TESTED", WeakSet())
    mlp = model.blocks[2].mlp
    writer = mlp.out.original_component if family == "opt" else mlp  # a bridge of OPT has no MLP that is run as a whole
    writer.register_forward_hook(lambda _module, _args, output: 2 * output)
    with pytest.raises(ModelError, match=rf"{family} has no dense MLP .*blocks\.2\.mlp\.hook_post .* its W_out multiplies"):
        check_hooked(model)


# what is not a model to load


QUANTISED = [
    ("gptq", {"bits": 4, "group_size": 128, "desc_act": False}),
    ("awq", {"bits": 4, "zero_point": True, "version": "gemm"}),
    ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    ("compressed-tensors", {"format": "pack-quantized"}),
]


@pytest.mark.parametrize(("method", "fields"), QUANTISED)
def test_quantised_folders_are_refused_by_the_name_of_the_method(method: str, fields: Any, copy_of: Folder) -> None:
    remedy = "give the model that was quantised, or dequantise it and save that with save_pretrained"
    for key in ("quantization_config", "compression_config"):
        with pytest.raises(ModelError, match=rf"the weights are quantised \({method}\), .*; {remedy}"):
            load_model(copy_of(config={key: {"quant_method": method, **fields}}))


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_quantised_folders_whose_config_says_nothing_are_told_by_what_lies_beside_it(name: str, copy_of: Folder) -> None:
    folder = copy_of()
    (folder / name).write_text('{"bits": 4, "q_group_size": 128}')
    with pytest.raises(ModelError, match=rf"the weights are quantised \(there is a {name}\).*give the model that was"):
        load_model(folder)


@pytest.mark.parametrize(
    "packed",
    [
        {
            "qweight": torch.ones(4, 48, dtype=torch.int32),
            "qzeros": torch.ones(1, 6, dtype=torch.int32),
            "scales": torch.ones(1, 48),
        },
        {
            "weight": torch.ones(768, 1, dtype=torch.uint8),
            "weight.absmax": torch.ones(24),
            "weight.quant_map": torch.ones(16),
        },
        {"weight": torch.ones(48, 32, dtype=torch.int8), "SCB": torch.ones(48)},
        {"weight_packed": torch.ones(48, 4, dtype=torch.int32), "weight_scale": torch.ones(48, 1)},
    ],
)
def test_quantised_weights_that_nothing_announces_are_told_as_such(packed: Weights, copy_of: Folder) -> None:
    stem = "model.layers.0.mlp.up_proj"

    def pack(weights: Weights) -> Weights:
        kept = {key: value for key, value in weights.items() if key != f"{stem}.weight"}
        return kept | {f"{stem}.{key}": value for key, value in packed.items()}

    with pytest.raises(ModelError, match=rf"the weights are quantised \(there is a weight {stem}\..*dequantise it"):
        load_model(copy_of("llama", pack), device="cpu")


def test_folders_that_are_something_else(copy_of: Folder, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="BertForMaskedLM is not a causal"):
        load_model(folder_of("bert"))
    for architecture in ("LlamaForSequenceClassification", "LlamaModel"):
        with pytest.raises(ModelError, match=f"{architecture} is not a causal"):
            load_model(copy_of(config={"architectures": [architecture]}))
    with pytest.raises(ModelError, match="no such folder"):
        load_model(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json in this folder"):
        load_model(tmp_path / "empty")
    with pytest.raises(ModelError, match="this is a file"):
        load_model(folder_of("bert") / "model.safetensors")


def test_a_model_of_text_and_images_is_refused_and_nothing_is_installed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail("something was run"))
    text = {**GATED, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, architectures=["Gemma3ForConditionalGeneration"]
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="gemma3 reads more than text; save its language model on its own"):
        load_model(tmp_path)


@pytest.mark.transformer_lens_3
def test_architectures_that_transformer_lens_cannot_take(tmp_path: Path) -> None:
    families = {
        "falcon": transformers.FalconConfig(
            hidden_size=32, num_hidden_layers=2, vocab_size=320, num_attention_heads=4, num_kv_heads=2,
            new_decoder_architecture=True,
        ),
        "cohere-norms": transformers.CohereConfig(**GATED, num_key_value_heads=2, use_qk_norm=True),
        "persimmon": transformers.PersimmonConfig(**GATED),
    }  # fmt: skip
    for family, config in families.items():
        with pytest.raises(
            ModelError, match=r"TransformerLens cannot take \w+ForCausalLM, neither as HookedTransformer nor"
        ):
            load_model(save_tiny(family, tmp_path / family, config), device="cpu")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number of at least 1, not 0"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number of at least 1, not '3'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"hidden_size": -32}, "hidden_size must be"),
        ({"vocab_size": 3.5}, "vocab_size must be"),
        ({"intermediate_size": True}, "intermediate_size must be"),
        ({"model_type": "drop"}, "it names no model_type"),
        ({"model_type": "unheard-of", "architectures": ["UnheardOf"]}, "cannot be used .*unheard-of"),
        ({"hidden_act": "nonsense"}, "nonsense.*; mend it, copy it anew"),
        ({"rope_parameters": {"rope_type": "nonsense"}}, "nonsense"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden size .*32.* is not a multiple .*5"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
    ],
)
def test_odd_configurations(fields: dict[str, Any], named: str, copy_of: Folder) -> None:
    with pytest.raises(ModelError, match=named):
        load_model(copy_of(config=fields), device="cpu")


@pytest.mark.parametrize("text", ["{nope", "[1]", "", "null"])
def test_a_config_that_is_no_object(text: str, copy_of: Folder) -> None:
    folder = copy_of()
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be used .*save the model again"):
        load_model(folder)


def test_weights_that_cannot_be_read_are_told_without_unsafe_advice(copy_of: Folder) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(ModelError, match="the weights cannot be read") as error:
            load_model(folder, device="cpu")
        return str(error.value)

    broken = copy_of()
    (broken / "model.safetensors").write_bytes(b"nonsense")
    half = copy_of()
    whole = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    none, pickled, bad = copy_of(), copy_of(), copy_of()
    for folder in (none, pickled, bad):
        (folder / "model.safetensors").unlink()
    (bad / "pytorch_model.bin").write_bytes(b"x" * 100)
    torch.save({"a": _Opens(pickled / "ran")}, pickled / "pytorch_model.bin")
    for folder in (broken, half, none, pickled, bad):
        text = refused(folder)
        assert "save_pretrained" in text
        assert "weights_only" not in text
    assert not (pickled / "ran").exists()


class _Opens:
    """Unpickled with its code, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_code_that_comes_with_a_model_is_never_run(copy_of: Folder, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    sign = tmp_path / "ran"
    classes = "LlamaConfig as C, LlamaForCausalLM as M, PreTrainedTokenizerFast as T"
    code = f"open({str(sign)!r}, 'w')\nfrom transformers import {classes}\n"
    own = {"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    config = copy_of(config={"model_type": "mine", "architectures": ["M"], **own})
    tokenizer, both = copy_of(), copy_of(config=own)
    edit(tokenizer / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]}, tokenizer_class="T")
    for folder in (config, tokenizer, both):
        (folder / "mine.py").write_text(code)
    for folder in (config, tokenizer):
        with pytest.raises(ModelError) as error:
            load_model(folder, device="cpu")
        assert "trust_remote_code" not in str(error.value)
    assert isinstance(load_model(both, device="cpu"), HOOKED_CLASSES)  # transformers has this architecture itself
    assert not sign.exists()


def test_a_tokenizer_that_is_missing(copy_of: Folder) -> None:
    bare = copy_of("gpt2")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no usable tokenizer there .*save it beside the weights"):
        load_model(bare)


def test_names_that_do_not_exist_are_told_at_once(monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    for name in ("a b", "gpt2/", "-", "models--x--y"):
        with pytest.raises(ModelError, match="whose names are like 'owner/model'"):
            load_model(name)
    began = time.monotonic()
    with pytest.raises(ModelError, match="'atals': no such model; the shipped one is called 'atlas'"):
        load_model("atals")
    with pytest.raises(ModelError, match=r"'meta-lama/Llama-2-7b': neither a folder here .* could not be asked \(.*refused"):
        load_model("meta-lama/Llama-2-7b")
    assert time.monotonic() - began < 2


def test_devices_and_dtypes_that_are_not_there(folder_of: Callable[[str], Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("qrnca_lens.models.loading.find_source", lambda name: pytest.fail("looked for the model first"))
    for name in ("cuda", "cuda:3", "xpu", "meta"):
        with pytest.raises(ModelError, match=rf"the device '{name}' is not there; this machine has cpu"):
            load_model("atlas", device=name)
    with pytest.raises(ModelError, match="no device is called 'gpu'; use 'cpu'"):
        load_model("atlas", device="gpu")
    with pytest.raises(ModelError, match="dtype"):
        load_model("atlas", dtype=torch.float16)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2", "phi", "gemma2"])
def test_every_family_loads_in_bfloat16(family: str, folder_of: Callable[[str], Path]) -> None:
    model = load_model(folder_of(family), device="cpu", dtype=torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert ql.attribute(model, TEXT, " A", steps=2).probability > 0


def test_what_fails_in_bfloat16_alone_is_told_so(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="load it in float32"):
        load_model(folder_of("olmo2"), device="cpu", dtype=torch.bfloat16)


def test_weights_that_hold_no_numbers_are_named(copy_of: Folder) -> None:
    def spoilt(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        return weights

    with pytest.raises(
        ModelError, match=r"the weight 'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN or infinite values"
    ):
        load_model(copy_of(weights=spoilt), device="cpu")
    zeros = load_model(copy_of(weights=lambda w: {k: torch.zeros_like(v) for k, v in w.items()}), device="cpu")
    assert ql.attribute(zeros, TEXT, " A", steps=2).probability == pytest.approx(1 / 320)


@pytest.mark.transformer_lens_3
def test_a_model_that_reads_later_tokens_is_refused(tmp_path: Path, model_of: Callable[[str], Any]) -> None:
    config = transformers.BertConfig(**GATED, type_vocab_size=2, architectures=["BertLMHeadModel"])
    torch.manual_seed(0)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer(bos=True).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads the tokens that follow, too"):
        load_model(tmp_path, device="cpu")
    shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 320, "n_ctx": 64}
    both = HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu", attention_dir="bidirectional", device="cpu"))
    both.tokenizer = model_of("llama").tokenizer
    with pytest.raises(ModelError, match="reads the tokens that follow, too"):
        check_hooked(both)


@pytest.mark.transformer_lens_3  # the bridges of 4.x run it
def test_what_fails_while_a_model_is_checked_is_a_model_error(tmp_path: Path) -> None:
    opt = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=4, vocab_size=320,
        max_position_embeddings=128, word_embed_proj_dim=16, do_layer_norm_before=False,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"(cannot be run|cannot take|has no dense MLP|other logits)"):
        load_model(save_tiny("opt-350m", tmp_path / "opt", opt), device="cpu")


def test_a_mixture_of_experts_is_refused_by_name(tmp_path: Path) -> None:
    dbrx = {"model_type": "dbrx", "architectures": ["DbrxForCausalLM"], "ffn_config": {"moe_num_experts": 4}}
    folder = tmp_path / "dbrx"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dbrx))
    with pytest.raises(ModelError, match=r"a mixture-of-experts model \(dbrx\)"):
        load_model(folder)


# the state of PyTorch


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_inference_mode_changes_nothing(
    family: str, folder_of: Callable[[str], Path], model_of: Callable[[str], Any]
) -> None:
    wanted = ql.attribute(model_of(family), TEXT, " A", steps=3)
    with torch.inference_mode():
        inside = ql.attribute(model_of(family), TEXT, " A", steps=3)
        made = load_model(folder_of(family), device="cpu")
    assert torch.equal(inside.scores, wanted.scores)
    assert torch.equal(ql.attribute(made, TEXT, " A", steps=3).scores, wanted.scores)


@pytest.mark.transformer_lens_3
def test_weights_made_under_inference_mode_are_refused(model_of: Callable[[str], Any]) -> None:
    with torch.inference_mode():
        shape = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 320, "n_ctx": 64}
        model = HookedTransformer(HookedTransformerConfig(**shape, act_fn="gelu", device="cpu"))
    model.tokenizer = model_of("llama").tokenizer
    with pytest.raises(ModelError, match=r"were made under torch\.inference_mode"):
        ql.attribute(model, TEXT, " A")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_another_default_dtype_changes_nothing(
    family: str, folder_of: Callable[[str], Path], model_of: Callable[[str], Any]
) -> None:
    wanted = ql.attribute(model_of(family), TEXT, " A", steps=3)
    edits = [(ql.NeuronSet.of((1, 3), (2, 5)), 0.0)]
    (edited,) = read_edited(model_of(family), [TEXT], [edits], [lambda logits: logits[:, -1]])
    torch.set_default_dtype(torch.float64)
    try:
        model = load_model(folder_of(family), device="cpu")
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert torch.get_default_dtype() == torch.float64
        for loaded in (model, model_of(family)):
            found = ql.attribute(loaded, TEXT, " A", steps=3)
            assert found.scores.dtype == torch.float32
            assert torch.allclose(found.scores, wanted.scores, atol=1e-8)
            assert torch.allclose(read_edited(loaded, [TEXT], [edits], [lambda x: x[:, -1]])[0], edited, atol=1e-6)
            assert ql.letter_probabilities(loaded, [Prompt(TEXT, "A")]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_dropout_that_is_left_on_is_told(folder_of: Callable[[str], Path], copy_of: Folder) -> None:
    for folder in (folder_of("gpt2"), folder_of("opt"), copy_of("llama", config={"attention_dropout": 0.3})):
        bridge = TransformerBridge.boot_transformers(str(folder), device="cpu").eval()
        assert ql.attribute(bridge, TEXT, " A", steps=2).probability > 0
        for part in (bridge, bridge.original_model):
            part.train()
            with pytest.raises(ModelError, match=r"training mode, where dropout changes every run; call model\.eval\(\)"):
                ql.attribute(bridge, TEXT, " A")
            bridge.eval()
    without = TransformerBridge.boot_transformers(str(folder_of("llama")), device="cpu").train()
    assert ql.attribute(without, TEXT, " A", steps=2).probability > 0
    model = load_model(folder_of("llama"), device="cpu").train()  # it has no dropout
    assert ql.attribute(model, TEXT, " A", steps=2).probability > 0


# bfloat16 on trained weights


def test_a_rounding_step_of_bfloat16_is_no_drift() -> None:
    logits = torch.full((100,), 2.0)
    logits[7] = 18.0
    step = logits.clone()
    step[7] = torch.nextafter(torch.tensor(18.0, dtype=torch.bfloat16), torch.tensor(99.0, dtype=torch.bfloat16)).float()
    assert step[7] - logits[7] == 0.125
    assert drift_of(step, logits).item() == pytest.approx(0.125 / 18)
    masked = torch.cat([logits, torch.tensor([-torch.inf])])
    assert drift_of(masked.clone(), masked) == 0
    assert drift_of(torch.cat([step, torch.tensor([0.0])]), masked) == torch.inf


def test_bfloat16_on_trained_weights(atlas: Any) -> None:
    coarse, slow = load_model("atlas", device="cpu", dtype=torch.bfloat16), 0
    for query in ql.load_queries("atlas/domains").sample(1):
        for prompt in query.prompts:
            letter = ql.option_tokens(atlas, prompt.text).id_of(prompt.letter)
            fine = ql.attribute(atlas, prompt.text, letter)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = ql.attribute(coarse, prompt.text, letter)
            slow += any(issubclass(warning.category, SlowPathWarning) for warning in told)
            best = [set(scores.flatten().topk(20).indices.tolist()) for scores in (fine.scores, found.scores)]
            assert len(best[0] & best[1]) >= 14
            assert found.probability == pytest.approx(fine.probability, abs=0.1)
    assert slow <= 2  # of 18: prompts after which atlas turns on a rounding step
