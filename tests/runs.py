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
    """Let `attribute` fail for these prompts (all, if none is given); returns the list of prompts it is asked for."""
    real, asked = pipeline.attribute, []

    def attribute(model: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(prompt)
        if prompt in texts or not texts:
            raise error(f"layer 1: NaN or infinite scores for the prompt {prompt!r}")
        return real(model, prompt, *args, **kwargs)

    monkeypatch.setattr(pipeline, "attribute", attribute)
    return asked


def same(one: QRNeurons, other: QRNeurons) -> None:
    for name in ("clusters", "queries", "table", "common", "failed"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name))
    assert one.asked.queries == other.asked.queries
    assert (one.config, one.model) == (other.config, other.model)
