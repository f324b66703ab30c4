"""Options that several commands share, and what they make of a question set; heavy imports stand in the functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qrnca_lens.core.terminal import say, say_table

if TYPE_CHECKING:
    from qrnca_lens.clustering import QRNCAConfig
    from qrnca_lens.data import QuerySet
    from qrnca_lens.runs.answering import Check

Model = Annotated[str, typer.Option(help="'atlas', a Hugging Face folder, a GGUF file, a PEFT adapter or a hub name")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 or, for a large model, cuda:0,cuda:1; default: cuda if there")
]
SETS = "atlas/domains, atlas/languages, facts/relations, or a .jsonl, .csv or .json file"
Queries = Annotated[str, typer.Option(help=SETS)]
PerGroup = Annotated[int | None, typer.Option(min=1, help="at most this many queries of each group")]
Draw = Annotated[
    str | None,
    typer.Option(
        "--distractors", help="any, or 'same form' as the answer; default: any for the shipped sets, else same form"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="of distractors, option order and what is drawn")]
Reads = Annotated[str, typer.Option("--read", help="letter, or answer: open prompts, and the right answer's own text")]
Shots = Annotated[int, typer.Option("--shots", min=0, help="so many solved questions of the same group before each one")]
Chat = Annotated[bool, typer.Option("--chat", help="put every prompt by the chat template of the model's tokenizer")]
Answered = Annotated[bool, typer.Option("--answered", help="only the queries that the model answers in all wordings")]


def drawn(queries: QuerySet, shots: int, per_group: int | None, seed: int) -> QuerySet:
    """The queries after solved ones of the whole set, then at most `per_group` of each group."""
    solved = queries.with_examples(shots, seed)
    return solved.sample(per_group, seed) if per_group else solved


def put(model: Any, queries: QuerySet, chat: bool) -> QuerySet:
    """The queries as they stand, or as chats."""
    return queries.as_chat(model) if chat else queries


def say_check(found: Check, *, error: bool = False) -> None:
    """Print what a model does with questions, by group and by option; with `error` on stderr."""
    groups = found.groups.dropna(axis="columns", how="all")
    shares = ["accuracy", "low", "high", "chance", "habit", "mean mass", "lowest mass"]
    shares = [name for name in shares if name in groups]
    _say_shares(groups, shares, "What the model answers: accuracy with its 95 % interval, P of the options together", error)
    _say_shares(
        found.options, ["share right", "share chosen", "low", "high"], "How often each option is right, and chosen", error
    )
    say(repr(found), error=error)


def only_answered(queries: QuerySet, found: Check, config: QRNCAConfig) -> QuerySet:
    """The queries that are answered in all wordings; ValueError where they are too few to locate."""
    from qrnca_lens.clustering.refine import check_enough_queries

    told = f"{len(found.answered)} of {len(queries)} queries are answered rightly in all wordings"
    try:
        check_enough_queries(len(found.answered), config.common_share)
    except ValueError as error:
        raise ValueError(f"{told}, too few for --answered: {error}") from None
    say(f"{told} and are kept", error=True)
    return queries.keep(found.answered, "rightly answered")


def _say_shares(table: Any, shares: list[str], title: str, error: bool) -> None:
    if not len(table):
        return
    columns = [(str(name), table[name].dtype.kind not in "OTU") for name in table.columns]
    shown = table.assign(**{name: [f"{share:.1%}" for share in table[name]] for name in shares})
    say_table(title, columns, list(shown.itertuples(index=False, name=None)), error=error)
