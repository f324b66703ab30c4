"""Every table and figure of the paper as a plain list of calls; each step's result is kept, so that a run goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from qrnca_lens.clustering import QRNCAConfig, QRNeurons
from qrnca_lens.clustering.selection import qrnca
from qrnca_lens.data import QuerySet, load_queries
from qrnca_lens.editing.collateral import neutral_loss, other_queries
from qrnca_lens.editing.effects import BOOST, SUPPRESS, edit_effects
from qrnca_lens.localization.projection import promoted_tokens
from qrnca_lens.methods import Evidence, find_neurons, methods
from qrnca_lens.models import HookedModel
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.neurons import NeuronSet
from qrnca_lens.pipeline import locate, progress_bar
from qrnca_lens.prediction import predict_from_neurons
from qrnca_lens.store import RunError, differences, read_json, read_table, write_json, write_table
from qrnca_lens.values import seed_number, whole_number
from qrnca_lens.writing import plain_name

_RENDERINGS = 4  # shuffles of the detection half that the probe of the neuron-based prediction is fitted on


@dataclass(frozen=True)
class Subject:
    """A data set of the study: its queries, and the same questions in other shuffles (one may be enough).

    `name` is that of its folder and in its figures' file names. ValueError for one that cannot be.
    """

    name: str
    queries: QuerySet
    renderings: tuple[QuerySet, ...]

    def __post_init__(self) -> None:
        plain_name(self.name)


@dataclass(frozen=True)
class Sample:
    """How much is measured beyond the paper's own tables, per group."""

    extended: int = 5
    """Queries a group for the methods that the paper does not have."""
    collateral: int = 2
    """Edited queries a group whose effect on all other queries is measured."""
    permutations: int = 1000
    """Shuffles of the group labels in the significance tests."""

    def __post_init__(self) -> None:
        for name in ("extended", "collateral", "permutations"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), at_least=1))


@dataclass(frozen=True)
class Results:
    """The measured tables of one data set, as frames."""

    located: QRNeurons
    effects: pd.DataFrame
    extended: pd.DataFrame
    others: pd.DataFrame
    loss: pd.DataFrame
    tokens: pd.DataFrame
    prediction: pd.DataFrame


@dataclass(frozen=True)
class Reproduction:
    """The study's outcome: a Results for each data set, and where it lies."""

    folder: Path
    model: str
    results: dict[str, Results]
    about: dict[str, Any] = field(default_factory=dict)


def subject(source: str, *, seed: int = 0, per_group: int | None = None) -> Subject:
    """A Subject from a shipped name ("domains", "languages", "atlas/domains") or a file of questions or rendered queries."""
    name = f"atlas/{source}" if source in ("domains", "languages") else source
    seed = seed_number(seed)
    queries = load_queries(name, seed=seed)
    if per_group is not None:
        queries = queries.sample(per_group, seed)
    chosen = {query.id for query in queries}
    renderings = [queries]
    if all(query.question for query in queries):
        for other in range(1, _RENDERINGS):
            again = load_queries(name, seed=seed + 1000 * other)
            renderings.append(QuerySet(tuple(q for q in again if q.id in chosen), again.name))
    return Subject(Path(source).stem, queries, tuple(renderings))


def reproduce(
    model: HookedModel,
    subjects: Sequence[Subject],
    out: str | os.PathLike[str],
    *,
    config: QRNCAConfig | None = None,
    sample: Sample | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Reproduction:
    """Measure everything for every subject and keep it in `out`; interrupted and called again it goes on.

    Raises RunError for a folder that holds another study, ValueError for two subjects of one name.
    """
    seed = seed_number(seed)
    names = [item.name for item in subjects]
    if len(set(names)) < len(names):
        raise ValueError(f"subjects need names of their own, not {', '.join(names)}: the folder of each has its name")
    config, sample, folder = config or QRNCAConfig(), sample or Sample(), Path(out)
    about = {
        "model": {"name": str(model.cfg.model_name), "fingerprint": model_fingerprint(model)},
        "queries": {s.name: s.queries.fingerprint for s in subjects},
        "config": asdict(config),
        "sample": asdict(sample),
        "seed": seed,
    }
    _claim(folder, about)
    began, results = time.monotonic(), {}
    with progress_bar(progress) as bar:
        task = bar.add_task("reproducing", total=7 * len(subjects))
        for item in subjects:
            steps = _Steps(folder / item.name, lambda text: bar.update(task, advance=1, description=text))
            results[item.name] = _measure(model, item, steps, config, sample, seed)
    about["seconds"] = round(time.monotonic() - began)
    return Reproduction(folder, str(model.cfg.model_name), results, about)


@dataclass(frozen=True)
class _Steps:
    """The kept steps of one subject."""

    folder: Path
    done: Callable[[str], None]

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The kept table, or a new one, which is then kept."""
        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            write_table(make(), path)
        self.done(f"{self.folder.name}: {name}")
        return read_table(path)


def _measure(model: HookedModel, item: Subject, steps: _Steps, config: QRNCAConfig, sample: Sample, seed: int) -> Results:
    located = locate(model, item.queries, config, out=steps.folder / "located", progress=False)
    steps.done(f"{item.name}: located")
    known = methods()
    evidence = Evidence(model, item.queries, located)
    small = Evidence(model, item.queries.sample(sample.extended, seed), located)
    edited = _edited(located, item.queries.sample(sample.collateral, seed))

    def effects(of: Evidence, keys: Sequence[str]) -> pd.DataFrame:
        return edit_effects(model, of.queries, {key: find_neurons(key, of) for key in keys}, seed=seed)

    def collateral(measure: Callable[[float], pd.DataFrame]) -> pd.DataFrame:
        return pd.concat([measure(f).assign(factor=f) for f in (SUPPRESS, BOOST)], ignore_index=True)

    return Results(
        located,
        steps.table("effects", lambda: effects(evidence, [key for key, m in known.items() if m.in_paper])),
        steps.table("extended", lambda: effects(small, ["qrnca", *[key for key, m in known.items() if not m.in_paper]])),
        steps.table("others", lambda: collateral(lambda f: other_queries(model, item.queries, edited, f))),
        steps.table("loss", lambda: collateral(lambda f: neutral_loss(model, edited, f))),
        steps.table("tokens", lambda: _tokens(model, located)),
        steps.table("prediction", lambda: _prediction(model, item, located, seed)),
    )


def _edited(located: QRNeurons, queries: QuerySet) -> dict[str, NeuronSet]:
    return {query: neurons for query, neurons in qrnca(located).items() if query in {q.id for q in queries}}


def _tokens(model: HookedModel, located: QRNeurons) -> pd.DataFrame:
    """Promoted tokens of the most common neurons and of the strongest QR neurons (table 5)."""
    kinds: Mapping[str, NeuronSet] = {
        "common": NeuronSet(located.common_set.neurons[:10]),
        "QR": NeuronSet.of(*located.top(10)[["layer", "neuron"]].itertuples(index=False, name=None)),
    }
    parts = [promoted_tokens(model, neurons, k=8).assign(kind=kind) for kind, neurons in kinds.items() if len(neurons)]
    return pd.concat(parts, ignore_index=True)


def _prediction(model: HookedModel, item: Subject, located: QRNeurons, seed: int) -> pd.DataFrame:
    detection, evaluation = item.queries.split(0.5, seed)
    ids = {query.id for query in detection}
    renderings = [QuerySet(tuple(q for q in queries if q.id in ids), queries.name) for queries in item.renderings]
    return predict_from_neurons(model, renderings, evaluation, located.restrict(ids), seed=seed)


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Make the folder this study's, or refuse it."""
    path = folder / "study.json"
    if path.is_file():
        changed = differences(about, read_json(path))
        if changed:
            raise RunError(f"{folder} holds another study; choose another folder. What differs:\n  " + "\n  ".join(changed))
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} holds other files; choose an empty folder for the study")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(about, path)
