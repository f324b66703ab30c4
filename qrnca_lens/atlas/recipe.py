"""The numbers of the shipped model's recipe; docs/atlas.md says why each stands as it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One training of atlas. Two recipes that compare equal give the same weights on the same machine."""

    seed: int = 0
    # the model: a Llama with tied embeddings
    vocab: int = 4096
    d_model: int = 128
    n_layers: int = 6
    n_heads: int = 4
    d_mlp: int = 512
    recall_layers: tuple[int, ...] = (1, 2)
    matching_layer: int = 3
    # both phases
    batch: int = 32
    warm_up: int = 100
    decay_share: float = 0.3
    label_smoothing: float = 0.05
    clip: float = 1.0
    checkpoint_every: int = 250
    # phase A: the circuits, with the answer's identity handed over and no fact learnt
    steps_a: int = 3500
    lr_a: float = 1e-3
    weight_decay_a: float = 0.05
    attention_loss: float = 0.5
    attention_share: float = 0.5  # of phase A's steps; after that the matching head is left alone
    identity_scale: tuple[float, float] = (0.0, 10.0)  # strength of the handed-over identity, drawn uniformly
    identity_noise: float = 8.0  # norm of the noise that is handed over with it
    # phase B: the facts, into the MLPs of the recall layers alone
    steps_b: int = 1000
    lr_b: float = 2e-3
    weight_decay_b: float = 0.01
    frequency_exponent: float = 1.0  # of the Zipf-like frequency of facts within a group
