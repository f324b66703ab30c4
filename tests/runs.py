"""Runs of `locate` in the tests: prompts that fail, and when two results are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qrnca_lens.attribution import AttributionError
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.data import Prompt, Query
from qrnca_lens.runs import work

CONFIG = QRNCAConfig(steps=3)
FILES = [
    "asked.json",
    "clusters.parquet",
    "common_neurons.parquet",
    "gaps.parquet",
    "header.json",
    "log.txt",
    "manifest.json",
    "qr_neurons.parquet",
    "queries.parquet",
]
"""What a finished run folder holds."""
LONG = Query("long", "g0", (Prompt("Answer:", "A"), Prompt("word " * 200, "A")))


def failing(monkeypatch: pytest.MonkeyPatch, *texts: str, error: type[BaseException] = AttributionError) -> list[str]:
    """Let `attribute` fail for these prompts (all, if none is given), in a batch and alone.

    Returns the prompts it is asked for, one by one or in a batch that does not fail.
    """
    real, asked = work.attribute, []

    def attribute(model: Any, prompts: str | list[str], *args: Any, **kwargs: Any) -> Any:
        together = [prompts] if isinstance(prompts, str) else prompts
        bad = [prompt for prompt in together if prompt in texts or not texts]
        if isinstance(prompts, str) or not bad:
            asked.extend(together)
        if bad:
            raise error(f"layer 1: NaN or infinite scores for the prompt {bad[0]!r}")
        return real(model, prompts, *args, **kwargs)

    monkeypatch.setattr(work, "attribute", attribute)
    return asked


def as_older(folder: Path) -> None:
    """Make a folder one of format 2: no checksums, and three files in the place of each part."""
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        if "format" in record:
            plain = {name: value for name, value in record.items() if name not in ("sha256", "files", "weights")}
            path.write_text(json.dumps({**plain, "format": 2}))
    for part in folder.glob("parts/*/"):
        for table in part.glob("*.parquet"):
            table.rename(folder / "parts" / f"{table.stem}-{part.name}.parquet")
        (part / "part.json").unlink()
        part.rmdir()


def same(one: QRNeurons, other: QRNeurons) -> None:
    for name in ("clusters", "queries", "table", "common", "failed"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=3e-5)
    pd.testing.assert_frame_equal(one.gaps, other.gaps, atol=1e-6)  # batches differ in their last digits
    assert one.asked.queries == other.asked.queries
    assert (one.config, one.model) == (other.config, other.model)
