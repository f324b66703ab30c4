from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import sentencepiece_tokenizer, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import qrnca_lens as ql
from qrnca_lens.attribution.letters import LetterWarning, letter_probabilities, option_tokens
from qrnca_lens.attribution.options import answers
from qrnca_lens.data import LETTERS, Prompt, Query, QuerySet
from qrnca_lens.models import ModelError, OptionTokens, load_model, reader_of, target_id, to_tokens
from qrnca_lens.models.hooked import HookedTransformer, HookedTransformerConfig

SYMBOLS = list("éüñßøåçàêîôæ£©®°±µ¶·»¿×÷ØÞðþÿ¡")


def byte_level(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that makes one token of every word of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False, special_tokens=["<end>"])
    tokenizer.train_from_iterator(corpus * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


class Bare:
    """What `target_id` needs of a model."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.cfg = tokenizer, SimpleNamespace(d_vocab=len(tokenizer))


def option_forms(tokenizer: Any, prompt: str, letters: Sequence[str] = LETTERS) -> tuple[OptionTokens, ...]:
    model = Bare(tokenizer)
    return reader_of(model).options(prompt, letters)


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_latin_1_target_is_what_the_tokenizer_makes_of_it(symbol: str, space: str) -> None:
    tokenizer = byte_level([f"{before}{s}" for s in SYMBOLS for before in ("", " ")])
    (wanted,) = tokenizer.encode(space + symbol)
    assert target_id(Bare(tokenizer), space + symbol) == wanted
    assert tokenizer.decode([wanted]) == space + symbol


def test_a_composed_and_a_decomposed_target_are_told_apart_unless_the_tokenizer_joins_them() -> None:
    tokenizer = byte_level(["é"])
    assert target_id(Bare(tokenizer), "é") == tokenizer.encode("é")[0]
    with pytest.raises(ModelError, match="is not one token"):
        target_id(Bare(tokenizer), "e\u0301")


def test_targets_of_a_tokenizer_that_puts_a_space_before_every_text() -> None:
    tokenizer = sentencepiece_tokenizer()
    model = Bare(tokenizer)
    pieces = tokenizer.get_vocab()
    assert tokenizer.encode("B", add_special_tokens=False) == [pieces["▁B"]]  # why the text itself cannot tell "B" from " B"
    assert (target_id(model, "B"), target_id(model, " B")) == (pieces["B"], pieces["▁B"])
    assert target_id(model, "\n") == pieces["<0x0A>"]
    assert target_id(model, "</s>") == pieces["</s>"]
    with pytest.raises(ModelError, match="is not one token"):
        target_id(model, "<0x0A>")  # six characters, not the line break that the vocabulary spells so
    spaced, plain = option_forms(tokenizer, "Answer:")
    assert spaced.ids == tuple(pieces[f"▁{letter}"] for letter in "ABCD")
    assert plain.ids == tuple(pieces[letter] for letter in "ABCD")


def test_targets_of_a_unigram_tokenizer() -> None:
    pieces = {"<unk>": 0, "▁": 1, "A": 2, "B": 3, "C": 4, "D": 5, "▁A": 6, "▁B": 7, "▁C": 8, "▁D": 9, "▁:": 10, ":": 11}
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert (target_id(Bare(tokenizer), "B"), target_id(Bare(tokenizer), " B")) == (3, 7)
    assert option_forms(tokenizer, ":")[0].ids == (6, 7, 8, 9)


def test_targets_as_ids_of_any_kind(model_of: Callable[[str], Any], unchecked: None) -> None:
    model = model_of("gpt2")
    logits = model(to_tokens(model, "Answer:")[None])[0, -1]
    best = int(logits.argmax())
    for target in (logits.argmax(), logits.argmax()[None], np.int64(best), np.array(best), np.array([best]), best):
        assert target_id(model, target) == best
    with pytest.raises(ModelError, match=r"token id 320 is outside the vocabulary \(0 to 319\)"):
        target_id(model, 320)
    with pytest.raises(ModelError, match="outside the vocabulary"):
        target_id(model, -1)
    with pytest.raises(ModelError, match="'xylophone' is not one token"):
        target_id(model, "xylophone")
    with pytest.raises(ModelError, match="'' is not one token"):
        target_id(model, "")
    with pytest.raises(ModelError, match="the target holds half a character"):
        target_id(model, "\ud800")
    for wrong in (
        True,
        np.True_,
        3.0,
        np.float32(3),
        None,
        logits[:2].long(),
        logits.argmax().float(),
        [3],
        np.array([1, 2]),
    ):
        with pytest.raises(TypeError, match="a target is a token as a text"):
            target_id(model, wrong)


def test_prompts_as_tokens(model_of: Callable[[str], Any], unchecked: None) -> None:
    model, text = model_of("llama"), "Which letter is right?\nAnswer:"
    ids = model.to_tokens(text)
    by_text, by_ids = ql.attribute(model, text, " A", steps=2), ql.attribute(model, ids, " A", steps=2)
    assert torch.equal(by_text.scores, by_ids.scores)
    assert torch.equal(to_tokens(model, ids[0].int()), ids[0])
    assert text in by_ids.prompt
    with pytest.raises(TypeError, match="not one of shape"):
        to_tokens(model, ids.repeat(2, 1))
    with pytest.raises(ModelError, match="outside the vocabulary"):
        to_tokens(model, torch.tensor([1, 320]))
    with pytest.raises(ModelError, match="the prompt is empty"):
        to_tokens(model, ids[0, :0])
    for wrong in (ids[0].tolist(), ids.float(), None, 3):
        with pytest.raises(TypeError, match="a prompt is a text or a tensor of token ids"):
            to_tokens(model, wrong)


def test_prompts_must_fit(model_of: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError, match="the prompt is empty"):
        to_tokens(model_of("llama"), "")
    with pytest.raises(ModelError, match=r"the prompt holds half a character \('\\ud800' at 2\)"):
        to_tokens(model_of("llama"), "a \ud800 Answer:")
    with pytest.raises(ModelError, match="the model's context holds 128"):
        to_tokens(model_of("llama"), "word " * 200)


def own_model(folder: Path, *, bos: bool, **fields: Any) -> HookedTransformer:
    """A HookedTransformer that a user has made, its tokenizer read from a folder."""
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "n_ctx": 64, "act_fn": "gelu"}
    return HookedTransformer(
        HookedTransformerConfig(**shape, d_vocab=len(tokenizer), device="cpu", **fields), tokenizer=tokenizer
    )


@pytest.mark.transformer_lens_3
@pytest.mark.parametrize("prepends", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_a_bos_is_there_exactly_where_the_model_has_one(bos: bool, prepends: bool, tmp_path: Path) -> None:
    model = own_model(tmp_path, bos=bos, default_prepend_bos=prepends)
    text = "Which letter is right?\nAnswer:"
    ids = to_tokens(model, text)
    assert torch.equal(ids, model.to_tokens(text)[0])
    assert (ids[0].item() == model.tokenizer.bos_token_id) is prepends
    wanted = model(text)[0, -1].softmax(-1)[target_id(model, " A")].item()
    assert ql.attribute(model, text, " A", steps=2).probability == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_default_bridge_is_read_as_it_reads_itself(family: str, folder_of: Callable[[str], Any]) -> None:
    bridge = TransformerBridge.boot_transformers(str(folder_of(family)), device="cpu")
    text = "Which letter is right?\nAnswer:"
    wanted = bridge(text)[0, -1].softmax(-1)[target_id(bridge, " A")].item()
    assert ql.attribute(bridge, text, " A", steps=2).probability == pytest.approx(wanted, rel=1e-4)
    assert (to_tokens(bridge, text)[0].item() == bridge.tokenizer.bos_token_id) is (family == "llama")


@pytest.mark.transformer_lens_3
def test_a_second_bos_is_dropped_with_a_word(model_of: Callable[[str], Any]) -> None:
    model, bos = model_of("llama"), model_of("llama").tokenizer.bos_token_id
    with pytest.warns(UserWarning, match="begins with '<s>', which the model adds by itself"):
        ids = to_tokens(model, "<s>Answer:")
    assert torch.equal(ids, to_tokens(model, "Answer:"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_tokens(model_of("qwen2"), "<s>Answer:")[:2].tolist() != [bos, bos]  # this model adds none: the text's own


@pytest.mark.transformer_lens_3
def test_an_eos_that_the_tokenizer_appends_is_not_the_last_token(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    inner = tokenizer.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    model = own_model(tmp_path, bos=True)
    wanted = to_tokens(model, "Answer:")
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    assert model.tokenizer.encode("Answer:")[-1] == 1
    assert torch.equal(to_tokens(model, "Answer:"), wanted)
    assert to_tokens(model, "Answer:</s>")[-1].item() == 1  # the text's own stays


@pytest.mark.transformer_lens_3
def test_a_first_token_that_looks_like_padding_is_read_whatever_the_padding_side(tmp_path: Path) -> None:
    model, text = own_model(tmp_path, bos=False, default_prepend_bos=False), "<pad>Answer:"
    assert to_tokens(model, text)[0].item() == model.tokenizer.pad_token_id
    right = ql.attribute(model, text, " A", steps=2)
    model.tokenizer.padding_side = "left"
    left = ql.attribute(model, text, " A", steps=2)
    assert left.probability == pytest.approx(right.probability, rel=1e-5)
    assert torch.allclose(left.scores, right.scores, atol=1e-7)
    letters = letter_probabilities(model, [Prompt(text, "A")])
    model.tokenizer.padding_side = "right"
    assert torch.allclose(letter_probabilities(model, [Prompt(text, "A")]), letters, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_tokenizer_without_a_padding_token_serves_all_text_methods(
    family: str, folder_of: Callable[[str], Any], tmp_path: Path
) -> None:
    folder = tmp_path / family
    shutil.copytree(folder_of(family), folder)
    tokenizer = tiny_tokenizer(bos=family == "llama")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    model = load_model(folder, device="cpu")
    assert model.tokenizer.pad_token == "</s>"
    assert torch.equal(model("Answer:"), model(to_tokens(model, "Answer:")[None]))
    assert model.to_tokens(["Answer:", "A longer text:"]).shape[0] == 2
    assert model.generate("Answer:", max_new_tokens=2, do_sample=False, verbose=False).startswith("Answer:")


# which form of the letters


@pytest.fixture
def swayed(folder_of: Callable[[str], Any]) -> Callable[[str, float], Any]:
    """A tiny model that gives the letters of one form ("" or " ") more probability, by the unembedding's bias."""

    def make(space: str, by: float) -> Any:
        model = load_model(folder_of("llama"), device="cpu")
        ids = [target_id(model, f"{space}{letter}") for letter in "ABCD"]
        model.unembed.b_U = torch.nn.Parameter(torch.zeros(model.cfg.d_vocab), requires_grad=False)
        model.unembed.b_U[ids] += by
        return model

    return make


ENDINGS = [
    "Answer:",
    "Answer: (",
    'Answer: "',
    "Answer: **",
    "Answer: [",
    "答案：",
    "正しい記号は",
    "Answer:\n",
    "Answer: ",
    "\n(",
]


@pytest.mark.transformer_lens_3
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_form_with_more_probability_is_taken_after_every_ending(ending: str, swayed: Callable[..., Any]) -> None:
    text = f"Which letter?\n{ending}"
    for space in ("", " "):
        model = swayed(space, 12.0)
        found = option_tokens(model, text)
        ids = [target_id(model, f"{space}{letter}") for letter in "ABCD"]
        assert (list(found.ids), found.leading_space) == (ids, space == " ")
        p = model(to_tokens(model, text)[None])[0, -1].softmax(-1)
        assert found.mass == pytest.approx(p[ids].sum().item(), rel=1e-4)
        assert found.mass > 0.5 > found.other_mass
        assert torch.allclose(letter_probabilities(model, [Prompt(text, "A")])[0], p[ids], rtol=1e-4)


def test_the_text_suggests_a_form_first() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    first = {ending: option_forms(tokenizer, ending)[0].leading_space for ending in ENDINGS}
    assert [ending for ending, space in first.items() if space] == ["Answer:"]
    with pytest.raises(ModelError, match="are not single tokens after the prompt"):
        option_forms(tokenizer, "Answer:", letters=("A", "quite long"))


@pytest.mark.transformer_lens_3
def test_the_form_does_not_change_under_an_edit_and_does_with_the_weights(swayed: Callable[..., Any]) -> None:
    model, prompt = swayed(" ", 8.0), Prompt("Which letter?\nAnswer:", "B")
    plain = [target_id(model, letter) for letter in "ABCD"]

    def raise_plain(logits: torch.Tensor, hook: object) -> torch.Tensor:
        logits = logits.clone()
        logits[..., plain] += 20
        return logits

    with model.hooks(fwd_hooks=[("unembed.hook_out", raise_plain)]):
        edited = letter_probabilities(model, [prompt])[0]
        assert option_tokens(model, prompt.text).leading_space
        logits = model(to_tokens(model, prompt.text)[None])
        assert logits[0, -1].argmax().item() in plain  # the hook is there again after the question was put
    assert edited.sum() < 0.01
    model.unembed.b_U[plain] += 20
    assert not option_tokens(model, prompt.text).leading_space


@pytest.mark.transformer_lens_3
def test_the_form_follows_weights_written_through_data_and_another_bos(swayed: Callable[..., Any]) -> None:
    model, text = swayed(" ", 8.0), "Which letter?\nAnswer:"
    assert option_tokens(model, text).leading_space
    with_bos = option_tokens(model, text).mass
    model.cfg.default_prepend_bos = False
    assert option_tokens(model, text).mass != pytest.approx(with_bos, rel=1e-6)
    plain = [target_id(model, letter) for letter in "ABCD"]
    model.unembed.b_U.data[plain] += 30
    assert not option_tokens(model, text).leading_space


@pytest.mark.transformer_lens_3
def test_letters_that_are_hardly_expected_are_told(model_of: Callable[[str], Any], swayed: Callable[..., Any]) -> None:
    text = "A prompt after which nothing is expected"
    with pytest.warns(LetterWarning, match="the four option letters hold less than 5%"):
        found = option_tokens(swayed(" ", -20.0), text)
    assert found.mass < 0.05
    model = swayed(" ", 12.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        option_tokens(model, text)


def test_answers_tell_how_much_the_letters_hold(model_of: Callable[[str], Any], short_queries: Any) -> None:
    model, queries = model_of("llama"), short_queries.sample(1)
    table = answers(model, queries)
    prompts = [prompt for query in queries for prompt in query.prompts]
    wanted = [option_tokens(model, prompt.text).mass for prompt in prompts]
    assert table["mass"].tolist() == pytest.approx(wanted, rel=1e-4)
    assert (table["probability"] <= table["mass"]).all()


def test_the_letters_are_the_names_of_a_prompts_options(
    model_of: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, four = model_of("llama"), Prompt("Which letter is it?\nAnswer:", "B")
    wanted = letter_probabilities(model, [four])[:, 1:3]
    monkeypatch.setattr(Prompt, "names", property(lambda self: ("B", "C") if "two" in self.template else LETTERS))
    two = Prompt(four.text, "B", "two")
    assert option_tokens(model, two).letters == ("B", "C")
    assert torch.allclose(letter_probabilities(model, [two]), wanted)
    found = answers(model, QuerySet((Query("q", "g", (two,)),))).iloc[0]
    assert (found["answer"], found["right"]) == ("BC"[int(wanted.argmax())], int(wanted.argmax()) == 0)
    assert found["probability"] == pytest.approx(wanted[0, 0].item()) and found["mass"] == pytest.approx(wanted.sum().item())
    with pytest.raises(ValueError, match="have options B, C and A, B, C, D; ask for those with the same options together"):
        letter_probabilities(model, [two, four])
