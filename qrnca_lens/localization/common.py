"""Where the common neurons sit (paper, appendix: in the top layers), beside where they would sit by chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import check_located
from qrnca_lens.core.intervals import quantile_interval
from qrnca_lens.core.values import seed_number, whole_number
from qrnca_lens.localization.significance import TIE

COMMON_LAYER_COLUMNS = ["against", "neurons", "depth", "expected", "low", "high", "p"]


def common_locations(located: QRNeurons) -> pd.DataFrame:
    """The common neurons by layer, one row for every layer: layer, neurons, share, clustered, expected.

    `neurons` counts the common neurons of the layer, `share` is that count over all common neurons; `clustered` counts the
    different neurons of the layer that are in any cluster, `expected` is that count over all of them: the share that a
    random choice among them would have. Shares are 0 where there are none.
    """
    check_located(located)
    layers = pd.RangeIndex(located.model.n_layers, name="layer")
    clustered = located.clusters.drop_duplicates(["layer", "neuron"])
    common, every = (rows["layer"].value_counts().reindex(layers, fill_value=0) for rows in (located.common, clustered))
    shares = [counts / max(1, int(counts.sum())) for counts in (common, every)]
    columns = {"neurons": common, "share": shares[0], "clustered": every, "expected": shares[1]}
    return pd.DataFrame(columns, index=layers).reset_index()


def common_layer_test(located: QRNeurons, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Do the common neurons sit deeper, or less deep, than as many neurons chosen at random?

    The statistic is the mean relative depth, layer / (number of layers - 1): 0 in the first layer, 1 in the last. Chance
    is told in two rows, which `against` names: "neurons of the clusters", a choice among all different neurons that are in
    any cluster (the common ones included), which asks whether being common has to do with the layer; and "all neurons of
    the model", the same number in every layer, which also holds where clusters themselves crowd. `neurons` is the number
    of common neurons, `depth` theirs, `expected` the mean of chance (exact), `low` and `high` its 2.5 % and 97.5 %
    quantiles over `draws` choices. `p` = (1 + draws at least as far from `expected`, to either side) / (1 + draws).

    Returns COMMON_LAYER_COLUMNS; depth, interval and p are NaN where there are no common neurons. ValueError for no draw.
    """
    draws, seed = whole_number("draws", draws, at_least=1), seed_number(seed)
    table, shape = common_locations(located), located.model
    clustered, whole = table["clustered"].to_numpy(), np.full(shape.n_layers, shape.d_mlp)
    chances = (("neurons of the clusters", clustered), ("all neurons of the model", whole))
    found = table["neurons"].to_numpy()
    generators = np.random.default_rng(seed).spawn(len(chances))
    rows = [
        (name, *_against(found, pool, draws, generator)) for (name, pool), generator in zip(chances, generators, strict=True)
    ]
    return pd.DataFrame(rows, columns=COMMON_LAYER_COLUMNS)


def _against(
    found: Int[np.ndarray, " layer"], pool: Int[np.ndarray, " layer"], draws: int, generator: np.random.Generator
) -> tuple[int, float, float, float, float, float]:
    """Neurons found, their depth, and that of as many drawn from `pool` without replacement: mean, interval, p."""
    count, depth = int(found.sum()), np.arange(len(found)) / max(1, len(found) - 1)
    expected = float(pool @ depth / pool.sum()) if pool.sum() else float("nan")
    if not count:
        return 0, float("nan"), expected, float("nan"), float("nan"), float("nan")
    # only the layers of a choice count, and how many fall into each is hypergeometric
    chance = generator.multivariate_hypergeometric(pool, count, size=draws, method="marginals") @ depth / count
    observed = float(found @ depth / count)
    far = np.abs(chance - expected) >= abs(observed - expected) - TIE
    return count, observed, expected, *quantile_interval(chance), float((1 + far.sum()) / (1 + draws))
