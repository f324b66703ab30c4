"""The `qrnca` command: a thin face over the public functions; heavy imports stand in the commands to keep --help quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from qrnca_lens._version import __version__
from qrnca_lens.cli.errors import plain_errors
from qrnca_lens.cli.options import (
    Answered,
    Chat,
    Device,
    Draw,
    Model,
    PerGroup,
    Queries,
    Reads,
    Seed,
    Shots,
    drawn,
    only_answered,
    put,
    say_check,
)
from qrnca_lens.cli.queries import queries_app
from qrnca_lens.cli.running import Address, Engine, FailFast, Workers, check_engine, engine_for, status
from qrnca_lens.cli.transfers import transfer
from qrnca_lens.core.terminal import plain_log, say, say_table

if TYPE_CHECKING:
    import pandas as pd

    from qrnca_lens.clustering import QRNCAConfig
    from qrnca_lens.core.neurons import Site
    from qrnca_lens.core.rules import Rule
    from qrnca_lens.data import Distractors, QuerySet

app = typer.Typer(
    help="Find, judge and edit the neurons on which a language model's answers depend.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(queries_app, name="queries")
app.command()(transfer)
app.command()(status)
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what it takes, by a short calibration, and stop")]
Out = Annotated[Path, typer.Option(help="the run folder; an interrupted run in it goes on")]


def _version(shown: bool) -> bool:
    if shown:
        say(f"qrnca_lens {__version__}")
        raise typer.Exit
    return shown


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    plain_log()


@app.command()
def demo(out: Out = Path("runs/demo")) -> None:
    """Locate the QR neurons of 72 questions on the shipped model and write a page that shows them."""
    with plain_errors():
        from qrnca_lens.core.store import run_place
        from qrnca_lens.models import load_model
        from qrnca_lens.study.demo import run_demo, to_locate

        run_place(out)
        loaded, asked = load_model("atlas"), to_locate()
        _foretell(loaded, {asked.name: asked}, None, False)
        found = run_demo(out, model=loaded)
    prompt = found.query.prompts[0]
    say(f"\nOne question, of median effect ({found.query.id}, {found.query.group})", style="bold")
    say(f"{prompt.text} {prompt.letter}\n")
    _show(found.neurons, "Its query-relevant neurons")
    _show(found.edits, "Its answer when they are scaled")
    _show(found.effect, "All questions: mean change of P(right letter), 95 % intervals")
    _show(found.counts, "QR neurons by group and layer, counted once a question")
    say(repr(found.located))
    say(f"Page: {found.page.resolve()}")


@app.command()
def locate(
    out: Out,
    queries: Queries,
    model: Model = "atlas",
    per_group: PerGroup = None,
    steps: Annotated[int, typer.Option(min=1, help="m, nodes of the integral (auto: to begin with)")] = 16,
    rule: Annotated[str, typer.Option(help="right, endpoints, gauss-legendre or auto")] = "right",
    site: Annotated[str | None, typer.Option(help="up, gate, pre or post; default: the paper's for the model")] = None,
    threshold: Annotated[float, typer.Option(help="t, share of a template's highest score")] = 0.2,
    top: Annotated[int, typer.Option(min=1, help="v, candidates a query")] = 20,
    common_share: Annotated[float, typer.Option(help="u, share of clusters that makes a neuron common")] = 0.3,
    seed: Seed = 0,
    distractors: Draw = None,
    shots: Shots = 0,
    chat: Chat = False,
    answered: Answered = False,
    read: Reads = "letter",
    device: Device = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    fail_fast: FailFast = False,
    dry_run: DryRun = False,
) -> None:
    """Find the QR neurons of every query and write them to a run folder."""
    with plain_errors():
        from qrnca_lens.clustering import QRNCAConfig
        from qrnca_lens.core.store import run_place
        from qrnca_lens.data import load_queries
        from qrnca_lens.data.query import check_read
        from qrnca_lens.models import load_model
        from qrnca_lens.runs.checking import check as ask
        from qrnca_lens.runs.pipeline import locate as run
        from qrnca_lens.runs.prompts import queries_for
        from qrnca_lens.runs.status import is_finished

        run_place(out)
        check_engine(engine, address, workers)
        sought = cast("Site | None", site)
        config = QRNCAConfig(steps, cast("Rule", rule), sought, threshold, top, common_share, check_read(read))
        asked = load_queries(queries, seed=seed, distractors=cast("Distractors | None", distractors))
        asked = drawn(queries_for(asked, config.read), shots, per_group, seed)
        loaded = load_model(model, device=device)
        asked = put(loaded, asked, chat)
        known = not (answered or dry_run) and is_finished(out, [query.id for query in asked])
        if answered or not (dry_run or known):
            found = ask(loaded, asked)
            say_check(found, error=True)
            asked = only_answered(asked, found, config) if answered else asked
        if not known:
            _foretell(loaded, {asked.name: asked}, config, dry_run)
        with engine_for(loaded, engine, address, workers) as executor:
            located = run(loaded, asked, config, out=out, engine=executor, fail_fast=fail_fast)
    _show(located.top(10), "Neurons with the highest naica over all queries")
    _show_failed(located.failed)
    say(f"{located!r}\nRun folder: {out}")


@app.command()
def check(
    queries: Queries,
    model: Model = "atlas",
    per_group: PerGroup = None,
    seed: Seed = 0,
    distractors: Draw = None,
    shots: Shots = 0,
    chat: Chat = False,
    read: Reads = "letter",
    device: Device = None,
) -> None:
    """Say what a model does with questions: accuracy against chance, P of the letters, which letter it prefers."""
    with plain_errors():
        from qrnca_lens.data import load_queries
        from qrnca_lens.data.query import check_read
        from qrnca_lens.models import load_model
        from qrnca_lens.runs.checking import check as run
        from qrnca_lens.runs.prompts import queries_for

        how = check_read(read)
        asked = load_queries(queries, seed=seed, distractors=cast("Distractors | None", distractors))
        asked = drawn(queries_for(asked, how), shots, per_group, seed)
        loaded = load_model(model, device=device)
        found = run(loaded, put(loaded, asked, chat))
    say_check(found)
    _show_failed(found.failed)
    if found.advice:
        say(f"Warning: {found.advice}", error=True)


@app.command()
def attribute(
    prompt: Annotated[str, typer.Option(help="the raw prompt; \\n stands for a line break")],
    target: Annotated[str | None, typer.Option(help="the token to explain, taken literally, such as ' B'")] = None,
    answer: Annotated[str | None, typer.Option(help="in its place a text of any length, token by token")] = None,
    against: Annotated[str | None, typer.Option(help="another answer, whose scores are taken off")] = None,
    model: Model = "atlas",
    steps: Annotated[int, typer.Option(min=1, help="m, nodes of the integral (auto: to begin with)")] = 16,
    rule: Annotated[str, typer.Option(help="right, endpoints, gauss-legendre or auto")] = "right",
    top: Annotated[int, typer.Option(min=1, help="how many neurons to list")] = 20,
    device: Device = None,
) -> None:
    """Score every neuron for one token after one prompt, or for an answer of any length."""
    with plain_errors():
        from qrnca_lens.attribution import attribute as run
        from qrnca_lens.models import load_model

        if (target is None) == (answer is None):
            raise ValueError("give --target, a token, or --answer, a text of any length: one of the two")
        if against is not None and answer is None:
            raise ValueError("--against is another answer; it needs the --answer that it is held against")
        text, how, loaded = prompt.replace("\\n", "\n"), cast("Rule", rule), load_model(model, device=device)
        if target is not None:
            found = run(loaded, text, target, steps=steps, rule=how)
        else:
            found = run(loaded, text, answer=answer, against=against, steps=steps, rule=how)
    _show(found.top(top), f"Neurons for {answer if target is None else target!r}")
    if answer is not None:
        _show(found.tokens_frame(), "Its tokens, each after those before it; log P and largest gap of a layer in nats")
    say(repr(found))


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="'atlas', a model folder or a GGUF file")] = "atlas",
    out: Annotated[Path | None, typer.Option(help="a Markdown file to write as well")] = None,
    per_group: Annotated[int | None, typer.Option(min=1, help="fewer questions a group, for a quick look")] = None,
    device: Device = None,
) -> None:
    """Measure what a model answers, where its facts are and what its QR neurons do."""
    with plain_errors():
        from qrnca_lens.atlas.recipe import Recipe
        from qrnca_lens.core.store import write_text
        from qrnca_lens.core.writing import check_target
        from qrnca_lens.models import load_model
        from qrnca_lens.study.card import measure_card, to_locate

        recall = Recipe().recall_layers if model == "atlas" else None
        if out:
            check_target(out)
        loaded = load_model(model, device=device)
        _foretell(loaded, to_locate(per_group), None, False)
        text = measure_card(loaded, recall_layers=recall, per_group=per_group).to_markdown()
        if out:
            write_text(text, out)
    say(text)


@app.command()
def explore(
    run: Annotated[Path, typer.Argument(help="a run folder of `qrnca locate`")],
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("explorer.html"),
    model: Annotated[str | None, typer.Option(help="the run's model; for the shipped one it can be left out")] = None,
    top: Annotated[int, typer.Option(min=1, help="neurons kept for each query")] = 3,
    per_group: Annotated[int, typer.Option(min=1, help="queries kept of each group")] = 6,
    device: Device = None,
) -> None:
    """Write a run as one page to explore in a browser, without Python and without the network."""
    with plain_errors():
        from qrnca_lens.clustering import QRNeurons
        from qrnca_lens.models import load_model
        from qrnca_lens.views.explorer.page import write_explorer

        located = QRNeurons.load(run)
        loaded = load_model(model, device=device) if model else None
        page = write_explorer(loaded, located, out, top=top, per_group=per_group)
    say(f"{page}  ({page.stat().st_size / 2**20:.1f} MiB)")


@app.command()
def reproduce(
    out: Out,
    model: Model = "atlas",
    queries: Annotated[str, typer.Option(help="comma-separated: domains, languages, or files")] = "domains,languages",
    per_group: Annotated[int | None, typer.Option(min=1, help="at most this many queries of each group")] = None,
    seed: Seed = 0,
    distractors: Draw = None,
    shots: Shots = 0,
    chat: Chat = False,
    read: Reads = "letter",
    device: Device = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    dry_run: DryRun = False,
) -> None:
    """Reproduce the paper's tables and figures and write results.json, the figures and report.html."""
    with plain_errors():
        from qrnca_lens.clustering import QRNCAConfig
        from qrnca_lens.core.store import run_place
        from qrnca_lens.data.query import check_read
        from qrnca_lens.models import load_model
        from qrnca_lens.study import reproduce as run
        from qrnca_lens.study import subject
        from qrnca_lens.study.forecast import estimate_tables
        from qrnca_lens.study.report import write_report
        from qrnca_lens.study.tables import failed
        from qrnca_lens.study.verdicts import statements

        run_place(out)
        check_engine(engine, address, workers)
        form = cast("Distractors | None", distractors)
        names = [name.strip() for name in queries.split(",")]
        config = QRNCAConfig(read=check_read(read))
        subjects = [
            subject(name, seed=seed, per_group=per_group, distractors=form, shots=shots, read=config.read) for name in names
        ]
        loaded = load_model(model, device=device)
        subjects = [item.as_chat(loaded) for item in subjects] if chat else subjects
        for item in subjects:
            say(f"Tables of {item.name}: {estimate_tables(loaded, item)}", error=not dry_run)
        _foretell(loaded, {item.name: item.queries for item in subjects}, config, dry_run)
        with engine_for(loaded, engine, address, workers) as executor:
            study = run(loaded, subjects, out, config=config, seed=seed, engine=executor)
        page = write_report(study)
        held, left_out = statements(study.results, study.model), failed(study.results)
    _show(held, "Which statements of the paper hold here")
    _show_failed(left_out)
    say(f"Page: {page.resolve()}\nNumbers: {(out / 'results.json').resolve()}")


def _foretell(model: Any, queries: dict[str, QuerySet], config: QRNCAConfig | None, stop: bool) -> None:
    """Say what locating each set takes; with `stop` this is the command's result, and it ends."""
    from qrnca_lens.runs.forecast import estimate

    for name, asked in queries.items():
        say(f"Locating {name}: {estimate(model, asked, config)}", error=not stop)
    if stop:
        raise typer.Exit


def _show_failed(failed: pd.DataFrame) -> None:
    if len(failed):
        _show(failed, "Queries that failed and are left out")


def _show(table: pd.DataFrame, title: str) -> None:
    columns = [(str(name), table[name].dtype.kind not in "OTU") for name in table.columns]
    rows = table.itertuples(index=False, name=None)
    say_table(title, columns, [[f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows])
