"""naica by neuron and query. A neuron is in few clusters, so what is kept are the numbers that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import sparse


@dataclass(frozen=True)
class NaicaProfiles:
    """One row a neuron, in the order in which the rows of a table name them first, one column a query.

    `neurons`: (layer, neuron) of the rows. A number that is there may be 0.
    """

    neurons: pd.MultiIndex
    values: sparse.csr_array

    @classmethod
    def of(cls, rows: pd.DataFrame, queries: Sequence[str]) -> NaicaProfiles:
        """From a table with query, layer, neuron and naica; the columns are these queries, in their order."""
        column = {query: i for i, query in enumerate(queries)}
        by_neuron = rows.groupby(["layer", "neuron"], sort=False)
        neurons = by_neuron.size().index.to_frame(index=False)
        at = by_neuron.ngroup().to_numpy(), rows["query"].map(column).to_numpy(dtype=int)
        values = sparse.coo_array((rows["naica"].to_numpy(dtype=float), at), shape=(len(neurons), len(column)))
        return cls(pd.MultiIndex.from_frame(neurons), sparse.csr_array(values))

    @cached_property
    def norms(self) -> Float[np.ndarray, " neuron"]:
        """The lengths of the rows."""
        return np.sqrt(self.values.multiply(self.values).sum(axis=1))

    def cosines(self, at: int) -> Float[np.ndarray, " neuron"]:
        """The cosine of every row with row number `at`; 0 where either is 0 throughout."""
        products, lengths = self.values @ self.values[[at]].toarray()[0], self.norms * self.norms[at]
        return np.divide(products, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
