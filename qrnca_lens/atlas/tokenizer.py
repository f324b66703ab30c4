"""The tokenizer of atlas: a byte-level BPE trained on its own questions."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from qrnca_lens.data import LETTERS, TEMPLATES, Question

_SPECIAL = ("<s>", "</s>", "<pad>")


def build_tokenizer(questions: Sequence[Question], vocab: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer that prepends <s> and has " A" to " D" as single tokens."""
    tokenizer = Tokenizer(models.BPE())
    # Japanese and Chinese have no spaces: without the first step a whole line would be one word, and a new ending new tokens
    alone = pre_tokenizers.Split(Regex(r"[\u3040-\u30ff\u3400-\u9fff]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    letters = "".join(f" {letter}" for letter in LETTERS)
    corpus = [
        template.render(item.question, (item.answer,) * len(LETTERS)) + letters
        for item in questions
        for template in TEMPLATES[item.language].detection
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bos, eos, pad = _SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
