"""QRNCA and its variants on the same clusters: the paper's ablations and its Knowledge Neuron* (tables 4, 6).

Each ranks the neurons of a query's cluster; `Ranking.own` is what the paper takes of it. Ties go to the higher na, then to
the lower layer, then to the lower neuron.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.refine import drop_neurons, take_top
from qrnca_lens.methods.ranking import Ranking


def qrnca(located: QRNeurons) -> dict[str, Ranking]:
    """By naica, without common neurons. Its own are those among the top v before common neurons go (paper, section 3.3)."""
    return _ranked(located, located.scored, "naica", located.common)


def without_ica(located: QRNeurons) -> dict[str, Ranking]:
    """By na instead of naica, without common neurons; its own as in `qrnca`."""
    return _ranked(located, located.scored, "na", located.common)


def with_common(located: QRNeurons) -> dict[str, Ranking]:
    """By naica, common neurons among them; its own are the top v."""
    return _ranked(located, located.scored, "naica", located.common.head(0))


def knowledge_neurons(located: QRNeurons) -> dict[str, Ranking]:
    """Knowledge Neuron* (Dai et al. 2022, as the paper adapts it to multi-choice prompts).

    The neurons that pass the threshold in at least half of the query's templates (this project's choice, the paper names no
    number), by na (their summed score, as a share of the cluster's); its own are the top v. Neither ICA nor common neurons
    are used.
    """
    return _ranked(located, _in_half_of_the_templates(located), "na", located.common.head(0))


def knowledge_neurons_without_common(located: QRNeurons) -> dict[str, Ranking]:
    """`knowledge_neurons` without common neurons; its own are those left of the top v."""
    return _ranked(located, _in_half_of_the_templates(located), "na", located.common)


def _in_half_of_the_templates(located: QRNeurons) -> pd.DataFrame:
    half = located.scored["query"].map(located.queries.set_index("query")["prompts"] / 2).map(math.ceil)
    return located.scored[located.scored["templates"] >= half]


def _ranked(located: QRNeurons, rows: pd.DataFrame, by: str, dropped: pd.DataFrame) -> dict[str, Ranking]:
    """The rows of each query by `by` less the `dropped` neurons; a query's own are those left of its first v rows."""
    ordered = take_top(rows, max(len(rows), 1), by)
    ordered = ordered.assign(among_top=ordered.groupby("query").cumcount() < located.config.top)
    found = {str(query): part for query, part in drop_neurons(ordered, dropped).groupby("query")}
    nothing = Ranking(np.empty(0, int), np.empty(0, int), np.empty(0), own=0)
    return {query: _ranking(found[query], by) if query in found else nothing for query in located.queries["query"]}


def _ranking(rows: pd.DataFrame, by: str) -> Ranking:
    layer, neuron, score = (rows[name].to_numpy() for name in ("layer", "neuron", by))
    return Ranking(layer, neuron, score, own=int(rows["among_top"].sum()))
