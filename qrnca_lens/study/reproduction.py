"""Every table and figure of the paper as a plain list of calls; each step's result is kept, so that a run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons, config_of
from qrnca_lens.core.alone import LOCK, alone_in, refuse_busy
from qrnca_lens.core.claims import claimed_config, differences, refuse_another, whole_claim_in
from qrnca_lens.core.journal import Journal
from qrnca_lens.core.kept import KeptTables
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.store import FORMAT, run_place, usable, write_record
from qrnca_lens.core.terminal import progress_bar
from qrnca_lens.core.values import check_kind, seed_number, whole_number, yes_or_no
from qrnca_lens.core.writing import own_folder, tidy
from qrnca_lens.data import QuerySet, Read
from qrnca_lens.data.query import check_read
from qrnca_lens.editing.collateral import LOSS_COLUMNS, OTHERS_COLUMNS, neutral_loss, neutral_text, other_queries
from qrnca_lens.editing.effects import BOOST, SUPPRESS, edit_effects
from qrnca_lens.editing.effects import COLUMNS as EFFECT_COLUMNS
from qrnca_lens.engine.executors import Executor, LocalExecutor
from qrnca_lens.localization import concentration_test, layer_test, overlap_test
from qrnca_lens.localization.significance import TEST_COLUMNS
from qrnca_lens.methods import METHODS, Evidence, find_neurons
from qrnca_lens.models import HookedModel, check_hooked, check_site
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.models.origin import source_entry
from qrnca_lens.readout.promoted import PROJECTION_COLUMNS, promoted_tokens
from qrnca_lens.readout.token_kinds import KIND_COLUMNS, common_token_test
from qrnca_lens.runs.executing import Engine, check_engine, executor_for
from qrnca_lens.runs.failures import without
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.runs.prompts import check_prompts
from qrnca_lens.study.comparison import COLUMNS as COMPARED_COLUMNS
from qrnca_lens.study.comparison import OURS, compared_effects
from qrnca_lens.study.prediction import COLUMNS as PREDICTION_COLUMNS
from qrnca_lens.study.prediction import predict_from_neurons
from qrnca_lens.study.subjects import MEASURABLE, Subject, check_enough, check_subjects, readable, subjects_for

_KIN = ("activation-absolute", "knowledge-neuron-without-common")  # compared with the paper's own on all queries
_ON_UNSEEN = ("qrnca", "random-layers")
_UNSEEN_COLUMNS = ["prompts_of", *EFFECT_COLUMNS]
_TOKEN_COLUMNS = [*PROJECTION_COLUMNS, "kind"]
_TEST_COLUMNS = ["test", *TEST_COLUMNS]
TESTS = {"overlap": overlap_test, "concentration": concentration_test, "layers": layer_test}
"""The permutation tests of what sets the groups apart."""


@dataclass(frozen=True)
class Sample:
    """How much is measured beyond the paper's own tables, per group. ValueError for anything but whole numbers above 0."""

    extended: int = 5
    """Queries a group for the methods that the paper does not have."""
    collateral: int = 2
    """Edited queries a group whose effect on all other queries is measured."""
    permutations: int = 1000
    """Shuffles of the group labels in the significance tests."""
    draws: int = 200
    """Draws of random neurons that the direct reading of table 7 is compared with."""
    probe_draws: int = 20
    """The same for its probe, which is fitted anew for each: enough for the spread, too few for a corrected p below 0.05."""
    single_neurons: int = 20_000
    """The most neurons that a model has for methods that take each on its own (`Method.by_neuron`) to be among
    `extended`."""

    def __post_init__(self) -> None:
        for known in fields(self):
            object.__setattr__(self, known.name, whole_number(known.name, getattr(self, known.name), at_least=1))

    def beyond(self, model: ModelShape) -> tuple[list[str], list[str]]:
        """The methods that are not compared with the paper's own on all queries: those measured on `extended` queries, and
        those left out, since they would take the model's neurons one by one."""
        check_kind("model", model, ModelShape, "the ModelShape of a result, located.model")
        others = [key for key in METHODS if key not in compared_methods()]
        many = model.n_layers * model.d_mlp > self.single_neurons
        left_out = [key for key in others if many and METHODS[key].by_neuron]
        return [key for key in others if key not in left_out], left_out


def compared_methods() -> list[str]:
    """The paper's methods and their kin, which are compared on all queries."""
    return [key for key, method in METHODS.items() if method.in_paper or key in _KIN]


@dataclass(frozen=True)
class Results:
    """The measured tables of one data set, as frames.

    `effects` are those of the paper's methods and their kin at each method's own size; `pairs` those of QRNCA and one other
    of them at equal counts (column rival: which one, see `compared_effects`), of the queries for which both have a neuron;
    `extended` those of the other methods beside QRNCA, as many neurons as it has, on a sample. `unseen` has a further column
    prompts_of: the edits of QRNCA and its control on the prompts of detection, fresh ones and held-out ones (open prompts
    have no fresh ones). `kinds` counts
    the tokens that common neurons promote, `tests` holds the permutation tests by group (column test: a key of TESTS).
    """

    located: QRNeurons
    effects: pd.DataFrame
    extended: pd.DataFrame
    others: pd.DataFrame
    loss: pd.DataFrame
    tokens: pd.DataFrame
    prediction: pd.DataFrame
    pairs: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COMPARED_COLUMNS))
    unseen: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_UNSEEN_COLUMNS))
    kinds: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=KIND_COLUMNS))
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=_TEST_COLUMNS))

    @property
    def read(self) -> Read:
        """What the answers were read from."""
        return self.located.config.read


@dataclass(frozen=True)
class Reproduction:
    """The study's outcome: a Results for each data set, and where it lies."""

    folder: Path
    model: str
    results: dict[str, Results]
    about: dict[str, Any] = field(default_factory=dict)


def reproduce(
    model: HookedModel,
    subjects: Sequence[Subject],
    out: str | os.PathLike[str],
    *,
    config: QRNCAConfig | None = None,
    read: Read | None = None,
    sample: Sample | None = None,
    seed: int = 0,
    engine: Engine = "local",
    progress: bool = True,
) -> Reproduction:
    """Measure everything for every subject and keep it in `out`; interrupted and called again it goes on.

    `read` says what answers are read from (None: what `config` says, which is "letter" by default). For "answer" the
    subjects are put in open prompts (`Subject.as_open`).

    `engine`: as in `locate`, for locating and for the effects of edits, which are most of the work.

    Queries that fail (see `locate`) are left out of every table and stand in `failed` of the results. Tables whose methods
    are not those that are registered now are made anew. Raises ValueError, before anything is computed, for subjects that
    cannot be measured (`check_subjects`), ModelError for answers of a model that can say letters alone; RunError for a
    folder that holds another study, or cannot be made or written into.
    """
    folder = run_place(out)
    check_hooked(model)
    check_engine(engine)
    seed = seed_number(seed)
    config, progress = config_of(config), yes_or_no("progress", progress)
    config = replace(config, site=check_site(model, config.site), read=config.read if read is None else check_read(read))
    if sample is None:
        sample = Sample()
    else:
        check_kind("sample", sample, Sample, "a Sample, such as Sample(extended=10)")
    subjects = subjects_for(subjects, config.read)
    refuse_busy(folder)
    about = {
        "model": {"name": str(model.cfg.model_name), "fingerprint": model_fingerprint(model)},
        "queries": {s.name: s.queries.fingerprint for s in subjects},
        "other prompts": {s.name: _other_prompts(s) for s in subjects},
        "config": asdict(config),
        "sample": asdict(sample),
        "seed": seed,
    }
    source, default_site = source_entry(model), check_site(model, None)
    _check_claim(folder, about, default_site)
    check_subjects(model, subjects, config, seed)
    results, seconds = {}, 0.0
    with usable():
        folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder), executor_for(model, engine) as executor, progress_bar(progress) as bar:
        written = _claim(folder, about, source, default_site)
        with usable():
            tidy(folder)
            for item in subjects:
                own_folder(own_folder(folder / item.name) / "located")
                tidy(folder / item.name)
        journal, task = Journal(folder), bar.add_task("reproducing", total=10 * len(subjects))

        def done(text: str) -> None:
            journal.say(text)
            bar.update(task, advance=1, description=text)

        for item in subjects:
            steps = _Steps(folder / item.name, written, done)
            found = _measure(model, item, steps, config, sample, seed, executor)
            results[item.name] = found
            seconds += steps.seconds + float(found.located.about.get("seconds", 0.0))
        journal.say("all tables are measured")
    about |= {**source, "seconds": round(seconds)}
    return Reproduction(folder, str(model.cfg.model_name), results, about)


def _other_prompts(item: Subject) -> dict[str, str]:
    """The fingerprints of what is measured besides the subject's queries."""
    others = {f"rendering {i}": queries for i, queries in enumerate(item.renderings)}
    unseen = {"fresh": item.fresh, "held-out": item.held_out}
    others |= {name: queries for name, queries in unseen.items() if queries is not None}
    return {name: queries.fingerprint for name, queries in others.items()}


class _Steps:
    """The kept steps of one subject."""

    def __init__(self, folder: Path, written: int, done: Callable[[str], None]) -> None:
        self.folder, self.done, self.kept = folder, done, KeptTables(folder, written=written)

    def table(
        self, name: str, columns: Collection[str], make: Callable[[], pd.DataFrame], methods: Collection[str] | None = None
    ) -> pd.DataFrame:
        """The kept table if it has these columns and is of these methods, else a new one, which is then kept."""

        def serves(kept: pd.DataFrame) -> bool:
            return set(columns) <= set(kept.columns) and (methods is None or set(kept["method"]) == set(methods))

        found = self.kept.table(name, make, serves)
        self.done(f"{self.folder.name}: {name}")
        return found

    @property
    def seconds(self) -> float:
        """What the kept steps took, in all calls."""
        return sum(float(step.get("seconds", 0.0)) for step in self.kept.steps.values())


def _measure(
    model: HookedModel,
    item: Subject,
    steps: _Steps,
    config: QRNCAConfig,
    sample: Sample,
    seed: int,
    executor: Executor,
) -> Results:
    located = locate(model, item.queries, config, out=steps.folder / "located", engine=executor, progress=False)
    steps.done(f"{item.name}: located")
    asked = located.asked
    check_enough(item.name, asked, config, seed)
    evidence, small = Evidence(model, asked, located), Evidence(model, asked.sample(sample.extended, seed), located)
    edited, text = _edited(located, asked.sample(sample.collateral, seed)), neutral_text(model)

    compared, beyond = compared_methods(), [OURS, *sample.beyond(located.model)[0]]
    spread = None if isinstance(executor, LocalExecutor) else executor

    def effects() -> pd.DataFrame:
        sets = {key: find_neurons(key, evidence) for key in compared}
        return compared_effects(model, asked, sets, seed=seed, executor=spread)

    def extended() -> pd.DataFrame:
        sets = {key: find_neurons(key, small) for key in beyond}
        return edit_effects(model, small.queries, sets, seed=seed, executor=spread)

    def collateral(name: str, columns: Sequence[str], measure: Callable[[float], pd.DataFrame]) -> pd.DataFrame:
        def make() -> pd.DataFrame:
            return pd.concat([measure(f).assign(factor=f) for f in (SUPPRESS, BOOST)], ignore_index=True)

        return steps.table(name, [*columns, "factor"], make)

    found = steps.table("effects", COMPARED_COLUMNS, effects, compared)
    return Results(
        located,
        found[found["rival"] == ""].drop(columns="rival").reset_index(drop=True),
        steps.table("extended", EFFECT_COLUMNS, extended, beyond),
        collateral("others", OTHERS_COLUMNS, lambda f: other_queries(model, asked, edited, f)),
        collateral("loss", LOSS_COLUMNS, lambda f: neutral_loss(model, edited, f, text)),
        steps.table("tokens", _TOKEN_COLUMNS, lambda: _tokens(model, located)),
        steps.table("prediction", PREDICTION_COLUMNS, lambda: _prediction(model, item, located, sample, seed)),
        found[found["rival"] != ""].reset_index(drop=True),
        steps.table("unseen", _UNSEEN_COLUMNS, lambda: _unseen(model, item, evidence, seed)),
        steps.table("kinds", KIND_COLUMNS, lambda: common_token_test(model, located, seed=seed)),
        steps.table("tests", _TEST_COLUMNS, lambda: permutation_tests(located, sample.permutations, seed)),
    )


def permutation_tests(located: QRNeurons, permutations: int, seed: int) -> pd.DataFrame:
    """The frames of all TESTS in one, a column `test` first."""
    parts = [test(located, permutations=permutations, seed=seed).assign(test=name) for name, test in TESTS.items()]
    return pd.concat(parts, ignore_index=True)[_TEST_COLUMNS]


def _unseen(model: HookedModel, item: Subject, evidence: Evidence, seed: int) -> pd.DataFrame:
    """Effects on the prompts of detection and on fresh and held-out ones, as far as the subject has them, of the queries
    whose prompts the model takes in all; no rows where the subject has neither or one group is left."""
    given = {name: queries for name, queries in (("fresh", item.fresh), ("held-out", item.held_out)) if queries is not None}
    if not given:
        return pd.DataFrame(columns=_UNSEEN_COLUMNS)
    others = {name: without(queries, check_prompts(model, queries).failed) for name, queries in given.items()}
    shared = set.intersection(*({query.id for query in queries} for queries in (evidence.queries, *others.values())))
    asked = {name: queries.keep(shared) for name, queries in {"detection": evidence.queries, **others}.items()}
    if len(asked["detection"].groups) < 2:
        return pd.DataFrame(columns=_UNSEEN_COLUMNS)
    part = replace(evidence, queries=asked["detection"])
    sets = {key: find_neurons(key, part) for key in _ON_UNSEEN}
    parts = [edit_effects(model, queries, sets, seed=seed).assign(prompts_of=name) for name, queries in asked.items()]
    return pd.concat(parts, ignore_index=True)[_UNSEEN_COLUMNS]


def _edited(located: QRNeurons, queries: QuerySet) -> dict[str, NeuronSet]:
    asked = {query.id for query in queries}
    return {query: located.for_query(query) for query in located.queries["query"] if query in asked}


def _tokens(model: HookedModel, located: QRNeurons) -> pd.DataFrame:
    """Promoted tokens of the most common neurons and of the strongest QR neurons (table 5)."""
    kinds: Mapping[str, NeuronSet] = {
        "common": NeuronSet(located.common_set.neurons[:10]),
        "QR": NeuronSet.from_frame(located.top(10)),
    }
    parts = [promoted_tokens(model, neurons, k=8).assign(kind=kind) for kind, neurons in kinds.items() if len(neurons)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_TOKEN_COLUMNS)


def _prediction(model: HookedModel, item: Subject, located: QRNeurons, sample: Sample, seed: int) -> pd.DataFrame:
    """Groups with too few queries left after those that failed are left out."""
    counts = located.queries["group"].value_counts()
    detection, evaluation = located.asked.for_group(*counts.index[counts >= MEASURABLE]).split(0.5, seed)
    ids = {query.id for query in detection}
    renderings = [readable(model, queries.keep(ids)) for queries in item.renderings]
    return predict_from_neurons(
        model,
        renderings,
        evaluation,
        located.restrict(ids),
        draws=sample.draws,
        probe_draws=sample.probe_draws,
        seed=seed,
    )


def _check_claim(folder: Path, about: dict[str, Any], default_site: str) -> int | None:
    """Refuse a folder of another study, or with other files; the format that it is in, None for a new one. The file of the
    model is noted in it and need not be the same one."""
    path = folder / "study.json"
    claim = whole_claim_in(path, "study", LOCK)
    if claim is None:
        return None
    theirs = {name: value for name, value in claim.items() if name not in ("format", "source")}
    theirs["config"] = claimed_config(claim, path, default_site)
    if isinstance(theirs.get("sample"), dict):  # an older study's has no number of single neurons
        theirs["sample"] = {"single_neurons": Sample().single_neurons, **theirs["sample"]}
    refuse_another(folder, "study", differences(about, theirs))
    return int(claim["format"])


def _claim(folder: Path, about: dict[str, Any], source: dict[str, Any], default_site: str) -> int:
    """Make the folder this study's, or refuse it; the format that it is in."""
    written = _check_claim(folder, about, default_site)
    if written is None:
        with usable():
            write_record({**about, **source}, folder / "study.json")
    return FORMAT if written is None else written
