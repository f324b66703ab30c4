"""What the integrals of a run miss, by query, prompt and layer: the table, its file, and when it is too much."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qrnca_lens.core.rules import tolerated_gap
from qrnca_lens.core.store import Checksums, check_column, check_once, read_table

_NUMBERS = ["gap", "change", "probability"]
GAP_COLUMNS = ["query", "prompt", "layer", *_NUMBERS]
ROUGH_SHARE = 0.05
"""A completeness gap above this share of P(right letter) makes scores rough."""
MISSED_SHARE = 0.1
"""A completeness gap above this share of what its layer changes makes the layer's scores rough, unless it is small."""


class PromptGaps(NamedTuple):
    """One prompt of a query (counted from 0) at every layer: completeness gaps and P(1) - P(0), and its P(right letter).

    Of a text as answer, gaps and changes are those of its mean log P per token, in nats; P is the geometric mean.
    """

    query: str
    prompt: int
    gaps: list[float]
    changes: list[float]
    probability: float


def gap_table(prompts: Iterable[PromptGaps] = ()) -> pd.DataFrame:
    """`QRNeurons.gaps`: one row for every layer of every prompt, with GAP_COLUMNS.

    Numbers are of 32 bits, since a large run has millions of rows.
    """
    columns: dict[str, list[Any]] = {name: [] for name in GAP_COLUMNS}
    for query, prompt, gaps, changes, probability in prompts:
        layers = len(gaps)
        rows = ([query] * layers, [prompt] * layers, range(layers), gaps, changes, [probability] * layers)
        for column, values in zip(columns.values(), rows, strict=True):
            column.extend(values)
    return pd.DataFrame(columns).astype(
        {"query": str, "prompt": "int32", "layer": "int32", **dict.fromkeys(_NUMBERS, "float32")}
    )


def read_gaps(path: Path, n_layers: int, sums: Checksums) -> pd.DataFrame:
    """A table like `QRNeurons.gaps`; empty where there is no such file and no checksum of one, as in older folders.

    DamagedRunError for what cannot be one, with file and column.
    """
    if sums.of(path) is None and not path.is_file():
        return gap_table()
    table = read_table(path, GAP_COLUMNS, sums.of(path))
    check_column(table, "query", str, path)
    check_column(table, "prompt", int, path)
    check_column(table, "layer", int, path, below=n_layers)
    for name in _NUMBERS:
        check_column(table, name, float, path)
    check_once(table, ["query", "prompt", "layer"], path)
    return table[GAP_COLUMNS]


def missed(gaps: pd.DataFrame, sizes: pd.Series) -> pd.DataFrame:
    """The rows whose gap is above a tenth of what the layer changes and above what rule "auto" tolerates.

    Without the second condition the many layers that hardly change P would be told of at any number of steps. `sizes` has
    what each row's gap is measured by; the largest share of it comes first.
    """
    size = gaps["gap"].abs()
    rows = gaps[size > MISSED_SHARE * gaps["change"].abs()]
    rows = rows[size.loc[rows.index] > sizes.loc[rows.index].map(tolerated_gap)]
    worst = (rows["gap"].abs() / sizes.loc[rows.index]).sort_values(ascending=False, kind="stable")
    return rows.loc[worst.index].reset_index(drop=True)


def above_share(gaps: pd.DataFrame, sizes: pd.Series) -> pd.DataFrame:
    """The rows whose gap is above `ROUGH_SHARE` of what gaps of their query are measured by, which `sizes` has by query."""
    return gaps[gaps["gap"].abs() > ROUGH_SHARE * gaps["query"].map(sizes).astype(float)]


def count_prompts(rows: pd.DataFrame) -> int:
    """How many prompts some rows of `QRNeurons.gaps` are about."""
    return len(rows[["query", "prompt"]].drop_duplicates())
