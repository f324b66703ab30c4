"""How fast the explorer answers: print the time of a click by what it asks for, on the shipped model and 72 questions."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch

import qrnca_lens as ql

CLICKS = 24


def main() -> None:
    """Print one line a kind of click: median and slowest of 24, in milliseconds."""
    model, queries = ql.load_model("atlas", device="cpu"), ql.load_queries("atlas/domains").sample(12)
    located = ql.locate(model, queries, progress=False)
    began = time.perf_counter()
    explorer = ql.Explorer(model, queries, located)
    print(f"{torch.get_num_threads()} threads; explorer ready after {time.perf_counter() - began:.1f} s")
    ids = random.Random(0).sample(list(queries_with_two(located)), CLICKS)
    first, second = ([list(located.for_query(query))[k] for query in ids] for k in (0, 1))
    pairs = zip(ids, first, second, strict=True)
    times: dict[str, list[float]] = {"another query and its neuron": [], "another neuron of the query": []}
    for query, one, other in pairs:
        times["another query and its neuron"].append(click(explorer, query=query, layer=one.layer, neuron=one.index))
        times["another neuron of the query"].append(click(explorer, layer=other.layer, neuron=other.index))
    ranked, clustered = (set(ql.NeuronSet.from_frame(table)) for table in (located.table, located.clusters))
    everything = {ql.Neuron(layer, i) for layer in range(located.model.n_layers) for i in range(located.model.d_mlp)}
    times["a neuron of some cluster that ranks nowhere"] = neurons(explorer, clustered - ranked)
    times["a neuron of no cluster (all prompts are read)"] = neurons(explorer, everything - clustered)
    times["the slider"] = [click(explorer, factor=0.25 * (k % 17)) for k in range(CLICKS)]
    for name, found in times.items():
        print(f"{name:50s} median {statistics.median(found):6.0f} ms, slowest {max(found):6.0f} ms, {len(found)} clicks")
    print(f"what one click sends: {sum(len(str(part)) for part in explorer.view.values()) / 1000:.0f} kB")


def queries_with_two(located: ql.QRNeurons) -> Iterable[str]:
    return (str(query) for query in located.queries["query"] if len(located.for_query(query)) > 1)


def neurons(explorer: ql.Explorer, of: set[ql.Neuron]) -> list[float]:
    chosen = random.Random(0).sample(sorted(of), min(CLICKS, len(of)))
    return [click(explorer, layer=neuron.layer, neuron=neuron.index) for neuron in chosen]


def click(explorer: ql.Explorer, **change: Any) -> float:
    """Milliseconds until everything that the click asked for is in `explorer.view`."""
    began = time.perf_counter()
    explorer.selected = change
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
