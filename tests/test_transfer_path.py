"""Does the letter stand for the knowledge? The whole path on a tiny model, and its prompts put anew."""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hostile import HOSTILE, check_html
from tiny import save_tiny
from transformers import LlamaConfig
from two_ways import (
    SIZES,
    all_edits,
    answered_both_ways,
    prompt_rows,
    tiny_llama,
)
from typer.testing import CliRunner

from qrnca_lens.attribution.options import option_probabilities
from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.store import RunError
from qrnca_lens.data import DataError, Prompt, QuerySet, load_queries, save_queries
from qrnca_lens.editing import suppress
from qrnca_lens.models import ModelError, load_model, reader_of, to_tokens
from qrnca_lens.study.transfer.both_ways import (
    checks,
)
from qrnca_lens.study.transfer.effects import (
    comparison_table,
    four_sets,
)
from qrnca_lens.study.transfer.measure import transfer
from qrnca_lens.study.transfer.reorderings import reordered
from qrnca_lens.study.transfer.result import Transfer
from qrnca_lens.study.transfer.split import FOUND
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
    """Against blocks of `editing.suppress`; answers token by token, each at the end of a text of its own."""
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
            with torch.no_grad(), suppress(tiny, neurons):
                texts = [torch.cat([start, start.new_tensor(answer[:k])]) for k in range(len(answer))]
                read = [tiny(text[None])[0, -1].log_softmax(-1) for text in texts]
            logs.append(np.mean([row[token].item() for row, token in zip(read, answer, strict=True)]))
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


def test_what_cannot_be_compared_is_refused(
    tiny: Any, asked: QuerySet, short_queries: QuerySet, atlas: Any, tmp_path: Path
) -> None:
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
        transfer(atlas, load_queries("atlas/domains").sample(1), tmp_path / "refused", progress=False)
    assert not (tmp_path / "refused").exists()


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


def test_a_hostile_name_is_shown_as_a_text(done: Transfer) -> None:
    named = replace(done.letter, model=replace(done.letter.model, name=HOSTILE))
    page = replace(done, letter=named)._repr_html_()
    check_html(page)
    assert "marquee" in html.unescape(page)


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
