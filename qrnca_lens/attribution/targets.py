"""What a model is asked for: one token, a choice among options, a continuation, an answer, each with objective and verdict.

The objective, a probability or its logarithm, is what the engine attributes; the verdict, right or wrong, is what tables
count. Both read logits [..., read, token]: those at the last `reads` positions of a text, in their order. Probabilities are
softmaxes over the whole vocabulary, in float32 (`token_probabilities`). Tables keep the options' probabilities alone:
`likeliest` and `is_right` read the answer and the verdict from them, as `Choice` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int

from qrnca_lens.core.values import one_of
from qrnca_lens.engine.asks import probability_of
from qrnca_lens.models import HookedModel, ModelError, OptionTokens

Reduce: TypeAlias = Literal["mean", "sum"]
"""What becomes of an answer's tokens: their mean or their sum."""
Logits: TypeAlias = Float[torch.Tensor, "*row read token"]
"""The logits of each row at the last positions that a target reads."""


@runtime_checkable
class Target(Protocol):
    """What every target tells."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def reads(self) -> int:
        """How many last positions' logits it needs."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that it is."""
        ...

    def objective(self, logits: Logits) -> Float[torch.Tensor, "*row"]:
        """The probability of the target, or of an answer its logarithm, differentiable.

        ValueError for logits of another number of positions."""
        ...

    def verdict(self, logits: Logits) -> Bool[torch.Tensor, "*row"]:
        """Whether the model says the target. ValueError for logits of another number of positions."""
        ...


@dataclass(frozen=True)
class OneToken:
    """The token `id`, in tables called `text`. It is right where it is the likeliest of the whole vocabulary."""

    id: int
    text: str

    @property
    def ids(self) -> tuple[int, ...]:
        """The one token."""
        return (self.id,)

    @property
    def name(self) -> str:
        """The token's text."""
        return self.text

    @property
    def reads(self) -> int:
        """The last position alone."""
        return 1

    def objective(self, logits: Logits) -> Float[torch.Tensor, "*row"]:
        """P(token)."""
        return probability_of(self.id)(_checked(self, logits))

    def verdict(self, logits: Logits) -> Bool[torch.Tensor, "*row"]:
        """Whether the token is the likeliest."""
        return _checked(self, logits)[..., 0, :].argmax(-1) == self.id


@dataclass(frozen=True)
class Choice:
    """One of several options, number `right` of `options`. It is right where it is the likeliest of the options.

    ValueError for a `right` that is no option.
    """

    options: OptionTokens
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right < len(self.options.ids):
            raise ValueError(f"there are options 0 to {len(self.options.ids) - 1}, so none is right with {self.right}")

    @property
    def names(self) -> tuple[str, ...]:
        """What the options are called, in their order."""
        return self.options.letters

    @property
    def ids(self) -> tuple[int, ...]:
        """The right option's token."""
        return (self.options.ids[self.right],)

    @property
    def name(self) -> str:
        """What the right option is called."""
        return self.names[self.right]

    @property
    def reads(self) -> int:
        """The last position alone."""
        return 1

    def probabilities(self, logits: Logits) -> Float[torch.Tensor, "*row option"]:
        """P of each option; they add up to less than 1, as other tokens have a share."""
        return _probabilities(self, logits)[..., 0, list(self.options.ids)]

    def objective(self, logits: Logits) -> Float[torch.Tensor, "*row"]:
        """P(right option)."""
        return self.probabilities(logits)[..., self.right]

    def verdict(self, logits: Logits) -> Bool[torch.Tensor, "*row"]:
        """Whether the right option is the likeliest."""
        return is_right(self.probabilities(logits), self.right)


@dataclass(frozen=True)
class _Text:
    """Several tokens after a prompt, in tables called `text`. ValueError for no token.

    The text that is run is the prompt and all of `ids` but the last: its last `reads` positions predict `ids`.
    """

    ids: tuple[int, ...]
    text: str

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError(f"the {type(self).__name__.lower()} {self.text!r} has no tokens; give at least one")

    @property
    def name(self) -> str:
        """The text."""
        return self.text

    @property
    def reads(self) -> int:
        """As many positions as there are tokens."""
        return len(self.ids)

    def verdict(self, logits: Logits) -> Bool[torch.Tensor, "*row"]:
        """Whether each token is the likeliest at its position, after those before it, so that a model that always takes the
        likeliest says the text. ValueError for logits of another number of positions."""
        best = _checked(self, logits).argmax(-1)
        return (best == torch.tensor(self.ids, device=best.device)).all(-1)


@dataclass(frozen=True)
class Continuation(_Text):
    """Several tokens whose probability together is attributed, at the prompt's last position."""

    def objective(self, logits: Logits) -> Float[torch.Tensor, "*row"]:
        """P(continuation | prompt): the product of each token's P after those before it."""
        return _probabilities(self, logits)[..., range(self.reads), list(self.ids)].prod(-1)


@dataclass(frozen=True)
class Answer(_Text):
    """A text in its tokens, each of which counts and is attributed on its own (`attribute`): log P, the `reduce` ("mean" or
    "sum") over them, in nats. ValueError for another `reduce`."""

    reduce: Reduce = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("reduce", self.reduce, get_args(Reduce))

    @property
    def weight(self) -> float:
        """How much each token counts: 1 over their number for the mean, 1 for the sum."""
        return 1 / len(self.ids) if self.reduce == "mean" else 1.0

    def log_probabilities(self, logits: Logits) -> Float[torch.Tensor, "*row read"]:
        """log P of each token after those before it, in nats."""
        return _checked(self, logits).float().log_softmax(-1)[..., range(self.reads), list(self.ids)]

    def objective(self, logits: Logits) -> Float[torch.Tensor, "*row"]:
        """The mean of log P over the tokens, or the sum: the logarithm of the answer's probability."""
        return self.weight * self.log_probabilities(logits).sum(-1)


def token_probabilities(logits: Float[torch.Tensor, "*row token"]) -> Float[torch.Tensor, "*row token"]:
    """P of every token of the vocabulary, in float32."""
    return logits.float().softmax(-1)


def likeliest(options: Float[torch.Tensor, "*row option"]) -> Int[torch.Tensor, "*row"]:
    """The answer: which option has the most probability, the first of equal ones."""
    return options.argmax(-1)


def is_right(options: Float[torch.Tensor, "*row option"], right: int | torch.Tensor) -> Bool[torch.Tensor, "*row"]:
    """The verdict: whether option number `right` (one for all rows, or one for each) is the answer."""
    return likeliest(options) == right


def check_target(model: HookedModel, target: Target) -> None:
    """ModelError for a target with a token outside the model's vocabulary."""
    ids = target.options.ids if isinstance(target, Choice) else target.ids
    size = model.cfg.d_vocab
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise ModelError(
            f"the target {target.name!r} has the token id {wrong[0]}; the vocabulary of {model.cfg.model_name} has {size} "
            f"tokens, 0 to {size - 1}"
        )


def _probabilities(target: Target, logits: Logits) -> Float[torch.Tensor, "*row read token"]:
    return token_probabilities(_checked(target, logits))


def _checked(target: Target | _Text, logits: Logits) -> Logits:
    if logits.shape[-2] != target.reads:
        raise ValueError(f"{target.name!r} is read at {target.reads} positions; these logits are of {logits.shape[-2]}")
    return logits
