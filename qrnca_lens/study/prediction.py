"""Neuron-based prediction: the answer from the activity of a group's QR neurons alone (paper, table 7).

The paper says that all neurons of a domain are grouped and the answer is predicted solely from their activity on questions
not used for detection; it does not say how. The protocol here:

1. The queries of every group are split in two. QR neurons (clusters, ica, common neurons) come from the detection half
   alone.
2. The activity of a prompt is what W_out multiplies at its last position, for the group's QR neurons; nothing else is
   read.
3. Two readings turn an activity into an answer. "probe": a multinomial logistic regression fitted on the prompts of the
   group's detection half (standardised, its penalty chosen by cross-validation over detection queries). The probe learns
   the letter from activity: it tells what the neurons know, whatever they do with it. "direct": no fitting; the letter that
   the neurons write is read (`study.direct`): it tells what they say. It is read of all neurons and of each layer's alone.
   Open prompts show no options, so that nothing in an activity could tell a probe which of them is called A: they have the
   direct reading alone, of the first token of each option's text. Queries with options that begin with the same token are
   left out, since this reading cannot tell these apart.
4. Both are scored on the prompts of the group's evaluation half, beside the prompted model, chance, and random neurons of
   the same layers read in the same two ways. Random neurons are drawn many times, in each layer as many as the group has QR
   neurons there, and none of the group's QR neurons is among them; common neurons may be.

No evaluated question has any part in detection, fitting or the choice of the penalty.

`p` = (1 + draws with at least as many right prompts as the QR neurons) / (1 + draws): the chance of such an accuracy if the
QR neurons were random neurons of their layers, on these questions. `p_corrected` is `p` after Holm's correction for the
number of groups, within a reading and its layers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.parallel import Parallel, delayed

from qrnca_lens.attribution.options import next_tokens, option_probabilities, options_and_activations
from qrnca_lens.attribution.targets import likeliest
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.clustering.qr_neurons import check_located
from qrnca_lens.core.intervals import clustered_interval, quantile_interval
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import all_of, seed_number, whole_number
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.data.query import check_query_set
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.localization.significance import holm
from qrnca_lens.methods.controls import disjoint_draws
from qrnca_lens.models import HookedModel, check_hooked
from qrnca_lens.study.direct import ALL, Sets, written_options

_PENALTIES = (0.001, 0.01, 0.1, 1.0)
_FOLDS = 5
COLUMNS = ["group", "neurons", "reading", "layers", "count", "right", "of", "accuracy", "low", "high",
           "draws", "random_mean", "random_low", "random_high", "p", "p_corrected"]  # fmt: skip


def predict_from_neurons(
    model: HookedModel,
    detection: Sequence[QuerySet],
    evaluation: QuerySet,
    located: QRNeurons,
    *,
    draws: int = 200,
    probe_draws: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """COLUMNS, a row a (group, neurons, reading, layers): for each group the prompted model, then its QR neurons, read by
    the probe and directly, with `layers` "all", and directly with one layer each.

    `count` is the number of neurons; `right` of `of` prompts gives `accuracy`, `low` to `high` its 95 % interval over
    questions (`core.intervals.clustered_interval`). `random_mean`, `random_low` and `random_high` are the mean accuracy and
    the 2.5 % and 97.5 % quantiles of `draws` draws of random neurons (for the probe, which is fitted anew for each,
    `probe_draws`). Where more than half of a layer are QR neurons of the group, no others can stand for them: `draws` is 0
    for that layer and for all together, and what rests on them is NaN, as it is for the prompted model.

    `detection`: the detection queries, once or in several renderings (other shuffles), which give the probe more prompts.
    `located` must rest on detection queries alone; those that failed in it are not fitted on. Left out are groups without
    QR neurons, those whose queries all failed and, of open prompts, queries with options that begin alike.
    Raises ValueError if a query stands on both sides or `located` knows an evaluated query, or for no draws, ModelError for
    an architecture whose residual stream cannot be read.
    """
    check_hooked(model)
    check_query_set(evaluation)
    check_located(located)
    detection = all_of(
        "detection", detection, QuerySet, "a list of QuerySet: the detection queries in one or more renderings"
    )
    seed, draws = seed_number(seed), whole_number("draws", draws, at_least=1)
    probe_draws = whole_number("probe_draws", probe_draws, at_least=1)
    fitted = _fitted(detection, evaluation, located)
    lost = set(located.failed["group"]) - set(located.groups)
    rows = []
    for group in evaluation.groups:
        neurons = NeuronSet() if group in lost else located.for_group(group)
        asked, fitting = ([query for query in side if query.group == group] for side in (evaluation, fitted))
        asked = [query for query in asked if _options_differ(model, query)]
        if not len(neurons) or not asked:
            continue
        sets = _sets(neurons, located.model.d_mlp, max(draws, probe_draws), seed)
        direct = written_options(model, _prompts(asked), _first(sets, 1 + draws))
        if evaluation.read == "letter":
            prompted, probe = _probed(model, fitting, asked, _first(sets, 1 + probe_draws), seed)
            probes = [("QR neurons", "probe", ALL, len(neurons), probe)]
        else:
            prompted, probes = likeliest(option_probabilities(model, _prompts(asked))).numpy()[None], []
        counts = {ALL: len(neurons)} | {str(layer): indices.shape[1] for layer, indices in sets.items()}
        readings = [
            ("the prompted model", "", "", 0, prompted),
            *probes,
            *(("QR neurons", "direct", layers, count, direct[layers]) for layers, count in counts.items()),
        ]
        rows += [(group, *about, *_scored(options, asked)) for *about, options in readings]
    found = pd.DataFrame(rows, columns=COLUMNS[:-1])
    found[COLUMNS[-1]] = found.groupby(["reading", "layers"])["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    return found


def _fitted(detection: Sequence[QuerySet], evaluation: QuerySet, located: QRNeurons) -> list[Query]:
    """The detection queries that did not fail, none of which is evaluated."""
    failed, evaluated = set(located.failed["query"]), {query.id for query in evaluation}
    fitted = [query for queries in detection for query in queries if query.id not in failed]
    for side, ids in (("detection", {query.id for query in fitted}), ("located", set(located.queries["query"]))):
        shared = sorted(ids & evaluated)
        if shared:
            raise ValueError(f"query {shared[0]!r} is evaluated and in {side}: the prediction would know its answer")
    return fitted


def _options_differ(model: HookedModel, query: Query) -> bool:
    """Whether each prompt's options have tokens of their own right after it, as letters always have."""
    if query.read == "letter":
        return True
    return all(len(set(tokens.ids)) == len(tokens.ids) for tokens in next_tokens(model, query.prompts))


def _sets(neurons: NeuronSet, d_mlp: int, draws: int, seed: int) -> Sets:
    """By layer the indices of `neurons`, and under them those of each draw of others; no draw where there are too few."""
    drawn = disjoint_draws(neurons, d_mlp, draws=draws, seed=seed)
    own = {layer: np.array([indices]) for layer, indices in neurons.by_layer().items()}
    return {layer: np.concatenate([one, drawn[layer]]) if layer in drawn else one for layer, one in own.items()}


def _first(sets: Sets, count: int) -> Sets:
    return {layer: indices[:count] for layer, indices in sets.items()}


def _prompts(queries: Sequence[Query]) -> list[Prompt]:
    return [prompt for query in queries for prompt in query.prompts]


def _scored(options: Int[np.ndarray, "set prompt"], asked: Sequence[Query]) -> tuple[object, ...]:
    """The columns from right to p, of what is read of the QR neurons (row 0) and of each draw."""
    right = options == np.array([prompt.right for prompt in _prompts(asked)])
    unit = np.unique([query.unit for query in asked for _ in query.prompts], return_inverse=True)[1]
    counts, of, draws = right.sum(1), len(unit), len(right) - 1
    own, random = int(counts[0]), counts[1:] / of
    interval = clustered_interval(np.bincount(unit[right[0]], minlength=unit.max() + 1), np.bincount(unit))
    mean, p = (random.mean(), (1 + (counts[1:] >= own).sum()) / (1 + draws)) if draws else (math.nan, math.nan)
    return (own, of, own / of, *interval, draws, float(mean), *quantile_interval(random), float(p))


def _probed(
    model: HookedModel, fitting: Sequence[Query], asked: Sequence[Query], sets: Sets, seed: int
) -> tuple[Int[np.ndarray, "1 prompt"], Int[np.ndarray, "set prompt"]]:
    """The letters that the model answers, and those that a probe fitted on each set reads (sets that every layer has)."""
    known = {layer: np.unique(indices) for layer, indices in sets.items()}
    every = NeuronSet.of(*((layer, index) for layer, indices in known.items() for index in indices.tolist()))
    starts = dict(zip(known, np.cumsum([0, *map(len, known.values())]), strict=False))
    places = [starts[layer] + np.searchsorted(known[layer], indices) for layer, indices in sets.items()]
    count = min(map(len, places))
    columns = np.concatenate([place[:count] for place in places], axis=1)
    learned = last_activations(model, [prompt.text for prompt in _prompts(fitting)], every).numpy()
    p, activity = options_and_activations(model, _prompts(asked), every)
    tasks = (delayed(_probe)(learned[:, some], fitting, activity.numpy()[:, some], seed) for some in columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # threads, since processes would outlive a call that is killed
        read = list(Parallel(n_jobs=-1, prefer="threads")(tasks))
    return likeliest(p).numpy()[None], np.array(read, dtype=int)


def _probe(
    learned: Float[np.ndarray, "fitted neuron"],
    fitting: Sequence[Query],
    activity: Float[np.ndarray, "asked neuron"],
    seed: int,
) -> Int[np.ndarray, " asked"]:
    """The letters that a probe reads in `activity`; `learned` has a row for every prompt of `fitting`, in their order.

    A fold without which one letter alone would be left chooses no penalty; where that is so of all, the strongest is taken.
    """
    prompts = [(query.id, prompt) for query in fitting for prompt in query.prompts]
    letters = np.array([prompt.right for _, prompt in prompts])
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, random_state=seed))
    folds = GroupKFold(min(_FOLDS, len({query.id for query in fitting})), shuffle=True, random_state=seed)
    parts = folds.split(learned, letters, [query for query, _ in prompts])
    usable = [(train, test) for train, test in parts if len(np.unique(letters[train])) > 1]
    penalties = {"logisticregression__C": _PENALTIES if usable else _PENALTIES[:1]}
    whole = np.arange(len(letters))
    search = GridSearchCV(regression, penalties, cv=usable or [(whole, whole)])
    return search.fit(learned, letters).predict(activity)
