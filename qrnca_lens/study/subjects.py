"""The data sets of a study, and whether everything can be measured on them; asked before anything is computed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qrnca_lens.clustering import QRNCAConfig
from qrnca_lens.clustering.refine import check_enough_queries
from qrnca_lens.core.values import WrongKindError, all_of, check_kind, items, seed_number, told, whole_number
from qrnca_lens.core.writing import plain_name
from qrnca_lens.data import Distractors, Query, QuerySet, Read, load_queries
from qrnca_lens.data.multi_choice import check_distractors
from qrnca_lens.data.query import check_query_set, check_read
from qrnca_lens.editing.collateral import neutral_text
from qrnca_lens.models import HookedModel, ModelError, to_tokens
from qrnca_lens.runs.failures import check_enough_left, without
from qrnca_lens.runs.prompts import check_prompts, queries_for

_RENDERINGS = 4  # shuffles of the detection half that the probe of the neuron-based prediction is fitted on
_FIGURE = "-significance"  # the longest ending of a figure's name in the report
_TAKEN = ("figures", "study.json", "results.json", "report.html")
MEASURABLE = 3
"""The fewest queries of a group: split in halves, two are left for the probe's cross-validation and one for its test."""


@dataclass(frozen=True)
class Subject:
    """A data set of the study: its queries, and the same questions in other shuffles (one may be enough).

    `fresh` and `held_out` are the same questions once more, in prompts that have no part in detection: other shuffles and
    distractors, and another template. Edits are measured on those that are given. `name` is that of its folder and in
    its figures' file names. ValueError for one that cannot be.
    """

    name: str
    queries: QuerySet
    renderings: tuple[QuerySet, ...]
    fresh: QuerySet | None = None
    held_out: QuerySet | None = None

    def __post_init__(self) -> None:
        check_kind("a subject's name", self.name, str, "a text")
        plain_name(self.name)
        listed = "a list of QuerySet, such as [queries]"
        unseen = (one for one in (self.fresh, self.held_out) if one is not None)
        for queries in (self.queries, *items("renderings", self.renderings, listed), *unseen):
            check_query_set(queries)
        renderings = all_of("renderings", self.renderings, QuerySet, listed)
        object.__setattr__(self, "renderings", renderings)
        try:
            plain_name(self.name + _FIGURE)
        except ValueError:
            raise ValueError(
                f"a subject cannot be called {self.name!r}: its figures' files have longer names; rename it, or its file"
            ) from None

    def as_open(self) -> Subject:
        """The same questions in open prompts, which have a held-out template and no other shuffles; itself, where they are
        open already. DataError as `QuerySet.as_open`."""
        if self.queries.read == "answer":
            return self
        opened = self.queries.as_open()
        return Subject(self.name, opened, (opened,), None, self.queries.as_open(held_out=True))

    def as_chat(self, model: HookedModel) -> Subject:
        """The same with all prompts as chats (`QuerySet.as_chat`)."""
        unseen = (None if queries is None else queries.as_chat(model) for queries in (self.fresh, self.held_out))
        renderings = tuple(queries.as_chat(model) for queries in self.renderings)
        return Subject(self.name, self.queries.as_chat(model), renderings, *unseen)


def subject(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    per_group: int | None = None,
    distractors: Distractors | None = None,
    shots: int = 0,
    read: Read = "letter",
) -> Subject:
    """A Subject from a shipped name ("domains", "languages", "atlas/domains") or a file of questions or rendered queries.

    `distractors` as in `load_queries`; `shots` solved questions stand before each prompt, drawn from the whole source
    (`QuerySet.with_examples`); with `read` "answer" the prompts are open, and there are no fresh ones. Rendered queries have
    no fresh or held-out prompts. TypeError for a source that is neither a name nor a path, DataError for open prompts where
    letters are to be read, and as `QuerySet.as_open`.
    """
    if not isinstance(source, str | os.PathLike):
        raise WrongKindError(f"a subject is made of a shipped name, such as 'domains', or a file, not of {told(source)}")
    source = os.fspath(source)
    read, shots = check_read(read), whole_number("shots", shots, at_least=0)
    per_group = None if per_group is None else whole_number("per_group", per_group, at_least=1)
    distractors = None if distractors is None else check_distractors(distractors)
    name = f"atlas/{source}" if source in ("domains", "languages") else source
    seed = seed_number(seed)

    def load(own: int, held_out: bool = False) -> QuerySet:
        if read == "answer":
            asked = load_queries(name, seed=own, distractors=distractors).as_open(held_out=held_out)
        else:
            asked = queries_for(load_queries(name, seed=own, held_out=held_out, distractors=distractors), read)
        return asked.with_examples(shots, seed)

    queries = load(seed)
    if per_group is not None:
        queries = queries.sample(per_group, seed)
    chosen = {query.id for query in queries}
    if not all(query.question for query in queries):
        return Subject(Path(source).stem, queries, (queries,))
    if read == "answer":
        held_out = load(seed, held_out=True).keep(chosen)
        same = held_out.fingerprint == queries.fingerprint  # a file of open prompts, which has no other template
        return Subject(Path(source).stem, queries, (queries,), None, None if same else held_out)
    *again, fresh = [load(seed + 1000 * other).keep(chosen) for other in range(1, _RENDERINGS + 1)]
    taken_as_they_stand = fresh.fingerprint == queries.fingerprint
    held_out = None if taken_as_they_stand else load(seed, held_out=True).keep(chosen)
    return Subject(Path(source).stem, queries, (queries, *again), None if taken_as_they_stand else fresh, held_out)


def subjects_for(subjects: Sequence[Subject], read: Read) -> list[Subject]:
    """The subjects as they are put to be read so: in open prompts for answers. TypeError for anything but a list of Subject,
    DataError as `Subject.as_open` and for open prompts where letters are to be read."""
    _check_kinds(subjects)
    if read == "answer":
        return [item.as_open() for item in subjects]
    for item in subjects:
        queries_for(item.queries, read)
    return list(subjects)


def _check_kinds(subjects: object) -> None:
    if not isinstance(subjects, Sequence) or isinstance(subjects, str):
        raise WrongKindError(f"subjects is a list, such as [subject('domains')], not {told(subjects)}")
    for item in subjects:
        if not isinstance(item, Subject):
            raise WrongKindError(f"subjects is a list of Subject; make one with subject('domains'), not {told(item)}")
        for queries in (item.queries, *item.renderings):
            check_query_set(queries)


def check_subjects(model: HookedModel, subjects: Sequence[Subject], config: QRNCAConfig, seed: int) -> None:
    """ValueError that names the subject, what it lacks and the remedy; ModelError for a model that cannot be used for it;
    TypeError for anything but a list of Subject, or one of anything but query sets.

    A subject needs a name of its own that can be a folder's; two groups; in each group 3 queries, and, where letters are
    read, 2 right letters in the half that the neuron-based prediction is fitted on; in that half enough queries for
    `common_share`; and prompts in a rendering that the model can take. Queries whose prompts the model cannot take do not
    count.
    """
    _check_kinds(subjects)
    neutral_text(model)
    if not subjects:
        raise ValueError("no subject to reproduce; give at least one, such as subject('domains')")
    for name, count in Counter(item.name.casefold() for item in subjects).items():
        if count > 1:
            raise ValueError(
                f"{count} subjects are called {name!r}; rename one, or its file, as each has a folder of its own"
            )
        if name in _TAKEN or name.startswith(".") or not name.strip():
            raise ValueError(f"a subject cannot be called {name!r}, as its folder could not; rename it, or its file")
    for item in subjects:
        failed = check_prompts(model, item.queries).failed
        check_enough_left(item.queries, failed, config)
        queries = without(item.queries, failed)
        check_enough(item.name, queries, config, seed)
        detection = queries.split(0.5, seed)[0]
        fitted = [query for rendering in item.renderings for query in readable(model, rendering)]
        missing = {query.id for query in queries} - {query.id for query in fitted}
        if missing:
            raise ValueError(
                f"subject {item.name!r}: no rendering has query {min(missing)!r} with prompts that the model takes"
            )
        ids = {query.id for query in detection}
        for group in queries.groups:
            asked = sum(query.group == group for query in queries)
            if asked < MEASURABLE:
                raise ValueError(
                    f"subject {item.name!r}: group {group!r} has {asked} queries that the model can take; give at least "
                    f"{MEASURABLE}, as they are split in halves, or leave the group out"
                )
            if queries.read == "answer":
                continue
            letters = {p.letter for query in fitted if query.id in ids and query.group == group for p in query.prompts}
            if len(letters) < 2:
                raise ValueError(
                    f"subject {item.name!r}: the right letter is {min(letters)} in all prompts of group {group!r} that the "
                    "prediction is fitted on; give more queries, or options in a random order"
                )


def check_enough(name: str, queries: QuerySet, config: QRNCAConfig, seed: int) -> None:
    """ValueError for a single group, and for fewer queries than `common_share` asks for in the half that is fitted on."""
    if len(queries.groups) < 2:
        raise ValueError(
            f"subject {name!r}: unrelated queries come from other groups; give queries of at least two groups, not of "
            f"{', '.join(queries.groups)} alone"
        )
    try:
        check_enough_queries(len(queries), config.common_share)
        check_enough_queries(len(queries.split(0.5, seed)[0]), config.common_share)
    except ValueError as error:
        raise ValueError(
            f"subject {name!r} has {len(queries)} queries, split in halves for the prediction: {error}"
        ) from None


def readable(model: HookedModel, queries: QuerySet) -> QuerySet:
    """The queries whose prompts all fit the model."""

    def fits(query: Query) -> bool:
        try:
            return all(len(to_tokens(model, prompt.text)) for prompt in query.prompts)
        except ModelError:
            return False

    return queries.keep(query.id for query in queries if fits(query))
