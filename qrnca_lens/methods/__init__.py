"""Other ways of scoring neurons, one file each, one signature; QRNCA's variants on its own clusters are in `clustering`."""

from qrnca_lens.methods import ablation, activation, contrastive, gradient, log_probability, random_scores
from qrnca_lens.methods.ablation import ablate_each
from qrnca_lens.methods.scoring import BASELINES, Asked, Baseline, ScoreFunction, register, score

__all__ = ["BASELINES", "Asked", "Baseline", "ScoreFunction", "ablate_each", "register", "score"]
_MODULES = (random_scores, activation, gradient, ablation, log_probability, contrastive)  # importing them registers them
