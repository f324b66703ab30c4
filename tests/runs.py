"""Runs of `locate` in the tests: prompts that fail, and when two results are the same."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from qrnca_lens.attribution import AttributionError
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.data import Prompt, Query
from qrnca_lens.runs import pipeline

CONFIG = QRNCAConfig(steps=3)
LONG = Query("long", "g0", (Prompt("Answer:", "A"), Prompt("word " * 200, "A")))


def failing(monkeypatch: pytest.MonkeyPatch, *texts: str, error: type[BaseException] = AttributionError) -> list[str]:
    """Let `attribute` fail for these prompts (all, if none is given), in a batch and alone.

    Returns the prompts it is asked for, one by one or in a batch that does not fail.
    """
    real, asked = pipeline.attribute, []

    def attribute(model: Any, prompts: str | list[str], *args: Any, **kwargs: Any) -> Any:
        together = [prompts] if isinstance(prompts, str) else prompts
        bad = [prompt for prompt in together if prompt in texts or not texts]
        if isinstance(prompts, str) or not bad:
            asked.extend(together)
        if bad:
            raise error(f"layer 1: NaN or infinite scores for the prompt {bad[0]!r}")
        return real(model, prompts, *args, **kwargs)

    monkeypatch.setattr(pipeline, "attribute", attribute)
    return asked


def same(one: QRNeurons, other: QRNeurons) -> None:
    for name in ("clusters", "queries", "table", "common", "failed"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=3e-5)
    pd.testing.assert_frame_equal(one.gaps, other.gaps, atol=1e-6)  # batches differ in their last digits
    assert one.asked.queries == other.asked.queries
    assert (one.config, one.model) == (other.config, other.model)
