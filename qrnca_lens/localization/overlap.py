"""How far the QR-neuron sets of groups coincide, and where the common neurons sit (paper, figure 2a and appendix)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from qrnca_lens.clustering import QRNeurons


def overlap(located: QRNeurons) -> pd.DataFrame:
    """The share of group a's QR neurons (row) that are also QR neurons of group b (column); paper, figure 2a.

    A group's set holds every neuron that is a QR neuron of any of its queries, counted once. Groups come in the order of
    `located.groups` on both axes; shares lie in [0, 1] and the diagonal is 1. The table is not symmetric: a small set can
    lie wholly inside a large one. The row of a group without QR neurons is NaN.
    """
    shared = _intersections(located)
    return _square(located, _ratio(shared, np.broadcast_to(np.diag(shared)[:, None], shared.shape)))


def jaccard(located: QRNeurons) -> pd.DataFrame:
    """Neurons in both sets / neurons in either set, for every pair of groups: symmetric, in [0, 1], diagonal 1.

    Sets and order as in `overlap`. Rows and columns of a group without QR neurons are NaN.
    """
    shared = _intersections(located)
    sizes = np.diag(shared)
    both_filled = np.outer(sizes, sizes) > 0
    return _square(located, _ratio(shared, np.where(both_filled, sizes[:, None] + sizes - shared, 0.0)))


def common_locations(located: QRNeurons) -> pd.DataFrame:
    """The common neurons by layer (paper, appendix), one row for every layer: layer, neurons, share.

    `neurons` counts the common neurons of the layer, `share` is that count over all common neurons (0 where there are
    none).
    """
    counts = located.common["layer"].value_counts().reindex(range(located.model.n_layers), fill_value=0)
    share = counts / max(1, len(located.common))
    return pd.DataFrame({"layer": counts.index, "neurons": counts.to_numpy(), "share": share.to_numpy()})


def _intersections(located: QRNeurons) -> Float[np.ndarray, "group group"]:
    """How many neurons each two groups share; the diagonal holds the sizes of the sets."""
    rows = located.table[["group", "layer", "neuron"]].drop_duplicates()
    position = {group: i for i, group in enumerate(located.groups)}
    column = rows.groupby(["layer", "neuron"]).ngroup().to_numpy()
    present = np.zeros((len(position), int(column.max(initial=-1)) + 1))
    present[rows["group"].map(position).to_numpy(dtype=int), column] = 1
    return present @ present.T


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _square(located: QRNeurons, values: Float[np.ndarray, "group group"]) -> pd.DataFrame:
    names = list(located.groups)
    return pd.DataFrame(values, index=pd.Index(names, name="group"), columns=pd.Index(names, name="other group"))
