"""Does the letter stand for the knowledge? Every measure by hand, on planted neurons, and the whole path on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import made
from tiny import save_tiny
from transformers import LlamaConfig
from two_ways import (
    SIZES,
    answered_both_ways,
    content_neuron,
    faint_neurons,
    letter_neuron,
    planted_queries,
    tiny_llama,
    two_ways_model,
)
from typer.testing import CliRunner

from qrnca_lens.attribution.options import option_probabilities
from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.store import RunError
from qrnca_lens.data import DataError, Prompt, QuerySet, load_queries, save_queries
from qrnca_lens.data.query import ALL_GROUPS
from qrnca_lens.data.templates import TEMPLATES
from qrnca_lens.editing import suppress
from qrnca_lens.editing.effects import COLUMNS
from qrnca_lens.models import ModelError, load_model, reader_of, to_tokens
from qrnca_lens.runs.answering import ChanceWarning
from qrnca_lens.study.transfer.both_ways import (
    PROMPT_COLUMNS,
    READS,
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
    four_sets,
    random_beside,
)
from qrnca_lens.study.transfer.kinds import kind_shares, limits, neuron_kinds, part_means
from qrnca_lens.study.transfer.measure import transfer
from qrnca_lens.study.transfer.overlap import _deals, jaccard_table, overlap_pairs, overlap_test
from qrnca_lens.study.transfer.reorderings import SYMBOLS, renamed_template, reordered
from qrnca_lens.study.transfer.result import Transfer
from qrnca_lens.study.transfer.split import FOUND, PARTS, RANDOM, SPLIT_COLUMNS, split_rows, three_parts
from qrnca_lens.study.transfer.verdicts import Tables, verdict_table

CONFIG = QRNCAConfig(steps=2)
NEW_LINE = "\n"
KEPT = ["prompts", "failed", "edits", "split"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llama(tmp_path_factory.mktemp("two ways"))


@pytest.fixture(scope="module")
def asked(tiny: Any) -> QuerySet:
    queries = answered_both_ways(tiny, 14)
    assert len(queries) >= 6
    return queries


@pytest.fixture(scope="module")
def done(tiny: Any, asked: QuerySet, tmp_path_factory: pytest.TempPathFactory) -> Transfer:
    return transfer(tiny, asked, tmp_path_factory.mktemp("done") / "out", config=CONFIG, progress=False)


@pytest.fixture(scope="module")
def planted_two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return two_ways_model(tmp_path_factory.mktemp("planted"))


def prompt_rows(rights: Sequence[tuple[str, int, int]]) -> pd.DataFrame:
    """Rows of `prompts_answered` from (group, right by letter, right by answer) of three prompts each; B is never said."""
    rows = [
        (f"q{i}", group, f"q{i}", place, "A" if place < right else "B", "A", place < right, 0.5, 0.9, 0.25, read)
        for i, (group, *both) in enumerate(rights)
        for read, right in zip(READS, both, strict=True)
        for place in range(3)
    ]
    return pd.DataFrame(rows, columns=PROMPT_COLUMNS)


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


def edit_rows(read: str, name: str, own: Sequence[float], same: Sequence[float], other: Sequence[float]) -> pd.DataFrame:
    """Rows of `transfer_edits` for the questions q0, q1, …: P after the edit, of all 0.5 before it."""
    rows = []
    for i, (a, b, c) in enumerate(zip(own, same, other, strict=True)):
        values = {"p": a, "p_same": b, "p_other": c}
        row: dict[str, Any] = {f"{key}_before": 0.5 for key in values} | {f"{key}_after": p for key, p in values.items()}
        row |= {f"log_{key}_before": math.log(0.5) for key in values}
        row |= {f"log_{key}_after": math.log(p) if p else -math.inf for key, p in values.items()}
        row |= {"method": name, "factor": 0.0, "query": f"q{i}", "group": "xy"[i % 2], "unit": f"q{i}", "neurons": 4}
        row |= {"prompts": 3, "same_prompts": 3, "other_prompts": 3, "right_before": 2, "right_to_wrong": i % 2}
        rows.append(row | {"wrong_to_right": 0, "same_partners": "[]", "other_partners": "[]"})
    return pd.DataFrame(rows)[COLUMNS].assign(prompts_of=read)


def all_edits() -> pd.DataFrame:
    still = [0.5] * 6
    parts = [
        edit_rows("letter", "letter", [0.1] * 6, [0.4] * 6, still),
        edit_rows("answer", "letter", still, [0.1] * 6, still),
    ]
    parts += [edit_rows("letter", "answer", still, still, still)]
    parts += [edit_rows("answer", "answer", [0.05] * 6, [0.3] * 6, [0.25] * 6)]
    parts += [edit_rows(read, f"random ({name})", still, still, still) for name in READS for read in READS]
    return pd.concat(parts, ignore_index=True)


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


def test_options_are_put_in_all_orders_and_under_other_symbols(tiny: Any, asked: QuerySet) -> None:
    query = asked.queries[0]
    for prompt in query.prompts:
        form = reordered(tiny, query, prompt)
        assert form is not None and form.orders[prompt.right].text == prompt.text and form.found == prompt.right
        for to, order in enumerate(form.orders):
            shown = Prompt(order.text, "ABCD"[to], prompt.template).shown
            assert shown[to] == prompt.marked and sorted(shown) == sorted(prompt.shown) and order.right == to
        wrong = [Prompt(order.text, "A").shown for order in form.orders]
        assert all(len({options[k] for options in wrong}) == 4 for k in range(4))  # each stands once at each place
    wrapped = replace(query.prompts[0], text=f"<user>\n{query.prompts[0].text}\n<assistant>")
    form = reordered(tiny, query, wrapped)
    assert form is not None and all(o.text.startswith("<user>\n") and o.text.endswith("\n<assistant>") for o in form.orders)
    assert reordered(tiny, query, replace(query.prompts[0], template="my own")) is None
    other = replace(query.prompts[0], text=query.prompts[0].text.replace("Question", "question"))
    assert reordered(tiny, query, other) is None


def test_chats_and_examples_keep_what_stands_around(tiny: Any, asked: QuerySet) -> None:
    shots = asked.with_examples(1)
    query, plain = shots.queries[0], asked.queries[0]
    form, own = reordered(tiny, query, query.prompts[0]), reordered(tiny, plain, plain.prompts[0])
    assert form is not None and own is not None and form.renamed is None  # the examples have letters
    before = query.prompts[0].text.removesuffix(plain.prompts[0].text)
    assert [order.text for order in form.orders] == [before + order.text for order in own.orders]
    chat = replace(plain.prompts[0], text=f"<u>{plain.prompts[0].text.rpartition(NEW_LINE)[0]}<a>It is", rendering="chat")
    form = reordered(tiny, plain, chat)
    assert form is not None and form.orders[chat.right].text == chat.text
    assert {order.text.count("Answer:") for order in form.orders} == {0}
    assert all(order.text.startswith("<u>Question") and order.text.endswith("<a>It is") for order in form.orders)


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
    found = neuron_kinds(pd.DataFrame(rows)[SPLIT_COLUMNS])
    assert limits(found) == pytest.approx({"letter": 0.0, "content": 0.95})
    kinds = found[found["neurons"] == FOUND].set_index("neuron")
    assert kinds["kind"].tolist() == ["content", "letter", "both", "letter", "neither"]
    assert kinds.loc[203, "templates"] == 1 and kinds.loc[203, "letter"] == 0.3 and kinds.loc[204, "templates"] == 0


def test_the_whole_path(tiny: Any, asked: QuerySet, done: Transfer) -> None:
    assert set(done.answered["answered"]) == {"both"} and len(done.letter.queries) == len(asked)
    assert done.letter.config.read == "letter" and done.answer.config.read == "answer"
    assert [q.id for q in done.letter.asked] == [q.id for q in done.answer.asked]
    verdicts = done.verdicts()
    assert set(verdicts["verdict"]) <= {"yes", "no", "not told"} and verdicts["statement"].is_unique
    order = verdicts["verdict"].map(["no", "not told", "yes"].index)
    assert order.is_monotonic_increasing
    known = verdicts["p"].notna()
    assert (verdicts.loc[known, "p_corrected"] >= verdicts.loc[known, "p"]).all()
    assert "answered both by letter and by answer" in repr(done) and "<table" in done._repr_html_()
    assert len(done.to_frame()) == 2 * len(asked)
    counts = done.split_counts.iloc[0]
    assert (counts["questions"], counts["prompts"], counts["left out"]) == (len(asked), 3 * len(asked), 0)


def test_effects_are_those_of_suppressing_and_reading(tiny: Any, done: Transfer) -> None:
    """Against blocks of `editing.suppress`; answers token by token from whole texts, scaled wherever a token is read."""
    sets, query = four_sets(done.letter, done.answer), done.letter.asked.queries[0]
    for name in ("letter", "random (answer)"):
        neurons = sets[name][query.id]
        of_set = done.edits[(done.edits["method"] == name) & (done.edits["query"] == query.id)].set_index("prompts_of")
        with suppress(tiny, neurons):
            letters = [option_probabilities(tiny, [prompt])[0, prompt.right].item() for prompt in query.prompts]
        assert of_set.loc["letter", "p_after"] == pytest.approx(np.mean(letters), rel=1e-3)
        logs = []
        for prompt in done.answer.asked[query.id].prompts:
            start, answer = to_tokens(tiny, prompt.text), reader_of(tiny).answer(prompt.text, prompt.marked)
            ids = torch.cat([start, start.new_tensor(answer[:-1])])
            with torch.no_grad(), suppress(tiny, neurons, positions=[(len(start) - 1, len(ids))]):
                read = tiny(ids[None])[0].log_softmax(-1)[len(start) - 1 :]
            logs.append(read[range(len(answer)), list(answer)].mean().item())
        assert of_set.loc["answer", "log_p_after"] == pytest.approx(np.mean(logs), rel=1e-3)


def test_a_single_neuron_is_split_as_suppressing_it_says(tiny: Any, done: Transfer) -> None:
    """`original` against a block of `editing.suppress`: log P of the right letter less that of the others, on average."""
    rows = done.split[done.split["neurons"] == FOUND]
    row = rows.loc[rows["original"].abs().idxmax()]
    query = done.letter.asked[row["query"]]
    prompt = next(one for one in query.prompts if one.template == row["template"])
    read = [option_probabilities(tiny, [prompt])[0].log()]
    with suppress(tiny, NeuronSet.of((int(row["layer"]), int(row["neuron"])))):
        read.append(option_probabilities(tiny, [prompt])[0].log())
    against = [p[prompt.right] - (p.sum() - p[prompt.right]) / 3 for p in read]
    assert row["original"] == pytest.approx((against[0] - against[1]).item(), rel=1e-3, abs=1e-5)


def test_files_are_strict_and_whole(done: Transfer) -> None:
    assert done.folder is not None
    record = json.loads((done.folder / "transfer.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert record["about"]["seed"] == 0 and record["about"]["versions"]["torch"] and record["about"]["config"]["steps"] == 2
    assert record["about"]["model"]["fingerprint"] == done.letter.model.fingerprint
    assert len(record["verdicts"]) == len(done.verdicts()) and len(record["effects"]) == 16
    page = (done.folder / "report.html").read_text("utf-8")
    assert "What came out" in page and "http://" not in page.split("</head>")[1].split("<script")[0]
    for name in ("prompts", "edits", "split", "pairs", "overlaps", "effects", "neurons", "verdicts"):
        assert len(pd.read_parquet(done.folder / f"{name}.parquet")), name


def test_an_interrupted_measurement_goes_on_to_the_same(
    tiny: Any, asked: QuerySet, done: Transfer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert done.folder is not None
    shutil.copytree(done.folder, tmp_path / "out")
    split = pd.read_parquet(tmp_path / "out" / "split.parquet")
    split[split["turn"] < 3].to_parquet(tmp_path / "out" / "split.parquet")
    (tmp_path / "out" / "edits.parquet").unlink()
    again = transfer(tiny, asked, tmp_path / "out", config=CONFIG, progress=False)
    for name in KEPT:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(done, name))
    pd.testing.assert_frame_equal(again.verdicts(), done.verdicts())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for module, names in {"measure": ["prompts_answered", "transfer_edits"], "split": ["_of_query"]}.items():
        for name in names:
            monkeypatch.setattr(f"qrnca_lens.study.transfer.{module}.{name}", refuse)
    transfer(tiny, asked, tmp_path / "out", config=CONFIG, progress=False)


def test_a_folder_of_something_else_is_refused(tiny: Any, asked: QuerySet, done: Transfer, tmp_path: Path) -> None:
    assert done.folder is not None
    other = load_model(save_tiny("another", tmp_path / "other", LlamaConfig(**SIZES, rope_theta=5.0)), device="cpu")
    with pytest.raises(RunError, match=r"model\.fingerprint"):
        transfer(other, asked, done.folder, config=CONFIG, progress=False)
    with pytest.raises(RunError, match="seed: 1 here, 0 in the folder"):
        transfer(tiny, asked, done.folder, config=CONFIG, seed=1, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        transfer(tiny, asked, tmp_path / "mine", config=CONFIG, progress=False)


def test_what_cannot_be_compared_is_refused(tiny: Any, asked: QuerySet, short_queries: QuerySet, atlas: Any) -> None:
    with pytest.raises(DataError, match="its prompts are open"):
        transfer(tiny, asked.as_open(), progress=False)
    with pytest.raises(DataError, match="field 'question' is empty"):
        transfer(tiny, short_queries, progress=False)
    with pytest.raises(DataError, match="give open prompts of the same questions"):
        transfer(tiny, asked, texts=asked, progress=False)
    with pytest.raises(DataError, match="is not the same question there"):
        transfer(tiny, asked, texts=QuerySet(asked.queries[1:]).as_open(), progress=False)
    with pytest.raises(ValueError, match="3 questions in 2 groups are answered both"):
        transfer(tiny, QuerySet(asked.queries[:3]), progress=False)
    with pytest.raises((ModelError, ValueError), match="letter"):
        transfer(atlas, load_queries("atlas/domains").sample(1), progress=False)


def test_at_most_so_many_of_a_group(tiny: Any, asked: QuerySet) -> None:
    found = transfer(tiny, asked, config=CONFIG, most=2, progress=False)
    assert found.folder is None and found.letter.queries["group"].value_counts().to_dict() == {"x": 2, "y": 2}
    assert len(found.answered) == len(asked)


def test_prompts_of_unknown_templates_have_no_split(tiny: Any, asked: QuerySet) -> None:
    own = tuple(
        replace(query, prompts=tuple(replace(prompt, template="mine") for prompt in query.prompts)) for query in asked
    )
    found = transfer(tiny, QuerySet(own[:4]), config=CONFIG, progress=False)
    assert not len(found.split) and found.split_counts["left out"].item() == 12 and not len(found.neurons)
    assert len(found.verdicts()) and not len(found.kinds) and not len(found.parts)


def test_the_command(tiny: Any, asked: QuerySet, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", LlamaConfig(**SIZES))
    save_queries(asked, tmp_path / "asked.jsonl")
    given = ["--model", str(folder), "--queries", str(tmp_path / "asked.jsonl"), "--device", "cpu", "--steps", "2"]
    out = ["--out", str(tmp_path / "out"), "--per-group", "2"]
    told = CliRunner().invoke(app, ["transfer", *given, *out, "--dry-run"])
    assert (
        told.exit_code == 0 and "Locating by answer, at most: 12 prompts" in told.output and not (tmp_path / "out").exists()
    )
    done = CliRunner().invoke(app, ["transfer", *given, *out])
    assert done.exit_code == 0 and "What came out" in done.output and (tmp_path / "out" / "report.html").is_file()
    few = CliRunner().invoke(app, ["transfer", *given, "--out", str(tmp_path / "few"), "--per-group", "1"])
    assert few.exit_code == 1 and "2 questions in 2 groups" in " ".join(few.output.split())


def test_verdicts_by_hand(done: Transfer) -> None:
    """A difference that comes from the other side alone does not make a set lower anything."""
    compared = comparison_table(all_edits())
    tables = Tables(
        checks("m", prompt_rows([("x", 3, 1)] * 12)), done.overlaps, compared, done.split.iloc[:0], done.neurons.iloc[:0]
    )
    for own, p, wanted in ((-5.0, 1e-4, "yes"), (0.5, 1e-4, "no"), (-5.0, 0.02, "not told")):
        rows = compared.assign(own=own, mean=-3.0, p=p)
        found = verdict_table(replace(tables, comparisons=rows)).set_index("statement")
        about = found.filter(like="Suppressing", axis=0)
        assert len(about) == 8 and set(about["verdict"]) == {wanted}
    rising = verdict_table(replace(tables, comparisons=compared.assign(own=5.0, mean=3.0, p=1e-4)))
    assert rising["verdict"].iloc[0] == "no"
    assert found.loc["The model answers the questions by answer better than chance", "verdict"] != "yes"
