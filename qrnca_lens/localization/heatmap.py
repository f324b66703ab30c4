"""Heatmaps of layer x neuron index: naica summed over the queries of a group (paper, figure 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import check_located


@dataclass(frozen=True)
class Heatmap:
    """`values[layer, bin]`: summed naica of the neurons first_neuron(bin) .. first_neuron(bin) + width - 1.

    `neurons` and `best` tell, for each cell, how many QR neurons it holds and which has the highest sum (-1 for none);
    `query` is the query where that one has its highest naica ("" for none).
    """

    group: str
    values: Float[np.ndarray, "layer bin"]
    neurons: Int[np.ndarray, "layer bin"]
    best: Int[np.ndarray, "layer bin"]
    query: Shaped[np.ndarray, "layer bin"]
    width: int

    @property
    def starts(self) -> list[int]:
        """The first neuron index of every bin."""
        return [i * self.width for i in range(self.values.shape[1])]


def group_heatmap(located: QRNeurons, group: str | None = None, *, bins: int = 128) -> Heatmap:
    """The heatmap of one group (None: of all), its neuron axis cut into at most `bins` bins of equal width.

    A model of 32 layers x 11,008 neurons thus stays at 32 x 128 cells. KeyError for an unknown group.
    """
    check_located(located)
    width = located.model.bin_width(bins)
    rows = located.table if group is None else located.table_for_group(group)
    shape = (located.model.n_layers, -(-located.model.d_mlp // width))
    by_neuron = rows.sort_values("naica", ascending=False, kind="stable").groupby(["layer", "neuron"], as_index=False)
    summed = by_neuron.agg(naica=("naica", "sum"), query=("query", "first"))
    values, count, best = np.zeros(shape), np.zeros(shape, dtype=int), np.full(shape, -1)
    queries = np.full(shape, "", dtype=object)
    summed = summed.sort_values("naica")
    neurons = summed["neuron"].to_numpy(dtype=int)
    cells = summed["layer"].to_numpy(dtype=int), neurons // width
    np.add.at(values, cells, summed["naica"].to_numpy(dtype=float))
    np.add.at(count, cells, 1)
    best[cells], queries[cells] = neurons, summed["query"].to_numpy(dtype=object)  # of several the last one stays
    return Heatmap(group or "all groups", values, count, best, queries, width)


def layer_counts(located: QRNeurons) -> pd.DataFrame:
    """How many QR neurons each group has in each layer (paper, figure 2b): rows are groups, columns are layers.

    A neuron counts once for every query it belongs to.
    """
    check_located(located)
    counts = located.table.groupby(["group", "layer"]).size().unstack(fill_value=0)
    return counts.reindex(index=list(located.groups), columns=range(located.model.n_layers), fill_value=0)
