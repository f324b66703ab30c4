"""The files of a measurement: its tables as parquet, transfer.json and one self-contained report.html."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.core.kept import KeptTables
from qrnca_lens.core.store import write_record
from qrnca_lens.study.transfer.figures import effects_figure, split_figure
from qrnca_lens.study.transfer.kinds import limits
from qrnca_lens.study.transfer.result import Transfer
from qrnca_lens.views.report import Section, write_page

_VERDICTS = (
    "What does not hold stands first. Intervals are 95 % and over questions (over facts, where several questions ask for "
    "the same). p is corrected for all lines that have one (Holm)."
)
_ANSWERED = (
    "A question counts as answered by letter if the right letter is the likeliest of the four in most of its prompts, and "
    "as answered by answer if the right option's own text is, in most of its open prompts. Only those answered both ways "
    "are measured."
)
_OVERLAP = (
    "Neurons in both sets over neurons in either (Jaccard), a mean over questions; `others`: the letter set beside the "
    "answer sets of other questions of the group; `permuted`: answer sets dealt among the questions of the group."
)
_EFFECTS = (
    "Each set is suppressed (factor 0). P of the right letter, or of the right answer's text (the geometric mean over its "
    "tokens); log_p in nats, of answers per token. Unrelated questions are of another group, and for letters have the same "
    "right letter."
)
_COMPARED = (
    "Paired over questions; below 0 the own question falls more. Letters are compared in points of P, answers in nats of "
    "log P per token. Holm's correction is over this table."
)
_KINDS = (
    "Each neuron found by letter is suppressed alone in prompts whose options stand in other orders. It is of the kind "
    "letter if the letter that was right before falls, content if the option that is right now does, in either case more "
    "than with 95 % of random neurons of the same layers and by at least a fifth of what it does (limits: letter "
    "{letter:.4f}, content {content:.4f} nats)."
)
_PARTS = (
    "What a question's neurons do when they are suppressed together, in nats against the other options. original = letter + "
    "content + what is particular to the order in which the options stood."
)


def tables_of(found: Transfer) -> dict[str, pd.DataFrame]:
    """The derived tables by the name that they have in the files."""
    return {
        "verdicts": found.verdicts(),
        "counts": found.counts,
        "overlaps": found.overlaps,
        "effects": found.effects,
        "comparisons": found.comparisons,
        "kinds": found.kinds,
        "parts": found.parts,
        "split_counts": found.split_counts,
        "failed": found.failed,
    }


def write_transfer(found: Transfer, folder: Path, kept: KeptTables) -> Path:
    """Write all files into the folder, the tables among its kept ones, and return the page's path."""
    tables = tables_of(found)
    for name, table in {**tables, "pairs": found.pairs, "changes": found.changes, "neurons": found.neurons}.items():
        kept.keep(name, table)
    record = {"about": found.about, "limits": limits(found.neurons)}
    write_record({**record, **{name: _records(table) for name, table in tables.items()}}, folder / "transfer.json")
    title = f"Does the letter stand for the knowledge? {found.letter.model.name}"
    return write_page(folder / "report.html", title, sections(found, tables))


def sections(found: Transfer, tables: dict[str, pd.DataFrame]) -> list[Section]:
    """What stands on the page."""
    failed = [Section("Questions that the model cannot take", "They are left out.", tables["failed"])]
    return [
        Section("What came out", f"{found!r}\n\n{_VERDICTS}", tables["verdicts"]),
        Section("Effects of the four sets", "", effects_figure(found.effects)),
        Section("Letter or content?", "", split_figure(found.kinds, found.parts)),
        Section("Which questions are answered both ways", _ANSWERED, tables["counts"]),
        *(failed if len(tables["failed"]) else []),
        Section("Overlap of the two sets of a question", _OVERLAP, tables["overlaps"]),
        Section("Suppressing each set", _EFFECTS, tables["effects"]),
        Section("Own against unrelated, found against random", _COMPARED, tables["comparisons"]),
        Section("Neurons found by letter: of which kind", _KINDS.format(**limits(found.neurons)), tables["kinds"]),
        Section("Neurons found by letter: parts of their effect", _PARTS, tables["parts"]),
        Section("Prompts put anew", "Those of unknown templates are left out.", tables["split_counts"]),
    ]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    """Python's own value; None for a number that is none."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
