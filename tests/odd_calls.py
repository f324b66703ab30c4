"""Odd calls of every public name: a valid call of each, each of its parameters replaced by what it does not take.

`CALLS` has an entry for every public function, class and method, with a valid call and, for every parameter, what kind of
thing it takes. `odd_calls` makes the odd ones of them; `fault` runs one and tells what is wrong with how it ends.
"""

from __future__ import annotations

import inspect
import linecache
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pandas as pd
import torch

import qrnca_lens as ql
from qrnca_lens import clustering, data, localization, methods, study
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import QuerySet
from qrnca_lens.editing.statistics import group_changes
from qrnca_lens.study.reproduction import Sample
from qrnca_lens.study.subjects import Subject
from qrnca_lens.views.explorer.session import Session

ODD: dict[str, Any] = {
    "None": None,
    "True": True,
    "text": "x",
    "empty text": "",
    "zero": 0,
    "one": 1,
    "minus": -3,
    "huge": 10**30,
    "more digits than Python writes": 10**5000,
    "as many below 0": -(10**5000),
    "half": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "list": [],
    "list of texts": ["x"],
    "list of numbers": [1.5],
    "tuple": (),
    "dict": {},
    "set": {1},
    "bytes": b"x",
    "object": object(),
    "type": int,
    "tensor": torch.ones(2),
    "array": np.ones(2),
    "table": pd.DataFrame({"a": [1]}),
    "path": Path("nowhere") / "x",
    "module": torch.nn.Linear(1, 1),
}
PATHS = {"text", "path"}
NUMBERS = {"zero", "one", "minus", "huge", "half"}


class World:
    """What calls are made with; the parts are made when they are first asked for."""

    def __init__(self, model: Any, located: QRNeurons, folder: Path) -> None:
        self.model, self.located, self.folder = model, located, folder
        self.queries, self.neurons = located.asked, NeuronSet.of((0, 1), (1, 2))
        self.query = self.queries.queries[0]
        self.prompt, self.ids = self.query.prompts[0], [query.id for query in self.queries]
        self.effects = handmade.effects("qrnca", 0.0, [0.1, 0.2], [0.4, 0.4])

    @cached_property
    def asked(self) -> QuerySet:
        """Queries with question and options, which can be put as open prompts."""
        return ql.load_queries("atlas/domains").sample(1)

    @cached_property
    def evidence(self) -> Any:
        return ql.Evidence(self.model, self.queries, self.located)

    @cached_property
    def ranking(self) -> Any:
        return ql.rank_neurons("qrnca", self.evidence)[self.query.id]

    @cached_property
    def attribution(self) -> Any:
        return ql.attribute(self.model, "Answer:", 5, steps=1)

    @cached_property
    def card(self) -> Any:
        return ql.neuron(self.model, 0, 1, located=self.located, effects_on=())

    @cached_property
    def view(self) -> Any:
        return ql.show(self.model, self.located, self.query.id)

    @cached_property
    def circuit(self) -> Any:
        return ql.circuit(self.model, self.located, self.query.id, Neuron(0, 1))

    @cached_property
    def clusters(self) -> Any:
        return ql.cluster_neurons(self.located, min_queries=1, bootstraps=0)

    @cached_property
    def session(self) -> Any:
        return Session(self.model, self.located)


@dataclass(frozen=True)
class Kind:
    """What a parameter takes: the keys of ODD that are right for it, further values that it must refuse, and values that it
    may refuse or take."""

    right: frozenset[str] = frozenset()
    refused: Mapping[str, Callable[[World], Any]] = field(default_factory=dict)
    either: Mapping[str, Callable[[World], Any]] = field(default_factory=dict)

    def or_none(self) -> Kind:
        return Kind(self.right | {"None"}, self.refused, self.either)


def kind(*right: str, refused: Any = None, either: Any = None) -> Kind:
    return Kind(frozenset(right), refused or {}, either or {})


NO_QUERIES = {
    "no queries": lambda w: w.queries.keep([]),
    "no group": lambda w: w.queries.for_group(),
}
ONE_GROUP = {"one group": lambda w: w.queries.for_group("g0"), "one query": lambda w: w.queries.keep(["q1"])}
NO_DEVICE = {name: (lambda w, name=name: name) for name in ("mps", "gpu", "cuda:9", "cpu:7", "cuda:-1", "meta")}
COUNT, COUNT_FROM_0, SEED = kind("one"), kind("zero", "one"), kind("zero", "one")
FLAG, NUMBER, TEXT = kind("True"), kind(*NUMBERS), kind("text")
CHOICE = kind()
MODEL = kind(refused={"tokenizer": lambda w: w.model.tokenizer, "located": lambda w: w.located})
LOCATED = kind(refused={"queries": lambda w: w.queries, "model": lambda w: w.model})
QUERIES = kind(refused={"queries in a list": lambda w: list(w.queries)}, either=NO_QUERIES | ONE_GROUP)
SOME_QUERIES = kind(refused={"queries in a list": lambda w: list(w.queries)} | NO_QUERIES, either=ONE_GROUP)
OUTSIDE = {
    "layer 99": lambda w: Neuron(99, 0),
    "neuron 9999": lambda w: NeuronSet.of((0, 9999)),
    "pairs": lambda w: [(0, 1)],
    "name": lambda w: "L0.N1",
}
NEURONS = kind("list", "tuple", "dict", refused=OUTSIDE, either={"none": lambda w: NeuronSet()})
SOME_NEURONS = kind(refused=OUTSIDE | {"none": lambda w: NeuronSet()})
PROMPTS = kind("list", "tuple", refused={"one prompt": lambda w: w.prompt, "a query": lambda w: w.query})
IDS = kind("list", "list of texts", "tuple", "dict", refused={"one id": lambda w: "q1"})
KNOWN_IDS = kind("list", "tuple", "dict", refused={"one id": lambda w: "q1", "unknown": lambda w: ["q99"]})
ID = kind(refused={"unknown": lambda w: "q99"})
GROUP = kind(refused={"unknown": lambda w: "g99"})
LAYER = kind("zero", "one", refused={"layer 99": lambda w: 99})
POSITIONS = kind("zero", "one", "minus", refused={"reversed": lambda w: [(2, 1)], "last of a list": lambda w: ["last"]})
EFFECTS = kind(refused={"no rows": lambda w: w.effects.head(0), "a column less": lambda w: w.effects.drop(columns="unit")})
CONFIG = kind("None", refused={"a dict": lambda w: {"steps": 2}, "the class": lambda w: ql.QRNCAConfig})
FOLDER = kind(
    refused={"no folder": lambda w: w.folder / "none", "a file": lambda w: w.folder / "file", "no run": lambda w: w.folder}
)
NEW_FOLDER = kind(*PATHS, refused={"a file": lambda w: w.folder / "file", "below a file": lambda w: w.folder / "file" / "x"})
FILE = kind(
    refused={
        "no file": lambda w: w.folder / "none.jsonl",
        "a folder": lambda w: w.folder,
        "another": lambda w: w.folder / "file",
    }
)
NEW_FILE = kind(*PATHS, refused={"a folder": lambda w: w.folder, "below a file": lambda w: w.folder / "file" / "x"})

BY_NAME: dict[str, Kind] = {
    "model": MODEL,
    "located": LOCATED,
    "queries": QUERIES,
    "seed": SEED,
    "steps": COUNT,
    "k": COUNT,
    "top": COUNT,
    "bins": COUNT,
    "batch": COUNT,
    "draws": COUNT,
    "permutations": COUNT,
    "per_group": COUNT.or_none(),
    "progress": FLAG,
    "held_out": FLAG,
    "rule": CHOICE,
    "read": CHOICE,
    "site": CHOICE.or_none(),
    "positions": POSITIONS,
    "config": CONFIG,
    "neurons": NEURONS,
    "prompts": PROMPTS,
    "query_id": ID,
    "query": ID,
    "group": GROUP,
    "evidence": kind(refused={"located": lambda w: w.located}),
    "key": kind(refused={"unknown": lambda w: "x"}),
    "effects": EFFECTS,
    "folder": FOLDER,
    "name": TEXT,
    "distractors": CHOICE.or_none(),
    "language": kind("text", "empty text"),
    "relation": kind("text", "empty text"),
    "fact": kind("text", "empty text"),
    "question": TEXT,
    "answer": TEXT,
    "id": TEXT,
    "engine": CHOICE,
    "reference": kind("text", "empty text"),
}


@dataclass(frozen=True)
class Call:
    """A valid call. `of`: the function or class, where it is that of an object. `given`: its arguments; `kinds`: of the
    parameters whose kind their name does not tell."""

    given: Callable[[World], dict[str, Any]] = lambda w: {}
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    of: Callable[[World], Any] | None = None
    empty: Callable[[World], Any] | None = None
    """The same of an empty object, which may end in the package's error too."""


def call(given: Any = None, of: Any = None, empty: Any = None, **kinds: Kind) -> Call:
    return Call(given or (lambda w: {}), kinds, of, empty)


def _mq(w: World) -> dict[str, Any]:
    return {"model": w.model, "queries": w.queries}


def _ml(w: World) -> dict[str, Any]:
    return {"model": w.model, "located": w.located}


def _mn(w: World) -> dict[str, Any]:
    return {"model": w.model, "neurons": w.neurons}


def _mp(w: World) -> dict[str, Any]:
    return {"model": w.model, "prompts": [w.prompt]}


def _l(w: World) -> dict[str, Any]:
    return {"located": w.located}


def _none(w: World) -> QuerySet:
    return w.queries.keep([])


def _key(w: World) -> dict[str, Any]:
    return {"key": "qrnca", "evidence": w.evidence}


def _on(get: Callable[[World], Any], name: str) -> Callable[[World], Any]:
    return lambda w: getattr(get(w), name)


def _method(get: Callable[[World], Any], name: str, given: Any = None, *, empty: Any = None, **kinds: Kind) -> Call:
    return call(given, _on(get, name), None if empty is None else _on(empty, name), **kinds)


_queries, _located = (lambda w: w.queries), (lambda w: w.located)
_MODEL_OR_NONE = MODEL  # the tests' model is not atlas, for which None stands
_QUESTION = {
    "distractors": kind("tuple", "list", "list of texts"),
    "also_right": kind("tuple", "list", "list of texts"),
}
_PROMPT = {
    "text": TEXT,
    "letter": CHOICE,
    "template": kind("text", "empty text"),
    "options": kind("tuple", "list"),
    "rendering": CHOICE,
}

CALLS: dict[str, Call] = {
    "write_explorer": call(lambda w: {**_ml(w), "out": w.folder / "page.html"}, out=NEW_FILE, per_group=COUNT),
    "show": call(lambda w: {**_ml(w), "query_id": "q1"}, prompt=kind("zero", "one", refused={"prompt 9": lambda w: 9})),
    "neuron": call(
        lambda w: {**_ml(w), "layer": 0, "index": 1, "effects_on": ()},
        layer=LAYER,
        index=kind("zero", "one", refused={"neuron 9999": lambda w: 9999}),
        effects_on=KNOWN_IDS.or_none(),
        activity=kind("None", refused={"a number a neuron": lambda w: np.ones(7)}),
    ),
    "circuit": call(
        lambda w: {**_ml(w), "query_id": "q1", "neurons": w.neurons},
        neurons=kind("None", refused=OUTSIDE, either={"none": lambda w: NeuronSet()}),
        prompt=kind("zero", "one", refused={"prompt 9": lambda w: 9}),
    ),
    "QueryView.curve": _method(lambda w: w.view, "curve", edit=kind(refused={"not made": lambda w: Neuron(9, 9)})),
    "Explorer": call(lambda w: {**_mq(w), **_l(w)}, queries=SOME_QUERIES),
    "Circuit.of": _method(lambda w: w.circuit, "of", lambda w: {"neuron": Neuron(0, 1)}, neuron=SOME_NEURONS),
    "Circuit.to_html": _method(
        lambda w: w.circuit,
        "to_html",
        chosen=Kind(SOME_NEURONS.right | {"None"}, SOME_NEURONS.refused),
        heads=COUNT_FROM_0,
    ),
    "Attribution.neurons": _method(lambda w: w.attribution, "neurons"),
    "Attribution.top": _method(lambda w: w.attribution, "top"),
    "Evidence": call(lambda w: {**_mq(w), **_l(w)}),
    "Neuron": call(lambda w: {"layer": 0, "index": 1}, layer=COUNT_FROM_0, index=COUNT_FROM_0),
    "NeuronSet": call(
        None, neurons=kind("tuple", "list", "dict", refused={"one": lambda w: Neuron(0, 1), "pairs": OUTSIDE["pairs"]})
    ),
    "NeuronSet.of": call(
        lambda w: {"pairs": (0, 1)}, pairs=kind(refused={"three": lambda w: (1, 2, 3), "text": lambda w: "12"})
    ),
    "NeuronSet.from_frame": call(
        lambda w: {"rows": w.neurons.to_frame()},
        rows=kind(refused={"fractions": lambda w: pd.DataFrame({"layer": [1.5], "neuron": [2]})}),
    ),
    "NeuronSet.__and__": _method(lambda w: w.neurons, "__and__", lambda w: {"other": w.neurons}, other=kind()),
    "NeuronSet.__or__": _method(lambda w: w.neurons, "__or__", lambda w: {"other": w.neurons}, other=kind()),
    "NeuronSet.__sub__": _method(lambda w: w.neurons, "__sub__", lambda w: {"other": w.neurons}, other=kind()),
    "NeuronSet.__contains__": _method(lambda w: w.neurons, "__contains__", lambda w: {"neuron": 1}, neuron=kind(*ODD)),
    "NeuronSet.check_inside": _method(
        lambda w: w.neurons, "check_inside", lambda w: {"n_layers": 9, "d_mlp": 99}, n_layers=COUNT, d_mlp=COUNT
    ),
    "QRNCAConfig": call(None, threshold=kind("zero"), common_share=kind("one")),
    "QRNeurons": call(
        lambda w: {n: getattr(w.located, n) for n in ("clusters", "queries", "config", "model")},
        clusters=kind(refused={"a column less": lambda w: w.located.clusters.drop(columns="neuron")}),
        queries=kind(refused={"no rows": lambda w: w.located.queries.head(0)}),
        config=kind(refused=CONFIG.refused),
        model=kind(refused={"a model": lambda w: w.model}),
        about=kind("dict"),
        asked=kind(),
        failed=kind(),
        gaps=kind(),
    ),
    "QRNeurons.check_group": _method(_located, "check_group", lambda w: {"group": "g0"}),
    "QRNeurons.check_query": _method(_located, "check_query", lambda w: {"query": "q1"}),
    "QRNeurons.for_group": _method(_located, "for_group", lambda w: {"group": "g0"}),
    "QRNeurons.for_query": _method(_located, "for_query", lambda w: {"query": "q1"}),
    "QRNeurons.table_for_group": _method(_located, "table_for_group", lambda w: {"group": "g0"}),
    "QRNeurons.table_for_query": _method(_located, "table_for_query", lambda w: {"query": "q1"}),
    "QRNeurons.load": call(lambda w: {"folder": w.folder / "none"}),
    "QRNeurons.restrict": _method(
        _located,
        "restrict",
        lambda w: {"queries": [query.id for query in w.queries]},
        queries=kind(refused=KNOWN_IDS.refused),
    ),
    "QRNeurons.save": _method(_located, "save", lambda w: {"folder": w.folder / "saved"}, folder=NEW_FOLDER),
    "QRNeurons.write_into": _method(
        _located,
        "write_into",
        lambda w: {"folder": w.folder},
        folder=kind("path", "text", refused={"a file": lambda w: w.folder / "file"}),
    ),
    "QRNeurons.top": _method(_located, "top"),
    "QuerySet": call(
        lambda w: {"queries": w.queries.queries},
        queries=kind("tuple", "list", refused={"one": lambda w: w.query, "prompts": lambda w: (w.prompt,)}),
        made=kind("tuple", "list", "list of texts"),
    ),
    "QuerySet.__getitem__": _method(_queries, "__getitem__", lambda w: {"query_id": "q1"}, empty=_none),
    "QuerySet.as_chat": _method(
        _queries,
        "as_chat",
        lambda w: {"model": w.model},
        empty=_none,
        model=kind(refused={"without a template": lambda w: w.model}),
        lead=kind("None"),
    ),
    "QuerySet.as_open": _method(lambda w: w.asked, "as_open", empty=_none),
    "QuerySet.for_group": _method(_queries, "for_group", lambda w: {"groups": "g0"}, empty=_none, groups=GROUP),
    "QuerySet.keep": _method(_queries, "keep", lambda w: {"ids": ["q1"]}, empty=_none, ids=IDS, how=TEXT),
    "QuerySet.sample": _method(_queries, "sample", lambda w: {"per_group": 1}, empty=_none, per_group=COUNT),
    "QuerySet.split": _method(_queries, "split", empty=_none, detection=kind()),
    "QuerySet.with_examples": _method(
        _queries,
        "with_examples",
        lambda w: {"k": 1},
        empty=_none,
        k=kind("zero", "one", refused={"more than there are": lambda w: 4}),
    ),
    "RayExecutor": call(
        lambda w: {"model": w.model},
        address=kind("None", "text"),
        workers=COUNT.or_none(),
        threads=COUNT,
    ),
    "activations": call(lambda w: {**_mp(w), "neurons": w.neurons}),
    "answers": call(_mq),
    "attribute": call(
        lambda w: {"model": w.model, "prompts": "Answer:", "targets": 5, "steps": 1},
        prompts=kind("text", refused={"too long": lambda w: "word " * 9999, "no tokens": lambda w: torch.ones(0).long()}),
        targets=kind(
            "zero",
            "one",
            "text",
            refused={"two": lambda w: [5, 6], "several tokens": lambda w: "a long text", "id": lambda w: 10**9},
        ),
        answer=kind("None"),
        against=kind("None"),
        reduce=CHOICE,
    ),
    "check": call(_mq, queries=SOME_QUERIES),
    "cluster_neurons": call(
        lambda w: {**_l(w), "min_queries": 1, "bootstraps": 0},
        method=CHOICE,
        k=kind("None", "one"),
        min_queries=COUNT,
        bootstraps=COUNT_FROM_0,
    ),
    "edit_effects": call(
        lambda w: {**_mq(w), "methods": {}},
        methods=kind(
            "dict",
            refused={
                "unknown query": lambda w: {"m": {"q99": w.neurons}},
                "no sets": lambda w: {"m": w.neurons},
                "sets in a list": lambda w: {"m": [w.neurons]},
                "pairs": lambda w: {"m": {"q1": [(0, 1)]}},
                "outside": lambda w: {"m": {"q1": NeuronSet.of((0, 9999))}},
            },
        ),
        factors=kind("list", "tuple", "list of numbers", "dict", "set", "tensor", "array"),
        executor=kind("None"),
    ),
    "edit_success": call(
        lambda w: {"effects": w.effects, "boost": True},
        boost=FLAG,
        effects=kind(refused={"a column less": EFFECTS.refused["a column less"]}),
    ),
    "enhance": call(_mn, neurons=SOME_NEURONS, factor=NUMBER),
    "estimate": call(_mq),
    "find_neurons": call(_key, budget=kind("None", "module")),
    "letter_probabilities": call(_mp),
    "load_model": call(
        lambda w: {"name_or_folder": "atlas"},
        name_or_folder=FILE,
        device=kind("None", refused=NO_DEVICE),
        dtype=kind("None", refused={"float16": lambda w: torch.float16, "text": lambda w: "float32"}),
    ),
    "load_queries": call(lambda w: {"source": "atlas/domains"}, source=FILE),
    "locate": call(
        _mq,
        queries=SOME_QUERIES,
        read=CHOICE.or_none(),
        out=NEW_FOLDER.or_none(),
        fail_fast=FLAG,
    ),
    "option_probabilities": call(_mp),
    "option_tokens": call(lambda w: {"model": w.model, "prompt": "Answer:"}, prompt=kind("text")),
    "predict_from_neurons": call(
        lambda w: {"model": w.model, "detection": [w.queries.keep(["q1"])], "evaluation": w.queries, "located": w.located},
        detection=kind("list", "tuple", refused={"one set": lambda w: w.queries}),
        evaluation=QUERIES,
        probe_draws=COUNT,
    ),
    "probability_change_ratio": call(lambda w: {"effects": w.effects}),
    "promoted_tokens": call(_mn),
    "rank_neurons": call(_key),
    "reproduce": call(
        lambda w: {"model": w.model, "subjects": [], "out": w.folder / "study"},
        subjects=kind(refused={"one": lambda w: Subject("s", w.queries, (w.queries,)), "names": lambda w: ["domains"]}),
        out=NEW_FOLDER,
        read=CHOICE.or_none(),
        sample=kind("None", refused={"the class": lambda w: Sample}),
    ),
    "scale": call(lambda w: {**_mn(w), "factor": 1}, neurons=SOME_NEURONS, factor=NUMBER),
    "status_of": call(lambda w: {"folder": w.folder}),
    "subject": call(lambda w: {"source": "domains"}, source=FILE, shots=COUNT_FROM_0),
    "suppress": call(_mn, neurons=SOME_NEURONS, factor=NUMBER),
    "transfer": call(
        _mq,
        queries=SOME_QUERIES,
        out=NEW_FOLDER.or_none(),
        texts=Kind(frozenset({"None"}), SOME_QUERIES.refused),
        most=COUNT.or_none(),
    ),
    "plots.heatmap": call(_l, groups=kind("None", refused={"unknown": lambda w: ["g99"], "one": lambda w: "g0"})),
    "plots.layers": call(_l),
    "plots.changes": call(lambda w: {"by_group": group_changes(w.effects)}, by_group=kind()),
    "plots.named_axis": call(lambda w: {"names": ["a"]}, names=kind(*ODD)),
    # rooms
    "methods.Ranking": call(
        lambda w: {"layer": [0], "neuron": [1], "score": [0.5]},
        layer=kind(refused={"two": lambda w: [0, 1]}),
        neuron=kind(refused={"two": lambda w: [0, 1]}),
        score=kind("list of numbers", refused={"two": lambda w: [1.0, 0.5]}),
        own=kind("None", "zero", "one"),
    ),
    "methods.Ranking.of_scores": call(lambda w: {"scores": torch.ones(2, 3)}, scores=kind()),
    "methods.Ranking.top": _method(lambda w: w.ranking, "top", lambda w: {"k": 1}, k=COUNT_FROM_0),
    "methods.at_most": call(lambda w: {"k": 1}),
    "methods.cut": call(
        lambda w: {"rankings": {"q1": w.ranking}, "budget": methods.at_most(1)}, rankings=kind("dict"), budget=kind("module")
    ),
    "methods.equal_counts": call(lambda w: {"sets": {}}, sets=kind("dict")),
    "methods.find_at_equal_counts": call(
        lambda w: {"keys": ["qrnca"], "evidence": w.evidence, "budget": methods.at_most(1)},
        keys=kind("list", "tuple", "dict"),
        budget=kind("module"),
    ),
    "methods.like": call(_l),
    "methods.own_sizes": call(_l),
    "methods.register": call(
        lambda w: {"key": "odd", "name": "Odd", "reference": ""}, key=kind("text", refused={"taken": lambda w: "qrnca"})
    ),
    "methods.register_ranking": call(
        lambda w: {"key": "odd", "name": "Odd", "reference": ""}, key=kind("text", refused={"taken": lambda w: "qrnca"})
    ),
    "methods.score": call(lambda w: {"model": w.model, "prompt": w.prompt, "key": "activation"}, prompt=kind()),
    "methods.share": call(
        lambda w: {"part": 0.5, "model": w.located.model},
        part=kind("one"),
        model=kind(refused={"a model": lambda w: w.model}),
    ),
    "data.Prompt": call(lambda w: {"text": "Answer:", "letter": "A"}, **_PROMPT),
    "data.Query": call(
        lambda w: {"id": "q", "group": "g", "prompts": (w.prompt,)},
        group=TEXT,
        prompts=kind(refused={"one": lambda w: w.prompt, "texts": lambda w: ("Answer:",)}),
        question=kind("text", "empty text"),
        answer=kind("text", "empty text"),
    ),
    "data.Question": call(lambda w: {"id": "q", "group": "g", "question": "Who?", "answer": "I"}, group=TEXT, **_QUESTION),
    "data.form_shares": call(lambda w: {"queries": w.queries}),
    "data.given_away": call(lambda w: {"queries": w.queries}),
    "data.load_questions": call(lambda w: {"source": "atlas/domains"}, source=FILE),
    "data.save_queries": call(
        lambda w: {"queries": w.queries, "path": w.folder / "q.jsonl"},
        queries=kind(refused=SOME_QUERIES.refused),
        path=NEW_FILE,
    ),
    "data.to_multi_choice": call(
        lambda w: {"questions": data.load_questions("atlas/domains")[:40]},
        questions=kind(
            "list",
            "tuple",
            refused={"one": lambda w: data.load_questions("atlas/domains")[0], "queries": lambda w: w.queries},
        ),
        distractors=CHOICE,
    ),
    "localization.common_layer_test": call(_l),
    "localization.common_locations": call(_l),
    "localization.concentration_test": call(lambda w: {**_l(w), "permutations": 9}),
    "localization.group_heatmap": call(_l, group=GROUP.or_none()),
    "localization.jaccard": call(_l),
    "localization.layer_counts": call(_l),
    "localization.layer_test": call(lambda w: {**_l(w), "permutations": 9}),
    "localization.mean_overlap": call(_l, queries=KNOWN_IDS.or_none()),
    "localization.overlap": call(_l),
    "localization.overlap_difference": call(
        lambda w: {"first": w.located, "second": w.located, "draws": 9}, first=LOCATED, second=LOCATED
    ),
    "localization.overlap_rates": call(lambda w: {**_l(w), "draws": 9}),
    "localization.overlap_test": call(lambda w: {**_l(w), "permutations": 9}),
    "localization.significant": call(lambda w: {"test_frame": localization.overlap_test(w.located, 9)}, test_frame=kind()),
    "clustering.ModelShape": call(
        lambda w: {"name": "m", "n_layers": 1, "d_mlp": 2, "fingerprint": "f"},
        n_layers=COUNT,
        d_mlp=COUNT,
        name=kind("text", "empty text"),
        fingerprint=kind("text", "empty text"),
    ),
    "clustering.ModelShape.bin_width": _method(lambda w: w.located.model, "bin_width", lambda w: {"bins": 1}),
    "clustering.NeuronClusters.for_cluster": _method(
        lambda w: w.clusters, "for_cluster", lambda w: {"i": 1}, i=kind("zero", "one", refused={"cluster 99": lambda w: 99})
    ),
    "clustering.check_located": call(_l),
    "clustering.config_of": call(lambda w: {"config": None}),
    "clustering.make_cluster": call(
        lambda w: {"query": "q", "group": "g", "scores": [torch.ones(1, 2)], "threshold": 0.2},
        query=TEXT,
        group=TEXT,
        scores=kind(),
        threshold=kind("zero"),
    ),
    "study.Subject": call(
        lambda w: {"name": "s", "queries": w.queries, "renderings": (w.queries,)},
        renderings=kind("tuple", "list", refused={"one": lambda w: w.queries}),
        fresh=QUERIES.or_none(),
        held_out=QUERIES.or_none(),
    ),
    "study.Subject.as_chat": _method(
        lambda w: Subject("s", w.queries, (w.queries,)), "as_chat", lambda w: {"model": w.model}, model=kind()
    ),
    "study.Sample": call(
        None,
        **dict.fromkeys(("extended", "collateral", "permutations", "draws", "probe_draws", "single_neurons"), COUNT),
    ),
    "study.Sample.beyond": _method(lambda w: Sample(), "beyond", lambda w: {"model": w.located.model}, model=kind()),
}
MADE_HERE = {
    "Attribution", "Check", "Circuit", "Estimate", "NeuronCard", "QueryView", "Transfer",
    "localization.Heatmap", "localization.OverlapDifference", "localization.OverlapRates", "methods.Asked",
    "methods.Method", "clustering.Cluster", "clustering.NeuronClusters", "study.Reproduction", "data.Wording",
}  # fmt: skip
"""Results, which no user makes by hand; their methods are called all the same."""
FOR_METHODS = {"methods.ablate_each", "Check.of", "RayExecutor.close", "RayExecutor.run", "study.Reproduction"}
"""Parts for those who write methods or executors, which take what the package made."""
_ROOMS = {"methods": methods, "data": data, "localization": localization, "clustering": clustering, "study": study}
_ROUTINES = (types.FunctionType, classmethod, staticmethod)
_OPERATORS = {"__getitem__", "__contains__", "__or__", "__and__", "__sub__"}


def public() -> Iterator[tuple[str, Any]]:
    """Every public function, class and method by name: those of the package, and those of the rooms that users import."""
    lacking = {"__version__", *(() if find_spec("ray") else ("RayExecutor",))}
    found = {name: getattr(ql, name) for name in ql.__all__ if name not in lacking}
    for room, module in _ROOMS.items():
        names = [name for name in module.__all__ if name not in ql.__all__]
        found |= {f"{room}.{name}": getattr(module, name) for name in names}
    found |= {f"plots.{name}": thing for name, thing in vars(ql.plots).items() if _is_of(thing, ql.plots.__name__)}
    found |= {"study.Sample": Sample}
    for name, thing in found.items():
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            methods_of = [(f"{name}.{method}", getattr(thing, method)) for method in _methods(thing)]
            yield from ((n, t) for n, t in [(name, thing), *methods_of] if parameters(t))
        elif inspect.isfunction(thing):
            yield name, thing


def _is_of(thing: Any, module: str) -> bool:
    return inspect.isfunction(thing) and thing.__module__ == module and not thing.__name__.startswith("_")


def _methods(kind_of: type) -> list[str]:
    own = [name for base in kind_of.__mro__ if base.__module__.startswith("qrnca_lens") for name in vars(base)]
    named = [name for name in dict.fromkeys(own) if name in _OPERATORS or not name.startswith("_")]
    return [name for name in named if isinstance(inspect.getattr_static(kind_of, name), _ROUTINES)]


def parameters(thing: Any) -> list[str]:
    """What a call of it can be given."""
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "cls")]


@lru_cache(maxsize=1)
def things() -> dict[str, Any]:
    """`public` as a dictionary."""
    return dict(public())


@dataclass(frozen=True)
class OddCall:
    """One odd call; `must`: whether it must be refused."""

    name: str
    make: Callable[[], Any]
    must: bool


def odd_calls(name: str, world: World) -> Iterator[OddCall]:
    """A public name's valid call with each parameter in turn as it should not be, and the call of its empty object."""
    entry = CALLS[name]
    called = entry.of(world) if entry.of else things()[name]
    given = entry.given(world)
    for parameter in parameters(called):
        of = entry.kinds[parameter] if parameter in entry.kinds else BY_NAME[parameter]
        values = [(key, value, True) for key, value in ODD.items() if key not in of.right]
        values += [(key, value(world), True) for key, value in of.refused.items()]
        values += [(key, value(world), False) for key, value in of.either.items()]
        for key, value, must in values:
            arguments = {**given, parameter: value}
            yield OddCall(f"{name}, {parameter}: {key}", lambda a=arguments: _run(called, a), must)
    if entry.empty:
        empty = entry.empty(world)
        yield OddCall(f"{name} of an empty set", lambda: _run(empty, given), False)


def _run(called: Any, given: Mapping[str, Any]) -> Any:
    several = [p.name for p in inspect.signature(called).parameters.values() if p.kind is p.VAR_POSITIONAL]
    spread = [given[name] for name in several if name in given]
    made = called(*spread, **{name: value for name, value in given.items() if name not in several})
    if isinstance(made, AbstractContextManager):
        with made:
            pass
    return made


def fault(odd: OddCall) -> str:
    """What is wrong with how an odd call ends; "" where it ends in an error that the package raises, with a message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = odd.make()
    except Exception as error:  # noqa: BLE001 - which errors there are is what is asked
        return fault_of(error)
    return f"is taken, and gives {type(made).__name__}" if odd.must else ""


def fault_of(error: Exception) -> str:
    """What is wrong with an error; "" for one that is raised by a `raise` of the package and says something."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {error}"[:150]
    if "/qrnca_lens/" not in frame.filename or not _is_raise(frame):
        return f"{told} (from {Path(frame.filename).name}:{frame.lineno} {frame.line})"
    if not isinstance(error, (ValueError, KeyError, IndexError, TypeError, RuntimeError, OSError)) or len(str(error)) < 12:
        return f"says too little: {told}"
    if isinstance(error, TypeError) and type(error) is TypeError:
        return f"is no WrongKindError: {told}"
    return ""


def run_valid(name: str, world: World) -> Any:
    """The valid call of a public name."""
    entry = CALLS[name]
    return _run(entry.of(world) if entry.of else things()[name], entry.given(world))


def _is_raise(frame: traceback.FrameSummary) -> bool:
    return linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise")
