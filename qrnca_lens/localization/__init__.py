"""Localization: where in a model the neurons of a group sit, and whether that is more than chance. Touches no model."""

from qrnca_lens.localization.heatmap import Heatmap, group_heatmap, layer_counts
from qrnca_lens.localization.overlaps import common_locations, jaccard, mean_overlap, overlap
from qrnca_lens.localization.significance import concentration_test, overlap_test

__all__ = [
    "Heatmap",
    "common_locations",
    "concentration_test",
    "group_heatmap",
    "jaccard",
    "layer_counts",
    "mean_overlap",
    "overlap",
    "overlap_test",
]
