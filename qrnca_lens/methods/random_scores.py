"""Random: a score that knows nothing (paper, table 4)."""

from __future__ import annotations

import random

import torch

from qrnca_lens.core.shapes import Scores
from qrnca_lens.methods.scoring import Asked
from qrnca_lens.models import mlp_width


def scores_at_random(asked: Asked) -> Scores:
    """Uniform scores, seeded by the prompt's text."""
    seed = random.Random(asked.prompt.text).getrandbits(63)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(asked.model.cfg.n_layers, mlp_width(asked.model), generator=generator, dtype=torch.float32)
