"""GGUF files: weights, tokenizer and template of the checkpoint they were made from, or an error that says what to do."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import CONFIG
from tiny import CONFIGS, GATED, save_tiny
from tiny_gguf import TEMPLATE, write_gguf
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from qrnca_lens.models import ModelError, load_model, to_tokens
from qrnca_lens.models.gguf_files import check_gguf
from qrnca_lens.models.hooked import HookedTransformer
from qrnca_lens.models.origin import origin_of
from qrnca_lens.models.places import find_source
from qrnca_lens.models.sources import read_config, read_weights
from qrnca_lens.runs.pipeline import locate

TEXT = "Which letter is right?\nAnswer:"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OWN = {
    "qwen3": Qwen3Config(**GATED, num_key_value_heads=2, head_dim=128),
    "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=128, vocab_size=310, n_positions=1024),
    "llama3": LlamaConfig(
        **{**GATED, "max_position_embeddings": 16384},
        num_key_value_heads=2,
        rope_parameters={**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    ),
}
"""Sizes that transformers fixes for a GGUF, and the scaling of Llama 3 as released."""


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A tiny checkpoint and the GGUF file made of it, once a session."""
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def get(family: str) -> tuple[Path, Path]:
        if family not in made:
            folder = save_tiny(family, root / family, OWN.get(family, CONFIGS[family]))
            made[family] = folder, write_gguf(folder, root / f"{family}.gguf")
        return made[family]

    return get


@pytest.fixture
def file_of(pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> Callable[..., Path]:
    """A GGUF file of the tiny Llama with something else in it."""
    return lambda **changes: write_gguf(
        pair_of("llama")[0], tmp_path / f"made-{len(list(tmp_path.iterdir()))}.gguf", **changes
    )


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "gpt2", "gemma2"])
def test_a_file_gives_what_its_folder_gives(family: str, pair_of: Callable[[str], tuple[Path, Path]]) -> None:
    folder, path = pair_of(family)
    there, here = load_model(folder, device="cpu"), load_model(path, device="cpu")
    ids = torch.arange(3, 100)[None]
    assert torch.equal(here(ids), there(ids))
    assert type(here) is type(there) and here.cfg.model_name == f"{family}.gguf"
    assert isinstance(here, TransformerBridge) is (family == "gemma2" or HookedTransformer is None)
    for text in (TEXT, " A  B\n\n(C", "<s>é"):
        assert to_tokens(here, text).tolist() == to_tokens(there, text).tolist()
    assert here.cfg.default_prepend_bos is there.cfg.default_prepend_bos is (family in ("llama", "llama3", "gemma2"))
    assert here.tokenizer.chat_template == TEMPLATE
    assert here.tokenizer.name_or_path == str(path)


def test_the_scaling_of_llama_3_is_not_lost(pair_of: Callable[[str], tuple[Path, Path]]) -> None:
    folder, path = pair_of("llama3")
    config = read_config(find_source(path))
    found, wanted = config.rope_parameters, OWN["llama3"].rope_parameters
    assert found.pop("rope_type") == "llama3"
    assert found == pytest.approx({key: value for key, value in wanted.items() if key != "rope_type"}, rel=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(folder.parent, gguf_file=str(path), attn_implementation="eager")
    ids = torch.arange(3, 100)[None]
    assert not torch.allclose(plain(ids).logits, load_model(path, device="cpu")(ids), rtol=1e-3)  # transformers alone


def test_quantised_weights_are_dequantised(
    file_of: Callable[..., Path], pair_of: Callable[[str], tuple[Path, Path]]
) -> None:
    plain, rounded = load_model(pair_of("llama")[0], device="cpu"), load_model(file_of(quantised=True), device="cpu")
    mine, theirs = rounded.blocks[1].mlp.W_in, plain.blocks[1].mlp.W_in
    # Q8_0 keeps 32 values, here those that a neuron reads, as whole numbers from -127 to 127 times their largest / 127
    assert (mine != theirs).any()
    assert ((mine - theirs).abs() <= theirs.abs().amax(0) / 127 * 0.57).all()  # and the step is a float16
    assert rounded.W_E.dtype == torch.float32
    assert load_model(file_of(quantised=True), device="cpu", dtype=torch.bfloat16).W_E.dtype == torch.bfloat16


def test_nothing_says_that_the_weights_were_quantised(file_of: Callable[..., Path], tmp_path: Path) -> None:
    source = find_source(file_of(quantised=True))
    config = read_config(source)
    model = read_weights(source, config, torch.float32)
    assert config.architectures == ["LlamaForCausalLM"]
    assert not hasattr(model, "hf_quantizer") and not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    ids = torch.arange(3, 40)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_nothing_but_the_file_is_read(pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: Any) -> None:
    """Neither what lies beside it nor a file of the same name in the working folder."""
    path = Path(shutil.copy(pair_of("llama")[1], tmp_path / "m.gguf"))
    (tmp_path / "config.json").write_text("{nope")
    (tmp_path / "tokenizer_config.json").write_text("{nope")
    (tmp_path / "adapter_config.json").write_text("{nope")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(pair_of("qwen2")[1], elsewhere / "m.gguf")
    monkeypatch.chdir(elsewhere)
    ids = torch.arange(3, 40)[None]
    wanted = load_model(pair_of("llama")[0], device="cpu")(ids)
    assert torch.equal(load_model(path, device="cpu")(ids), wanted)
    assert torch.equal(load_model("../m.gguf", device="cpu")(ids), wanted)


def test_no_bar_is_shown(pair_of: Callable[[str], tuple[Path, Path]], capfd: Any) -> None:
    load_model(pair_of("qwen2")[1], device="cpu")
    told = capfd.readouterr()
    assert told.out == "" and "tensors" not in told.err and "%" not in told.err


# what cannot be read


@pytest.mark.parametrize(
    ("share", "why"),
    [(0.0005, "its head is incomplete"), (0.02, "its head is incomplete"), (0.5, "needs"), (0.999, "needs")],
)
def test_a_file_that_was_cut_off(
    share: float, why: str, pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    whole, path = pair_of("llama")[1].read_bytes(), tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=rf"cut\.gguf: the file is cut off \(.*{why}.*\); download or copy it anew"):
        load_model(path, device="cpu")


@pytest.mark.parametrize("seed", range(4))
def test_a_head_cut_at_any_place_is_told(seed: int, pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    whole, path = pair_of("llama")[1].read_bytes(), tmp_path / "cut.gguf"
    for end in np.random.default_rng(seed).integers(4, check_gguf(pair_of("llama")[1]).start, 25):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelError, match="the file is cut off"):
            check_gguf(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 an archive", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_gguf(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.gguf: this is no GGUF file \(it begins with b'.*download it anew"):
        load_model(tmp_path / "m.gguf")


def test_a_version_that_nobody_reads(pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    whole = pair_of("llama")[1].read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[:4] + b"\x01\0\0\0" + whole[8:])
    with pytest.raises(ModelError, match="GGUF of version 1, only 2 and 3 are read"):
        load_model(tmp_path / "m.gguf")


def test_files_that_hold_something_else(file_of: Callable[..., Path], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"without": ("tokenizer",)}, "this GGUF holds no tokenizer; give one that"),
        ({"general__type": "mmproj"}, "multimodal projector"),
        ({"general__architecture": "clip"}, r"multimodal projector\); give the file of its language model"),
        ({"general__type": "adapter"}, "holds no model but 'adapter'"),
        ({"split__count": 3}, "one of 3 parts of a model; join them with llama.cpp"),
        (
            {"general__architecture": "rwkv9"},
            "head of the GGUF file cannot be used .*rwkv9 is not supported.*give the folder",
        ),
        ({"llama__rope__scaling__type": "yarn"}, r"its positions are scaled \(yarn\).*give the folder or the hub name"),
        ({"rope_freqs__weight": np.linspace(1, 3, 4, dtype=np.float32)}, "scaled in a way that is not that of Llama 3"),
        ({"blk__0__ffn_gate_inp__weight": np.ones((4, 32), np.float32)}, "it does not know all tensors of this file"),
        ({"without": ("blk.1.ffn_up.weight",)}, r"missing: model\.layers\.1\.mlp\.up_proj\.weight.*give the folder"),
        ({"llama__block_count": 2}, "values, of which transformers takes"),
        ({"llama__block_count": 4}, r"missing: model\.layers\.3\."),
        ({"llama__feed_forward_length": 64}, "of another shape"),
        ({"llama__embedding_length": 0}, "the head of the GGUF file: hidden_size must be a whole number"),
    ]
    for changes, named in cases:
        with pytest.raises(ModelError, match=named):
            load_model(file_of(**changes), device="cpu")


def test_one_part_of_a_split_model_is_told_by_its_name(pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    path = shutil.copy(pair_of("llama")[1], tmp_path / "m-00002-of-00003.gguf")
    with pytest.raises(ModelError, match=r"one of 3 parts of a model; join them .*llama-gguf-split --merge"):
        load_model(path)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_package_that_is_missing(package: str, pair_of: Callable[[str], tuple[Path, Path]], monkeypatch: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("qrnca_lens.models.gguf_files.find_spec", lambda name: None if name == package else found(name))
    remedy = r'pip install "qrnca_lens\[gguf\]"' if package == "gguf" else "pip install accelerate"
    with pytest.raises(ModelError, match=f"the package {package}, which is not installed; {remedy}"):
        load_model(pair_of("llama")[1])


# where it lies


def test_folders_and_names_without_the_file(
    pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copy(pair_of("llama")[1], tmp_path / "one.gguf")
    with pytest.raises(ModelError, match=rf"holds no config\.json but GGUF files; give one of them: {tmp_path}/one\.gguf$"):
        load_model(tmp_path)
    shutil.copy(pair_of("llama")[1], tmp_path / "two.gguf")
    with pytest.raises(ModelError, match=rf"give one of them: {tmp_path}/one\.gguf, {tmp_path}/two\.gguf$"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match=rf"tree\.gguf: no such file; there is {tmp_path}/one\.gguf, .*two\.gguf; check"):
        load_model(tmp_path / "tree.gguf")
    monkeypatch.chdir(tmp_path.parent)
    for name in ("nothing.gguf", "none/nothing.gguf", f"{tmp_path.name}/deep/nothing.gguf", "./a/b/c.gguf"):
        with pytest.raises(ModelError, match=r"no such file.*owner/model/file\.gguf"):
            load_model(name)


def test_a_file_without_the_ending_is_known_by_its_first_bytes(
    pair_of: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    assert (
        load_model(shutil.copy(pair_of("llama")[1], tmp_path / "sha256-0a1b"), device="cpu").cfg.model_name == "sha256-0a1b"
    )


def test_files_of_the_hub(pair_of: Callable[[str], tuple[Path, Path]], monkeypatch: Any) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str, **_: Any) -> str:
        asked.append((repository, file))
        if "none" in repository:
            raise OSError("404")
        return str(pair_of("llama")[1])

    monkeypatch.setattr("qrnca_lens.models.places.hf_hub_download", download)
    assert load_model("owner/model/deep/file.gguf", device="cpu").cfg.model_name == "llama.gguf"
    assert asked == [("owner/model", "deep/file.gguf")]
    with pytest.raises(ModelError, match=r"neither a file here nor to be had from the Hugging Face hub \(404"):
        load_model("owner/none/file.gguf")

    class Sibling:
        def __init__(self, name: str) -> None:
            self.rfilename = name

    class Api:
        def model_info(self, *_: Any, **__: Any) -> Any:
            return type("Info", (), {"siblings": [Sibling("b.Q4.gguf"), Sibling("a.Q8.gguf"), Sibling("README.md")]})

    monkeypatch.setattr("qrnca_lens.models.places.HfApi", Api)
    with pytest.raises(ModelError, match=r"give one of them: owner/model/a\.Q8\.gguf, owner/model/b\.Q4\.gguf$"):
        load_model("owner/model")


# the record


def test_a_run_names_the_file_and_goes_on_from_another_of_the_same_weights(
    pair_of: Callable[[str], tuple[Path, Path]], short_queries: Any, tmp_path: Path
) -> None:
    folder, path = pair_of("llama")
    model = load_model(path, device="cpu")
    wanted = {"file": "llama.gguf", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert origin_of(model) == wanted
    located = locate(model, short_queries, CONFIG, out=tmp_path / "run", progress=False)
    for name in ("manifest.json", "header.json"):
        text = (tmp_path / "run" / name).read_text()
        assert wanted["sha256"] in text and "llama.gguf" in text
    assert located.about["source"] == wanted
    other = write_gguf(folder, tmp_path / "llama.gguf", general__description="made again")
    again = load_model(other, device="cpu")
    assert origin_of(again)["sha256"] != wanted["sha256"]
    assert locate(again, short_queries, CONFIG, out=tmp_path / "run", progress=False).about["source"] == wanted
    plain = load_model(folder, device="cpu")
    assert origin_of(plain) == {}
    assert "source" not in locate(plain, short_queries, CONFIG, progress=False).about


def test_a_file_is_hashed_once_a_load(pair_of: Callable[[str], tuple[Path, Path]], monkeypatch: Any) -> None:
    from qrnca_lens.models import origin

    seen, hashing = [], origin.sha256_of
    monkeypatch.setattr(origin, "sha256_of", lambda path: seen.append(path) or hashing(path))
    model = load_model(pair_of("llama")[1], device="cpu")
    assert origin_of(model) == origin_of(model) and len(seen) == 1
