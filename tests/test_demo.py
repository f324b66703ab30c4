"""The demonstration on a model whose neurons are known, and the numbers of its tables."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from handmade import WRITER, effects, planted_queries, writers

from qrnca_lens.attribution.letters import letter_probabilities
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import QuerySet
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import site_hook
from qrnca_lens.study import demo
from qrnca_lens.study.demo import edit_table, run_demo

LETTERS = ["P(A)", "P(B)", "P(C)", "P(D)"]


@pytest.fixture(scope="module")
def asked() -> QuerySet:
    """Thirteen queries of three prompts, whose letters follow one another: AAA, BBB, CCC, DDD, AAA …; all letters in both
    groups."""
    return planted_queries([3 * "ABCD"[i % 4] for i in range(13)], "xyxyyxyx")


@pytest.fixture(scope="module")
def found(planted: Any, asked: QuerySet, tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    """The demonstration, on the planted model and `asked` in place of atlas and its questions."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "load_model", {"atlas": planted}.get)
        patched.setattr(demo, "load_queries", {"atlas/domains": asked}.get)
        return run_demo(tmp_path_factory.mktemp("demo") / "run")


def scaled(model: Any, query: Any, neurons: NeuronSet, factor: float) -> list[float]:
    """P of the letters on the first prompt, the neurons scaled by a hook of the test's own."""

    def hook(post: torch.Tensor, hook: Any) -> torch.Tensor:
        indices = neurons.by_layer()[hook.layer()]
        post[:, -1, indices] = factor * post[:, -1, indices]
        return post

    with model.hooks(fwd_hooks=[(site_hook(model, layer, "post"), hook) for layer in neurons.by_layer()]):
        return letter_probabilities(model, query.prompts[:1])[0].tolist()


def test_the_demo_finds_the_neuron_that_writes_the_letter(found: demo.Demo, asked: QuerySet) -> None:
    """Thirteen queries, four with A's neuron at most: 4 / 13 is above 30 %, so A's neuron is common, the others are not."""
    assert found.located.asked.queries == asked.queries
    assert found.located.common[["layer", "neuron"]].to_numpy().tolist() == [list(WRITER["A"])]
    for i, query in enumerate(asked):
        wanted = NeuronSet() if i % 4 == 0 else writers("ABCD"[i % 4])
        assert found.located.for_query(query.id) == wanted
    letter = found.query.prompts[0].letter
    row = found.neurons.iloc[0]
    assert len(found.neurons) == 1
    assert (row["rank"], row["layer"], row["neuron"], row["na"]) == (1, *WRITER[letter], pytest.approx(1.0))


def test_the_effect_over_all_questions_by_hand(found: demo.Demo, asked: QuerySet, planted: Any) -> None:
    """Of 39 prompts, all right, those of B and C (9 each) turn wrong without their neuron; D stays right and gets less
    likely; A has no QR neuron left. Random neurons are silent."""
    own, control = found.effect.to_dict("records")
    assert (own["edit"], own["questions"], own["answers turned wrong"]) == ("its QR neurons suppressed", 13, "18 of 39")
    changes = []
    for i, query in enumerate(asked):
        letter, k = "ABCD"[i % 4], i % 4
        before, after = (
            scaled(planted, query, NeuronSet(), 1.0),
            scaled(planted, query, writers(letter) if k else NeuronSet(), 0.0),
        )
        changes.append(100 * (after[k] / before[k] - 1))
    assert own["own question, %"].startswith(f"{sum(changes) / 13:.1f} [")
    low, high = map(float, own["own question, %"].split("[")[1].rstrip("]").split(", "))
    assert -100 <= low < sum(changes) / 13 < high <= 0
    assert own["other letter, %"] == control["same letter, %"] == control["own question, %"] == "0.0 [0.0, 0.0]"
    assert own["same letter, %"] == own["own question, %"]  # one neuron serves all with the letter
    assert "100 % is also seen on unrelated questions with the same right letter and 0 % on those" in found.letter
    assert control["edit"] == "random neurons, same layers suppressed"
    assert control["answers turned wrong"] == "0 of 39"


def test_the_question_that_is_shown_is_of_median_effect(found: demo.Demo) -> None:
    """What is left of P, from the lowest: B and C and D (three queries each), A (four). The seventh is D's."""
    assert found.query.prompts[0].letter == "D"
    ratios = {"q0": 0.9, "q1": 0.2, "q2": 0.6, "q3": 0.1, "q4": 1.5}
    rows = effects("m", 0.0, [0.5 * ratio for ratio in ratios.values()], [0.5] * 5)
    assert demo._median_query(rows) == "q2"
    # the ratio counts, not P: q3 keeps 0.9 of a small P
    assert demo._median_query(rows.assign(p_before=[0.5, 0.5, 0.5, 0.05 / 0.9, 0.5])) == "q0"


def test_the_edits_of_the_question_that_is_shown(found: demo.Demo, planted: Any) -> None:
    """Each row against a hook of the test's own; without its neuron D is less likely, with twice the neuron more."""
    own = found.located.for_query(found.query.id)
    control = random_sets({found.query.id: own}, 48)[found.query.id]
    assert found.edits["edit"].tolist() == [
        "untouched",
        "its 1 QR neurons suppressed",
        "its 1 QR neurons enhanced (x 2)",
        "1 random neurons of the same layers suppressed",
    ]
    cases = ((own, 1.0), (own, 0.0), (own, 2.0), (control, 0.0))
    wanted = [scaled(planted, found.query, neurons, factor) for neurons, factor in cases]
    for row, letters in zip(found.edits[LETTERS].to_numpy().tolist(), wanted, strict=True):
        assert row == pytest.approx(letters, rel=1e-4)
    untouched, suppressed, enhanced, random = found.edits["P(D)"]
    assert suppressed < 0.5 * untouched < untouched < enhanced and random == pytest.approx(untouched)


def test_edits_on_a_model_where_all_neurons_count(run: tuple[Any, QRNeurons]) -> None:
    """Here the control changes the answer too, so that no row can stand for another."""
    model, located = run
    query = next(q for q in located.asked if len(located.for_query(q.id)) > 2)
    own = located.for_query(query.id)
    control = random_sets({query.id: own}, 48)[query.id]
    cases = ((own, 1.0), (own, 0.0), (own, 2.0), (control, 0.0))
    wanted = [scaled(model, query, neurons, factor) for neurons, factor in cases]
    assert len({round(row[0], 6) for row in wanted}) == 4
    found = edit_table(model, query, located)[LETTERS].to_numpy().tolist()
    for row, letters in zip(found, wanted, strict=True):
        assert row == pytest.approx(letters, rel=1e-4)


def test_the_summary_by_hand() -> None:
    """Two queries: own -40 and -60 %, same letter +10 and -30 %, other letter 0; a bootstrap interval of two values reaches
    from one to the other. Of four right prompts three turn wrong."""
    rows = effects("ours", 0.0, [0.3, 0.2], [0.55, 0.35], turned=[(1, 2), (0, 1)])
    found = demo._summary(pd.concat([rows, effects("theirs", 0.0, [0.5], [0.5])], ignore_index=True))
    assert found.to_numpy().tolist() == [
        ["ours suppressed", 2, "-50.0 [-60.0, -40.0]", "-10.0 [-30.0, 10.0]", "0.0 [0.0, 0.0]", "3 of 4"],
        ["theirs suppressed", 1, "0.0 [0.0, 0.0]", "0.0 [0.0, 0.0]", "0.0 [0.0, 0.0]", "0 of 2"],
    ]


def test_counts_and_page(found: demo.Demo) -> None:
    """B's neuron is in layer 1, those of C and D are in layer 2; x has one query of B, two of C and one of D, y two of B,
    one of C and two of D."""
    assert list(found.counts.columns) == ["group", "layer 0", "layer 1", "layer 2"]
    assert found.counts.to_numpy().tolist() == [["x", 0, 1, 3], ["y", 0, 2, 3]]
    text = found.page.read_text("utf-8")
    assert found.page.name == "report.html" and found.page.parent.name == "run"
    titles = [f"One question, of median effect: {found.query.id}", "Are they really relevant?", "Its answer when they are"]
    assert all(f"<h2>{title}" in text for title in [*titles, "Where they sit", "By layer", "Common neurons", "The run"])
    assert f"{found.query.prompts[0].text} D" in text and "18 of 39" in text
    assert found.letter.startswith("Of the change on the own question (-") and found.letter in text
