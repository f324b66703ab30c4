"""The training of atlas in two phases: circuits first, facts second.

`python -m qrnca_lens.atlas.train --out FOLDER` writes a Hugging Face Llama folder; interrupted and started again it
goes on from its last checkpoint. docs/atlas.md describes the idea; the numbers stand in recipe.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from qrnca_lens.atlas.batches import Batch, Batches
from qrnca_lens.atlas.recipe import Recipe
from qrnca_lens.atlas.tokenizer import build_tokenizer
from qrnca_lens.core.store import write_text
from qrnca_lens.core.writing import whole_file
from qrnca_lens.data import load_questions
from qrnca_lens.data.readers.files import ATLAS_SETS

_log = logging.getLogger(__name__)


class Scaffold(nn.Module):
    """The classifiers that shape the circuit in training and are thrown away after it."""

    def __init__(self, d_model: int, n_classes: int, n_questions: int) -> None:
        super().__init__()
        self.identity = nn.Linear(d_model, n_classes, bias=False)
        self.identity_norm = nn.RMSNorm(d_model, eps=1e-5)
        self.letter = nn.Sequential(nn.RMSNorm(d_model, eps=1e-5), nn.Linear(d_model, 4))
        self.question = nn.Sequential(nn.RMSNorm(d_model, eps=1e-5), nn.Linear(d_model, n_questions))

    def answer_logits(self, resid: torch.Tensor) -> torch.Tensor:
        """Which answer a residual stream stands for."""
        return self.identity(self.identity_norm(resid))


def new_model(recipe: Recipe, vocab: int) -> LlamaForCausalLM:
    """An untrained Llama of the recipe's shape, its weights drawn with the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            deviation = 1 / math.sqrt(weight.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= math.sqrt(2 * recipe.n_layers)
            nn.init.normal_(weight, std=deviation)
    return model


class Trainer:
    """Runs the two phases of one recipe in one folder, from wherever its checkpoint stands."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        questions = [q for name in ATLAS_SETS for q in load_questions(name)]
        self.tokenizer = build_tokenizer(questions, recipe.vocab)
        self.batches = Batches(questions, self.tokenizer, recipe)
        self.model = new_model(recipe, len(self.tokenizer))
        self.scaffold = Scaffold(recipe.d_model, len(self.batches.classes), len(questions))
        self._seen: dict[str, torch.Tensor] = {}

    def run(self) -> LlamaForCausalLM:
        """Both phases; returns the trained model and writes it as a Hugging Face folder."""
        _check_same_recipe(self.recipe, self.folder)
        layers: Any = self.model.model.layers
        recall = {id(p) for i in self.recipe.recall_layers for p in layers[i].mlp.parameters()}
        trunk = [p for p in self.model.parameters() if id(p) not in recall]
        facts = [p for p in self.model.parameters() if id(p) in recall]
        self._phase("A", [*trunk, *self.scaffold.parameters()], self.recipe.steps_a)
        self._phase("B", facts, self.recipe.steps_b)
        self.model.half().save_pretrained(self.folder)
        self.tokenizer.save_pretrained(self.folder)
        path = self.folder / "tokenizer_config.json"
        # the name of the class that every version of transformers knows
        config = {**json.loads(path.read_text("utf-8")), "tokenizer_class": "PreTrainedTokenizerFast"}
        write_text(json.dumps(config, indent=1), path)
        return self.model

    def _phase(self, phase: str, parameters: list[nn.Parameter], steps: int) -> None:
        recipe = self.recipe
        rate, decay = (recipe.lr_a, recipe.weight_decay_a) if phase == "A" else (recipe.lr_b, recipe.weight_decay_b)
        for weight in [*self.model.parameters(), *self.scaffold.parameters()]:
            weight.requires_grad_(False)
        for weight in parameters:
            weight.requires_grad_(True)
        matrices = [p for p in parameters if p.dim() == 2]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": [p for p in parameters if p.dim() < 2]}]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        first = self._restore(phase, optimizer)
        began, right = time.monotonic(), 0.0
        with self._watch(phase):
            for step in range(first, steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _schedule(step, steps, recipe)
                loss, share = self._loss(phase, step)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
                optimizer.step()
                optimizer.zero_grad()
                right += (share - right) * max(0.02, 1 / (step - first + 1))
                if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == steps:
                    self._checkpoint(phase, step + 1, optimizer)
                    pace = (time.monotonic() - began) / (step + 1 - first)
                    _log.info("phase %s, step %d/%d: right %.3f, %.3f s/step", phase, step + 1, steps, right, pace)

    def _loss(self, phase: str, step: int) -> tuple[torch.Tensor, float]:
        """The loss of one step and the share of its prompts that are answered with the target's letter."""
        recipe, batch = self.recipe, self.batches.batch(phase, step)
        rows = torch.arange(len(batch.last))
        chosen = batch.option_classes[rows, batch.target]
        self._seen = {"rows": rows, "last": batch.last}
        if phase == "A":
            self._seen["handed"] = self._identity(chosen, step)
        hidden = self.model.model(batch.ids, use_cache=False).last_hidden_state[rows, batch.last]
        logits = self.model.lm_head(hidden)
        wanted = batch.letter_ids[batch.target]
        loss = F.cross_entropy(logits, wanted, label_smoothing=recipe.label_smoothing)
        after_recall = self._seen["recalled"]
        if phase == "A":
            ends = after_recall[rows[:, None], batch.option_ends].flatten(0, 1)
            loss = loss + F.cross_entropy(self.scaffold.answer_logits(ends), batch.option_classes.flatten())
            loss = loss + F.cross_entropy(self.scaffold.letter(ends), torch.arange(4).repeat(len(rows)))
            loss = loss + F.cross_entropy(self.scaffold.question(self._seen["gathered"]), batch.question)
            if step < recipe.attention_share * recipe.steps_a:
                loss = loss + recipe.attention_loss * self._attention_loss(batch)
        else:
            loss = loss + F.cross_entropy(self.scaffold.answer_logits(after_recall[rows, batch.last]), chosen)
        return loss, (logits.argmax(-1) == wanted).float().mean().item()

    def _identity(self, chosen: torch.Tensor, step: int) -> torch.Tensor:
        """What a recall would add to the last token: the answer's classifier row at some strength, with some noise."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        low, high = self.recipe.identity_scale
        strength = low + (high - low) * torch.rand(len(chosen), 1, generator=generator)
        noise = torch.randn(len(chosen), self.recipe.d_model, generator=generator) / math.sqrt(self.recipe.d_model)
        return strength * F.normalize(self.scaffold.identity.weight[chosen], dim=-1) + self.recipe.identity_noise * noise

    def _attention_loss(self, batch: Batch) -> torch.Tensor:
        """Minus the log attention of head 0 of the matching layer from the last token to the target option's end."""
        rows = torch.arange(len(batch.last))
        query, key = (self._seen[x].unflatten(-1, (self.recipe.n_heads, -1)).transpose(1, 2) for x in "qk")
        cos, sin = self.model.model.rotary_emb(query, torch.arange(batch.ids.shape[1])[None])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        scores = (query[rows, 0, batch.last, None] * key[:, 0]).sum(-1) / math.sqrt(key.shape[-1])
        later = torch.arange(batch.ids.shape[1])[None] > batch.last[:, None]
        return -scores.masked_fill(later, -torch.inf).log_softmax(-1)[rows, batch.option_ends[rows, batch.target]].mean()

    @contextmanager
    def _watch(self, phase: str) -> Iterator[None]:
        """Hooks that keep what the losses read, hand the identity over and switch the recall layers off in phase A."""
        recipe = self.recipe
        layers: Any = self.model.model.layers
        attention = layers[recipe.matching_layer].self_attn
        hooks: list[RemovableHandle] = [
            attention.q_proj.register_forward_hook(lambda _m, _i, out: self._seen.update(q=out)),
            attention.k_proj.register_forward_hook(lambda _m, _i, out: self._seen.update(k=out)),
            layers[0].register_forward_hook(lambda _m, _i, out: self._seen.update(gathered=self._at_last(out))),
            layers[recipe.recall_layers[-1]].register_forward_hook(lambda _m, _i, out: self._recalled(out)),
        ]
        if phase == "A":
            off = [
                layers[i].mlp.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out)) for i in recipe.recall_layers
            ]
            hooks += off
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _at_last(self, out: torch.Tensor) -> torch.Tensor:
        return out[self._seen["rows"], self._seen["last"]]

    def _recalled(self, out: torch.Tensor) -> torch.Tensor:
        if "handed" in self._seen:
            out = out.clone()
            out[self._seen["rows"], self._seen["last"]] += self._seen["handed"]
        self._seen["recalled"] = out
        return out

    def _checkpoint(self, phase: str, step: int, optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}
        tensors |= {f"scaffold.{k}": v for k, v in self.scaffold.state_dict().items()}
        for i, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
        path = self.folder / f"checkpoint-{phase}.safetensors"
        with whole_file(path) as file:
            file.write(save({k: v.contiguous() for k, v in tensors.items()}, {"step": str(step)}))

    def _restore(self, phase: str, optimizer: torch.optim.Optimizer) -> int:
        path = self.folder / f"checkpoint-{phase}.safetensors"
        if not path.is_file():
            return 0
        tensors = load_file(path)
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict({**part("model."), "lm_head.weight": tensors["model.model.embed_tokens.weight"]})
        self.scaffold.load_state_dict(part("scaffold."))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in part("optimizer.").items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(header["__metadata__"]["step"])


def _schedule(step: int, steps: int, recipe: Recipe) -> float:
    rise = min(1.0, (step + 1) / recipe.warm_up)
    return rise * min(1.0, max(0.03, (1 - step / steps) / recipe.decay_share))


def _check_same_recipe(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "recipe.json", json.dumps(asdict(recipe), indent=1)
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{path}: this folder holds the training of another recipe; choose an empty folder")
    write_text(text, path)


def main() -> None:
    """The command line: --out, and any recipe number by name for a trial."""
    parser = argparse.ArgumentParser(description="Train the atlas model.")
    parser.add_argument("--out", type=Path, required=True)
    for name, value in asdict(Recipe()).items():
        if isinstance(value, (int, float)):
            parser.add_argument(f"--{name}", type=type(value), default=value)
    values = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Trainer(Recipe(**{k: v for k, v in values.items() if k != "out"}), values["out"]).run()


if __name__ == "__main__":
    main()
