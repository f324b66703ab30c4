"""Random: a score that knows nothing (paper, table 4)."""

from __future__ import annotations

import random

import torch

from qrnca_lens.attribution.baselines.registry import Asked, register
from qrnca_lens.models import mlp_width
from qrnca_lens.shapes import Scores


@register("random", "Random", "paper, table 4")
def random_scores(asked: Asked) -> Scores:
    """Uniform scores, seeded by the prompt's text."""
    seed = random.Random(asked.prompt.text).getrandbits(63)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(asked.model.cfg.n_layers, mlp_width(asked.model), generator=generator, dtype=torch.float32)
