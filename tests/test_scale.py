"""What is looked up and drawn at size gives what the plain way gives: here the plain way stands, for small sets."""

from __future__ import annotations

import base64
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from handmade import made
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_samples

from qrnca_lens.clustering import QRNeurons, cluster_neurons
from qrnca_lens.clustering.saving import SavedTables
from qrnca_lens.core.neurons import Neuron, NeuronSet
from qrnca_lens.data import ALL_GROUPS, LETTERS, DataError, Prompt, Query, QuerySet, Question
from qrnca_lens.data.forms import by_form
from qrnca_lens.data.multi_choice import DistractorPool, Distractors
from qrnca_lens.data.texts import normalise
from qrnca_lens.engine.activity import last_activations
from qrnca_lens.localization import group_heatmap
from qrnca_lens.localization.shuffles import exchangeable
from qrnca_lens.runs.parts import Part, Parts
from qrnca_lens.views import drawing
from qrnca_lens.views.explorer import activity as explorer_activity
from qrnca_lens.views.explorer import page as explorer_page
from qrnca_lens.views.explorer.activity import Activity
from qrnca_lens.views.explorer.selection import catalog_of, part_of
from qrnca_lens.views.explorer.session import Session
from qrnca_lens.views.explorer.state import CatalogQuery, KeptNeuron, KeptQuery

_ANSWERS = [
    "12 km",
    "7",
    "x = 2",
    "H2O",
    "NaCl",
    "Paris",
    "the Hague",
    "paris",
    "a long phrase of five",
    "It ends. Here, yes.",
]


def plain_draw(
    questions: list[Question], question: Question, rng: random.Random, distractors: Distractors
) -> tuple[str, ...]:
    """Every answer of the pool looked at for every question."""
    answers: dict[str, str] = {}
    for item in questions:
        if (item.group, item.relation) == (question.group, question.relation):
            answers.setdefault(normalise(item.answer), item.answer)
    right = {normalise(text) for text in (question.answer, *question.also_right)}
    pool = [text for key, text in answers.items() if key not in right]
    drawn: list[str] = []
    for tier in [pool] if distractors == "any" else by_form(question.answer, pool):
        drawn += rng.sample(tier, min(len(tier), 3 - len(drawn)))
    return tuple(drawn)


@pytest.mark.parametrize("distractors", ["any", "same form"])
@pytest.mark.parametrize("size", [24, 40, 300])
def test_distractors_are_those_of_the_plain_way(size: int, distractors: Distractors) -> None:
    rng = random.Random(size)
    answers = [f"{rng.choice(_ANSWERS)} {'' if rng.random() < 0.3 else rng.randrange(size)}".strip() for _ in range(size)]
    questions = [
        Question(
            f"q{i}", f"g{i % 2}", "Which?", answer, relation=f"r{i % 3 // 2}", also_right=tuple(rng.sample(answers, i % 3))
        )
        for i, answer in enumerate(answers)
    ]
    pool, compared = DistractorPool(questions), 0
    for item in questions:
        wanted = plain_draw(questions, item, random.Random(item.id), distractors)
        if len(wanted) < 3:
            with pytest.raises(DataError, match="fewer than 4 distinct options"):
                pool.draw(item, random.Random(item.id), distractors)
            continue
        assert pool.draw(item, random.Random(item.id), distractors) == wanted
        compared += 1
    assert compared > size / 3


def some(size: int) -> QuerySet:
    queries = [
        Query(f"q{i}", f"g{i % 7}", tuple(Prompt(f"{t} {i}:", LETTERS[i % 4]) for t in "ab"), fact=f"f{i // 2}")
        for i in range(size)
    ]
    random.Random(0).shuffle(queries)
    return QuerySet(tuple(queries))


def test_queries_are_found_and_drawn_as_by_the_plain_way() -> None:
    queries = some(100)
    for query in queries:
        assert queries[query.id] is query
    for odd in ("q100", ""):
        with pytest.raises(KeyError, match="no query"):
            queries[odd]
    for per_group in (1, 5, 50):
        wanted: set[str] = set()
        for group in queries.groups:
            ids = [query.id for query in queries if query.group == group]
            wanted |= set(random.Random(f"3/{group}").sample(ids, min(per_group, len(ids))))
        assert {query.id for query in queries.sample(per_group, 3)} == wanted


def test_examples_depend_on_seed_and_ids_alone() -> None:
    queries = some(60)
    before = {query.id: query.prompts[0].text for query in queries.with_examples(3, seed=5)}
    backwards = QuerySet(queries.queries[::-1]).with_examples(3, seed=5)
    assert {query.id: query.prompts[0].text for query in backwards} == before
    assert {query.id: query.prompts[0].text for query in queries.with_examples(3, seed=6)} != before
    gone = "q11"
    changed = {
        q.id
        for q in queries.keep({q.id for q in queries} - {gone}).with_examples(3, seed=5)
        if q.prompts[0].text != before[q.id]
    }
    assert changed == {key for key, text in before.items() if "a 11:" in text and key != gone}
    by_id = {query.id: query for query in queries}
    used: dict[str, int] = {}
    for key, text in before.items():
        shown = [line.split()[1].rstrip(":") for line in text.split("\n\n")]
        assert shown[-1] == key[1:] and len(shown) == 4
        examples = [by_id[f"q{number}"] for number in shown[:-1]]
        assert len({one.unit for one in (*examples, by_id[key])}) == 4
        assert {one.group for one in examples} == {by_id[key].group}
        for one in examples:
            used[one.id] = used.get(one.id, 0) + 1
    assert len(used) > 40, "a few queries are the examples of all"


def test_neurons_of_a_query_are_those_of_the_plain_way(run: tuple[Any, Any]) -> None:
    located = run[1]
    for query in located.queries["query"]:
        plain = located.table[located.table["query"] == query]
        assert located.for_query(query) == NeuronSet.from_frame(plain)
    with pytest.raises(KeyError, match="no query"):
        located.for_query("nothing")


def drawn_run(seed: int, size: int = 40, groups: int = 3) -> QRNeurons:
    """Clusters of up to eight of 40 neurons, some of them in most clusters."""
    rng = np.random.default_rng(seed)
    group_of = {f"q{i}": f"g{rng.integers(groups)}" for i in range(size)}
    rows = [
        (query, int(flat) // 20, int(flat) % 20, float(rng.uniform(1, 2)))
        for query in group_of
        for flat in np.unique(np.minimum(rng.integers(0, 40, 8), rng.integers(0, 60, 8)))
    ]
    return made(rows, group_of, n_layers=2, d_mlp=20, common_share=1.0)


@pytest.mark.parametrize("seed", range(6))
def test_clusters_of_neurons_are_those_of_a_dense_table(seed: int) -> None:
    located, k = drawn_run(seed), 4
    found = cluster_neurons(located, k=k, bootstraps=0)
    dense = located.table.pivot(index=["layer", "neuron"], columns="query", values="naica")
    dense = dense[dense.notna().sum(axis=1) >= 2].fillna(0.0)
    group_of = located.queries.set_index("query")["group"]
    order = sorted(group_of.index, key=lambda query: located.groups.index(group_of[query]))
    unit = dense[order].to_numpy() / np.linalg.norm(dense.to_numpy(), axis=1, keepdims=True)
    labels = AgglomerativeClustering(n_clusters=k, metric="cosine", linkage="average").fit_predict(unit)
    silhouette = pd.Series(silhouette_samples(unit, labels, metric="cosine"), dense.index)
    mine = found.table.set_index(["layer", "neuron"]).loc[dense.index]
    assert len(set(zip(labels, mine["cluster"], strict=True))) == k, "the same parts, by other numbers"
    np.testing.assert_allclose(mine["silhouette"], silhouette, atol=1e-12)
    np.testing.assert_allclose(found.profiles.loc[dense.index].to_numpy(), unit, atol=1e-12)
    assert [query for _, query in found.profiles.columns] == order
    wanted = dense.groupby(mine["cluster"].to_numpy()).sum().T.groupby(group_of).sum().T
    np.testing.assert_allclose(found.groups[list(wanted.columns)], wanted.div(wanted.sum(axis=1), axis=0), atol=1e-12)


def test_profiles_hold_no_zeros() -> None:
    located = drawn_run(0, size=400)
    found = cluster_neurons(located, method="k-means", k=3, bootstraps=1)
    held = sum(len(found.profiles.iloc[:, i].array.sp_values) for i in range(400))
    assert held == found.profiles.astype(bool).to_numpy().sum() == (located.table["naica"] != 0).sum()
    assert located.profiles.values.nnz == len(located.scored)


@pytest.mark.parametrize("group", [None, "g0", "g1"])
def test_a_map_is_that_of_the_plain_way(group: str | None) -> None:
    located = drawn_run(1)
    rows = located.table if group is None else located.table[located.table["group"] == group]
    found = group_heatmap(located, group, bins=5)
    assert found.values.sum() == pytest.approx(rows["naica"].sum())
    for layer in range(2):
        for cell in range(5):
            mine = rows[(rows["layer"] == layer) & (rows["neuron"] // 4 == cell)]
            sums = mine.groupby("neuron")["naica"].sum()
            assert found.values[layer, cell] == pytest.approx(sums.sum())
            assert found.neurons[layer, cell] == len(sums)
            if len(sums):
                assert found.best[layer, cell] == sums.idxmax()
                best = mine[mine["neuron"] == sums.idxmax()]
                assert found.query[layer, cell] == best.loc[best["naica"].idxmax(), "query"]


def asked_of(located: QRNeurons) -> QRNeurons:
    """The same run with prompts."""
    rows = located.queries[["query", "group"]].itertuples(index=False)
    return replace(located, asked=QuerySet(tuple(Query(q, g, (Prompt(f"Which? {q}:", "A"),)) for q, g in rows)))


def test_the_catalog_is_that_of_the_plain_way() -> None:
    located = asked_of(drawn_run(2, size=60, groups=12))
    catalog = catalog_of(located)
    by_id = {query.id: query for query in catalog.queries}
    assert list(by_id) == list(located.queries["query"])
    for query in catalog.queries:
        mine = located.table[located.table["query"] == query.id]
        assert query.neurons == tuple(mine[["layer", "neuron", "naica"]].itertuples(index=False, name=None))
    assert [group.name for group in catalog.groups] == [ALL_GROUPS, *located.groups]
    for group in catalog.groups:
        name = None if group.name == ALL_GROUPS else group.name
        mine = [query for query in catalog.queries if name in (None, query.group)]
        assert group.query == max(mine, key=lambda query: query.neurons[0][2]).id
        assert group.map == drawing.grid(group_heatmap(located, name))
    kept = [query.id for query in catalog.queries[::7]]
    part = part_of(catalog, kept)
    assert [query.id for query in part.queries] == kept
    assert {query for places in part.neurons.values() for query in places} <= set(kept)
    assert {group.name for group in part.groups} == {ALL_GROUPS, *(by_id[query].group for query in kept)}


def test_sets_whose_labels_change_places_are_those_of_the_plain_way() -> None:
    rng = np.random.default_rng(0)
    for facts in (3, 30, 300):
        groups, units = rng.integers(0, 4, 200), rng.integers(0, facts, 200)
        units = np.unique(units, return_inverse=True)[1]
        spans = [len(set(groups[units == unit])) for unit in units]
        block = np.where(np.array(spans) > 1, units, -1)
        wanted = [np.flatnonzero(block == number).tolist() for number in np.unique(block)]
        assert [members.tolist() for members in exchangeable(groups, units)] == wanted


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_characters_are_folded_as_all_are(text: str) -> None:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    shown = "".join(character for character in folded if character.isprintable() or character.isspace())
    assert normalise(text) == " ".join(shown.split())


def test_the_folder_of_parts_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    located, looked = drawn_run(3), []
    parts = Parts(tmp_path, {}, located.model, dict.fromkeys(located.queries["query"], "0"))
    listed = Path.iterdir

    def counted(path: Path) -> Any:
        looked.extend([path] if path == tmp_path else [])
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", counted)
    for _ in range(12):
        parts.write(Part(SavedTables(located.clusters, located.queries, located.gaps)))
    monkeypatch.undo()
    assert sorted(there.name for there in tmp_path.iterdir()) == [f"{number:05d}" for number in range(12)]
    assert looked == [tmp_path]


def test_activations_are_kept_as_far_as_there_is_room(run: tuple[Any, QRNeurons], monkeypatch: pytest.MonkeyPatch) -> None:
    model, located = run
    texts = [prompt.text for query in located.asked for prompt in query.prompts]
    neurons = sorted(NeuronSet.from_frame(located.ranked))[:9]
    wanted = dict(zip(neurons, last_activations(model, texts, NeuronSet(tuple(neurons))).T.numpy(), strict=True))
    read: list[int] = []
    monkeypatch.setattr(explorer_activity, "NUMBERS", 4 * len(texts))
    monkeypatch.setattr(explorer_activity, "READ_LATER", 3)
    monkeypatch.setattr(
        explorer_activity, "last_activations", lambda *args: (read.append(len(args[2])), last_activations(*args))[1]
    )
    kept = Activity(model, located, neurons)
    assert kept._table.shape == (len(texts), 4)
    for neuron in neurons[:4]:
        np.testing.assert_allclose(kept.of(neuron, list), wanted[neuron], atol=1e-6)
    assert read == []
    for neuron in neurons[4:6]:
        np.testing.assert_allclose(kept.of(neuron, lambda: neurons[2:6]), wanted[neuron], atol=1e-6)
    assert read == [2], "with the neurons near it that are not known"
    for neuron in neurons[6:8]:
        np.testing.assert_allclose(kept.of(neuron, list), wanted[neuron], atol=1e-6)
    assert set(kept._later) == set(neurons[5:8]), "the one asked for longest ago is forgotten"
    kept.of(neurons[4], list)
    assert read == [2, 1, 1, 1]


def test_what_is_read_of_a_run_is_what_is_shown_most(run: tuple[Any, QRNeurons]) -> None:
    model, located = run
    everything = list(Session(model, located)._likely())
    ranked = [Neuron(*row) for row in located.top(1000)[["layer", "neuron"]].itertuples(index=False, name=None)]
    assert everything[: len(ranked)] == ranked
    assert set(everything) == set(NeuronSet.from_frame(located.clusters))
    session = Session(model, located, catalog_of(located, top=1, per_group=1))
    assert session._activity._table.shape[1] == len({query.neurons[0][:2] for query in session.catalog.queries})


class Drawn(Session):
    """A session that shows noise, as large as real views, so that a page of it packs as badly as can be."""

    def __init__(self, model: Any, located: QRNeurons, catalog: Any) -> None:
        self.model, self.located, self.catalog = model, located, catalog


def noise_of(_: Session, query: CatalogQuery, cards: dict[str, str]) -> tuple[KeptQuery, dict[str, str]]:
    names = [str(Neuron(layer, index)) for layer, index, _ in query.neurons]

    def text(*of: str) -> str:
        return base64.b64encode(random.Random("/".join(of)).randbytes(10_000)).decode()

    neurons = {name: KeptNeuron(text(query.id, name), [[0.25] * 4]) for name in names}
    new = {name: text(name) for name in names if name not in cards}
    return KeptQuery(text(query.id), list(LETTERS), "A", [[0.25] * 4], neurons), new


def test_a_page_of_thousands_of_queries_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, groups = 4000, 40
    group_of = {f"q{i}": f"g{i % groups}" for i in range(count)}
    rows = [(query, i % 2, i % 2000 + k, 1.0 + k) for i, query in enumerate(group_of) for k in range(2)]
    located = asked_of(made(rows, group_of, n_layers=2, d_mlp=2100))
    monkeypatch.setattr(explorer_page, "Session", Drawn)
    monkeypatch.setattr(explorer_page, "_kept", noise_of)
    page = explorer_page.write_explorer(None, located, tmp_path / "page.html", per_group=4, progress=False)
    assert 8_000_000 < page.stat().st_size < 10_000_000
    told = page.read_text("utf-8")[:20_000]
    kept = int(told.split(f" of {count} queries")[0].split("<p>")[-1])
    assert groups < kept < 4 * groups, "one of each group, and not all that were wished for"
    assert f"Not in this page: {count - kept} queries. It keeps the first 4 queries" in told
    assert f"but for {4 * groups - kept} with which" in told and "ql.Explorer(model, queries, located)" in told


def test_a_page_keeps_its_queries_in_rounds() -> None:
    queries = [CatalogQuery(f"q{i}", group, "", ()) for i, group in enumerate("aabacb")]
    assert [query.id for query in explorer_page._in_rounds(queries)] == ["q0", "q2", "q4", "q1", "q5", "q3"]
