"""A model whose layers lie on two GPUs, pretended on the CPU: the same numbers, and no tensors of two devices that meet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from devices import CPU, MixedDevicesError, PretendedDevices
from runs import CONFIG

import qrnca_lens as ql
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import QuerySet
from qrnca_lens.methods import METHODS
from qrnca_lens.models import ModelError, load_model
from qrnca_lens.models.devices import devices_of, put_on
from qrnca_lens.study.prediction import predict_from_neurons

pytestmark = pytest.mark.transformer_lens_3
FAMILIES = ("llama", "gpt2", "qwen2")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevices]:
    """Two of them, on which everything is pretended to run."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**33, 2**34))
    with PretendedDevices() as devices:
        yield devices


def spread(model: Any) -> Any:
    return put_on(copy.deepcopy(model), devices_of("cuda:0,cuda:1"))


def test_tensors_of_two_devices_do_not_meet() -> None:
    with PretendedDevices() as devices:
        one, other = torch.ones(2, device="cuda:0"), torch.ones(2).to("cuda:1")
        assert [devices.place(x).index for x in (one, other)] == [0, 1] and other.device == torch.device("cuda:1")
        for mix in (
            lambda: one + other,
            lambda: torch.cat([one, other]),
            lambda: one[other.long()],
            lambda: one @ torch.ones(2),
        ):
            with pytest.raises(MixedDevicesError):
                mix()
        assert (one + torch.tensor(1.0)).device == (one[torch.tensor([0, 1])] * 2).device == one.device
        assert (one.to(other.device) + other).device == other.device and other.cpu().device == CPU
        leaf = torch.ones(2, device="cuda:1").requires_grad_(True)
        (gradient,) = torch.autograd.grad((leaf.to("cuda:0") * one).sum(), [leaf])
        assert gradient.device == leaf.device


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_spread_layer_by_layer(model_of: Callable[[str], Any], gpus: PretendedDevices, family: str) -> None:
    model, two = model_of(family), spread(model_of(family))
    count = model.cfg.n_layers
    for name, weight in two.named_parameters():
        layer = (
            int(name.split(".")[1]) if name.startswith("blocks") else count - 1 if name.startswith(("ln_f", "unem")) else 0
        )
        assert gpus.place(weight) == torch.device("cuda", 2 * layer // count), name
    tokens = model.to_tokens("Which letter is right? 3\nAnswer:")
    assert torch.equal(two(tokens).cpu(), model(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_measured_is_the_same(
    model_of: Callable[[str], Any], short_queries: QuerySet, gpus: PretendedDevices, family: str
) -> None:
    model, two = model_of(family), spread(model_of(family))
    prompt, queries = short_queries.queries[0].prompts[0], short_queries.sample(2, seed=0)
    neurons = NeuronSet.of((0, 3), (model.cfg.n_layers - 1, 5))
    sets = {"some": {query.id: neurons for query in queries}}

    def edited(of: Any) -> torch.Tensor:
        with ql.suppress(of, neurons, positions="all"), ql.enhance(of, neurons):
            return ql.letter_probabilities(of, [prompt])

    for call in (
        lambda of: ql.attribute(of, prompt.text, " B", steps=3).scores,
        lambda of: ql.attribute(of, prompt.text, " B", rule="auto").scores,
        lambda of: ql.attribute(of, prompt.text, answer=" B or C", steps=3).scores,
        lambda of: ql.attribute(of, prompt.text, " B", steps=3, site="post").scores,
        edited,
        lambda of: ql.activations(of, [prompt], neurons),
        lambda of: ql.edit_effects(of, queries, sets),
        lambda of: ql.edit_effects(of, queries, sets, positions="all"),
        lambda of: ql.promoted_tokens(of, neurons),
        lambda of: ql.check(of, queries).answers,
    ):
        one, other = call(model), call(two)
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(other, one, rtol=1e-4, atol=1e-6)
        elif isinstance(one, torch.Tensor):
            assert torch.allclose(other.cpu(), one, rtol=1e-4, atol=1e-6)
        else:
            assert other == one


def test_a_run_and_all_methods_are_the_same(
    model_of: Callable[[str], Any], short_queries: QuerySet, gpus: PretendedDevices, tmp_path: Path
) -> None:
    model, two = model_of("llama"), spread(model_of("llama"))
    here, there = (ql.locate(of, short_queries, CONFIG, progress=False) for of in (model, two))
    pd.testing.assert_frame_equal(there.clusters, here.clusters, rtol=1e-4)
    asked = short_queries.keep(["q0", "q1"])
    for key in METHODS:
        found = [ql.find_neurons(key, ql.Evidence(of, asked, here)) for of in (model, two)]
        assert found[0] == found[1], key
    first, second = short_queries.split(0.5, 0)
    rest = here.restrict([query.id for query in first])
    for call in (
        lambda of: ql.circuit(of, here, "q0", NeuronSet.of((0, 3), (2, 5))).contributions,
        lambda of: predict_from_neurons(of, [first], second, rest, draws=5, probe_draws=2),
    ):
        pd.testing.assert_frame_equal(call(two), call(model), rtol=1e-4, atol=1e-5)
    pages = [ql.write_explorer(of, here, tmp_path / f"{i}.html", top=1, per_group=1) for i, of in enumerate((model, two))]
    assert len({page.read_text("utf-8") for page in pages}) == 1


def test_devices_that_cannot_be_are_refused(model_of: Callable[[str], Any], gpus: PretendedDevices) -> None:
    for name, told in (
        ("cuda:1,cuda:0", "the devices 'cuda:1,cuda:0' are no GPUs in a row; name them as in 'cuda:0,cuda:1'"),
        ("cpu,cuda:0", "no GPUs in a row"),
        ("cuda:0,cuda:0", "no GPUs in a row"),
        ("cuda:0,cuda:2", r"the device 'cuda:2' is not there; this machine has cpu \(1\), cuda \(2\)"),
    ):
        with pytest.raises(ModelError, match=told):
            load_model("atlas", device=name)  # type: ignore[arg-type]
    with pytest.raises(
        ModelError, match=r"is a bridge, which transformers itself spreads over GPUs: .*device_map='balanced'"
    ):
        put_on(model_of("gemma2"), devices_of("cuda:0,cuda:1"))
