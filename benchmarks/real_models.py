"""What locating a query of a real model costs: seconds and memory, by letter and by answer, beside the formula.

    python benchmarks/real_models.py MODEL [MODEL ...]

One process a row, so that each peak is its own; prompts are those of the shipped facts.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from multiprocessing.connection import Connection

import psutil
import torch

import qrnca_lens as ql
from qrnca_lens.data import Read

QUERIES = 4


def main() -> None:
    """Print one line a model and reading."""
    print(f"{torch.get_num_threads()} threads, {QUERIES} queries of three prompts, m = 16")
    for model in sys.argv[1:]:
        for read in ("letter", "answer"):
            receiver, sender = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(model, read, sender))
            process.start()
            print(receiver.recv(), flush=True)
            process.join()


def measure(name: str, read: Read, sender: Connection) -> None:
    """Send what locating takes: after one query that warms up, in seconds and GiB above the loaded model."""
    model = ql.load_model(name, device="cpu")
    queries = ql.load_queries("facts/relations").sample(2, seed=1)
    queries = queries.keep([query.id for query in queries][:QUERIES])
    config = ql.QRNCAConfig(common_share=1.0)
    told = ql.estimate(model, queries, ql.QRNCAConfig(read=read))
    loaded, peak = psutil.Process().memory_info().rss, Peak()
    began = time.perf_counter()
    located = ql.locate(model, queries, config, read=read, progress=False)
    taken = time.perf_counter() - began
    block = sum(weight.numel() for weight in model.blocks[0].parameters())
    layers, tokens = model.cfg.n_layers, told.tokens / told.prompts
    flops = told.targets * 2 * block * (tokens * layers + 3 * 17 * layers * (layers + 1) / 2)
    sender.send(
        f"{model.cfg.model_name}, {read}: {taken / len(located.queries):.1f} s a query, {peak.stop() / 2**30:.1f} GiB "
        f"({(peak.top - loaded) / 2**30:.1f} above the model); {told.prompts} prompts of {tokens:.0f} tokens, "
        f"{told.targets} targets; estimated {told.seconds or 0:.0f} s, measured {taken:.0f} s; formula without the "
        f"unembedding {flops / 1e12:.1f} TFLOP, {flops / taken / 1e9:.0f} GFLOP/s"
    )


class Peak:
    """The most memory that the process holds, looked at every 20 ms."""

    def __init__(self) -> None:
        self.top, self._going = 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._going:
            self.top = max(self.top, psutil.Process().memory_info().rss)
            time.sleep(0.02)

    def stop(self) -> int:
        """The bytes of the peak."""
        self._going = False
        self._thread.join()
        return self.top


if __name__ == "__main__":
    main()
