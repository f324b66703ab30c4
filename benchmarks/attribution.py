"""How fast the engine attributes, against the plain path and captum: `make bench` writes benchmarks/results.md.

All run in one process on the same random Llama, m = 16. The plain path is one full forward and backward pass of the prompt
for each layer, its steps in batches of 8, as in the authors' code. captum is `LayerIntegratedGradients`, layer by layer as a
user would write it (it integrates a layer at all positions, from its activations on padding). Both do the same for every
layer, so three layers (first, middle, last) are timed and their mean is taken for each. Prints, does not judge.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from captum.attr import LayerIntegratedGradients
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qrnca_lens.core.rules import quadrature
from qrnca_lens.engine.agreement import gradients_for_leaves_only
from qrnca_lens.engine.asks import Ask, asked, probability_of
from qrnca_lens.engine.integral import PathTask, integrate_by_rows
from qrnca_lens.models import load_model

STEPS, BATCH, TARGET = 16, 8, 7
SIZES = {
    "8M": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 688},
    "53M": {"hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8, "intermediate_size": 1376},
    "160M": {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 2048},
}
RESULTS = Path(__file__).with_name("results.md")


def random_llama(size: str) -> Any:
    """A random Llama, written as a Hugging Face folder and read as any other model is."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES[size], vocab_size=2000, max_position_embeddings=1024)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        byte_level = Tokenizer(models.BPE({"A": 0}, []))
        PreTrainedTokenizerFast(tokenizer_object=byte_level).save_pretrained(folder)
        return load_model(folder, device="cpu")


def plain(model: Any, ask: Ask, layer: int) -> torch.Tensor:
    """The paper's equation of one layer, the whole prompt for every step, `BATCH` steps at a time."""
    rule, name = quadrature("right", STEPS), f"blocks.{layer}.mlp.hook_pre_linear"
    with torch.no_grad():
        _, cache = model.run_with_cache(ask.tokens[None], names_filter=name)
    value, total = cache[name][0, -1], torch.zeros(1)
    for nodes, weights in zip(rule.nodes.split(BATCH), rule.weights.split(BATCH), strict=True):
        leaf = (nodes[:, None] * value).requires_grad_(True)

        def put(tensor: torch.Tensor, hook: object, leaf: torch.Tensor = leaf) -> torch.Tensor:
            return torch.cat([tensor[:, :-1], leaf[:, None]], dim=1)

        with gradients_for_leaves_only(model):
            logits = model.run_with_hooks(ask.tokens.expand(len(leaf), -1), fwd_hooks=[(name, put)])[:, -1:]
            (gradient,) = torch.autograd.grad(ask.objective(logits).sum(), leaf)
        total = total + (weights[:, None] * gradient).sum(0)
    return value * total


def with_captum(model: Any, ask: Ask, layer: int) -> torch.Tensor:
    """captum's integrated gradients of one layer's up projection."""

    def probability(tokens: torch.Tensor) -> torch.Tensor:
        return ask.objective(model(tokens)[:, -1:])

    method = LayerIntegratedGradients(probability, model.blocks[layer].mlp.hook_pre_linear)
    tokens = ask.tokens[None]
    return method.attribute(
        tokens, baselines=torch.zeros_like(tokens), n_steps=STEPS, method="riemann_right", internal_batch_size=BATCH
    )


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


def seconds(run: Callable[[], Any]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def matrix_rate() -> float:
    """The machine's rate of large float32 matrix products, in GFLOP/s; the best of five."""
    a, b = torch.randn(2048, 2048, dtype=torch.float32), torch.randn(2048, 2048, dtype=torch.float32)
    return max(2 * 2048**3 / seconds(lambda: a @ b) / 1e9 for _ in range(5))


def work(model: Any, length: int) -> float:
    """GFLOP of one attribution: the text once, the rows of every layer forward and backward to their activations."""
    layers = model.cfg.n_layers
    each = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks.0.") and p.dim() > 1)
    return 2 * each * (length * layers + 2 * (STEPS + 1) * layers * (layers + 1) / 2) / 1e9


def peak_memory(size: str, length: int, batch: int) -> float:
    """The peak of the first call in a process of its own, above the memory held once the model is loaded; MiB."""
    model, generator = random_llama(size), torch.Generator().manual_seed(length)
    prompts = [torch.randint(0, 2000, (length,), generator=generator) for _ in range(batch)]
    task = PathTask(model, "up", quadrature("right", STEPS).with_ends())
    with PeakMemory() as memory:
        integrate_by_rows(task, [asked(prompt, probability_of(TARGET)) for prompt in prompts])
    return memory.mib


def measure(size: str, length: int, batches: list[int], repeats: int) -> list[str]:
    """One row of the table a batch size."""
    model, generator = random_llama(size), torch.Generator().manual_seed(length)
    task = PathTask(model, "up", quadrature("right", STEPS).with_ends())
    prompts = [torch.randint(0, 2000, (length,), generator=generator) for _ in range(max(batches))]
    asks = [asked(prompt, probability_of(TARGET)) for prompt in prompts]
    layers = sorted({0, model.cfg.n_layers // 2, model.cfg.n_layers - 1})
    plain_time = captum_time = 0.0
    wanted = {}
    for layer in layers:
        began = time.perf_counter()
        wanted[layer] = plain(model, asks[0], layer)
        plain_time += (time.perf_counter() - began) * model.cfg.n_layers / len(layers)
        captum_time += seconds(lambda layer=layer: with_captum(model, asks[0], layer)) * model.cfg.n_layers / len(layers)
    rate, rows = matrix_rate(), []
    for batch in batches:
        with get_context("spawn").Pool(1) as pool:
            mib = pool.apply(peak_memory, (size, length, batch))
        scores = integrate_by_rows(task, asks[:batch])[0].scores
        taken = sorted(seconds(lambda batch=batch: integrate_by_rows(task, asks[:batch])) for _ in range(repeats))[
            repeats // 2
        ]
        found = torch.stack([scores[layer] for layer in layers])
        expected = torch.stack([wanted[layer].detach() for layer in layers])
        error = ((found - expected).norm() / expected.norm()).item()
        each = taken / batch
        share = work(model, length) / each / rate
        cells = [size, length, batch, f"{plain_time:.2f}", f"{captum_time:.2f}", f"{each:.3f}", f"{plain_time / each:.0f}x"]
        cells += [f"{captum_time / each:.0f}x", f"{error:.0e}", f"{mib:.0f}", f"{share:.0%}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
        print(rows[-1], flush=True)
    return rows


HEAD = """# Attribution: measured

One run of `make bench` on {threads} CPU threads, m = 16, float32, random Llamas; seconds a prompt. Only ratios within a
row count: the machine is shared and noisy. The plain path and captum are timed on three layers and taken for all. MiB is the
peak of the first call above the loaded model; "rate" is the share of this machine's rate of large matrix products that the
engine reaches.

| model | tokens | batch | plain, s | captum, s | engine, s | plain / engine | captum / engine | error | MiB | rate |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = HEAD.format(threads=options.threads)
    rows: list[str] = []
    _, mark, others = RESULTS.read_text("utf-8").partition("\n# ")  # the results of other benchmarks stay
    for size in options.sizes:
        for length in options.lengths:
            rows += measure(size, length, options.batches, options.repeats)
            RESULTS.write_text(head + "\n".join(rows) + "\n" + mark + others, "utf-8")


if __name__ == "__main__":
    main()
