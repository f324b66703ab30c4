"""Neuron-based prediction: the answer from the activity of a group's QR neurons alone (paper, table 7).

The paper says that all neurons of a domain are grouped and the answer is predicted solely from their activity on questions
not used for detection; it does not say how. The protocol here:

1. The queries of every group are split in two. QR neurons (clusters, ica, common neurons) come from the detection half
   alone.
2. The activity of a prompt is what W_out multiplies at its last position, for the group's QR neurons; nothing else is
   read.
3. Two readings turn an activity into a letter. "probe": a multinomial logistic regression fitted on the prompts of the
   group's detection half (standardised, its penalty chosen by cross-validation over detection queries). "direct": no
   fitting; the neurons' rows of W_out, weighted by their activity and summed, go through the final norm and the
   unembedding, and the likeliest of the four letters is the answer. Where a norm follows the MLP, the neurons of a layer
   go through it first, its scale held at its value on that prompt (`readout.residual`).
4. Both are scored on the prompts of the group's evaluation half, beside the prompted model, chance, and as many random
   neurons of the same layers read in the same two ways.

No evaluated question has any part in detection, fitting or the choice of the penalty.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from qrnca_lens.attribution.letters import letters_and_activations, option_tokens
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.intervals import wilson_interval
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.core.values import seed_number
from qrnca_lens.data import Prompt, Query, QuerySet
from qrnca_lens.engine.activity import batches_of_one_length, last_activations
from qrnca_lens.methods.controls import random_sets
from qrnca_lens.models import HookedModel, to_tokens
from qrnca_lens.readout.residual import Readout, logits_of

_PENALTIES = (0.001, 0.01, 0.1, 1.0)
_FOLDS = 5
_BATCH = 64
COLUMNS = ["group", "neurons", "reading", "count", "right", "of", "accuracy", "low", "high"]


def predict_from_neurons(
    model: HookedModel, detection: Sequence[QuerySet], evaluation: QuerySet, located: QRNeurons, *, seed: int = 0
) -> pd.DataFrame:
    """One row a (group, neurons, reading) with COLUMNS; accuracy with a 95 % Wilson interval over prompts.

    `detection`: the detection queries, once or in several renderings (other shuffles), which give the probe more prompts.
    `located` must rest on detection queries alone; those that failed in it are not fitted on. Left out are groups without
    QR neurons and those whose queries all failed.
    Raises ValueError if a query stands on both sides or `located` knows an evaluated query, ModelError for an architecture
    whose residual stream cannot be read.
    """
    seed = seed_number(seed)
    failed = located.failed
    fitted = [query for queries in detection for query in queries if query.id not in set(failed["query"])]
    evaluated = {query.id for query in evaluation}
    for side, ids in (("detection", {query.id for query in fitted}), ("located", set(located.queries["query"]))):
        shared = sorted(ids & evaluated)
        if shared:
            raise ValueError(f"query {shared[0]!r} is evaluated and in {side}: the prediction would know its answer")
    rows = []
    lost = set(failed["group"]) - set(located.groups)
    for group in evaluation.groups:
        neurons = NeuronSet() if group in lost else located.for_group(group)
        if not len(neurons):
            continue
        asked = [prompt for query in evaluation if query.group == group for prompt in query.prompts]
        right = np.array([prompt.right for prompt in asked])
        controls = random_sets({group: neurons}, located.model.d_mlp, seed=seed)[group]
        both = neurons | controls
        fitting = [query for query in fitted if query.group == group]
        letters, activations = letters_and_activations(model, asked, both)
        activity = activations.numpy()
        rows.append(_row(group, "the prompted model", "", 0, letters.argmax(1).numpy() == right))
        learned = last_activations(model, [prompt.text for query in fitting for prompt in query.prompts], both).numpy()
        sets = {"QR neurons": neurons, "random, same layers": controls}
        direct = _direct(model, asked, sets)
        for name, chosen in sets.items():
            columns = [k for k, neuron in enumerate(sorted(both)) if neuron in chosen]
            probe = _probe(learned[:, columns], fitting, seed)
            found = probe.predict(activity[:, columns]) == right
            rows.append(_row(group, name, "probe", len(chosen), found))
            found = direct[name] == right
            rows.append(_row(group, name, "direct", len(chosen), found))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(group: str, neurons: str, reading: str, count: int, right: np.ndarray) -> tuple[object, ...]:
    found, of = int(right.sum()), len(right)
    return (group, neurons, reading, count, found, of, float(right.mean()), *wilson_interval(found, of))


def _probe(activity: np.ndarray, queries: Sequence[Query], seed: int) -> GridSearchCV:
    """The fitted probe; `activity` has a row for every prompt of `queries`, in their order."""
    prompts = [(query.id, prompt) for query in queries for prompt in query.prompts]
    letters = np.array([prompt.right for _, prompt in prompts])
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, random_state=seed))
    folds = GroupKFold(min(_FOLDS, len({query.id for query in queries})), shuffle=True, random_state=seed)
    search = GridSearchCV(regression, {"logisticregression__C": list(_PENALTIES)}, cv=folds, n_jobs=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return search.fit(activity, letters, groups=[query for query, _ in prompts])


@torch.no_grad()
def _direct(model: HookedModel, prompts: Sequence[Prompt], sets: Mapping[str, NeuronSet]) -> dict[str, np.ndarray]:
    """For each set the letter (0 to 3) that what its neurons write at the end of each prompt makes the likeliest."""
    tokens = [to_tokens(model, prompt.text) for prompt in prompts]
    ids = torch.tensor([option_tokens(model, prompt.text).ids for prompt in prompts])
    layers = sorted({neuron.layer for neurons in sets.values() for neuron in neurons})
    found = {name: np.empty(len(prompts), dtype=int) for name in sets}
    for rows in batches_of_one_length(tokens, _BATCH):
        read = Readout(model, torch.stack([tokens[row] for row in rows]), layers)
        for name, neurons in sets.items():
            written = torch.zeros_like(read.final())
            for layer, indices in neurons.by_layer().items():
                shares = read.post(layer)[:, indices] @ model.blocks[layer].mlp.W_out[indices].float()
                written += read.added(layer, shares)
            logits = logits_of(model, written).cpu()
            found[name][rows] = logits.gather(1, ids[rows]).argmax(1).numpy()
    return found
