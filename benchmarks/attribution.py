"""How much faster the shared-prefix engine is than the plain path of the authors' code: `make bench`.

Both run in one process on the same random Llama (53 M parameters: 16 layers, d 512, d_mlp 1376, vocabulary 2,000), the same
93-token prompt and m = 16. The plain path is one full forward and backward pass of the prompt for each layer, its steps in
batches of 8, as in the authors' code. Prints, does not judge.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qrnca_lens.core.rules import quadrature
from qrnca_lens.engine.integral import integrate_by_shared_prefix
from qrnca_lens.engine.path import PathTask, gradients_for_leaves_only, probability_of
from qrnca_lens.models import load_model

BATCH = 8


def random_llama(layers: int) -> Any:
    """A random Llama, written as a Hugging Face folder and read as any other model is."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=1376,
        vocab_size=2000,
        max_position_embeddings=1024,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        byte_level = Tokenizer(models.BPE({"A": 0}, []))
        PreTrainedTokenizerFast(tokenizer_object=byte_level).save_pretrained(folder)
        return load_model(folder, device="cpu")


def plain(task: PathTask) -> torch.Tensor:
    """The paper's equation layer by layer, the whole prompt for every step, `BATCH` steps at a time."""
    scores = []
    for layer in range(task.model.cfg.n_layers):
        name = f"blocks.{layer}.mlp.hook_pre_linear"
        with torch.no_grad():
            _, cache = task.model.run_with_cache(task.tokens[None], names_filter=name)
        value, total = cache[name][0, -1], 0.0
        for nodes, weights in zip(task.quadrature.nodes.split(BATCH), task.quadrature.weights.split(BATCH), strict=True):
            leaf = (nodes[:, None] * value).requires_grad_(True)

            def put(tensor: torch.Tensor, hook: object, leaf: torch.Tensor = leaf) -> torch.Tensor:
                return torch.cat([tensor[:, :-1], leaf[:, None]], dim=1)

            with gradients_for_leaves_only(task.model):
                logits = task.model.run_with_hooks(task.tokens.expand(len(leaf), -1), fwd_hooks=[(name, put)])[:, -1]
                (gradient,) = torch.autograd.grad(task.objective(logits).sum(), leaf)
            total = total + (weights[:, None] * gradient).sum(0)
        scores.append(value * total)
    return torch.stack(scores)


class PeakMemory:
    """The highest resident memory of this process inside the block, above that at its start, in MiB."""

    def __enter__(self) -> PeakMemory:
        self._process, self._stop, self.mib = psutil.Process(), threading.Event(), 0.0
        self._start = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.mib = max(self.mib, (self._process.memory_info().rss - self._start) / 2**20)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def engine(task: PathTask) -> torch.Tensor:
    """The shared-prefix engine, with both ends of the path for its check and the completeness gap."""
    return integrate_by_shared_prefix(replace(task, quadrature=task.quadrature.with_ends())).scores


def task_of(layers: int, length: int) -> PathTask:
    """The scores of token 7 after a random prompt of `length` tokens."""
    torch.set_num_threads(2)
    tokens = torch.randint(0, 2000, (length,), generator=torch.Generator().manual_seed(0))
    return PathTask(random_llama(layers), tokens, probability_of(7), "up", quadrature("right", 16))


def peak_memory(run: Callable[[PathTask], torch.Tensor], layers: int, length: int) -> float:
    """The peak of the first call in a process of its own, above the memory held once the model is loaded; MiB."""
    task = task_of(layers, length)
    with PeakMemory() as memory:
        run(task)
    return memory.mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--length", type=int, nargs="+", default=[93])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for length in options.length:
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            fast_mib, slow_mib = pool.starmap(
                peak_memory, [(run, options.layers, length) for run in (engine, plain)], chunksize=1
            )
        task = task_of(options.layers, length)
        engine(task)
        times = []
        for _ in range(options.repeats):
            began = time.perf_counter()
            fast = engine(task)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        slow = plain(task)
        taken = time.perf_counter() - began
        quick = sorted(times)[len(times) // 2]
        error = ((fast - slow).norm() / slow.norm()).item()
        million = sum(p.numel() for p in task.model.parameters()) / 1e6
        print(
            f"{million:.0f} M parameters, {options.layers} layers, m = 16, 2 threads, prompt of {length} tokens: "
            f"engine {quick:.3f} s (median of {options.repeats}), plain {taken:.2f} s, "
            f"ratio {taken / quick:.0f}x, relative error {error:.1e}, "
            f"peak memory above the loaded model: engine {fast_mib:.0f} MiB, plain {slow_mib:.0f} MiB"
        )


if __name__ == "__main__":
    main()
