"""`qrnca queries`: build question sets and look at their prompts; heavy imports stand in the commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qrnca_lens.cli.errors import plain_errors
from qrnca_lens.cli.options import SETS, Chat, Draw, Reads, Seed, Shots, put
from qrnca_lens.core.terminal import say, say_table

if TYPE_CHECKING:
    from qrnca_lens.data import Distractors, QuerySet, Question

queries_app = typer.Typer(help="Build question sets and look at their prompts.", no_args_is_help=True)
build_app = typer.Typer(help="Build a file of questions or queries.", no_args_is_help=True)
queries_app.add_typer(build_app, name="build")
Source = Annotated[str, typer.Option("--from", help="a folder of the data set, or 'hub' to download it")]
Out = Annotated[Path, typer.Option(help="the JSONL file to write")]


@build_app.command()
def mmlu(source: Source, out: Out, seed: Seed = 0) -> None:
    """552 questions of six domains as in the paper, from MMLU's high-school test sets."""
    with plain_errors():
        from qrnca_lens.core.writing import check_target
        from qrnca_lens.data.readers.mmlu import build_mmlu

        check_target(out)
        _write(build_mmlu(source, seed=seed), out)


@build_app.command()
def mlama(source: Source, out: Out, seed: Seed = 0) -> None:
    """600 questions of six languages as in the paper, from Multilingual LAMA."""
    with plain_errors():
        from qrnca_lens.core.writing import check_target
        from qrnca_lens.data.readers.mlama import build_mlama

        check_target(out)
        _write(build_mlama(source, seed=seed), out)


@build_app.command()
def free_form(
    file: Annotated[Path, typer.Argument(help="a .csv or .jsonl file of questions")],
    out: Out,
    seed: Seed = 0,
    distractors: Draw = None,
) -> None:
    """Check your own questions and render each as three multi-choice prompts."""
    with plain_errors():
        from qrnca_lens.core.writing import check_target
        from qrnca_lens.data import load_questions, save_queries, to_multi_choice

        check_target(out)
        drawn = cast("Distractors", "same form" if distractors is None else distractors)
        queries = to_multi_choice(load_questions(file), seed=seed, distractors=drawn, name=file.stem)
        save_queries(queries, out)
    _show_forms(queries)
    prompts = sum(len(query.prompts) for query in queries)
    say(f"Wrote {len(queries)} queries with {prompts} prompts to {out}")


@queries_app.command()
def show(
    source: Annotated[str, typer.Argument(help=SETS)],
    query_id: Annotated[str | None, typer.Option("--id", help="the query to print; default: the first")] = None,
    seed: Seed = 0,
    distractors: Draw = None,
    shots: Shots = 0,
    chat: Chat = False,
    read: Reads = "letter",
    model: Annotated[str, typer.Option(help="the model whose chat template is used, with --chat")] = "atlas",
) -> None:
    """Print the prompts of one query, and how many queries each group has and gives away by the form of the answer."""
    with plain_errors():
        from qrnca_lens.data import load_queries
        from qrnca_lens.data.query import check_read

        how = check_read(read)
        queries = load_queries(source, seed=seed, distractors=cast("Distractors | None", distractors))
        queries = queries.as_open() if how == "answer" else queries
        queries = queries.with_examples(shots, seed)
        if chat:
            from qrnca_lens.models import load_model

            queries = put(load_model(model), queries, chat)
        query = queries[query_id] if query_id else queries.queries[0]
    for prompt in query.prompts:
        say(prompt.template or "prompt", style="bold")
        say(f"{prompt.solved}\n")
    say(f"{query.id}, group {query.group}")
    if queries.read == "letter":
        _show_forms(queries)
    else:  # no option is shown, so that none is given away
        _show_counts(queries)


def _write(questions: tuple[Question, ...], out: Path) -> None:
    from qrnca_lens.data.readers.sources import save_questions

    save_questions(questions, out)
    _show_counts(questions)
    say(f"Wrote {len(questions)} questions to {out}")


def _show_forms(queries: QuerySet) -> None:
    from qrnca_lens.data import form_shares

    shares = form_shares(queries)
    rows = [[*row[:-1], f"{row[-1]:.1%}"] for row in shares.itertuples(index=False, name=None)]
    title = f"{len(queries)} questions by group; given away: the right option is the only one of its form"
    say_table(title, [(column, column != "group") for column in shares.columns], rows)


def _show_counts(items: Iterable[Question] | QuerySet) -> None:
    counts = Counter(item.group for item in items)
    say_table(f"{counts.total()} questions by group", [("group", False), ("questions", True)], list(counts.items()))
