"""The outcome of `transfer`: the kept tables, and what is derived from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.shown import notebook
from qrnca_lens.data import Read
from qrnca_lens.runs.answering import Check
from qrnca_lens.study.transfer.both_ways import answered_ways, checks, counts_by_group
from qrnca_lens.study.transfer.effects import changes, comparison_table, effect_table
from qrnca_lens.study.transfer.kinds import kind_shares, neuron_kinds, part_means
from qrnca_lens.study.transfer.overlap import overlap_pairs, overlap_test
from qrnca_lens.study.transfer.split import FOUND_TOGETHER
from qrnca_lens.study.transfer.verdicts import Tables, verdict_table


@dataclass(frozen=True)
class Transfer:
    """Neurons found by letter beside those found by the answer's own text, for questions that are answered both ways.

    `letter` and `answer` are the two runs over the same questions. `prompts`: how each prompt of both kinds is answered, of
    all questions that were given (`both_ways.prompts_answered`); `failed`: those that the model cannot take (query, group,
    prompt, reason). `edits`: the effects of the four sets (`effects.transfer_edits`); `split`: what single neurons do when
    options are re-ordered or have other symbols (`split.split_rows`). Everything else is derived from these, intervals and
    deals with `seed`. `about` is the manifest of transfer.json, `folder` where it lies (None: nowhere).
    """

    letter: QRNeurons
    answer: QRNeurons
    prompts: pd.DataFrame
    failed: pd.DataFrame
    edits: pd.DataFrame
    split: pd.DataFrame
    about: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    folder: Path | None = None

    @cached_property
    def checks(self) -> dict[Read, Check]:
        """What the model does with all questions that were given, by letter and by answer."""
        return checks(self.letter.model.name, self.prompts)

    @cached_property
    def answered(self) -> pd.DataFrame:
        """In which ways each question is answered (`both_ways.answered_ways`)."""
        return answered_ways(self.prompts)

    @cached_property
    def counts(self) -> pd.DataFrame:
        """How many questions of each group are answered in which way (`both_ways.counts_by_group`)."""
        return counts_by_group(self.answered)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The overlap of the two sets of every question (`overlap.overlap_pairs`)."""
        return overlap_pairs(self.letter, self.answer)

    @cached_property
    def overlaps(self) -> pd.DataFrame:
        """The overlap by group, against answer sets dealt among the questions of the group (`overlap.overlap_test`)."""
        return overlap_test(self.letter, self.answer, seed=self.seed)

    @cached_property
    def changes(self) -> pd.DataFrame:
        """What each edit does to each question and to an unrelated one (`effects.changes`)."""
        return changes(self.edits)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """The means of `changes` with intervals (`effects.effect_table`)."""
        return effect_table(self.edits, seed=self.seed)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Own against unrelated questions, found against random neurons (`effects.comparison_table`)."""
        return comparison_table(self.edits, seed=self.seed)

    @cached_property
    def neurons(self) -> pd.DataFrame:
        """Each neuron found by letter, and each random one, with its kind (`kinds.neuron_kinds`)."""
        return neuron_kinds(self.split)

    @cached_property
    def kinds(self) -> pd.DataFrame:
        """How many neurons are of each kind (`kinds.kind_shares`)."""
        return kind_shares(self.neurons, seed=self.seed)

    @cached_property
    def parts(self) -> pd.DataFrame:
        """How much of what the sets do is of each kind (`kinds.part_means`)."""
        return part_means(self.split, seed=self.seed)

    @cached_property
    def split_counts(self) -> pd.DataFrame:
        """One row: questions and prompts whose options could be re-ordered, prompts that were left out, and in which share
        of what was put anew the untouched model chooses the right option, re-ordered and with other symbols."""
        rows = self.split[self.split["neurons"] == FOUND_TOGETHER]  # one a prompt
        asked = sum(len(query.prompts) for query in self.letter.asked)
        values = (
            rows["query"].nunique(),
            len(rows),
            asked - len(rows),
            rows["right_reordered"].mean(),
            rows["right_symbols"].mean(),
            int(rows["right_symbols"].notna().sum()),
        )
        names = ["questions", "prompts", "left out", "right re-ordered", "right with other symbols", "prompts with symbols"]
        return pd.DataFrame([values], columns=names)

    def verdicts(self) -> pd.DataFrame:
        """A sentence a line, with yes, no or not told, and the figures that decide it (`verdicts.verdict_table`)."""
        tables = Tables(self.checks, self.overlaps, self.comparisons, self.split, self.neurons)
        return verdict_table(tables, seed=self.seed)

    def to_frame(self) -> pd.DataFrame:
        """A row a kind of neurons and question: the sizes of both sets, shared neurons, overlap (`pairs`)."""
        return self.pairs.copy()

    def __repr__(self) -> str:
        first = self.overlaps.iloc[0]
        return (
            f"Transfer({len(self.letter.queries)} questions in {len(self.letter.groups)} groups, of {len(self.answered)} "
            f"given, answered both by letter and by answer; {first['letter']:.1f} neurons a question by letter, "
            f"{first['answer']:.1f} by answer, {first['shared']:.1f} shared, model {self.letter.model.name!r})"
        )

    def _repr_html_(self) -> str:
        return notebook(repr(self), self.verdicts(), self.effects)
