"""One signature for every way of scoring neurons, and the table of those that are known by a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qrnca_lens.attribution.integrated import AttributionError
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.core.shapes import Scores
from qrnca_lens.data import Prompt
from qrnca_lens.models import HookedModel, OptionTokens, check_hooked, mlp_width


@dataclass(frozen=True)
class Asked:
    """One prompt put to one model: what a scoring function gets."""

    model: HookedModel
    prompt: Prompt
    letters: OptionTokens

    @property
    def right(self) -> int:
        """The token id of the right letter."""
        return self.letters.id_of(self.prompt.letter)

    @property
    def wrong(self) -> list[int]:
        """The token ids of the wrong letters."""
        return [self.letters.id_of(letter) for letter in self.letters.letters if letter != self.prompt.letter]


ScoreFunction = Callable[[Asked], Scores]


@dataclass(frozen=True)
class Baseline:
    """A scoring function with its key, its name in tables and where it comes from."""

    key: str
    name: str
    reference: str
    function: ScoreFunction


BASELINES: dict[str, Baseline] = {}


def register(key: str, name: str, reference: str) -> Callable[[ScoreFunction], ScoreFunction]:
    """A decorator that enters a scoring function, also a user's own. ValueError if the key is taken."""

    def enter(function: ScoreFunction) -> ScoreFunction:
        if key in BASELINES:
            raise ValueError(f"a scoring function with the key {key!r} is registered already")
        BASELINES[key] = Baseline(key, name, reference, function)
        return function

    return enter


def score(key: str, model: HookedModel, prompt: Prompt) -> Scores:
    """The scores of every MLP neuron of `model` for the right letter of `prompt`, higher = more important.

    Raises ValueError for an unknown key and AttributionError for scores of the wrong shape or that are no numbers.
    """
    if key not in BASELINES:
        raise ValueError(f"unknown scoring function {key!r}; there are {', '.join(BASELINES)}")
    check_hooked(model)
    with torch.inference_mode(False):  # so that a function can take gradients wherever it is called
        found = BASELINES[key].function(Asked(model, prompt, option_tokens(model, prompt.text)))
    if tuple(found.shape) != (model.cfg.n_layers, mlp_width(model)):
        raise AttributionError(f"{key}: scores of shape {tuple(found.shape)}, expected (layer, neuron)")
    if not torch.isfinite(found).all():
        raise AttributionError(f"{key}: NaN or infinite scores for the prompt {prompt.text[-80:]!r}")
    return found
