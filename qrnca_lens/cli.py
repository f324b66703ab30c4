"""The `qrnca` command: a thin face over the public functions; heavy imports stand in the commands to keep --help quick."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from qrnca_lens._version import __version__

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Find, judge and edit the neurons that carry knowledge in language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_console = Console()
Model = Annotated[str, typer.Option(help="'atlas', a Hugging Face folder or a hub name")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one")]
Out = Annotated[Path, typer.Option(help="the run folder; an interrupted run in it goes on")]


def _version(shown: bool) -> None:
    if shown:
        _console.print(f"qrnca_lens {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


@app.command()
def demo(out: Out = Path("runs/demo")) -> None:
    """Locate the QR neurons of 72 questions on the shipped model and write a page that shows them."""
    from qrnca_lens.demo import run_demo

    with _plain_errors():
        found = run_demo(out)
    prompt = found.query.prompts[0]
    _console.print(
        f"\n[bold]One question[/bold] ({found.query.id}, {found.query.group})\n{prompt.text} {prompt.letter}\n",
        highlight=False,
    )
    _show(found.neurons, "Its query-relevant neurons")
    _show(found.edits, "What they do: probabilities of the letters")
    _show(found.counts, "QR neurons by group and layer, counted once a question")
    _console.print(f"{found.located!r}", highlight=False)
    _console.print(f"Page: {found.page.resolve()}", highlight=False, soft_wrap=True)


@app.command()
def locate(
    out: Out,
    queries: Annotated[str, typer.Option(help="atlas/domains, atlas/languages, or a .jsonl, .csv or .json file")],
    model: Model = "atlas",
    per_group: Annotated[int | None, typer.Option(help="at most this many queries of each group")] = None,
    steps: Annotated[int, typer.Option(help="m, nodes of the integral")] = 16,
    rule: Annotated[str, typer.Option(help="right, endpoints or gauss-legendre")] = "right",
    site: Annotated[str | None, typer.Option(help="up, gate, pre or post; default: the paper's for the model")] = None,
    threshold: Annotated[float, typer.Option(help="t, share of a template's highest score")] = 0.2,
    top: Annotated[int, typer.Option(help="v, candidates a query")] = 20,
    common_share: Annotated[float, typer.Option(help="u, share of clusters that makes a neuron common")] = 0.3,
    seed: Annotated[int, typer.Option(help="of distractors and option order")] = 0,
    device: Device = None,
) -> None:
    """Find the QR neurons of every query and write them to a run folder."""
    from qrnca_lens.clustering import QRNCAConfig
    from qrnca_lens.data import load_queries
    from qrnca_lens.models import load_model
    from qrnca_lens.pipeline import locate as run

    with _plain_errors():
        config = QRNCAConfig(steps, rule, site, threshold, top, common_share)  # type: ignore[arg-type]
        asked = load_queries(queries, seed=seed)
        asked = asked.sample(per_group, seed) if per_group else asked
        located = run(load_model(model, device=device), asked, config, out=out)
    _show(located.top(10), "Neurons with the highest naica over all queries")
    _console.print(f"{located!r}\nRun folder: {out}", highlight=False, soft_wrap=True)


@app.command()
def attribute(
    prompt: Annotated[str, typer.Option(help="the raw prompt; \\n stands for a line break")],
    target: Annotated[str, typer.Option(help="the token to explain, taken literally, such as ' B'")],
    model: Model = "atlas",
    steps: int = 16,
    rule: str = "right",
    top: int = 20,
    device: Device = None,
) -> None:
    """Score every neuron for one token after one prompt."""
    from qrnca_lens.attribution import attribute as run
    from qrnca_lens.models import load_model

    with _plain_errors():
        found = run(load_model(model, device=device), prompt.replace("\\n", "\n"), target, steps=steps, rule=rule)  # type: ignore[arg-type]
    _show(found.top(top), f"Neurons for {target!r}")
    _console.print(f"{found!r}", highlight=False)


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="'atlas' or a model folder")] = "atlas",
    out: Annotated[Path | None, typer.Option(help="a Markdown file to write as well")] = None,
    per_group: Annotated[int | None, typer.Option(help="fewer questions a group, for a quick look")] = None,
    device: Device = None,
) -> None:
    """Measure what a model answers, where its facts are and what its QR neurons do."""
    from qrnca_lens.card import measure_card
    from qrnca_lens.models import load_model
    from qrnca_lens.store import write_text

    with _plain_errors():
        text = measure_card(load_model(model, device=device), per_group=per_group).to_markdown()
    _console.print(text, highlight=False, markup=False, soft_wrap=True)
    if out:
        write_text(text, out)


def _show(table: pd.DataFrame, title: str) -> None:
    shown = Table(title=title, title_justify="left")
    for name in table.columns:
        shown.add_column(str(name), justify="left" if table[name].dtype.kind in "OTU" else "right")
    for row in table.itertuples(index=False):
        shown.add_row(*[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row])
    _console.print(shown)


class _plain_errors:  # noqa: N801
    """Errors that name their remedy end the command with that text and exit code 1; all others keep their traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from qrnca_lens.store import RunError

        if isinstance(error, KeyboardInterrupt):
            Console(stderr=True).print("Interrupted. The same command goes on from here.")
            raise typer.Exit(130) from None
        if isinstance(error, (ValueError, KeyError, RunError, FileExistsError)):
            Console(stderr=True).print(f"Error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
