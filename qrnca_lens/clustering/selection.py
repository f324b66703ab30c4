"""Variants of QRNCA on the same clusters: what the paper's ablations and its Knowledge Neuron* keep (tables 4, 6)."""

from __future__ import annotations

import math

import pandas as pd

from qrnca_lens.clustering.qr_neurons import QRNeurons
from qrnca_lens.clustering.refine import drop_neurons, take_top
from qrnca_lens.core.neurons import NeuronSet


def qrnca(located: QRNeurons) -> dict[str, NeuronSet]:
    """The QR neurons themselves."""
    return {query: located.for_query(query) for query in located.queries["query"]}


def without_ica(located: QRNeurons) -> dict[str, NeuronSet]:
    """The top v by na instead of naica; common neurons removed."""
    return _sets(located, drop_neurons(take_top(located.scored, located.config.top, by="na"), located.common))


def with_common(located: QRNeurons) -> dict[str, NeuronSet]:
    """The top v by naica, common neurons kept."""
    return _sets(located, take_top(located.scored, located.config.top))


def knowledge_neurons(located: QRNeurons) -> dict[str, NeuronSet]:
    """Knowledge Neuron* (Dai et al. 2022, as the paper adapts it to multi-choice prompts).

    The neurons that pass the threshold in at least half of the query's templates, at most v of them, by summed score;
    neither ICA nor common neurons are used.
    """
    half = located.scored["query"].map(located.queries.set_index("query")["prompts"] / 2).map(math.ceil)
    return _sets(located, take_top(located.scored[located.scored["templates"] >= half], located.config.top, by="na"))


def _sets(located: QRNeurons, rows: pd.DataFrame) -> dict[str, NeuronSet]:
    found = {str(query): NeuronSet.from_frame(part) for query, part in rows.groupby("query")}
    return {query: found.get(query, NeuronSet()) for query in located.queries["query"]}
