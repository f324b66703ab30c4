"""The measurement, step by step; each step's result is kept, so that a run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.clustering import QRNCAConfig, QRNeurons, config_of
from qrnca_lens.clustering.tables import FAILED_COLUMNS, failed_table
from qrnca_lens.core.alone import LOCK, alone_in, refuse_busy
from qrnca_lens.core.claims import differences, refuse_another, whole_claim_in
from qrnca_lens.core.journal import Journal
from qrnca_lens.core.kept import KeptTables
from qrnca_lens.core.store import FORMAT, run_place, usable, write_record
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.core.values import seed_number, whole_number, yes_or_no
from qrnca_lens.core.writing import tidy
from qrnca_lens.data import QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.models import HookedModel, check_hooked, check_site
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.models.origin import source_entry
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study.transfer.both_ways import (
    PROMPT_COLUMNS,
    answered_ways,
    both_kinds,
    check_enough,
    checks,
    prompts_answered,
    warn_of_chance,
)
from qrnca_lens.study.transfer.effects import EDIT_COLUMNS, four_sets, transfer_edits
from qrnca_lens.study.transfer.report import write_transfer
from qrnca_lens.study.transfer.result import Transfer
from qrnca_lens.study.transfer.split import SPLIT_COLUMNS, split_rows

_MANIFEST = "manifest.json"
_KEPT_EVERY = 5  # questions whose split is kept together


def transfer(
    model: HookedModel,
    queries: QuerySet,
    out: str | os.PathLike[str] | None = None,
    *,
    texts: QuerySet | None = None,
    config: QRNCAConfig | None = None,
    seed: int = 0,
    most: int | None = None,
    progress: bool = True,
) -> Transfer:
    """Does the letter stand for the knowledge? Compare the neurons found by letter with those found by the answer's text.

    Of `queries` (multi-choice, with question and options) those count that the model answers both ways in most of their
    prompts (`both_ways.answered_ways`; `texts` are the open ones of the same questions, None: `queries.as_open()`), at most
    `most` of each group, drawn with `seed`. On these it runs `locate` twice, by letter and by answer, both with `config`
    (whose `read` does not matter), measures how much the two sets of a question overlap (`overlap`), what suppressing either
    does to the letter, to the long answer and to those of unrelated questions (`effects`), and whether each neuron found by
    letter follows the letter or the content when the options stand in another order or have other symbols (`split`,
    `kinds`).

    With `out`, the work is kept in that folder as it is done: called again with the same model, queries, config, seed and
    `most` it goes on where it was. It then holds the two runs (`letter`, `answer`), the tables as parquet, transfer.json and
    report.html.

    Raises, before anything is computed, DataError for open prompts and for a query without question or options
    (`both_kinds`), RunError for a folder that holds something else; and before anything is located, ModelError where
    the model can take no question both ways and ValueError where it answers too few of them (`both_ways.check_enough`). A
    ChanceWarning tells of right answers that are not told from chance.
    """
    folder = None if out is None else run_place(out)
    check_hooked(model)
    check_query_set(queries)
    seed, most = seed_number(seed), None if most is None else whole_number("most", most, at_least=1)
    config, progress = config_of(config), yes_or_no("progress", progress)
    config = replace(config, site=check_site(model, config.site), read="letter")
    if texts is not None:
        check_query_set(texts)
    letters, texts = both_kinds(queries, texts)
    about: dict[str, Any] = {
        "model": {"name": str(model.cfg.model_name), "fingerprint": model_fingerprint(model)},
        **source_entry(model),
        "queries": _record(letters),
        "open prompts": _record(texts),
        "config": {name: value for name, value in asdict(config).items() if name != "read"},
        "seed": seed,
        "most": most,
    }
    tables = None
    if folder:
        refuse_busy(folder)
        tables = KeptTables(folder, written=_check_claim(folder, about))
    with ExitStack() as stack, progress_bar(progress) as bar:
        task = bar.add_task("transfer", total=5)

        def done(text: str) -> None:
            if folder and (folder / _MANIFEST).is_file():  # before that it is not this measurement's
                Journal(folder).say(text)
            bar.update(task, advance=1, description=f"transfer: {text}")

        measured = _measure(model, (letters, texts), config, _Steps(folder, tables, about, stack, done), seed, most)
        found = replace(measured, about={**about, "versions": measured.letter.about.get("versions", {})}, folder=folder)
        if folder and tables:
            write_transfer(found, folder, tables)
    return found


@dataclass(frozen=True)
class _Steps:
    """The kept steps: tables in a folder, or nowhere."""

    folder: Path | None
    tables: KeptTables | None
    about: dict[str, Any]
    stack: ExitStack
    done: Callable[[str], None]

    def claim(self) -> None:
        """Make the folder this measurement's, for this call alone while it lasts."""
        if self.folder:
            with usable():
                self.folder.mkdir(parents=True, exist_ok=True)
            self.stack.enter_context(alone_in(self.folder))
            _check_claim(self.folder, self.about)
            with usable():
                tidy(self.folder)
            if not (self.folder / _MANIFEST).is_file():
                with usable():
                    write_record(self.about, self.folder / _MANIFEST)

    def table(self, name: str, columns: Collection[str], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The kept table, else a new one, which is then kept."""
        kept = self.kept(name, columns)
        if kept is None:
            kept = self.keep(name, make())
        self.done(name)
        return kept

    def kept(self, name: str, columns: Collection[str]) -> pd.DataFrame | None:
        """The kept table; None where there is none with these columns."""
        kept = self.tables.kept(name) if self.tables else None
        return kept if kept is not None and set(columns) <= set(kept.columns) else None

    def keep(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Keep a table; as it is read again."""
        return table if self.tables is None else self.tables.keep(name, table)

    def located(self, model: HookedModel, queries: QuerySet, config: QRNCAConfig, name: str) -> QRNeurons:
        """The run in the sub-folder `name`."""
        found = locate(model, queries, config, out=self.folder and self.folder / name, progress=False)
        self.done(f"{name} located")
        return found


def _record(queries: QuerySet) -> dict[str, Any]:
    return {"name": queries.name, "made": list(queries.made), "count": len(queries), "sha256": queries.fingerprint}


def _measure(
    model: HookedModel, asked: tuple[QuerySet, QuerySet], config: QRNCAConfig, steps: _Steps, seed: int, most: int | None
) -> Transfer:
    letters, texts = asked
    prompts, failed = _prompts(model, letters, texts, steps)
    answered = answered_ways(prompts)
    warn_of_chance(checks(str(model.cfg.model_name), prompts))
    both = letters.keep(answered.loc[answered["answered"] == "both", "query"])
    both = both.sample(most, seed) if most and len(both) else both
    check_enough(answered, [query.id for query in both])
    steps.claim()
    prompts, failed = steps.keep("prompts", prompts), steps.keep("failed", failed)
    letter = steps.located(model, both, config, "letter")
    ids = {query.id for query in letter.asked}
    answer = steps.located(model, texts.keep(ids), replace(config, read="answer"), "answer")
    shared = [query.id for query in answer.asked]
    check_enough(answered, shared)
    letter, answer = letter.restrict(shared), answer.restrict(shared)
    edits = steps.table("edits", EDIT_COLUMNS, lambda: transfer_edits(model, letter, answer, seed=seed))
    split = _split(model, letter, answer, steps, seed)
    return Transfer(letter, answer, prompts, failed, edits, split, seed=seed)


def _prompts(model: HookedModel, letters: QuerySet, texts: QuerySet, steps: _Steps) -> tuple[pd.DataFrame, pd.DataFrame]:
    prompts, failed = steps.kept("prompts", PROMPT_COLUMNS), steps.kept("failed", FAILED_COLUMNS)
    if prompts is None or failed is None:
        prompts, failures = prompts_answered(model, letters, texts)
        failed = failed_table(failures)
    steps.done("answers read")
    return prompts, failed


def _split(model: HookedModel, letter: QRNeurons, answer: QRNeurons, steps: _Steps, seed: int) -> pd.DataFrame:
    """The rows of all questions. Those of finished ones are kept every few questions."""
    sets = four_sets(letter, answer, seed=seed)
    kept = steps.kept("split", [*SPLIT_COLUMNS, "turn"])
    parts, begin = ([], 0) if kept is None or not len(kept) else ([kept], int(kept["turn"].max()) + 1)
    rows = split_rows(model, letter.asked, sets["letter"], sets["random (letter)"], seed=seed, begin=begin)
    for turn, part in enumerate(rows, begin):
        if len(part):
            parts.append(part.assign(turn=turn))
        if (turn + 1) % _KEPT_EVERY == 0 and parts:
            steps.keep("split", pd.concat(parts, ignore_index=True))
    split = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*SPLIT_COLUMNS, "turn"])
    split = steps.keep("split", split)
    steps.done("split")
    return split[SPLIT_COLUMNS]


def _check_claim(folder: Path, about: dict[str, Any]) -> int:
    """Refuse a folder of another measurement, or with other files; the format that it is in."""
    claim = whole_claim_in(folder / _MANIFEST, "measurement", LOCK)
    if claim is None:
        return FORMAT
    refuse_another(folder, "measurement", differences(about, {key: claim[key] for key in claim if key != "format"}))
    return int(claim["format"])
