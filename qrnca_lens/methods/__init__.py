"""Methods rank a query's neurons, one file a score; a budget cuts the rankings into sets of any size, equal ones too."""

from qrnca_lens.methods.ablation import ablate_each
from qrnca_lens.methods.budget import Budget, Sets, at_most, cut, equal_counts, like, own_sizes, share
from qrnca_lens.methods.ranking import Ranking
from qrnca_lens.methods.registry import (
    METHODS,
    Evidence,
    Method,
    RankFunction,
    find_at_equal_counts,
    find_neurons,
    rank_neurons,
    register,
    register_ranking,
    score,
)
from qrnca_lens.methods.scoring import Asked, ScoreFunction

__all__ = [
    "METHODS",
    "Asked",
    "Budget",
    "Evidence",
    "Method",
    "RankFunction",
    "Ranking",
    "ScoreFunction",
    "Sets",
    "ablate_each",
    "at_most",
    "cut",
    "equal_counts",
    "find_at_equal_counts",
    "find_neurons",
    "like",
    "own_sizes",
    "rank_neurons",
    "register",
    "register_ranking",
    "score",
    "share",
]
