"""The identity of a neuron, and where it is read. Nothing else names neurons: no strings, no pairs of loose integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from qrnca_lens.core.shapes import Scores
from qrnca_lens.core.values import WrongKindError, check_kind, items, told, whole_number

_MAKE = "make them with Neuron(layer, index) or NeuronSet.of((3, 17))"
_NEURONS = f"neurons ({_MAKE})"
Site = Literal["up", "gate", "pre", "post"]
"""Where a neuron is read and scaled; `models.sites` says what each is."""


@dataclass(frozen=True, order=True)
class Neuron:
    """Hidden unit `index` of the MLP of layer `layer`, both counted from 0 (column of W_in, row of W_out).

    Whole numbers of any kind become ints. TypeError for anything else (True and 1.0 too), ValueError for one below 0.
    """

    layer: int
    index: int

    def __post_init__(self) -> None:
        layer, index = (whole_number(f"a neuron's {name}", getattr(self, name)) for name in ("layer", "index"))
        if layer < 0 or index < 0:
            raise ValueError(f"a neuron's layer and index start at 0, not {layer} and {index}")
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "index", index)

    def __str__(self) -> str:
        return f"L{self.layer}.N{self.index}"


@dataclass(frozen=True)
class NeuronSet:
    """Distinct neurons in a given order (most important first where it comes from a ranking). TypeError for other things."""

    neurons: tuple[Neuron, ...] = ()

    def __post_init__(self) -> None:
        for neuron in (given := items("neurons", self.neurons, _NEURONS)):
            if not isinstance(neuron, Neuron):
                raise WrongKindError(f"expected neurons, found {told(neuron)}; {_MAKE}")
        object.__setattr__(self, "neurons", tuple(dict.fromkeys(given)))

    @classmethod
    def of(cls, *pairs: tuple[int, int]) -> NeuronSet:
        """From (layer, index) pairs: `NeuronSet.of((3, 17), (4, 2))`. TypeError for anything but pairs of whole numbers."""
        for pair in pairs:
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise WrongKindError(f"a neuron is given as a pair (layer, index), not {told(pair)}; {_MAKE}")
        return cls(tuple(Neuron(layer, index) for layer, index in pairs))

    @classmethod
    def from_frame(cls, rows: pd.DataFrame) -> NeuronSet:
        """From the columns layer and neuron of a table, in its order; a neuron of several rows counts once.

        TypeError for anything but a table, ValueError for a table without one of the columns.
        """
        if not isinstance(rows, pd.DataFrame):
            raise WrongKindError(f"expected a table with the columns layer and neuron, found {type(rows).__name__}")
        missing = [name for name in ("layer", "neuron") if name not in rows.columns]
        if missing:
            raise ValueError(
                f"a table of neurons needs the columns layer and neuron; it has no {missing[0]!r} among "
                f"{', '.join(map(repr, rows.columns))}"
            )
        return cls.of(*zip(rows["layer"].tolist(), rows["neuron"].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.neurons)

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self.neurons)

    def __contains__(self, neuron: object) -> bool:
        return isinstance(neuron, Neuron) and neuron in set(self.neurons)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return NeuronSet(self.neurons + _others(other))

    def __and__(self, other: NeuronSet) -> NeuronSet:
        kept = set(_others(other))
        return NeuronSet(tuple(n for n in self.neurons if n in kept))

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        dropped = set(_others(other))
        return NeuronSet(tuple(n for n in self.neurons if n not in dropped))

    def by_layer(self) -> dict[int, list[int]]:
        """The indices of every layer that has some, layers in rising order."""
        layers: dict[int, list[int]] = {}
        for neuron in sorted(self.neurons):
            layers.setdefault(neuron.layer, []).append(neuron.index)
        return layers

    def to_frame(self) -> pd.DataFrame:
        """Columns layer and neuron, in the set's order."""
        return pd.DataFrame([(n.layer, n.index) for n in self.neurons], columns=["layer", "neuron"], dtype="int64")

    def check_inside(self, n_layers: int, d_mlp: int) -> None:
        """ValueError that names the first neuron outside a model of this size."""
        n_layers, d_mlp = whole_number("n_layers", n_layers, at_least=1), whole_number("d_mlp", d_mlp, at_least=1)
        for neuron in self.neurons:
            if neuron.layer >= n_layers or neuron.index >= d_mlp:
                raise ValueError(
                    f"neuron {neuron} is outside the model: it has layers 0 to {n_layers - 1} of {d_mlp} neurons each"
                )


def neuron_set(neurons: Iterable[Neuron] | Neuron) -> NeuronSet:
    """A NeuronSet of one neuron or of any iterable of neurons (a NeuronSet passes through). TypeError for other things."""
    if isinstance(neurons, NeuronSet):
        return neurons
    return NeuronSet((neurons,) if isinstance(neurons, Neuron) else items("neurons", neurons, _NEURONS))


def check_sets(name: str, sets: Mapping[str, Mapping[str, NeuronSet]]) -> None:
    """TypeError for anything but neurons by method and then by query."""
    what = 'neurons by method and query, such as {"qrnca": {"q1": NeuronSet.of((3, 17))}}'
    check_kind(name, sets, Mapping, what)
    for method, found in sets.items():
        check_kind(f"{name}[{told(method)}]", found, Mapping, f"a dict of neurons by query; {name} is {what}")
        for query, neurons in found.items():
            check_kind(f"{name}[{told(method)}][{told(query)}]", neurons, NeuronSet, f"a NeuronSet ({_MAKE})")


def _others(other: NeuronSet) -> tuple[Neuron, ...]:
    """The neurons of what a set is joined with."""
    check_kind("the other set", other, NeuronSet, f"a NeuronSet ({_MAKE})")
    return other.neurons


def best_first(scores: Scores) -> tuple[Int[np.ndarray, " place"], Int[np.ndarray, " place"], Float[np.ndarray, " place"]]:
    """Layer, neuron and score of all neurons by their scores. Ties go to the lower layer, then to the lower neuron."""
    values, flat = scores.detach().flatten().sort(descending=True, stable=True)
    layer, neuron = np.divmod(flat.cpu().numpy(), scores.shape[1])
    return layer, neuron, values.to("cpu", torch.float64).numpy()


def top_neurons(scores: Scores, k: int) -> pd.DataFrame:
    """The first `k` neurons of `best_first` (all, where there are fewer): columns layer, neuron, score."""
    return pd.DataFrame(dict(zip(("layer", "neuron", "score"), [part[:k] for part in best_first(scores)], strict=True)))
