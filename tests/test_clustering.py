"""The method worked out by hand: 5 queries, 2 layers of 3 neurons, every number checked."""

from __future__ import annotations

from math import log
from pathlib import Path

import pandas as pd
import pytest
import torch

from qrnca_lens.clustering import ModelShape, QRNCAConfig, QRNeurons, make_cluster
from qrnca_lens.core.neurons import Neuron, NeuronSet, top_neurons
from qrnca_lens.core.store import RunError

SCORES = {
    "q1": [[[10, 2, 4], [0, 1, 6]]],  # 2 is exactly 0.2 * 10: not above the threshold
    "q2": [[[5, 0, 0], [0, 0, 5]], [[0, 0, 4], [0, 0, 1]]],  # two templates, joined and summed
    "q3": [[[8, 0, 0], [2, 0, -9]]],
    "q4": [[[0, 3, 0], [0, 3, 0]]],  # a tie
    "q5": [[[-1, 0, 0], [0, -2, 0]]],  # nothing raises the letter: an empty cluster
}
GROUPS = {"q1": "even", "q2": "odd", "q3": "even", "q4": "odd", "q5": "even"}
CONFIG = QRNCAConfig(top=2, common_share=0.5)


def clusters() -> pd.DataFrame:
    parts = []
    for query, templates in SCORES.items():
        cluster = make_cluster(query, GROUPS[query], [torch.tensor(t, dtype=torch.float32) for t in templates], 0.2)
        parts.append(cluster.table.assign(query=query, group=GROUPS[query]))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def located() -> QRNeurons:
    queries = pd.DataFrame(
        {"query": list(GROUPS), "group": list(GROUPS.values()), "prompts": [1, 2, 1, 1, 1], "probability": 0.5, "gap": 0.0}
    )
    return QRNeurons(clusters(), queries, CONFIG, ModelShape("by hand", 2, 3, "0"))


def test_clusters() -> None:
    rows = clusters().set_index(["query", "layer", "neuron"])
    assert rows["attribution"].to_dict() == {
        ("q1", 0, 0): 10, ("q1", 0, 2): 4, ("q1", 1, 2): 6,
        ("q2", 0, 0): 5, ("q2", 0, 2): 4, ("q2", 1, 2): 6,
        ("q3", 0, 0): 8, ("q3", 1, 0): 2,
        ("q4", 0, 1): 3, ("q4", 1, 1): 3,
    }  # fmt: skip
    assert rows.loc[("q2", 1, 2), "templates"] == 2
    assert rows["templates"].sum() == 11


def test_na_ica_and_naica(located: QRNeurons) -> None:
    rows = located.scored.set_index(["query", "layer", "neuron"])
    na = {
        ("q1", 0, 0): 0.5, ("q1", 0, 2): 0.2, ("q1", 1, 2): 0.3,
        ("q2", 0, 0): 1 / 3, ("q2", 0, 2): 4 / 15, ("q2", 1, 2): 0.4,
        ("q3", 0, 0): 0.8, ("q3", 1, 0): 0.2,
        ("q4", 0, 1): 0.5, ("q4", 1, 1): 0.5,
    }  # fmt: skip
    ica = {(0, 0): log(5 / 4), (0, 2): log(5 / 3), (1, 2): log(5 / 3)} | dict.fromkeys([(1, 0), (0, 1), (1, 1)], log(5 / 2))
    assert rows["na"].to_dict() == pytest.approx(na)
    assert rows["ica"].to_dict() == pytest.approx({key: ica[key[1:]] for key in na})
    assert rows["naica"].to_dict() == pytest.approx({key: value * ica[key[1:]] for key, value in na.items()})


def test_common_neurons(located: QRNeurons) -> None:
    assert located.common.to_dict("records") == [{"layer": 0, "neuron": 0, "clusters": 3, "share": 0.6}]
    assert located.common_set == NeuronSet.of((0, 0))


def test_qr_neurons(located: QRNeurons) -> None:
    found = located.to_frame()[["query", "layer", "neuron", "rank"]].to_numpy().tolist()
    assert found == [["q1", 1, 2, 1], ["q2", 1, 2, 1], ["q2", 0, 2, 2], ["q3", 1, 0, 1], ["q4", 0, 1, 1], ["q4", 1, 1, 2]]
    assert located.for_query("q1") == NeuronSet.of((1, 2))
    assert located.for_query("q5") == NeuronSet()
    assert located.for_group("odd") == NeuronSet.of((0, 1), (1, 1), (1, 2), (0, 2))
    assert located.groups == ("even", "odd")
    per_query = located.per_query().set_index("query")
    assert per_query["cluster"].to_dict() == {"q1": 3, "q2": 3, "q3": 2, "q4": 2, "q5": 0}
    assert per_query["qr"].to_dict() == {"q1": 1, "q2": 2, "q3": 1, "q4": 2, "q5": 0}


def test_top_sums_over_queries(located: QRNeurons) -> None:
    best = located.top(2).to_dict("records")
    assert best[0] == {"layer": 0, "neuron": 1, "naica": pytest.approx(0.5 * log(2.5)), "queries": 1, "groups": "odd"}
    assert best[1]["naica"] == pytest.approx(0.5 * log(2.5))
    everything = located.top(99).set_index(["layer", "neuron"])
    assert everything.loc[(1, 2), "naica"] == pytest.approx(0.7 * log(5 / 3))
    assert everything.loc[(1, 2), "groups"] == "even, odd"


def test_save_and_load(located: QRNeurons, tmp_path: Path) -> None:
    located.save(tmp_path / "run")
    again = QRNeurons.load(tmp_path / "run")
    assert again.table.equals(located.table)
    assert again.common.equals(located.common)
    assert (again.config, again.model) == (located.config, located.model)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(FileExistsError, match="choose another folder"):
        located.save(tmp_path / "run")
    (tmp_path / "run" / "clusters.parquet").write_bytes(b"no")
    with pytest.raises(RunError, match=r"clusters\.parquet: not the bytes that were written"):
        QRNeurons.load(tmp_path / "run")
    with pytest.raises(RunError, match="not a finished run folder"):
        QRNeurons.load(tmp_path / "nowhere")


def test_it_displays(located: QRNeurons) -> None:
    assert repr(located) == ("QRNeurons(5 queries in 2 groups, 1.2 QR neurons a query, 1 common neurons, model 'by hand')")
    assert "<table" in located._repr_html_()


def test_too_few_queries_and_unknown_names(located: QRNeurons) -> None:
    with pytest.raises(ValueError, match="give at least 4 queries"):
        QRNeurons(located.clusters, located.queries.head(3), QRNCAConfig(), located.model)
    with pytest.raises(KeyError, match="no query 'q9' among the 5 of this result; the nearest is 'q5'"):
        located.for_query("q9")
    with pytest.raises(KeyError, match="no group 'prime' in this result; there are even, odd"):
        located.for_group("prime")


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", 1.0), ("top", 0), ("common_share", 0.0), ("steps", 0), ("rule", "left")]
)
def test_hyper_parameters_are_checked(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"threshold|top|common_share|steps|rule"):
        QRNCAConfig(**{field: value})  # type: ignore[arg-type]


def test_the_defaults_are_the_papers() -> None:
    config = QRNCAConfig()
    assert (config.steps, config.threshold, config.common_share, config.top, config.rule) == (16, 0.2, 0.3, 20, "right")


def test_neuron_sets() -> None:
    a, b = NeuronSet.of((1, 2), (0, 1), (1, 2)), NeuronSet.of((0, 1), (2, 0))
    assert len(a) == 2
    assert list(a | b) == [Neuron(1, 2), Neuron(0, 1), Neuron(2, 0)]
    assert (a & b, a - b) == (NeuronSet.of((0, 1)), NeuronSet.of((1, 2)))
    assert Neuron(2, 0) in b
    assert a.by_layer() == {0: [1], 1: [2]}
    assert str(Neuron(3, 17)) == "L3.N17"
    rows = pd.DataFrame({"naica": [0.5, 0.4, 0.3], "neuron": [2, 1, 2], "layer": [1, 0, 1]}, index=[7, 3, 5])
    assert list(NeuronSet.from_frame(rows)) == [Neuron(1, 2), Neuron(0, 1)]
    assert NeuronSet.from_frame(a.to_frame()) == a
    with pytest.raises(ValueError, match="needs the columns layer and neuron; it has no 'neuron' among 'naica', 'layer'"):
        NeuronSet.from_frame(rows[["naica", "layer"]])
    with pytest.raises(ValueError, match="start at 0"):
        Neuron(-1, 0)
    with pytest.raises(ValueError, match=r"neuron L2\.N0 is outside the model: it has layers 0 to 1"):
        b.check_inside(2, 5)


@pytest.mark.usefixtures("unchecked")
def test_a_neuron_set_is_not_made_of_what_is_no_table() -> None:
    with pytest.raises(TypeError, match="expected a table with the columns layer and neuron, found list"):
        NeuronSet.from_frame([(1, 2)])  # type: ignore[arg-type]


def test_the_highest_scores_are_neurons_best_first() -> None:
    scores = torch.tensor([[0.5, -1.0, 0.25], [0.0, 4.0, 0.125]], dtype=torch.bfloat16)
    found = top_neurons(scores, 3)
    assert found.to_numpy().tolist() == [[1, 1, 4.0], [0, 0, 0.5], [0, 2, 0.25]]
    assert [len(top_neurons(scores, k)) for k in (0, 6, 7)] == [0, 6, 6]
    ties = torch.zeros(3, 48)
    ties[2, 7] = 1
    assert NeuronSet.from_frame(top_neurons(ties, 4)) == NeuronSet.of((2, 7), (0, 0), (0, 1), (0, 2))
    assert top_neurons(scores, 0).dtypes.astype(str).tolist() == ["int64", "int64", "float64"]


def test_a_layer_is_cut_into_bins_of_equal_width() -> None:
    llama, small = ModelShape("m", 32, 11_008, "0"), ModelShape("m", 2, 10, "0")
    assert (llama.bin_width(128), small.bin_width(7), small.bin_width(10), small.bin_width(99)) == (86, 2, 1, 1)
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        small.bin_width(0)
