"""`qrnca queries`: build question sets and look at their prompts; heavy imports stand in the commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qrnca_lens.cli_errors import plain_errors

if TYPE_CHECKING:
    from qrnca_lens.data import Query, Question

queries_app = typer.Typer(help="Build question sets and look at their prompts.", no_args_is_help=True)
build_app = typer.Typer(help="Build a file of questions or queries.", no_args_is_help=True)
queries_app.add_typer(build_app, name="build")
_console = Console()
Source = Annotated[str, typer.Option("--from", help="a folder of the data set, or 'hub' to download it")]
Out = Annotated[Path, typer.Option(help="the JSONL file to write")]


@build_app.command()
def mmlu(source: Source, out: Out, seed: Annotated[int, typer.Option(help="of the questions that are drawn")] = 0) -> None:
    """552 questions of six domains as in the paper, from MMLU's high-school test sets."""
    from qrnca_lens.data.mmlu import build_mmlu

    with plain_errors():
        _write(build_mmlu(source, seed=seed), out)


@build_app.command()
def mlama(source: Source, out: Out, seed: Annotated[int, typer.Option(help="of the facts that are drawn")] = 0) -> None:
    """600 questions of six languages as in the paper, from Multilingual LAMA."""
    from qrnca_lens.data.mlama import build_mlama

    with plain_errors():
        _write(build_mlama(source, seed=seed), out)


@build_app.command()
def free_form(
    file: Annotated[Path, typer.Argument(help="a .csv or .jsonl file of questions")],
    out: Out,
    seed: Annotated[int, typer.Option(help="of distractors and option order")] = 0,
) -> None:
    """Check your own questions and render each as three multi-choice prompts."""
    from qrnca_lens.data import load_questions, save_queries, to_multi_choice

    with plain_errors():
        queries = to_multi_choice(load_questions(file), seed=seed, name=file.stem)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_queries(queries, out)
    _show_counts(queries)
    prompts = sum(len(query.prompts) for query in queries)
    _console.print(
        f"Wrote {len(queries)} queries with {prompts} prompts to {out}", highlight=False, markup=False, soft_wrap=True
    )


@queries_app.command()
def show(
    source: Annotated[str, typer.Argument(help="atlas/domains, atlas/languages, or a .jsonl, .csv or .json file")],
    query_id: Annotated[str | None, typer.Option("--id", help="the query to print; default: the first")] = None,
    seed: Annotated[int, typer.Option(help="of distractors and option order")] = 0,
) -> None:
    """Print the prompts of one query, and how many queries each group has."""
    from qrnca_lens.data import load_queries

    with plain_errors():
        queries = load_queries(source, seed=seed)
        query = queries[query_id] if query_id else queries.queries[0]
    for prompt in query.prompts:
        _console.print(prompt.template or "prompt", style="bold", highlight=False, markup=False)
        _console.print(f"{prompt.text} {prompt.letter}\n", highlight=False, markup=False, soft_wrap=True)
    _console.print(f"{query.id}, group {query.group}", highlight=False, markup=False, soft_wrap=True)
    _show_counts(queries)


def _write(questions: tuple[Question, ...], out: Path) -> None:
    from qrnca_lens.data.sources import save_questions

    out.parent.mkdir(parents=True, exist_ok=True)
    save_questions(questions, out)
    _show_counts(questions)
    _console.print(f"Wrote {len(questions)} questions to {out}", highlight=False, markup=False, soft_wrap=True)


def _show_counts(items: Iterable[Question] | Iterable[Query]) -> None:
    counts = Counter(item.group for item in items)
    table = Table("group", title=f"{counts.total()} questions by group", title_justify="left")
    table.add_column("questions", justify="right")
    for group, count in counts.items():
        table.add_row(Text(group), str(count))
    _console.print(table)
