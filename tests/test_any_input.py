"""Whatever is given, a call gives a result or one of the package's own errors: any bytes, any JSON, any values."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_calls import ODD, OddCall, fault
from runs import CONFIG, same

import qrnca_lens as ql
from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.alone import LOCK
from qrnca_lens.core.store import DamageWarning, RunError
from qrnca_lens.data import Prompt, Query, QuerySet, Question, load_questions
from qrnca_lens.localization import group_heatmap, overlap_rates
from qrnca_lens.methods import at_most
from qrnca_lens.runs.pipeline import locate
from qrnca_lens.study.reproduction import Sample

pytestmark = pytest.mark.usefixtures("unchecked")
few = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([*ODD.values()]),
)
TEXTS = st.text(max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
PROMPT = {"text": "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer:", "letter": "A", "template": "", "options": ["a", "b", "c", "d"]}
ROWS = {
    "question": {"id": "q", "group": "g", "question": "Who?", "answer": "a", "distractors": ["b", "c", "d"]},
    "query": {"id": "q", "group": "g", "prompts": [PROMPT], "question": "Who?", "answer": "a"},
    "official": {"sentences": ["Who?\nAnswer:"], "obj_label": ["A"], "relation_name": "g"},
}


def ends_well(call: Callable[[], Any]) -> None:
    """A call gives a result or an error that the package raises, with a message."""
    assert not fault(OddCall("", call, must=False))


def ends_well_on_disk(path: Path) -> None:
    for read in (ql.load_queries, load_questions):
        ends_well(lambda read=read: read(path))


@few
@given(content=st.binary(max_size=200), ending=st.sampled_from(["jsonl", "csv", "json", "txt", ""]))
def test_any_bytes_as_a_question_file(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"any.{ending}"
    path.write_bytes(content)
    ends_well_on_disk(path)


@few
@given(content=st.one_of(JSON, st.lists(JSON, max_size=3)), ending=st.sampled_from(["jsonl", "json"]))
def test_any_json_as_a_question_file(content: Any, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"any.{ending}"
    lines = content if ending == "jsonl" and isinstance(content, list) else [content]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    ends_well_on_disk(path)


@few
@given(data=st.data())
def test_a_row_with_any_value_in_any_field(data: st.DataObject, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from([*ROWS]))
    row = json.loads(json.dumps(ROWS[kind]))
    where = row["prompts"][0] if kind == "query" and data.draw(st.booleans()) else row
    where[data.draw(st.one_of(st.sampled_from([*where]), TEXTS))] = data.draw(JSON)
    path = tmp_path / ("any.json" if kind == "official" else "any.jsonl")
    path.write_text(json.dumps({"q": row} if kind == "official" else row), encoding="utf-8")
    ends_well_on_disk(path)


@few
@given(rows=st.lists(st.lists(st.text("ab,\"'\n\r;ü\x00", max_size=5), max_size=6), max_size=4), header=st.booleans())
def test_any_table_as_a_question_file(rows: list[list[str]], header: bool, tmp_path: Path) -> None:
    lines = [["id", "group", "question", "answer"]] * header + rows
    path = tmp_path / "any.csv"
    path.write_text("\n".join(",".join(row) for row in lines), encoding="utf-8", newline="")
    ends_well_on_disk(path)


@pytest.mark.parametrize("kind", [ql.QRNCAConfig, Sample, Question, Prompt, Query, QuerySet, ql.Neuron, ql.NeuronSet])
def test_any_values_as_fields(kind: Any) -> None:
    names = [field.name for field in fields(kind)]

    @few
    @given(given_values=st.fixed_dictionaries({}, optional=dict.fromkeys(names, SCALARS)))
    def any_values(given_values: dict[str, Any]) -> None:
        missing = {name: "A" for name in REQUIRED.get(kind, ()) if name not in given_values}
        ends_well(lambda: kind(**missing, **given_values))

    any_values()


REQUIRED = {
    Question: ("id", "group", "question", "answer"),
    Prompt: ("text", "letter"),
    Query: ("id", "group", "prompts"),
    QuerySet: ("queries",),
    ql.Neuron: ("layer", "index"),
}


@few
@given(one=SCALARS, other=SCALARS)
def test_any_values_to_the_methods_of_queries(one: Any, other: Any, short_queries: QuerySet) -> None:
    for queries in (short_queries, short_queries.keep([])):
        for use in (
            lambda of: of.sample(one, other),
            lambda of: of.split(one, other),
            lambda of: of.with_examples(one, other),
            lambda of: of.keep(one, other),
            lambda of: of.for_group(one, other),
            lambda of: of.as_open(held_out=one),
            lambda of: of[one],
        ):
            ends_well(lambda use=use, queries=queries: use(queries))


@few
@given(one=SCALARS, other=SCALARS)
def test_any_values_to_neurons_and_results(one: Any, other: Any, located_of: Callable[[str], QRNeurons]) -> None:
    located = located_of("llama")
    bounded = one if not isinstance(one, int) or one < 100 else 100
    for use in (
        lambda: ql.NeuronSet.of((one, other)),
        lambda: ql.NeuronSet.of(one, other),
        lambda: located.for_query(one),
        lambda: located.for_group(one),
        lambda: located.restrict(one),
        lambda: located.top(one),
        lambda: at_most(one),
        lambda: group_heatmap(located, one, bins=other),
        lambda: overlap_rates(located, other, bounded, other),
    ):
        ends_well(use)


@pytest.fixture(scope="module")
def finished(
    model_of: Callable[[str], Any], short_queries: QuerySet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, QRNeurons]:
    out = tmp_path_factory.mktemp("finished") / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return out, locate(model_of("llama"), QuerySet(short_queries.queries[:6], "short"), CONFIG, out=out, progress=False)


def harm(path: Path, draw: random.Random) -> str:
    """Change a file, or put something else in its place; what was done."""
    data = bytearray(path.read_bytes())
    how = draw.choice(["cut", "flip", "gone", "empty", "other bytes", "a folder", "other json", "longer"])
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "gone":
        place = draw.randrange(max(1, len(data)))
        flipped = data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :] if data else b"x"
        made = {"cut": data[:place], "flip": flipped, "empty": b"", "other json": b'{"format": 3}', "longer": data + b"\n{}"}
        path.write_bytes(bytes(made.get(how, draw.randbytes(50))))
    return how


@pytest.mark.parametrize("seed", range(12))
def test_any_change_of_a_run_is_told_or_mended(
    seed: int, finished: tuple[Path, QRNeurons], model_of: Callable[[str], Any], tmp_path: Path
) -> None:
    out, before = finished
    there, draw = tmp_path / "run", random.Random(seed)
    shutil.copytree(out, there)
    files = sorted(path for path in there.rglob("*") if path.is_file())
    done = [(path.name, harm(path, draw)) for path in draw.sample(files, draw.choice([1, 1, 2]))]
    ends_well(lambda: QRNeurons.load(there))
    ends_well(lambda: ql.status_of(there))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            again = locate(model_of("llama"), before.asked, CONFIG, out=there, progress=False)
        except RunError as error:
            assert str(there) in str(error), done
            return
    same(again, before)
    same(QRNeurons.load(there), before)
    kept = {name for name, _ in done} - {"log.txt", LOCK}
    assert not kept or any(issubclass(one.category, DamageWarning) for one in told), done
