"""Does the letter stand for the knowledge? Every measure by hand, and on planted neurons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from handmade import made
from two_ways import (
    all_edits,
    content_neuron,
    faint_neurons,
    letter_neuron,
    planted_queries,
    prompt_rows,
    two_ways_model,
)

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data.query import ALL_GROUPS
from qrnca_lens.data.templates import TEMPLATES
from qrnca_lens.runs.answering import ChanceWarning
from qrnca_lens.study.transfer.both_ways import (
    answered_ways,
    check_enough,
    checks,
    counts_by_group,
    warn_of_chance,
)
from qrnca_lens.study.transfer.effects import (
    changes,
    comparison_table,
    effect_table,
    random_beside,
)
from qrnca_lens.study.transfer.kinds import kind_shares, limits, neuron_kinds, part_means
from qrnca_lens.study.transfer.overlap import _deals, jaccard_table, overlap_pairs, overlap_test
from qrnca_lens.study.transfer.reorderings import SYMBOLS, renamed_template
from qrnca_lens.study.transfer.split import FOUND, PARTS, RANDOM, SPLIT_COLUMNS, split_rows, three_parts


@pytest.fixture(scope="module")
def planted_two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return two_ways_model(tmp_path_factory.mktemp("planted"))


def answered_rows(rights: Sequence[tuple[str, int, int]]) -> pd.DataFrame:
    return answered_ways(prompt_rows(rights))


def test_ways_are_counted_and_too_few_are_refused() -> None:
    rows = answered_rows([("x", 3, 2), ("x", 1, 3), ("y", 2, 0), ("y", 0, 1), ("y", 2, 2)])
    assert rows["answered"].tolist() == ["both", "answer only", "letter only", "neither", "both"]
    assert rows["letter_right"].tolist() == [3, 1, 2, 0, 2] and set(rows["answer_prompts"]) == {3}
    assert counts_by_group(rows).to_dict("list") == {
        "group": ["x", "y"],
        "questions": [2, 3],
        "both": [1, 1],
        "letter only": [0, 1],
        "answer only": [1, 0],
        "neither": [0, 1],
    }
    two = prompt_rows([("x", 1, 2)])
    assert answered_ways(two[two["prompt"] < 2])["answered"].tolist() == ["answer only"]  # a half is not most
    with pytest.raises(ValueError, match=r"2 questions in 2 groups .* both: 2, letter only: 1, answer only: 1, neither: 1"):
        check_enough(rows, ["q0", "q4"])
    check_enough(answered_rows([("x", 3, 3)] * 3 + [("y", 3, 3)]), ["q0", "q1", "q2", "q3"])
    with pytest.raises(ValueError, match="in 1 groups"):
        check_enough(answered_rows([("x", 3, 3)] * 5), [f"q{i}" for i in range(5)])


def test_answers_at_chance_are_told() -> None:
    """A model that always says A is as often right as A is: that is its habit, also above a quarter."""
    with pytest.warns(ChanceWarning, match=r"by letter: m answers 10 of 30 prompts rightly .*chance hits"):
        warn_of_chance(checks("m", prompt_rows([("x", 1, 3)] * 10)))


def runs(letter: dict[str, list[int]], answer: dict[str, list[int]], groups: str) -> tuple[QRNeurons, QRNeurons]:
    """Two results whose clusters hold these neurons of layer 0."""
    group_of = dict(zip(letter, groups, strict=True))
    made_of = [
        made([(q, 0, n, 1.0) for q, of_q in sets.items() for n in of_q], group_of, d_mlp=99, common_share=1.0)
        for sets in (letter, answer)
    ]
    return made_of[0], made_of[1]


def test_jaccard_by_hand() -> None:
    sets = {
        "a": (NeuronSet.of((0, 1), (0, 2), (0, 3)), NeuronSet.of((0, 2), (0, 3), (0, 4), (0, 5))),
        "b": (NeuronSet(), NeuronSet()),
        "c": (NeuronSet.of((1, 1)), NeuronSet.of((0, 1))),
    }
    found = jaccard_table(sets)
    assert (
        found[0, 0] == 2 / 5 and found[0, 2] == 1 / 3 and found[2, 2] == 0 and found[0, 1] == 0 and math.isnan(found[1, 1])
    )


def test_overlap_is_held_against_answer_sets_of_the_same_group() -> None:
    """Sets that only a question shares: of the 5! deals of a group one alone has as much, and a fifth of it is expected.
    Sets that a group shares: no deal has less."""
    own = {f"q{i}": [3 * i, 3 * i + 1] for i in range(10)}
    other = {f"q{i}": [3 * i, 3 * i + 2] for i in range(10)}
    test = overlap_test(*runs(own, other, "xxxxxyyyyy")).set_index(["neurons", "group"])
    row = test.loc[("whole clusters", "x")]
    assert (row["questions"], row["letter"], row["answer"], row["shared"], row["others"]) == (5, 2, 2, 1, 0)
    assert row["jaccard"] == pytest.approx(1 / 3)
    assert row["permuted"] == pytest.approx(1 / 15, abs=0.003)
    assert row["p"] == pytest.approx(1 / 120, abs=0.004) and row["p_corrected"] >= row["p"]
    assert test.loc[("whole clusters", ALL_GROUPS), "p"] < row["p"]
    shared = {f"q{i}": [7, 8] if i < 5 else [5, 6] for i in range(10)}
    test = overlap_test(*runs(shared, shared, "xxxxxyyyyy")).set_index(["neurons", "group"])
    assert (test.loc["whole clusters"][["jaccard", "others", "permuted", "p"]] == 1).all().all()


def test_a_group_of_one_question_and_empty_sets_tell_nothing() -> None:
    one = {"a": [1], "b": [2], "c": [3], "d": []}
    test = overlap_test(*runs(one, one, "xxyx")).set_index(["neurons", "group"])
    assert math.isnan(test.loc[("whole clusters", "y"), "p"]) and test.loc[("whole clusters", "x"), "jaccard"] == 1
    pairs = overlap_pairs(*runs(one, one, "xxyx"))
    assert pairs[pairs["neurons"] == "whole clusters"]["jaccard"].isna().tolist() == [False, False, False, True]


def test_facts_of_several_groups_change_places_alike() -> None:
    groups, units = np.array(list("xxxyyy")), np.array(["a", "b", "c", "c", "a", "b"])
    dealt = _deals(groups, units, np.random.default_rng(0))
    assert (np.sort(dealt, axis=1) == np.arange(6)).all() and (dealt[:, :3] < 3).all()
    assert (units[dealt[:, :3]] == units[dealt[:, [4, 5, 3]]]).all()
    assert (dealt[:, 0] == 0).mean() == pytest.approx(1 / 3, abs=0.02)


def test_random_neurons_are_matched_and_none_of_the_found_ones() -> None:
    sets = {"a": NeuronSet.of((0, 1), (0, 2), (2, 5)), "b": NeuronSet.of(*[(1, i) for i in range(6)])}
    taken = {"a": sets["a"] | NeuronSet.of((0, 3)), "b": sets["b"]}
    drawn = random_beside(sets, taken, 8)
    assert {layer: len(of) for layer, of in drawn["a"].by_layer().items()} == {0: 2, 2: 1}
    assert not len(drawn["a"] & taken["a"]) and drawn["b"] == NeuronSet(drawn["b"].neurons)
    assert sorted(drawn["b"].by_layer()[1]) == [6, 7]  # no more are left
    assert random_beside(sets, taken, 8) == drawn and random_beside(sets, taken, 99, seed="1") != random_beside(
        sets, taken, 99
    )


def test_unrelated_questions_have_the_same_letter_or_are_of_another_group() -> None:
    edits = all_edits()
    edits.loc[0, "same_prompts"] = 2
    found = changes(edits).set_index(["set", "prompts", "on", "query"])
    assert found.loc[("letter", "letter", "own", "q0"), "percent"] == pytest.approx(-80)
    assert math.isnan(found.loc[("letter", "letter", "unrelated", "q0"), "points"])  # a prompt without a partner
    assert found.loc[("letter", "letter", "unrelated", "q1"), "points"] == pytest.approx(-10)
    assert found.loc[("letter", "answer", "unrelated", "q1"), "points"] == 0  # not of the same group, where it is -40
    assert found.loc[("answer", "answer", "unrelated", "q1"), "log_p"] == pytest.approx(math.log(0.5))


def test_effects_and_comparisons_by_hand() -> None:
    edits = all_edits()
    table = effect_table(edits).set_index(["set", "prompts", "on"])
    own = table.loc[("letter", "letter", "own")]
    assert (own["flipped"], own["of"], own["neurons"], own["questions"]) == (3, 12, 4, 6)
    assert own["points"] == own["points_low"] == pytest.approx(-40) and own["share"] == 25
    compared = comparison_table(edits).set_index(["set", "prompts", "comparison"])
    letter = compared.loc[("letter", "letter", "own - unrelated")]
    assert (letter["mean"], letter["own"], letter["beside"]) == pytest.approx((-30, -40, -10))
    assert letter["p"] == 2 / 2**6 and letter["p_corrected"] == 8 * 2 / 2**6  # the smallest of eight
    answer = compared.loc[("answer", "answer", "set - random")]
    assert answer["measure"] == "log_p" and answer["mean"] == pytest.approx(math.log(0.1))
    assert compared.loc[("letter", "answer", "set - random"), "p"] == 1


def test_letter_and_content_are_parted_exactly() -> None:
    """A neuron adds x[k] to letter k, and y to the option that is right."""
    rng = np.random.default_rng(0)
    x, y, found = rng.normal(size=(5, 4)), rng.normal(size=5), 2
    falls = x[:, None, :] + y[:, None, None] * np.eye(4)[None]
    falls = falls - falls.mean(2, keepdims=True)
    parts = three_parts(falls, found)
    others = [0, 1, 3]
    assert np.allclose(parts["content"], y) and np.allclose(parts["letter"], x[:, found] - x[:, others].mean(1))
    assert np.allclose(parts["original"], parts["letter"] + parts["content"])


@pytest.mark.parametrize("language", list(TEMPLATES))
def test_other_symbols_stand_before_the_options_alone(language: str) -> None:
    for template in (*TEMPLATES[language].detection, TEMPLATES[language].held_out):
        text = renamed_template(template, SYMBOLS[0]).text
        for letter, symbol in zip("ABCD", SYMBOLS[0], strict=True):
            field = "{" + letter.lower() + "}"
            assert (template.text.count(f"{letter}") >= 1 and f"{symbol}. {field}" in text) or f"{symbol}) {field}" in text
        back = text
        for letter, symbol in zip("ABCD", SYMBOLS[0], strict=True):
            back = back.replace(symbol, letter)
        assert back == template.text


def test_the_split_tells_a_letter_neuron_from_a_content_neuron(planted_two: Any) -> None:
    queries, beside = planted_queries(), NeuronSet(tuple(faint_neurons()))
    found = {f"p{i}": NeuronSet((content_neuron(i), letter_neuron(i))) for i in range(4)}
    rows = pd.concat(split_rows(planted_two, queries, found, dict.fromkeys(found, beside)), ignore_index=True)
    neurons = neuron_kinds(rows)
    of_found = neurons[neurons["neurons"] == FOUND].set_index(["query", "layer", "neuron"])
    for i in range(4):
        content, letter = (of_found.loc[(f"p{i}", n.layer, n.index)] for n in (content_neuron(i), letter_neuron(i)))
        assert content["kind"] == "content" and letter["kind"] == "letter"
        assert content["content"] > 0.2 and abs(content["letter"]) < 0.1 and content["symbols"] > 0.2
        assert letter["letter"] > 0.2 and abs(letter["content"]) < 0.1 and abs(letter["symbols"]) < 0.1
        assert abs(content["elsewhere"]) < 0.05
    shares = kind_shares(neurons).set_index(["neurons", "kind"])
    assert shares.loc[(FOUND, "letter"), "share"] == shares.loc[(FOUND, "content"), "share"] == 50
    assert shares.loc[(FOUND, "letter"), "effect_share"] + shares.loc[(FOUND, "content"), "effect_share"] == pytest.approx(
        100
    )
    parts = part_means(rows).set_index(["neurons", "part"])["mean"]
    both = parts.loc[("found together", "letter")] + parts.loc[("found together", "content")]
    assert parts.loc[("found together", "original")] == pytest.approx(both, abs=0.1)


def test_kinds_by_hand() -> None:
    """The limit is what 95 % of random neurons stay below; prompts that the neuron does not lower do not count."""

    def row(neurons: str, neuron: int, template: str, original: float, content: float, letter: float) -> dict[str, Any]:
        about = {"query": "q", "group": "x", "unit": "q", "template": template, "neurons": neurons, "layer": 0}
        values = dict(zip(PARTS, (original, content, letter, 0.0, 0.0), strict=True))
        return {**about, "neuron": neuron, **values, "right_reordered": 1.0, "right_symbols": 1.0}

    rows = [row(RANDOM, i, "t", 1.0, i / 100, -1.0) for i in range(101)]
    rows += [
        row(FOUND, 200, "t", 1.0, 0.96, 0.0),
        row(FOUND, 201, "t", 1.0, 0.94, 0.5),
        row(FOUND, 202, "t", 1.0, 0.96, 0.5),
    ]
    rows += [
        row(FOUND, 203, "t", 1.0, 0.0, 0.3),
        row(FOUND, 203, "u", -1.0, 9.0, -9.0),
        row(FOUND, 204, "t", -1.0, 9.0, 9.0),
    ]
    rows.append(row(FOUND, 205, "t", 9.0, 0.96, 0.5))  # less than a fifth of what it does
    found = neuron_kinds(pd.DataFrame(rows)[SPLIT_COLUMNS])
    assert limits(found) == pytest.approx({"letter": 0.0, "content": 0.95})
    kinds = found[found["neurons"] == FOUND].set_index("neuron")
    assert kinds["kind"].tolist() == ["content", "letter", "both", "letter", "neither", "neither"]
    assert kinds.loc[203, "templates"] == 1 and kinds.loc[203, "letter"] == 0.3 and kinds.loc[204, "templates"] == 0
