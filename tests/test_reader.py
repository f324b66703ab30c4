"""The reader of a model: each text is read once, rightly, and anew when it would be read otherwise; the run records it."""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import CONFIG, as_older, same
from tiny import sentencepiece_tokenizer, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import qrnca_lens
from qrnca_lens.core.store import RunError
from qrnca_lens.data import LETTERS, QuerySet
from qrnca_lens.models import ModelError, load_model, reader_of, to_tokens
from qrnca_lens.models import reader as reading
from qrnca_lens.models.single_tokens import letters_after, plain_ids
from qrnca_lens.runs.pipeline import locate

TEXT = "Which letter is right?\nAnswer:"


@pytest.fixture
def own(folder_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """A tiny model that nobody else has."""
    return lambda family: load_model(folder_of(family), device="cpu")


def counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text is given to the tokenizer, `model.to_tokens` included, from now on."""
    kind, seen = type(model.tokenizer), Counter[str]()
    encode, call = kind.encode, kind.__call__

    def encoding(self: Any, text: str, *args: Any, **kwargs: Any) -> Any:
        seen[text] += 1
        return encode(self, text, *args, **kwargs)

    def calling(self: Any, text: str | list[str], *args: Any, **kwargs: Any) -> Any:
        seen.update([text] if isinstance(text, str) else text)
        return call(self, text, *args, **kwargs)

    monkeypatch.setattr(kind, "encode", encoding)
    monkeypatch.setattr(kind, "__call__", calling)
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_run_reads_each_prompt_once(
    family: str, own: Callable[[str], Any], short_queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for the letters 9 short texts for each way that prompts end: the last line, 4 letters in 2 forms after it."""
    model = own(family)
    seen = counted(model, monkeypatch)
    locate(model, short_queries, CONFIG, progress=False)
    prompts = [prompt.text for query in short_queries for prompt in query.prompts]
    assert {seen.pop(prompt) for prompt in prompts} == {1}
    assert seen.pop(reading._SAMPLE) == seen.pop("A") == 1  # for the record, and for whether a BOS is added
    assert seen == Counter(f"\nAnswer:{end}" for end in ("", *LETTERS, *(f" {letter}" for letter in LETTERS)))


def going_on() -> PreTrainedTokenizerFast:
    """A BPE that marks what goes on a word, cuts no words and merges across line breaks and into a letter."""
    characters = [*"ABCDax:\n (", *(f"##{c}" for c in "ABCDax:\n (")]
    merges = [("##x", "##\n"), ("##x\n", "##:"), ("##:", "##A"), ("## ", "##B"), ("##\n", "##(")]
    pieces = ["<unk>", *characters, *(first + second.removeprefix("##") for first, second in merges)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", continuing_subword_prefix="##"))
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def weighing() -> PreTrainedTokenizerFast:
    """A unigram tokenizer, which weighs the whole text: a piece over a line break takes the letter in."""
    costs = {"<unk>": 0.0, **dict.fromkeys("ABCDax:\n (", -2.0), "x\n:A": -0.5, ":B": -5.0, " C": -1.0, "x\n:": -5.5}
    inner = Tokenizer(models.Unigram(list(costs.items()), unk_id=0))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def bytewise() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.pad_token = None
    return tokenizer


class Bare:
    """What a reader needs of a model whose tokenizer has no padding token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.cfg = SimpleNamespace(d_vocab=len(tokenizer), n_ctx=64, default_prepend_bos=tokenizer.bos_token_id is not None)

    def parameters(self) -> Any:
        return [torch.zeros(1)]


@pytest.mark.parametrize("make", [going_on, weighing, bytewise, sentencepiece_tokenizer])
def test_the_letters_after_a_prompt_are_those_after_the_whole_of_it(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    model = Bare(make())
    tokenizer, reader = model.tokenizer, reader_of(model)

    @settings(max_examples=250, deadline=None)
    @given(st.text("ax:(\n A", min_size=1, max_size=9))
    def check(prompt: str) -> None:
        wanted = letters_after(tokenizer, prompt, plain_ids(tokenizer, prompt), LETTERS)
        if wanted:
            assert reader.options(prompt, LETTERS) == wanted
        else:
            with pytest.raises(ModelError, match="are not single tokens after the prompt"):
                reader.options(prompt, LETTERS)

    for prompt in ("a\n:", "ax\n:", "aax\n:", "xx\nx\n:", ":\nAnswer:"):
        check.hypothesis.inner_test(prompt)  # the line break joined to what stands before it, and not
    check()


@pytest.mark.parametrize(("make", "whole"), [(sentencepiece_tokenizer, False), (weighing, True)])
def test_only_a_tokenizer_that_merges_is_asked_after_the_last_line(
    make: Callable[[], PreTrainedTokenizerFast], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Bare(make())
    seen = counted(model, monkeypatch)
    reader_of(model).options("a\n:", LETTERS)
    assert ("a\n: A" in seen) is whole


@pytest.mark.transformer_lens_3
def test_a_text_is_read_anew_when_it_would_be_read_otherwise(own: Callable[[str], Any]) -> None:
    model = own("llama")
    bos, first = model.tokenizer.bos_token_id, to_tokens(model, TEXT)
    model.cfg.default_prepend_bos = False
    assert torch.equal(to_tokens(model, TEXT), first[1:])
    model.cfg.default_prepend_bos = True
    assert torch.equal(to_tokens(model, TEXT), first)
    backend = model.tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", bos)])
    assert to_tokens(model, TEXT).tolist() == [bos, *first.tolist()]
    model.tokenizer = sentencepiece_tokenizer()
    model.cfg.default_prepend_bos = False
    assert to_tokens(model, "A").tolist() == [model.tokenizer.get_vocab()["▁A"]]


def test_what_is_given_out_is_the_caller_s_own(own: Callable[[str], Any]) -> None:
    model = own("llama")
    first = to_tokens(model, TEXT)
    wanted = first.clone()
    first += 1
    assert torch.equal(to_tokens(model, TEXT), wanted)
    for _ in range(2):  # a word at every reading
        with pytest.warns(UserWarning, match="begins with '<s>'"):
            to_tokens(model, "<s>Answer:")


def test_only_so_many_texts_are_kept(own: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_KEPT", 2)
    model = own("llama")
    seen = counted(model, monkeypatch)
    for text in ("one", "two", "one", "three", "one", "two"):
        to_tokens(model, text)
    assert seen.pop("A") == 1  # whether a BOS is added
    assert seen == {"one": 1, "two": 2, "three": 1}


def test_a_reader_goes_with_its_model() -> None:
    model = Bare(tiny_tokenizer(bos=False))
    reader, there = reader_of(model), ref(model)
    assert reader is reader_of(model)
    assert reader.token("A") == model.tokenizer.get_vocab()["A"]
    del model
    gc.collect()
    assert there() is None
    with pytest.raises(ReferenceError, match="this reader's model is gone; keep the model"):
        reader.tokens("A")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_offsets_are_where_the_pieces_stand(family: str, own: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = own(family)
    reader = reader_of(model)
    tokens, offsets, pieces = reader.tokens(TEXT), reader.offsets(TEXT), reader.pieces(reader.tokens(TEXT))
    assert offsets is not None and len(offsets) == len(tokens)
    begins = int(family == "llama")
    assert offsets[:begins] == [(0, 0)] * begins
    assert [TEXT[start:end] for start, end in offsets[begins:]] == pieces[begins:]
    assert "".join(pieces[begins:]) == TEXT
    assert reader.pieces(reader.tokens("答"))[-1] != "\ufffd"  # a part of a character, as the vocabulary spells it
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    assert reader.offsets(TEXT) is None


@pytest.mark.transformer_lens_3
def test_the_record_tells_what_decides_the_ids(own: Callable[[str], Any]) -> None:
    model = own("llama")
    reader = reader_of(model)
    first = reader.record()
    assert json.loads(json.dumps(first)) == first == reader_of(own("llama")).record()
    assert (first["rendering"], first["prepends_bos"], first["vocabulary"]) == ("raw", True, len(model.tokenizer))

    def changed() -> set[str]:
        now = reader.record()
        return {name for name in first if now[name] != first[name]}

    model.cfg.default_prepend_bos = False
    assert changed() == {"prepends_bos", "sample"}
    model.cfg.default_prepend_bos = True
    model.tokenizer = tiny_tokenizer(bos=True)
    assert changed() <= {"tokenizer"}
    model.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    reader._state = ()  # set within the tokenizer, which nothing tells
    assert changed() - {"tokenizer"} == {"sample"}
    model.tokenizer.add_tokens(["xylophone"])
    assert changed() - {"tokenizer"} == {"sample", "vocabulary", "sha256"}


def test_a_run_goes_on_with_the_same_reader_alone(
    own: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    model = own("llama")
    found = locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    as_older(tmp_path)
    manifest = tmp_path / "manifest.json"
    record = json.loads(manifest.read_text())
    assert record["reader"] == found.about["reader"] == reader_of(model).record()
    assert json.loads((tmp_path / "header.json").read_text())["about"]["reader"] == record["reader"]
    model.cfg.default_prepend_bos = False
    with pytest.raises(RunError, match=r"another run.*\n  reader\.prepends_bos: False here, True in the folder"):
        locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    model.cfg.default_prepend_bos = True
    manifest.write_text(json.dumps({**record, "reader": {**record["reader"], "tokenizer": "OfAnotherRelease"}}))
    same(locate(model, short_queries, CONFIG, out=tmp_path, progress=False), found)
    manifest.write_text(json.dumps({**record, "reader": 3}))
    with pytest.raises(RunError, match=r"manifest\.json: reader: expected an object, found a whole number"):
        locate(model, short_queries, CONFIG, out=tmp_path, progress=False)


def test_a_run_of_a_time_before_the_record_goes_on_and_gets_it(
    own: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path
) -> None:
    model = own("llama")
    locate(model, QuerySet(short_queries.queries[:6]), CONFIG, out=tmp_path, progress=False)
    as_older(tmp_path)
    manifest = tmp_path / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["reader"]
    manifest.write_text(json.dumps(record))
    model.cfg.default_prepend_bos = False
    assert len(locate(model, short_queries, CONFIG, out=tmp_path, progress=False).queries) == 12
    assert json.loads(manifest.read_text())["reader"] == reader_of(model).record()


def test_no_other_place_reads_texts_or_spells_the_letters() -> None:
    """But for the tokenizer's own trial, what a hook sees of a text that a user gives the model, and atlas's training."""
    root = Path(qrnca_lens.__file__).parent
    reads, spells = (
        re.compile(r"\btokenizer(\.encode)?\(|\.to_tokens\("),
        re.compile(r"""\bLETTERS(\.index|\[)|len\(LETTERS|ABCD|(['"])A\2, \2B"""),
    )
    there = {
        path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.suffix in (".py", ".js")
    }
    others = {name: text for name, text in there.items() if not name.startswith(("atlas/", "data/"))}
    allowed = {"models/reader.py", "models/single_tokens.py", "models/sources.py", "engine/padding.py"}
    assert {name for name, text in others.items() if reads.search(text)} == allowed
    assert not {name for name, text in others.items() if spells.search(text)}
