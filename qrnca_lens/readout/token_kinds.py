"""Do common neurons promote option letters, stop words and punctuation? Counted against random neurons (paper, table 5)."""

from __future__ import annotations

import string
import unicodedata
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import seed_number, whole_number
from qrnca_lens.data import LETTERS
from qrnca_lens.data.stop_words import ALL_STOP_WORDS
from qrnca_lens.localization.significance import holm
from qrnca_lens.models import HookedModel, check_hooked, mlp_width
from qrnca_lens.readout.promoted import strongest, vocabulary_size

KINDS = ("option letters", "stop words", "punctuation")
KIND_COLUMNS = ["kind", "neurons", "found", "of", "share", "random share", "vocabulary share", "p", "p_corrected"]
_DEALS = 1000


def common_token_test(
    model: HookedModel, located: QRNeurons, k: int = 3, *, controls: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Are there more tokens of a kind among the `k` that common neurons promote most than among those of other neurons?

    A row for each of KINDS: `neurons` common ones, tokens `found` of the kind among the `of` = neurons x k most promoted,
    their `share`; `random share` is that of about `controls` neurons drawn at random from the same layers, in each in
    proportion to its common neurons (none of which is among them; fewer where a layer has no more); `vocabulary share` is
    that of the kind in the whole vocabulary. The null hypothesis: which neurons of a layer are common does not matter for
    what they promote. `p` = (1 + deals with at least as many tokens found) / (1 + deals), one-sided, over 1,000 deals of
    "common" anew among the common and the drawn neurons of each layer; `p_corrected` is Holm's for the three kinds.

    A token's kind is that of its text without spaces: one of A, B, C, D; a stop word of any of the languages in
    `data.stop_words`, large or small letters; punctuation marks and ASCII symbols alone. A letter is no stop word. Tokens
    that are part of a character have no kind. The names of months, which the paper lists too, are not counted.

    Returns KIND_COLUMNS; without common neurons shares and p are NaN, but for the vocabulary's. ValueError for a `k` outside
    1 .. size of the vocabulary, less than 1 control, and common neurons that are outside the model.
    """
    check_hooked(model)
    k = whole_number("k", k, at_least=1, at_most=vocabulary_size(model))
    controls, generator = whole_number("controls", controls, at_least=1), np.random.default_rng(seed_number(seed))
    kinds, common = vocabulary_kinds(model), located.common_set
    common.check_inside(model.cfg.n_layers, mlp_width(model))
    vocabulary = kinds.mean(axis=0)
    if not len(common):
        none = [
            (kind, 0, 0, 0, np.nan, np.nan, share, np.nan, np.nan) for kind, share in zip(KINDS, vocabulary, strict=True)
        ]
        return pd.DataFrame(none, columns=KIND_COLUMNS)
    each, found = -(-controls // len(common)), []
    for layer, indices in common.by_layer().items():
        others = _others(layer, indices, mlp_width(model), each * len(indices), generator)
        members = NeuronSet.of(*((layer, index) for index in indices)) | others
        ids = strongest(model, members, k)[1][:, :k].cpu().numpy()
        found.append(_Layer(kinds[ids].sum(axis=1), len(indices)))
    return _frame(found, k, vocabulary, generator)


def vocabulary_kinds(model: HookedModel) -> Bool[np.ndarray, "token kind"]:
    """Which of KINDS every token of the vocabulary is, if any; at most one."""
    check_hooked(model)
    return np.array([_kind(str(model.tokenizer.decode([i])).strip()) for i in range(vocabulary_size(model))])


def _kind(text: str) -> tuple[bool, bool, bool]:
    """Which of KINDS a text without spaces around it is."""
    letter = text in LETTERS
    marks = bool(text) and all(unicodedata.category(c).startswith("P") or c in string.punctuation for c in text)
    return letter, not letter and text.lower() in ALL_STOP_WORDS, marks


@dataclass(frozen=True)
class _Layer:
    """How many tokens of every kind each neuron of a layer promotes: first its `common` common ones, then the drawn ones."""

    hits: Int[np.ndarray, "neuron kind"]
    common: int

    def dealt(self, generator: np.random.Generator) -> Int[np.ndarray, "deal kind"]:
        """What as many neurons as are common promote, chosen from all of them, a row a deal."""
        ranks = generator.random((_DEALS, len(self.hits)))
        return self.hits[ranks.argpartition(self.common - 1)[:, : self.common]].sum(axis=1)


def _others(layer: int, common: list[int], d_mlp: int, count: int, generator: np.random.Generator) -> NeuronSet:
    """`count` neurons of a layer that are not common, or all of those."""
    free = np.setdiff1d(np.arange(d_mlp), common)
    chosen = generator.choice(free, min(count, len(free)), replace=False)
    return NeuronSet.of(*((layer, index) for index in chosen.tolist()))


def _frame(
    layers: list[_Layer], k: int, vocabulary: Float[np.ndarray, " kind"], generator: np.random.Generator
) -> pd.DataFrame:
    neurons = sum(layer.common for layer in layers)
    found = np.sum([layer.hits[: layer.common].sum(axis=0) for layer in layers], axis=0)
    dealt = np.sum([layer.dealt(generator) for layer in layers], axis=0)
    p = (1 + (dealt >= found).sum(axis=0)) / (1 + _DEALS)
    known = [layer for layer in layers if len(layer.hits) > layer.common]
    others = [layer.hits[layer.common :].mean(axis=0) / k for layer in known]
    weights = [layer.common for layer in known]
    chance = np.average(others, axis=0, weights=weights) if known else np.full(len(KINDS), np.nan)
    of = neurons * k
    made = [list(KINDS), neurons, found, of, found / of, chance, vocabulary, p, holm(p)]
    return pd.DataFrame(dict(zip(KIND_COLUMNS, made, strict=True)))
