"""Localization: where in a model the neurons of a group sit, whether that is more than chance, and what they promote.

Only `promoted_tokens` touches a model: it reads weights and runs nothing but the final norm and the unembedding.
"""

from qrnca_lens.localization.heatmap import Heatmap, group_heatmap, layer_counts
from qrnca_lens.localization.overlap import common_locations, jaccard, overlap
from qrnca_lens.localization.projection import promoted_tokens
from qrnca_lens.localization.significance import concentration_test, overlap_test

__all__ = [
    "Heatmap",
    "common_locations",
    "concentration_test",
    "group_heatmap",
    "jaccard",
    "layer_counts",
    "overlap",
    "overlap_test",
    "promoted_tokens",
]
