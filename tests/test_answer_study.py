"""A study whose answers are read whole: what it measures, what it calls things, what it leaves out and says why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from asked_open import open_queries, open_questions
from handmade import by_hand, effects
from typer.testing import CliRunner

import qrnca_lens as ql
from qrnca_lens.attribution.letters import letter_shares
from qrnca_lens.attribution.options import option_probabilities
from qrnca_lens.cli.app import app
from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.core.store import RunError
from qrnca_lens.data import DataError, QuerySet, load_queries, save_queries
from qrnca_lens.data.query import check_read
from qrnca_lens.editing.statistics import probability_change_ratio
from qrnca_lens.methods import METHODS
from qrnca_lens.models import ModelError, load_model, reader_of, to_tokens
from qrnca_lens.study import Reproduction, Subject, reproduce, subject
from qrnca_lens.study.direct import NONE, written_options
from qrnca_lens.study.prediction_table import table7_sentence
from qrnca_lens.study.report import write_report
from qrnca_lens.study.reproduction import Results, Sample
from qrnca_lens.study.tables import as_json, given_away, letter_line, table4, table_unseen
from qrnca_lens.study.verdicts import statements

SAMPLE = Sample(extended=1, collateral=1, permutations=9, draws=3, probe_draws=1, single_neurons=100)
CONFIG = QRNCAConfig(steps=3)
NOTHING = pd.DataFrame()


@pytest.fixture(scope="module")
def study(model_of: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    queries, out = open_questions(), tmp_path_factory.mktemp("study") / "run"
    asked = [Subject("mine", queries, (queries,))]
    return reproduce(model_of("llama"), asked, out, config=CONFIG, read="answer", sample=SAMPLE, progress=False)


@pytest.fixture(scope="module")
def page(study: Reproduction) -> str:
    """The report without scripts and tags."""
    written = write_report(study).read_text()
    return re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", written, flags=re.DOTALL))


def by_answers(**frames: Any) -> dict[str, Results]:
    """A Results of hand-made frames, read from answers."""
    located = replace(by_hand(), config=QRNCAConfig(common_share=0.5, read="answer"))
    rest = {name: frames.get(name, NOTHING) for name in ("effects", "extended", "others", "loss", "tokens", "prediction")}
    return {"a": Results(located, **rest, **{name: frames[name] for name in frames if name not in rest})}


def test_subjects_are_put_as_open_prompts(study: Reproduction) -> None:
    assert study.results["mine"].located.asked.queries == open_queries().queries
    record = json.loads((study.folder / "study.json").read_text())
    assert record["config"]["read"] == "answer"
    assert set(record["other prompts"]["mine"]) == {"rendering 0", "held-out"}


def test_effects_are_those_of_the_answers(study: Reproduction, model_of: Callable[[str], Any]) -> None:
    found = study.results["mine"].effects
    rows = found[(found["method"] == "qrnca") & (found["factor"] == 0)].set_index("query")
    query = study.results["mine"].located.asked["x2"]
    p = option_probabilities(model_of("llama"), query.prompts)[range(3), [prompt.right for prompt in query.prompts]]
    assert rows.loc["x2", "p_before"] == pytest.approx(p.mean().item(), rel=1e-4)
    assert rows.loc["x2", "log_p_before"] == pytest.approx(p.log().mean().item(), rel=1e-4)
    same, other = (json.loads(rows.loc["x2", f"{kind}_partners"]) for kind in ("same", "other"))
    assert {place[0][0] for place in same} == {"x"} and {place[0][0] for place in other} == {"y"}


def test_prompts_that_had_no_part_in_detection_are_the_held_out_template(study: Reproduction) -> None:
    unseen = study.results["mine"].unseen
    assert list(unseen["prompts_of"].unique()) == ["detection", "held-out"]
    assert unseen.groupby("prompts_of")["prompts"].unique().map(list).to_dict() == {"detection": [3], "held-out": [1]}
    assert len(table_unseen(study.results)) == 2 * 2 * 2


def test_table_7_reads_first_tokens_where_they_differ(study: Reproduction) -> None:
    """The options of y all begin with a space: no row of theirs. No probe, as no option is shown."""
    found = study.results["mine"].prediction
    assert set(found["group"]) == {"x"} and set(found["reading"]) == {"", "direct"}
    assert found.loc[found["neurons"] == "the prompted model", "of"].tolist() == [9]
    assert "no probe can learn" in table7_sentence(study.results)
    empty = replace(study.results["mine"], prediction=found.head(0))
    assert "mine: nothing to read" in table7_sentence({"mine": empty})


def test_options_that_neurons_write_are_read_from_first_tokens(model_of: Callable[[str], Any]) -> None:
    """Against what two neurons of the last layer add, put through the final norm and the unembedding by hand."""
    model, queries = model_of("llama"), open_queries()
    layer, prompts = model.cfg.n_layers - 1, [*queries["x0"].prompts, *queries["y0"].prompts]
    found = written_options(model, prompts, {layer: np.array([[3, 8]])})["all"][0]
    for prompt, option in zip(prompts[:3], found, strict=False):
        with torch.no_grad():
            _, cache = model.run_with_cache(to_tokens(model, prompt.text)[None])
            wrote = cache[f"blocks.{layer}.mlp.hook_post"][0, -1, [3, 8]] @ model.blocks[layer].mlp.W_out[[3, 8]]
            logits = model.unembed(model.ln_final(wrote[None, None]))[0, 0]
        firsts = [reader_of(model).answer(prompt.text, text)[0] for text in prompt.options]
        assert option == int(logits[firsts].argmax())
    assert found[3:].tolist() == [NONE] * 3  # one token for all four


def test_methods_that_take_neurons_one_by_one_are_left_out_of_large_models(study: Reproduction, page: str) -> None:
    alone = {key for key, method in METHODS.items() if method.by_neuron}
    assert alone == {"ablation", "log-probability"}
    assert not alone & set(study.results["mine"].extended["method"])
    assert "Left out: Exact ablation, Log-probability increase" in page and "more than 100 (" in page
    shape = study.results["mine"].located.model  # 3 layers of 48 neurons
    assert Sample(single_neurons=143).beyond(shape)[1] and not Sample(single_neurons=144).beyond(shape)[1]
    assert not Sample().beyond(replace(shape, n_layers=4, d_mlp=1024))[1]  # atlas has all


def test_the_report_speaks_of_answers_and_groups(study: Reproduction, page: str) -> None:
    for words in (
        "Answers are read, not letters",
        "another question of the same group",
        "PCR (same group)",
        "group's share, %",
        "there are no fresh shuffles",
        "Left out: open prompts show no options",
        "letters among these tokens are none of the answers",
    ):
        assert words in page.replace("&#x27;", "'"), words
    for words in ("same letter", "other letter", "right letter", "the letter"):
        assert words not in page, words
    assert given_away(study.results).empty


def test_statements_about_letters_have_no_meaning(study: Reproduction) -> None:
    found = statements(study.results).set_index("statement")
    row = found.loc["common neurons promote option letters"]
    assert row["holds here"] == "no meaning" and math.isnan(row["p"])
    assert "the effect of suppressing is the question's, not the group's" in found.index
    assert not any("letter" in text for text in found.index.drop("common neurons promote option letters"))
    assert found.loc["common neurons promote stop words", "holds here"] != "no meaning"


def test_log_p_stands_beside_p_by_hand() -> None:
    """P from 0.5 to 0.25 and 0.125: -1 and -2 times ln 2; the same group's from 0.5 to 0.25 both times."""
    edits = effects("qrnca", 0.0, [0.25, 0.125], [0.25, 0.25])
    found = probability_change_ratio(edits)
    assert found.nats.mean == pytest.approx(-1.5 * math.log(2))
    assert found.specific_nats.mean == pytest.approx(-0.5 * math.log(2))
    assert found.nats.queries == 2
    lost = probability_change_ratio(effects("qrnca", 0.0, [0.0, 0.25], [0.5, 0.5]))
    assert (lost.nats.mean, lost.nats.queries) == (pytest.approx(-math.log(2)), 1)
    both = pd.concat([edits, effects("qrnca", 2.0, [0.5, 0.5], [0.5, 0.5])], ignore_index=True)
    row = table4(by_answers(effects=both)).to_dict("records")[1]
    assert row["log P, nats"].startswith("-1.04 [") and row["specific, nats"].startswith("-0.35 [")
    assert {"same group %", "another group %", "PCR (same group)", "group's share, %"} <= set(row)
    record = as_json(by_answers(effects=both, extended=both), {}, NOTHING)["table4"]["qrnca"]["a"]
    assert record["suppress"]["nats"]["mean"] == pytest.approx(-1.5 * math.log(2))


def test_the_sentence_on_groups_by_hand() -> None:
    """Of -25 points -5 are seen in the same group and -2.5 in another: 2.5 of 25 are the group's."""
    edits = effects("qrnca", 0.0, [0.3, 0.2], [0.45, 0.45], other=[0.475, 0.475])
    line = letter_line(probability_change_ratio(edits), "answer")
    assert line.startswith(
        "Of the change on the own question (-25.0 points), 20 % is also seen on other questions of the same group and 10 % "
        "on those of another group: 10.0 ["
    )
    assert line.endswith("] % is specific to the group, 80 % to the question.")


def test_folders_of_the_two_readings_are_not_mixed(study: Reproduction, model_of: Callable[[str], Any]) -> None:
    queries = open_questions()
    with pytest.raises(RunError, match=r"config\.read: letter here, answer in the folder"):
        reproduce(model_of("llama"), [Subject("mine", queries, (queries,))], study.folder, config=CONFIG, sample=SAMPLE)
    before = (study.folder / "mine" / "effects.parquet").read_bytes()
    path = study.folder / "study.json"
    record = json.loads(path.read_text())
    asked = {"config": CONFIG, "read": "answer", "progress": False}
    with pytest.raises(RunError, match=r"sample\.single_neurons: 20000 here, 100 in the folder"):
        reproduce(
            model_of("llama"), [Subject("mine", queries, (queries,))], study.folder,
            sample=replace(SAMPLE, single_neurons=20_000), **asked,
        )  # fmt: skip
    assert record == json.loads(path.read_text())
    assert before == (study.folder / "mine" / "effects.parquet").read_bytes()


def test_a_subject_of_answers() -> None:
    found = subject("domains", per_group=3, read="answer")
    assert found.queries.read == "answer" and len(found.queries) == 18 and found.fresh is None
    assert found.renderings == (found.queries,)
    assert found.held_out is not None and {q.prompts[0].template for q in found.held_out} == {"en-open-held-out"}
    assert subject("domains", per_group=3).as_open().queries.queries == found.queries.queries
    assert found.as_open() is found
    with pytest.raises(ValueError, match="read must be one of letter, answer, not 'word'"):
        check_read("word")


def test_a_file_of_open_prompts(tmp_path: Path, model_of: Callable[[str], Any]) -> None:
    save_queries(open_queries(), tmp_path / "open.jsonl")
    found = subject(tmp_path / "open.jsonl", read="answer")
    assert found.queries.queries == open_queries().queries and found.held_out is None
    with pytest.raises(DataError, match="give read='answer'"):
        subject(tmp_path / "open.jsonl")
    with pytest.raises(DataError, match="give read='answer'"):
        reproduce(model_of("llama"), [found], tmp_path / "run", read="letter")
    assert not (tmp_path / "run").exists()


def test_a_model_that_can_say_letters_alone_is_refused_answers(atlas: Any, tmp_path: Path) -> None:
    """Of atlas; a random model, whose answers are as unlikely, says no letters and is taken."""
    asked = load_queries("atlas/domains").sample(4)
    told = r"atlas is a letter-only model asked for answers: .* hold 9\d% .* below the -8\.3 of a draw from its 4096 tokens"
    out = tmp_path / "run"
    for call in (
        lambda: ql.locate(atlas, asked, read="answer", out=out, progress=False),
        lambda: ql.estimate(atlas, asked, QRNCAConfig(read="answer")),
        lambda: reproduce(atlas, [subject("domains", per_group=4)], out, read="answer", progress=False),
    ):
        with pytest.raises(ModelError, match=told):
            call()
        assert not out.exists() or not any(out.iterdir())
    assert len(ql.locate(atlas, asked, QRNCAConfig(steps=1), progress=False).queries) == 24


def test_what_is_random_writes_no_letters(model_of: Callable[[str], Any]) -> None:
    model, prompts = model_of("llama"), [prompt for query in open_queries() for prompt in query.prompts]
    p = option_probabilities(model, prompts)[range(len(prompts)), [prompt.right for prompt in prompts]]
    shares = letter_shares(model, [prompt.text for prompt in prompts])
    assert p.log().mean() < -math.log(model.cfg.d_vocab) and shares.mean() < 0.5
    ids = {token for form in reader_of(model).options(prompts[0].text, ("A", "B", "C", "D")) for token in form.ids}
    with torch.no_grad():
        wanted = model(to_tokens(model, prompts[0].text)[None])[0, -1].softmax(-1)[sorted(ids)].sum()
    assert shares[0].item() == pytest.approx(wanted.item(), rel=1e-4)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_the_command_reads_answers(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    model, source, out = str(folder_of("llama")), tmp_path / "short.jsonl", tmp_path / "run"
    save_queries(open_questions(), source)
    done = run("locate", "--model", model, "--queries", str(source), "--out", str(out), "--read", "answer", "--steps", "2")
    assert done.exit_code == 0, done.output
    assert "read from whole answers" in done.output
    assert ql.QRNeurons.load(out).config.read == "answer"
    checked = run("check", "--model", model, "--queries", str(source), "--read", "answer")
    assert checked.exit_code == 0 and "36 prompts" in checked.output
    wrong = run("locate", "--model", model, "--queries", str(source), "--out", str(out), "--read", "word")
    assert wrong.exit_code == 1 and "Error: read must be one of letter, answer, not 'word'" in wrong.output


def test_the_command_shows_open_prompts(tmp_path: Path) -> None:
    save_queries(open_questions(), tmp_path / "short.jsonl")
    for source in (tmp_path / "short.jsonl", tmp_path / "open.jsonl"):
        save_queries(open_queries(), tmp_path / "open.jsonl")
        reading = ("--read", "answer") if source.name == "short.jsonl" else ()
        told = run("queries", "show", str(source), "--id", "x2", *reading)
        assert told.exit_code == 0 and "Question: Who is 2?\nAnswer: Cy Dee\n" in told.output
        assert "12 questions by group" in told.output and "given away" not in told.output


def test_the_command_attributes_answers(folder_of: Callable[[str], Path]) -> None:
    model = ("--model", str(folder_of("llama")), "--prompt", "Who?\\nAnswer:")
    done = run("attribute", *model, "--answer", "Cy Dee", "--against", "Ada", "--top", "3", "--steps", "2")
    assert done.exit_code == 0, done.output
    assert "Neurons for 'Cy Dee'" in done.output and "against 'Ada'" in done.output
    weights = re.findall(r"(?<!\d)(-?\d\.\d{4}) │ +\d\.\d{4} │ +\d+ │\n", done.output)
    tokens = [
        len(load_model(folder_of("llama"), device="cpu").tokenizer.encode(f" {text}")) - 1 for text in ("Cy Dee", "Ada")
    ]
    wanted = [1 / tokens[0]] * tokens[0] + [-1 / tokens[1]] * tokens[1]
    assert [float(weight) for weight in weights] == pytest.approx(wanted, abs=1e-4)
    for given, told in (
        ((), "give --target, a token, or --answer"),
        (("--target", " A", "--answer", "Ada"), "one of the two"),
        (("--target", " A", "--against", "Ada"), "it needs the --answer"),
        (("--answer", " "), "is empty; give a text"),
    ):
        wrong = run("attribute", *model, *given)
        assert wrong.exit_code == 1 and told in wrong.output.replace("\n", " "), wrong.output


def test_queries_without_question_or_options_are_refused_before_anything_is_computed(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    bare = QuerySet(tuple(replace(query, question="") for query in open_questions()), "bare")
    save_queries(bare, tmp_path / "bare.jsonl")
    done = run(
        "reproduce", "--model", str(folder_of("llama")), "--queries", str(tmp_path / "bare.jsonl"),
        "--out", str(tmp_path / "run"), "--read", "answer",
    )  # fmt: skip
    assert done.exit_code == 1 and "field 'question' is empty" in done.output.replace("\n", " ")
    assert not (tmp_path / "run").exists()
