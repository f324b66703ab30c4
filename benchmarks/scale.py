"""What comes after attribution at thousands of queries: seconds of one core, memory and the exponent of every step.

    python benchmarks/scale.py [--sizes 2500 5000 10000 20000] [--only TEXT] [--limit SECONDS]

Clusters and gaps are drawn (60 neurons a query of 24,576, 20 groups, facts asked in two groups each), and so is what all
prompts give the explorer; single prompts are read by a random Llama of 8 layers. A step is a process of its own, forked from
one that holds the run, so that its peak is what it takes above the run. The exponent is the slope of log seconds over log
queries between the two largest sizes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import torch
from real_models import Peak
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import qrnca_lens as ql
from qrnca_lens import localization
from qrnca_lens.clustering import ModelShape, cluster_neurons
from qrnca_lens.clustering.gaps import PromptGaps
from qrnca_lens.data import LETTERS, Prompt, Query
from qrnca_lens.data.templates import TEMPLATES
from qrnca_lens.editing.effects import COLUMNS
from qrnca_lens.editing.partners import partners_of
from qrnca_lens.editing.statistics import edit_success, probability_change_ratio
from qrnca_lens.models.fingerprint import model_fingerprint
from qrnca_lens.runs.answering import Check, Reading
from qrnca_lens.runs.folder import RunFolder, RunIdentity
from qrnca_lens.runs.status import status_of
from qrnca_lens.views.card_numbers import nearest_neurons, scores_of
from qrnca_lens.views.explorer import activity
from qrnca_lens.views.explorer.selection import catalog_of
from qrnca_lens.views.plots import localization as figures

LAYERS, WIDTH, GROUPS, CLUSTER, CARDS = 8, 3072, 20, 60, 50
COMMON, OF_GROUP = 5, 25
"""Of the neurons of a cluster, those in most clusters and those in clusters of the group; the others are anyone's."""


@dataclass(frozen=True)
class Made:
    """A run that was made up: its model, its result and, in a folder, the result as it is saved."""

    model: Any
    located: ql.QRNeurons
    folder: Path

    @property
    def queries(self) -> ql.QuerySet:
        return self.located.asked


@lru_cache(maxsize=1)
def model() -> Any:
    """A random Llama with the tokenizer of the shipped model, narrow and with many neurons."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 4096, "max_position_embeddings": 256}
    config = LlamaConfig(**sizes, num_hidden_layers=LAYERS, intermediate_size=WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(Path(ql.__file__).parent / "atlas" / "weights").save_pretrained(folder)
        return ql.load_model(folder, device="cpu")


def queries_of(count: int) -> ql.QuerySet:
    """Questions with three prompts each; every fact is asked in two groups."""
    made = []
    for i in range(count):
        options = tuple(f"place {(7 * i + k) % 997} of {k}" for k in range(4))
        question = f"Which place of river {i % 211} is number {i}?"
        prompts = tuple(
            Prompt(t.render(question, options), LETTERS[i % 4], t.key, options) for t in islice(TEMPLATES["en"].detection, 3)
        )
        made.append(Query(f"q{i}", f"group {i % GROUPS}", prompts, question, options[i % 4], fact=f"f{i // 2}"))
    return ql.QuerySet(tuple(made), "made up")


def made_up(count: int, folder: Path) -> Made:
    """A run of `count` queries with drawn clusters and gaps."""
    queries, rng = queries_of(count), np.random.default_rng(0)
    groups = np.arange(count) % GROUPS
    pools = rng.integers(0, LAYERS * WIDTH, (GROUPS, 300))
    drawn = np.concatenate(
        [
            np.broadcast_to(np.arange(COMMON) * 97, (count, COMMON)),
            pools[groups[:, None], rng.integers(0, 300, (count, OF_GROUP))],
            rng.integers(0, LAYERS * WIDTH, (count, CLUSTER - COMMON - OF_GROUP)),
        ],
        axis=1,
    )
    query = np.repeat(np.arange(count), CLUSTER)
    rows = pd.DataFrame({"at": query, "flat": drawn.ravel(), "attribution": rng.gamma(2.0, size=query.size) / 1000})
    rows = rows.drop_duplicates(["at", "flat"]).sort_values(["at", "flat"], ignore_index=True)
    ids, names = (np.array([getattr(q, field) for q in queries], dtype=object) for field in ("id", "group"))
    clusters = pd.DataFrame({"query": ids[rows["at"]], "group": names[rows["at"]], "layer": rows["flat"] // WIDTH})
    clusters = clusters.assign(neuron=rows["flat"] % WIDTH, attribution=rows["attribution"], templates=1)
    p = rng.uniform(0.3, 1.0, count)
    table = pd.DataFrame({"query": ids, "group": names, "prompts": 3, "probability": p, "gap": rng.gamma(1.0, 0.01, count)})
    places = np.repeat(np.arange(count), 3 * LAYERS)
    gaps = pd.DataFrame({"query": ids[places], "prompt": np.tile(np.repeat(np.arange(3), LAYERS), count)})
    gaps = gaps.assign(layer=np.tile(np.arange(LAYERS), 3 * count), gap=rng.gamma(1.0, 0.003, places.size))
    gaps = gaps.assign(change=rng.normal(0, 0.1, places.size), probability=p[places])
    gaps = gaps.astype(
        {"prompt": "int32", "layer": "int32", "gap": "float32", "change": "float32", "probability": "float32"}
    )
    shape = ModelShape(str(model().cfg.model_name), LAYERS, WIDTH, model_fingerprint(model()))
    located = ql.QRNeurons(clusters, table, ql.QRNCAConfig(), shape, {}, queries, gaps=gaps)
    located.save(folder / "saved")
    return Made(model(), located, folder)


def effects_of(made: Made) -> pd.DataFrame:
    """Drawn effects of edits: two factors a query."""
    rng, count = np.random.default_rng(1), len(made.queries)
    found = pd.DataFrame(index=range(2 * count), columns=COLUMNS, dtype=object)
    ids, groups, units = ([getattr(query, name) for query in made.queries] * 2 for name in ("id", "group", "unit"))
    found = found.assign(method="qrnca", factor=np.repeat([0.0, 2.0], count), query=ids, group=groups, unit=units)
    found = found.assign(neurons=20, prompts=3, same_prompts=3, other_prompts=3, right_before=2, same_partners="[]")
    turned = rng.integers(0, 2, (2, 2 * count))
    found = found.assign(wrong_to_right=turned[0], right_to_wrong=turned[1], other_partners="[]")
    for name in ("p", "p_same", "p_other"):
        for when in ("before", "after"):
            found[f"{name}_{when}"] = rng.uniform(0.1, 0.9, 2 * count)
            found[f"log_{name}_{when}"] = np.log(found[f"{name}_{when}"])
    return found


def kept_in_parts(made: Made) -> None:
    """What `locate` does beside the model: parts of 8 queries, a call that goes on with half of them, status, the result."""
    clusters = dict(iter(made.located.clusters.groupby("query", sort=False)))
    columns = ["layer", "neuron", "attribution", "templates"]
    shape, config = made.located.model, {"read": "letter"}
    identity = RunIdentity(config, shape.name, lambda: shape, lambda: "0", {"tokenizer": ""}, made.queries, "up")
    half = len(made.queries) // 16 * 8
    for part in (made.queries.queries[:half], made.queries.queries[half:]):
        run = RunFolder(made.folder / "run", identity)
        with run.opened({"versions": {}}):
            for i, query in enumerate(part, 1):
                gaps = [PromptGaps(query.id, k, [0.001] * LAYERS, [0.1] * LAYERS, 0.5) for k in range(3)]
                run.add(query, clusters[query.id][columns], gaps)
                if i % 8 == 0:
                    run.flush()
            run.flush()
            status_of(made.folder / "run")
            if part[-1] is made.queries.queries[-1]:
                tables = run.tables([query.id for query in made.queries])
                done = ql.QRNeurons(
                    tables.clusters, tables.queries, ql.QRNCAConfig(), shape, {}, made.queries, gaps=tables.gaps
                )
                run.finish(done)


def in_many_groups(made: Made) -> ql.QRNeurons:
    """The same run with ten queries a group."""
    group_of = {query.id: f"many {i // 10}" for i, query in enumerate(made.queries)}
    tables = [table.assign(group=table["query"].map(group_of)) for table in (made.located.clusters, made.located.queries)]
    asked = [Query(q.id, group_of[q.id], q.prompts, q.question, q.answer, fact=q.fact) for q in made.queries]
    return ql.QRNeurons(*tables, made.located.config, made.located.model, {}, ql.QuerySet(tuple(asked)))


def cards(made: Made) -> None:
    """What the cards of some neurons are made of beside the model."""
    for chosen in islice(ql.NeuronSet.from_frame(made.located.top(CARDS)), CARDS):
        scores_of(made.located, chosen)
        nearest_neurons(made.located, chosen)


@contextmanager
def drawn_readings(count: int) -> Iterator[None]:
    """Let the explorer have drawn numbers in place of a reading of all prompts, which takes the model's time."""

    def drawn(_: Any, prompts: Sequence[Prompt], neurons: ql.NeuronSet, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(count)
        values = torch.empty(len(prompts), len(neurons)).normal_(generator=generator)
        return torch.full((len(prompts), 4), 0.25), values

    with patch.object(activity, "options_and_activations", drawn):
        yield


def widget(made: Made) -> None:
    with drawn_readings(len(made.queries)):
        ql.Explorer(made.model, made.queries, made.located)


def page(made: Made) -> None:
    """A page with one neuron of one query a group: what each of them takes of the model's time is the same at all sizes."""
    with drawn_readings(len(made.queries)):
        place = made.folder / "page.html"
        ql.write_explorer(made.model, made.located, place, top=1, per_group=1, progress=False)


def check_of(made: Made) -> None:
    """The tables of `check`."""
    rng = np.random.default_rng(2)
    drawn = rng.dirichlet([1, 1, 1, 1], (len(made.queries), 3)).tolist()
    check = Check.of("made up", [Reading(q, tuple(map(tuple, p))) for q, p in zip(made.queries, drawn, strict=True)])
    repr(check), check.answered


def steps() -> Iterator[tuple[str, Callable[[Made], Any]]]:
    """Every step by name."""
    yield "tables of check", check_of
    yield "save", lambda made: made.located.save(made.folder / "again")
    yield "open (QRNeurons.load)", lambda made: ql.QRNeurons.load(made.folder / "saved")
    yield "repr, with its gaps", lambda made: repr(made.located)
    yield "for_query of all", lambda made: [made.located.for_query(query.id) for query in made.queries]
    yield "top, per_query, for_group", lambda made: [made.located.top(), made.located.per_query(), _groups(made)]
    yield "restrict to half", lambda made: made.located.restrict([q.id for q in islice(made.queries, 0, None, 2)]).table
    yield "heatmaps of 20 groups", lambda made: [localization.group_heatmap(made.located, g) for g in made.located.groups]
    yield "overlap, jaccard", lambda made: [localization.overlap(made.located), localization.jaccard(made.located)]
    yield "overlap_rates, 100 draws", lambda made: localization.overlap_rates(made.located)
    yield "overlap_test, 20 shuffles", lambda made: localization.overlap_test(made.located, 20)
    yield "concentration_test, 20 shuffles", lambda made: localization.concentration_test(made.located, 20)
    yield "layer_test, 20 shuffles", lambda made: localization.layer_test(made.located, 20)
    yield "common_layer_test", lambda made: localization.common_layer_test(made.located)
    yield "cluster_neurons, k-means", lambda made: cluster_neurons(made.located, method="k-means", k=8, bootstraps=1)
    yield (
        "figure of clusters",
        lambda made: figures.neuron_clusters(
            cluster_neurons(made.located, method="k-means", k=8, bootstraps=0, min_queries=len(made.queries) // 250)
        ),
    )
    yield "partners of all", lambda made: partners_of(made.queries, 0)
    yield (
        "PCR and flips of edits",
        lambda made: [
            [probability_change_ratio(part), edit_success(part, boost=True)]
            for _, part in effects_of(made).groupby("factor")
        ],
    )
    yield "numbers of 50 cards", cards
    yield "catalog", lambda made: catalog_of(made.located)
    yield "catalog, 10 queries a group", lambda made: catalog_of(in_many_groups(made))
    yield "widget opens", widget
    yield "page of 20 queries", page
    yield "parts, going on, status, finish", kept_in_parts


def _groups(made: Made) -> list[ql.NeuronSet]:
    return [made.located.for_group(group) for group in made.located.groups]


def work(step: Callable[[Made], Any], made: Made, sender: Connection) -> None:
    """Send seconds of the processor, which others may use too, and the peak in MB above what is held at the start."""
    held, peak, began = psutil.Process().memory_info().rss, Peak(), time.process_time()
    try:
        step(made)
    except Exception:  # noqa: BLE001 - told, so that the other steps are measured
        traceback.print_exc()
    taken = time.process_time() - began
    sender.send((taken, (peak.stop() - held) / 1e6))


def measured(step: Callable[[Made], Any], made: Made, limit: float) -> tuple[float, float]:
    """Seconds and MB of one step in a process of its own; NaN for one that is stopped at the limit."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work, args=(step, made, sender))
    process.start()
    sender.close()
    found = receiver.recv() if receiver.poll(limit) else (math.nan, math.nan)
    process.kill()
    process.join()
    return found


def main() -> None:
    """Print a row a step: seconds and MB at each size, and the exponent between the two largest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=[2500, 5000, 10_000, 20_000])
    parser.add_argument("--only", default="", help="steps whose name holds this")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds on the clock after which a step is stopped")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: step for name, step in steps() if options.only in name}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            made = made_up(size, Path(folder))
            for name, step in chosen.items():
                found[name].append(measured(step, made, options.limit))
                print(f"{size:6d} {name:34s} {found[name][-1][0]:8.2f} s {found[name][-1][1]:8.0f} MB", flush=True)
    head = " | ".join(f"{size:,}" for size in options.sizes)
    print(f"\n| step | {head} | exponent |\n|---|{'---|' * (len(options.sizes) + 1)}")
    for name, cells in found.items():
        shown = [f"{seconds:.2f} s, {megabytes:.0f} MB" for seconds, megabytes in cells]
        print(f"| {name} | {' | '.join(shown)} | {exponent(options.sizes, cells):.1f} |")


def exponent(sizes: list[int], cells: list[tuple[float, float]]) -> float:
    """The slope between the two largest sizes; NaN for one size."""
    if len(sizes) < 2:
        return math.nan
    return math.log(cells[-1][0] / cells[-2][0]) / math.log(sizes[-1] / sizes[-2])


if __name__ == "__main__":
    main()
