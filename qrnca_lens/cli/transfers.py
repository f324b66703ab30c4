"""`qrnca transfer`: does the letter stand for the knowledge? Heavy imports stand in the command to keep --help quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qrnca_lens.cli.errors import plain_errors
from qrnca_lens.cli.options import Chat, Device, Draw, Model, Queries, Seed, Shots, put
from qrnca_lens.core.terminal import say, say_table

if TYPE_CHECKING:
    import pandas as pd

    from qrnca_lens.core.rules import Rule
    from qrnca_lens.data import Distractors


def transfer(
    out: Annotated[Path, typer.Option(help="the folder; an interrupted measurement in it goes on")],
    queries: Queries,
    model: Model,
    per_group: Annotated[
        int | None, typer.Option(min=1, help="at most this many questions of each group, of those answered both ways")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="m, nodes of the integral (auto: to begin with)")] = 16,
    rule: Annotated[str, typer.Option(help="right, endpoints, gauss-legendre or auto")] = "right",
    seed: Seed = 0,
    distractors: Draw = None,
    shots: Shots = 0,
    chat: Chat = False,
    device: Device = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it takes at most, and stop")] = False,
) -> None:
    """Compare the neurons found by letter with those found by the answer's own text, and write report.html."""
    with plain_errors():
        from qrnca_lens.clustering import QRNCAConfig
        from qrnca_lens.core.store import run_place
        from qrnca_lens.data import load_queries
        from qrnca_lens.models import load_model
        from qrnca_lens.runs.forecast import estimate
        from qrnca_lens.study.forecast import estimate_transfer
        from qrnca_lens.study.transfer.measure import transfer as run

        run_place(out)
        config = QRNCAConfig(steps, cast("Rule", rule))
        plain = load_queries(queries, seed=seed, distractors=cast("Distractors | None", distractors))
        kinds = [asked.with_examples(shots, seed) for asked in (plain, plain.as_open())]
        loaded = load_model(model, device=device)
        letters, texts = (put(loaded, asked, chat) for asked in kinds)
        some = [asked.sample(per_group, seed) if per_group else asked for asked in (letters, texts)]
        for asked in some:
            these = QRNCAConfig(steps, cast("Rule", rule), read=asked.read)
            say(f"Locating by {asked.read}, at most: {estimate(loaded, asked, these)}", error=not dry_run)
        say(f"Reading and editing, at most: {estimate_transfer(loaded, *some)}", error=not dry_run)
        if dry_run:
            raise typer.Exit
        found = run(loaded, letters, out, texts=texts, config=config, seed=seed, most=per_group)
    _show(found.counts, "Which questions are answered both ways")
    _show(found.verdicts(), "What came out")
    say(f"{found!r}\nPage: {(out / 'report.html').resolve()}")


def _show(table: pd.DataFrame, title: str) -> None:
    columns = [(str(name), table[name].dtype.kind not in "OTU") for name in table.columns]
    rows = table.itertuples(index=False, name=None)
    say_table(title, columns, [[f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in rows])
