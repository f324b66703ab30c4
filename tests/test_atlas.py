"""The shipped model: what it must be, and that its recipe trains, resumes and refuses another recipe's folder."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qrnca_lens.atlas.batches import Batches, mixed_templates
from qrnca_lens.atlas.recipe import Recipe
from qrnca_lens.atlas.train import Trainer
from qrnca_lens.attribution import attribute
from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.attribution.options import answers
from qrnca_lens.data import TEMPLATES, load_queries, load_questions
from qrnca_lens.models import ModelError, to_tokens
from qrnca_lens.models.hooked import HookedTransformer
from qrnca_lens.models.places import ATLAS_FOLDER
from qrnca_lens.study.card import FRESH_SEED, at_last, at_others, measure_card, zeroed

TINY = Recipe(d_model=32, d_mlp=48, n_layers=4, batch=4, steps_a=6, steps_b=4, warm_up=2, checkpoint_every=2, vocab=700)


def test_it_is_a_hooked_transformer_equal_to_its_hugging_face_folder(atlas: Any) -> None:
    assert isinstance(atlas, HookedTransformer)
    assert (ATLAS_FOLDER / "model.safetensors").stat().st_size < 12_000_000
    hf = AutoModelForCausalLM.from_pretrained(ATLAS_FOLDER, dtype=torch.float32).eval()
    for query in load_queries("atlas/languages").sample(1):
        ids = to_tokens(atlas, query.prompts[0].text)[None]
        with torch.no_grad():
            assert torch.allclose(atlas(ids), hf(ids).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["atlas/domains", "atlas/languages"])
def test_it_answers_its_questions_within_the_bars(name: str, atlas: Any) -> None:
    """All questions, fresh shuffles and distractors: 80 to 98 % right, mean P 0.6 to 0.95, held-out template 75 %."""
    fresh = answers(atlas, load_queries(name, seed=FRESH_SEED)).groupby("group")
    assert fresh["right"].mean().between(0.80, 0.98).all()
    assert fresh["probability"].mean().between(0.6, 0.95).all()
    held_out = answers(atlas, load_queries(name, seed=FRESH_SEED, held_out=True)).groupby("group")
    assert held_out["right"].mean().min() >= 0.75


def test_the_facts_sit_in_the_recall_layers_at_the_last_token(atlas: Any) -> None:
    queries = load_queries("atlas/domains", seed=FRESH_SEED).sample(20)
    recall, right = list(Recipe().recall_layers), {}
    for name, layers, where in (("intact", [], at_last), ("last", recall, at_last), ("others", recall, at_others)):
        with zeroed(atlas, layers, where):
            right[name] = answers(atlas, queries)["right"].mean()
    assert right["last"] <= 0.35
    assert right["others"] >= right["intact"] - 0.05


def test_every_letter_is_a_spaced_token_after_every_template(atlas: Any) -> None:
    for query in (q for name in ("atlas/domains", "atlas/languages") for q in load_queries(name).sample(1)):
        for prompt in query.prompts:
            assert option_tokens(atlas, prompt.text).leading_space


def test_the_card_shows_where_the_facts_are(atlas: Any) -> None:
    card = measure_card(atlas, recall_layers=Recipe().recall_layers, per_group=5, effects_per_group=2)
    left = card.zeroing.set_index("MLPs zeroed")["accuracy"]
    assert left["layers [1, 2] at the last token"] < 0.5 < left["layers [1, 2] at all other tokens"]
    effects = card.effects.set_index(["neurons", "factor"])
    own, control = (effects.loc[[(name, 0.0)], "% own"] for name in ("QR neurons", "random, same layers"))
    assert own.max() < -15 < control.min()
    text = card.to_markdown()
    assert "held-out template" in text
    assert text.count("| biology |") == 1


def test_the_card_leaves_out_what_the_model_cannot_take(atlas: Any) -> None:
    sets = [load_queries(name, seed=FRESH_SEED).sample(1) for name in ("atlas/domains", "atlas/languages")]
    length = {q.id: max(len(to_tokens(atlas, p.text)) for p in q.prompts) for queries in sets for q in queries}
    longest = max(length, key=lambda query: length[query])
    short = copy.deepcopy(atlas)
    short.cfg.n_ctx = length[longest] - 1
    card = measure_card(short, recall_layers=[1], per_group=1)
    assert longest in list(card.failed["query"])
    assert card.accuracy["questions"].sum() == 12 - len(card.failed)
    assert f"| {longest} |" in card.to_markdown().split("Questions that the model cannot take")[1]
    short.cfg.n_ctx = 5
    with pytest.raises(ModelError, match="the model can take no question of atlas/domains; the first, 'bio-"):
        measure_card(short, per_group=1)


def test_probability_is_that_of_the_model(atlas: Any) -> None:
    prompt = load_queries("atlas/domains")["bio-007"].prompts[0]
    found = attribute(atlas, prompt.text, f" {prompt.letter}")
    direct = atlas(to_tokens(atlas, prompt.text)[None])[0, -1].softmax(-1)[found.target_id].item()
    assert found.probability == pytest.approx(direct, rel=1e-5)


def test_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Trainer(TINY, tmp_path / "whole").run().state_dict()
    real = Trainer._loss

    def stop(self: Trainer, phase: str, step: int) -> Any:
        if (phase, step) == ("B", 3):
            raise KeyboardInterrupt
        return real(self, phase, step)

    monkeypatch.setattr(Trainer, "_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        Trainer(TINY, tmp_path / "parts").run()
    monkeypatch.setattr(Trainer, "_loss", real)
    resumed = Trainer(TINY, tmp_path / "parts").run().state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(ValueError, match="the training of another recipe"):
        Trainer(replace(TINY, seed=1), tmp_path / "parts").run()


def test_phase_b_writes_into_the_recall_mlps_alone(tmp_path: Path) -> None:
    Trainer(TINY, tmp_path).run()
    after_a, after_b = (load_file(tmp_path / f"checkpoint-{phase}.safetensors") for phase in "AB")
    changed = {
        name for name, value in after_a.items() if name.startswith("model.") and not torch.equal(value, after_b[name])
    }
    assert changed == {
        f"model.model.layers.{i}.mlp.{part}_proj.weight" for i in TINY.recall_layers for part in ("gate", "up", "down")
    }


def test_batches_label_what_the_prompts_say(tmp_path: Path) -> None:
    questions = load_questions("atlas/domains") + load_questions("atlas/languages")
    trainer = Trainer(TINY, tmp_path)
    batches = Batches(questions, trainer.tokenizer, TINY)
    names = {number: answer for (_, answer), number in batches.classes.items()}
    for step in range(6):
        batch = batches.batch("B", step)
        for row in range(TINY.batch):
            question = questions[int(batch.question[row])]
            text = trainer.tokenizer.decode(batch.ids[row, : batch.last[row] + 1], skip_special_tokens=True)
            assert question.question in text
            assert names[int(batch.option_classes[row, batch.target[row]])] == question.answer
            for k in range(4):
                end = int(batch.option_ends[row, k])
                upto = trainer.tokenizer.decode(batch.ids[row, : end + 1], skip_special_tokens=True)
                assert upto.endswith(f"{names[int(batch.option_classes[row, k])]}\n")
    assert torch.equal(batches.batch("A", 3).ids, batches.batch("A", 3).ids)
    shares = [int(batches.batch("A", step).target.eq(0).sum()) for step in range(40)]
    assert 20 < sum(shares) < 60  # the handed-over option is any of the four, whatever the truth


def test_mixed_templates_do_not_know_the_held_out_wording() -> None:
    for language, templates in TEMPLATES.items():
        mixed = {t.text for t in mixed_templates(language)}
        assert len(mixed) == 54
        assert {t.text for t in templates.detection} <= mixed
        assert templates.held_out.text not in mixed


def test_the_recipe_has_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qrnca_lens.atlas.train", "--help"], check=True, capture_output=True, text=True
    )
    assert "--steps_a" in done.stdout
