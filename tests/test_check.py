from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from handmade import planted_prompt, planted_queries
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import LONG
from typer.testing import CliRunner

import qrnca_lens as ql
from qrnca_lens.attribution import letters
from qrnca_lens.attribution.options import answers
from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.clustering.tables import Failure
from qrnca_lens.core.intervals import clustered_interval
from qrnca_lens.data import LETTERS, Prompt, Query, QuerySet, save_queries
from qrnca_lens.models import load_model
from qrnca_lens.runs import pipeline
from qrnca_lens.runs.answering import ABOVE, BELOW, UNTOLD, ChanceWarning, Check, Reading

CONFIG = QRNCAConfig(steps=1)


def reading(number: int, right: str, chosen: str, *, group: str = "x", fact: str = "", p: float = 0.4) -> Reading:
    """One query, a prompt for each letter of `right`; the model gives the letter of `chosen` `p` and the others 0.1."""
    prompts = tuple(planted_prompt(10 * number + i, letter) for i, letter in enumerate(right))
    given = tuple(tuple(p if letter == own else 0.1 for letter in LETTERS) for own in chosen)
    return Reading(Query(f"q{number}", group, prompts, fact=fact), given)


def interval(counts: list[int], totals: list[int]) -> tuple[float, float]:
    return clustered_interval(np.array(counts), np.array(totals))


def by_hand() -> Check:
    """x: right in 2 of 3 and 3 of 3, y: in 0 of 2 prompts; the last two queries ask the same fact."""
    read = [reading(0, "ABC", "ABD"), reading(1, "DDA", "DDA", fact="f"), reading(2, "CB", "DD", group="y", fact="f", p=0.6)]
    return Check.of("tiny", read, [Failure("bad", "y", 1, "it does not fit")])


def test_the_table_by_group_is_as_counted_by_hand() -> None:
    groups = by_hand().groups.set_index("group")
    assert list(groups.index) == ["x", "y", "all groups"]
    assert groups["queries"].tolist() == [2, 1, 3] and groups["prompts"].tolist() == [6, 2, 8]
    assert groups["right"].tolist() == [5, 0, 5] and groups["answered"].tolist() == [1, 0, 1]
    assert groups["accuracy"].tolist() == pytest.approx([5 / 6, 0, 5 / 8])
    assert groups["chance"].tolist() == [0.25] * 3
    # x: right A 2, B 1, C 1, D 2, chosen A 2, B 1, D 3 of 6; y: C, B against D, D; all: right 2, 2, 2, 2, chosen 2, 1, 0, 5
    assert groups["habit"].tolist() == pytest.approx([(4 + 1 + 6) / 36, 0, (4 + 2 + 10) / 64])
    wanted = [interval(*pair) for pair in (([2, 3], [3, 3]), ([0], [2]), ([2, 3], [3, 5]))]
    assert [tuple(row) for row in groups[["low", "high"]].to_numpy()] == [pytest.approx(pair) for pair in wanted]
    assert groups["mean mass"].tolist() == pytest.approx([0.7, 0.9, (6 * 0.7 + 2 * 0.9) / 8])
    assert groups["lowest mass"].tolist() == pytest.approx([0.7, 0.9, 0.7])


def test_the_table_by_option_is_as_counted_by_hand() -> None:
    options = by_hand().options.set_index("option")
    assert options["right"].tolist() == [2, 2, 2, 2] and options["chosen"].tolist() == [2, 1, 0, 5]
    assert options["share chosen"].tolist() == [0.25, 0.125, 0, 0.625] and options["share right"].tolist() == [0.25] * 4
    assert tuple(options.loc["D", ["low", "high"]]) == pytest.approx(interval([1, 4], [3, 5]))


def test_what_is_shown_tells_it_all() -> None:
    found = by_hand()
    assert found.answered == ("q1",)
    told = repr(found)
    for part in (
        "tiny answers 5 of 8 prompts rightly (62.5% [",
        "1 of 3 queries are answered in all wordings",
        "the options have 75.0% of the probability (lowest 70.0%)",
        "D is chosen most, 62.5% [",
        "and right in 25%",
        "queries that could not be read: 1, the first, 'bad': it does not fit",
    ):
        assert part in told
    assert "<td>all groups</td>" in found._repr_html_() and "it does not fit" in found._repr_html_()
    pd.testing.assert_frame_equal(found.to_frame(), found.groups)
    assert found.failed["query"].tolist() == ["bad"] and "bad" not in set(found.answers["query"])


@pytest.mark.parametrize(
    ("right", "chosen", "verdict"),
    [
        ("ABCD" * 5, "ABCD" * 5, ABOVE),
        ("ABCD" * 5, "A" * 20, UNTOLD),
        ("A" * 10 + "BCD" * 4, "A" * 22, UNTOLD),  # 45 % right, all of it the habit of saying A
        ("A" * 20, "A" * 20, UNTOLD),  # always right, and always A
        ("ABCD" * 5, "BCDA" * 5, BELOW),
    ],
)
def test_the_verdict(right: str, chosen: str, verdict: str) -> None:
    found = Check.of("tiny", [reading(i, *pair) for i, pair in enumerate(zip(right, chosen, strict=True))])
    assert found.verdict == verdict
    assert bool(found.advice) is (verdict != ABOVE)
    if verdict != ABOVE:
        assert verdict in found.advice and "--chat" in found.advice and "stand for no knowledge" in found.advice


LETTER_PAIRS = st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCD")), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(LETTER_PAIRS, min_size=1, max_size=6))
def test_the_counts_agree_with_a_slow_count(cases: list[list[tuple[str, str]]]) -> None:
    read = [
        reading(i, "".join(r for r, _ in pairs), "".join(c for _, c in pairs), group="xy"[i % 2])
        for i, pairs in enumerate(cases)
    ]
    found, flat = Check.of("tiny", read), [pair for pairs in cases for pair in pairs]
    told = found.groups.iloc[-1]
    assert told["right"] == sum(right == chosen for right, chosen in flat) == found.groups["right"].iloc[:-1].sum()
    agree = sum(right == chosen for right, _ in flat for _, chosen in flat)  # every question with every answer
    assert told["habit"] == pytest.approx(agree / len(flat) ** 2)
    assert found.answered == tuple(f"q{i}" for i, pairs in enumerate(cases) if all(r == c for r, c in pairs))
    assert found.options["chosen"].sum() == found.options["right"].sum() == len(flat)
    backwards = Check.of("tiny", read[::-1])
    assert backwards.verdict == found.verdict and set(backwards.answered) == set(found.answered)


class Named(Prompt):
    """A prompt whose options are called by their own texts."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.options


def test_options_with_texts_of_their_own_have_no_bias() -> None:
    def read(number: int, chosen: int) -> Reading:
        options = tuple(f"{word} {number}" for word in ("red", "green", "blue"))
        prompt = Named("red green blue".replace("red", options[0]), "B")
        object.__setattr__(prompt, "options", options)
        object.__setattr__(prompt, "letter", options[1])
        return Reading(Query(f"q{number}", "x", (prompt,)), (tuple(0.5 if i == chosen else 0.2 for i in range(3)),))

    found = Check.of("tiny", [read(i, 1) for i in range(6)])
    assert len(found.options) == 0 and "chosen most" not in repr(found)
    assert found.groups["chance"].tolist() == pytest.approx([1 / 3] * 2) and found.verdict == ABOVE


def test_nothing_read_is_told() -> None:
    found = Check.of("tiny", [], [Failure("bad", "y", 0, "too long")])
    assert found.answered == () and found.verdict == UNTOLD and "tiny could read no query" in repr(found)


def test_a_planted_model_is_checked(planted: Any) -> None:
    """It knows the mark of each prompt; without it, it says D."""
    known = planted_queries(["ABC", "BCD", "CDA", "DAB"], "xy")
    found = ql.check(planted, known)
    assert found.verdict == ABOVE and found.answered == ("q0", "q1", "q2", "q3")
    wrong = tuple(replace(query, prompts=tuple(planted_prompt(90 + i, "A", "~") for i in range(3))) for query in known)
    mixed = QuerySet((*known.queries[:2], *wrong[2:]))
    found, slow = ql.check(planted, mixed), answers(planted, mixed)
    assert found.answered == ("q0", "q1")
    assert found.answers["answer"].tolist() == slow["answer"].tolist()
    for name in ("probability", "mass"):
        assert found.answers[name].tolist() == pytest.approx(slow[name].tolist(), rel=1e-4)
    assert found.answers["is_right"].tolist() == slow["right"].tolist()


def test_the_untouched_model_is_checked(planted: Any) -> None:
    queries = planted_queries("ABCD", "xy")
    before = ql.check(planted, queries)
    with ql.suppress(planted, ql.NeuronSet.of((1, 7), (1, 30))):
        pd.testing.assert_frame_equal(ql.check(planted, queries).answers, before.answers)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_read_is_told_and_not_counted(model_of: Callable[[str], Any], short_queries: QuerySet) -> None:
    found = ql.check(model_of("llama"), QuerySet((LONG, *short_queries.queries)))
    assert found.groups["queries"].iloc[-1] == 12 and found.failed["query"].tolist() == ["long"]
    with pytest.raises(ValueError, match="there is no query to check"):
        ql.check(model_of("llama"), QuerySet(()))
    with pytest.raises(TypeError, match="expected a HookedTransformer"):
        ql.check("atlas", short_queries)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expected a QuerySet"):
        ql.check(model_of("llama"), list(short_queries))  # pyright: ignore[reportArgumentType]


def always(letter: str, folder: Path) -> Any:
    """A model that says one letter after every prompt."""
    model = load_model(folder, device="cpu")
    token = letters.option_tokens(model, planted_prompt(0, "A").text).id_of(letter)
    model.unembed.b_U.data[token] += 100
    return model


@pytest.mark.transformer_lens_3
def test_locate_warns_before_it_computes(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, planted: Any
) -> None:
    model, queries = always("A", folder_of("llama")), planted_queries("ABCD" * 2, "xy")

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_compute", stop)
    with (
        pytest.warns(ChanceWarning, match=r"answers 2 of 8 prompts rightly.*not told from chance \(25"),
        pytest.raises(KeyboardInterrupt),
    ):
        ql.locate(model, queries, CONFIG, progress=False)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("error", ChanceWarning)
        ql.locate(planted, queries, CONFIG, progress=False)


def test_no_prompt_is_read_twice(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, queries = load_model(folder_of("llama"), device="cpu"), planted_queries("ABCD", "xy")
    real, read = letters.last_positions, Counter[str]()

    def counted(model: Any, texts: Sequence[str], *rest: Any, **named: Any) -> Any:
        read.update(texts)
        return real(model, texts, *rest, **named)

    monkeypatch.setattr(letters, "last_positions", counted)
    ql.check(model, queries)
    ql.locate(model, queries, CONFIG, progress=False)
    assert read == Counter(prompt.text for query in queries for prompt in query.prompts)


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Options of the commands: atlas on 24 questions."""
    save_queries(ql.load_queries("atlas/domains").sample(4), tmp_path / "some.jsonl")
    return ["--model", "atlas", "--queries", str(tmp_path / "some.jsonl"), "--device", "cpu"]


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "220"})


def test_the_command_prints_the_check(asked: list[str], atlas: Any, short_queries: QuerySet, tmp_path: Path) -> None:
    done = invoked("check", *asked)
    assert done.exit_code == 0, done.output
    assert repr(ql.check(atlas, ql.load_queries(asked[3]))) in done.output and "all groups" in done.output
    fewer = invoked("check", *asked, "--per-group", "2", "--shots", "1")
    shown = ql.load_queries(asked[3]).with_examples(1).sample(2)
    assert repr(ql.check(atlas, shown)) in fewer.output
    refused = invoked("check", *asked, "--chat")
    assert refused.exit_code == 1 and "has no chat template" in refused.output and "Traceback" not in refused.output
    refused = invoked("check", *asked, "--shots", "4")
    assert refused.exit_code == 1 and "has only 3 other questions" in refused.output


def test_locate_says_the_check_and_keeps_what_is_answered(asked: list[str], atlas: Any, tmp_path: Path) -> None:
    queries = ql.load_queries(asked[3])
    bad = replace(queries.queries[0], prompts=tuple(_wrong(prompt) for prompt in queries.queries[0].prompts), answer="")
    mixed = QuerySet((bad, *queries.queries[1:]))
    save_queries(mixed, tmp_path / "some.jsonl")
    found = ql.check(atlas, mixed)
    assert bad.id not in found.answered
    done = invoked("locate", *asked, "--steps", "1", "--answered", "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    told = f"{len(found.answered)} of 24 queries are answered rightly in all wordings and are kept"
    assert repr(found) in done.stderr and told in done.stderr and repr(found) not in done.stdout
    assert done.stderr.index(repr(found)) < done.stderr.index("Locating some:")
    located = ql.QRNeurons.load(tmp_path / "run")
    assert tuple(located.queries["query"]) == found.answered
    assert located.about["made"][-1] == f"{len(found.answered)} rightly answered queries"


def test_too_few_answered_queries_end_the_command(asked: list[str], tmp_path: Path) -> None:
    queries = ql.load_queries(asked[3])
    wrong = (replace(query, prompts=tuple(map(_wrong, query.prompts)), answer="") for query in queries)
    save_queries(QuerySet(tuple(wrong)), tmp_path / "some.jsonl")
    done = invoked("locate", *asked, "--answered", "--out", str(tmp_path / "run"))
    assert (
        done.exit_code == 1 and "of 24 queries are answered rightly in all wordings, too few for --answered" in done.output
    )
    assert not (tmp_path / "run").exists() and "Locating" not in done.output


def _wrong(prompt: Prompt) -> Prompt:
    """The same prompt with the mark of the first wrong option, the same one in every prompt of a query."""
    wrong = min(option for option in prompt.options if option != prompt.marked)
    return replace(prompt, letter=LETTERS[prompt.options.index(wrong)])
