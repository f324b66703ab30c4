"""What the integrals of a run miss: kept by query, prompt and layer, and told where it is too much."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from runs import CONFIG, as_older, same

from qrnca_lens.attribution import Attribution, attribute
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.gaps import GAP_COLUMNS, PromptGaps, gap_table, missed
from qrnca_lens.core.rules import quadrature, tolerated_gap
from qrnca_lens.core.store import RunError, write_table
from qrnca_lens.data import QuerySet
from qrnca_lens.models import site_hook, to_tokens
from qrnca_lens.runs import work
from qrnca_lens.runs.pipeline import GapWarning, locate

P, STEEP, FLAT = 0.8, 0.01, 0.3


def step(width: float, height: float) -> tuple[float, float, float]:
    """(sum of 16 right-hand steps, exact integral, gap) of the slope of height / (1 + exp(-(a - 0.47) / width))."""
    right = quadrature("right", 16)

    def rise(a: Any) -> Any:
        return height / (1 + np.exp(-(a - 0.47) / width))

    a = right.nodes.double().numpy()
    total = float((right.weights.double().numpy() * rise(a) * (1 - rise(a) / height) / width).sum())
    exact = float(rise(1.0) - rise(0.0))
    return total, exact, total - exact


def test_gaps_are_those_of_a_path_walked_by_hand(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model = copy.deepcopy(model_of("llama"))
    model.blocks[1].mlp.W_out.data *= 100  # P changes within the first hundredths of this layer's path
    with pytest.warns(GapWarning):
        located = locate(model, short_queries, progress=False)
    assert list(located.gaps.columns) == GAP_COLUMNS
    assert len(located.gaps) == 12 * 3 * 3
    rows = located.gaps.set_index(["query", "prompt", "layer"])
    for query, prompt in (("q2", 0), ("q7", 2)):
        asked = short_queries[query].prompts[prompt]
        tokens, letter = to_tokens(model, asked.text)[None], option_tokens(model, asked.text).id_of(asked.letter)
        for layer in range(3):

            def walk(a: torch.Tensor, layer: int = layer, tokens: Any = tokens, letter: int = letter) -> torch.Tensor:
                def scale(f: torch.Tensor, hook: Any) -> torch.Tensor:
                    return torch.cat([f[:, :-1], a * f[:, -1:]], 1)

                hooks = [(site_hook(model, layer, "up"), scale)]
                return model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].softmax(-1)[letter]

            nodes = [torch.tensor(k / 16, requires_grad=True) for k in range(1, 17)]
            total = sum(torch.autograd.grad(walk(a), a)[0].item() for a in nodes) / 16
            one, zero = (walk(torch.tensor(a)).item() for a in (1.0, 0.0))
            found = rows.loc[(query, prompt, layer)]
            assert found["change"] == pytest.approx(one - zero, abs=1e-5)
            assert found["gap"] == pytest.approx(total - (one - zero), abs=1e-5)
            assert found["probability"] == pytest.approx(one, abs=1e-6)
    by_query = located.gaps.assign(gap=located.gaps["gap"].abs()).groupby("query", sort=False)
    assert located.queries["gap"].tolist() == pytest.approx(by_query["gap"].max().tolist())
    sure = located.queries["probability"].tolist()
    assert sure == pytest.approx(by_query["probability"].mean().tolist(), abs=1e-6)


def test_a_steep_step_is_told_and_a_gentle_or_small_one_is_not(
    model_of: Callable[[str], Any],
    short_queries: QuerySet,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Integrals known in closed form, in the place of a model's: 36 prompts, four of three queries with a steep layer."""
    steep = {short_queries[q].prompts[i].text for q, i in (("q1", 0), ("q1", 2), ("q5", 1), ("q8", 0))}
    heights = {"steep": (STEEP, 0.06), "gentle": (FLAT, 0.12), "small": (STEEP, 0.009)}

    def walked(prompt: str, seen: set[str]) -> Attribution:
        kinds = ["gentle", "small", "steep" if prompt in seen else "gentle"]
        totals, _, gaps = (torch.tensor(found) for found in zip(*(step(*heights[kind]) for kind in kinds), strict=True))
        scores = torch.zeros(3, 48)
        scores[:, 5] = totals
        return Attribution(scores, P, gaps, prompt, " A", (0,), "up", "right", 16, torch.full((3,), 17))

    monkeypatch.setattr(work, "attribute", lambda model, prompts, *_, **__: [walked(one, steep) for one in prompts])
    _, exact, gap = step(*heights["steep"])
    assert 0.1 * exact < abs(gap) < 0.05 * P  # nothing that the share of P alone would tell of
    assert abs(step(*heights["gentle"])[2]) < 0.1 * step(*heights["gentle"])[1]
    assert abs(step(*heights["small"])[2]) > 0.1 * step(*heights["small"])[1]
    worst = f"prompt 0 of 'q1' at layer 2: {gap:.2g} of {exact:.2g}"
    words = (
        r"^4 of 36 prompts \(in 3 of 12 queries\) have a layer whose integral misses more than 10% of what the layer changes"
        rf' P by; the worst, {worst}\. .*: use QRNCAConfig\(rule="auto"\)'
    )
    with pytest.warns(GapWarning, match=words):
        told = locate(model_of("llama"), short_queries, progress=False)
    assert told.rough.empty
    assert told.missed_layers[["query", "prompt", "layer"]].to_numpy().tolist() == [
        ["q1", 0, 2], ["q1", 2, 2], ["q5", 1, 2], ["q8", 0, 2],
    ]  # fmt: skip
    assert told.missed_layers["gap"].to_numpy() == pytest.approx(gap)
    assert told.missed_layers["change"].to_numpy() == pytest.approx(exact)
    assert repr(told).endswith(", above 10% of a layer's change in 3 queries (4 prompts))")
    recwarn.clear()
    steep.clear()
    fine = locate(model_of("llama"), short_queries, progress=False)
    assert not [one for one in recwarn if one.category is GapWarning]
    assert "above" not in repr(fine)


def test_both_rules_name_queries_and_prompts(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    model = copy.deepcopy(model_of("llama"))
    model.blocks[1].mlp.W_out.data *= 100
    with pytest.warns(GapWarning) as told:
        located = locate(model, short_queries, progress=False)
    gaps, mean = located.gaps, dict(zip(located.queries["query"], located.queries["probability"], strict=True))
    above = {(r.query, r.prompt) for r in gaps.itertuples() if abs(r.gap) > 0.05 * mean[r.query]}
    missing = {
        (r.query, r.prompt) for r in gaps.itertuples() if abs(r.gap) > max(0.1 * abs(r.change), tolerated_gap(r.probability))
    }
    assert {query for query, _ in above} == set(located.rough["query"])
    assert 0 < len(located.rough) < len(above) < 36
    message = str(next(one.message for one in told if one.category is GapWarning))
    assert f"in {len(located.rough)} of 12 queries ({len(above)} of 36 prompts) the completeness gap is above 5%" in message
    queries = len({query for query, _ in missing})
    assert f"{len(missing)} of 36 prompts (in {queries} of 12 queries) have a layer" in message
    assert f"of P in {len(located.rough)} queries ({len(above)} prompts), above 10% of a layer's change" in repr(located)
    share = located.missed_layers["gap"].abs() / located.missed_layers["probability"]
    assert share.is_monotonic_decreasing


def test_a_gap_counts_above_a_tenth_and_above_what_auto_leaves() -> None:
    gaps, changes = [0.0101, -0.0101, 0.0099, 0.02, 0.02], [0.1, -0.1, 0.01, -0.19, 0.21]
    table = gap_table([PromptGaps("q", 3, gaps, changes, 1.0)])
    assert missed(table, table["probability"])["layer"].tolist() == [3, 0, 1]
    assert missed(table, 0.9 * table["probability"])["layer"].tolist() == [3, 0, 1, 2]
    assert missed(gap_table(), gap_table()["probability"]).empty


def test_the_change_is_what_the_scores_would_sum_to(model_of: Callable[[str], Any]) -> None:
    found = attribute(model_of("llama"), "Answer:", 40, steps=3)
    fine = attribute(model_of("llama"), "Answer:", 40, steps=512)
    assert torch.allclose(found.change, fine.change, atol=1e-6)
    assert torch.allclose(found.change, fine.scores.sum(1), atol=0.05 * float(found.change.abs().max()))
    assert not torch.allclose(found.scores.sum(1), found.change, atol=1e-5)


def test_a_part_of_a_run_keeps_its_gaps(run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    located = run[1]
    part = located.restrict(["q0", "q4", "q5", "q7"])
    assert part.gaps.equals(located.gaps[located.gaps["query"].isin(["q0", "q4", "q5", "q7"])].reset_index(drop=True))
    assert len(part.gaps) == 4 * 3 * 3
    part.save(tmp_path / "part")
    same(QRNeurons.load(tmp_path / "part"), part)
    assert [str(kind) for kind in located.gaps.dtypes[1:]] == ["int32", "int32", "float32", "float32", "float32"]


def test_folders_without_gaps_open_and_grow(model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path: Path) -> None:
    model, few = model_of("llama"), QuerySet(short_queries.queries[:6], "short")
    before = locate(model, few, CONFIG, out=tmp_path, progress=False)
    (tmp_path / "gaps.parquet").unlink()
    as_older(tmp_path)
    old = QRNeurons.load(tmp_path)
    assert old.gaps.equals(gap_table())
    assert old.queries.equals(before.queries)
    assert old.missed_layers.empty
    assert locate(model, few, CONFIG, out=tmp_path, progress=False).gaps.empty
    grown = locate(model, short_queries, CONFIG, out=tmp_path, progress=False)
    assert list(grown.gaps["query"].unique()) == ["q6", "q7", "q8", "q9", "q10", "q11"]
    same(QRNeurons.load(tmp_path), grown)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer": 3}, "column 'layer': expected a whole number from 0, below 3, found 3"),
        ({"prompt": -1}, "column 'prompt': expected a whole number from 0"),
        ({"gap": float("nan")}, "column 'gap': expected a finite number, found nan"),
        ({"layer": 0}, "column 'query', 'prompt', 'layer': 'q0', 0, 0 stands there twice"),
        ({"change": None}, "column 'change': expected a finite number"),
        ({"query": "q99"}, "column 'query', 'prompt', 'layer': 'q99', 0, 0 stands there twice"),
    ],
)
def test_damaged_gaps_are_named(change: dict[str, Any], words: str, run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    located = run[1]
    located.save(tmp_path / "run")
    as_older(tmp_path / "run")
    write_table(located.gaps.assign(**change), tmp_path / "run" / "gaps.parquet")
    with pytest.raises(RunError, match=rf"gaps\.parquet: {words}"):
        QRNeurons.load(tmp_path / "run")


def test_gaps_of_unknown_queries_are_refused(run: tuple[Any, QRNeurons], tmp_path: Path) -> None:
    located = run[1]
    located.save(tmp_path / "run")
    as_older(tmp_path / "run")
    strange = gap_table([PromptGaps("q99", 0, [0.0] * 3, [0.0] * 3, 0.5)])
    write_table(pd.concat([located.gaps, strange]), tmp_path / "run" / "gaps.parquet")
    with pytest.raises(RunError, match="name different queries"):
        QRNeurons.load(tmp_path / "run")
    write_table(located.gaps.drop(columns="change"), tmp_path / "run" / "gaps.parquet")
    with pytest.raises(RunError, match=r"gaps\.parquet: column 'change' is missing"):
        QRNeurons.load(tmp_path / "run")
