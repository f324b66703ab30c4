"""Localization: where in a model the neurons of a group sit, and whether that is more than chance. Touches no model."""

from qrnca_lens.localization.common import common_layer_test, common_locations
from qrnca_lens.localization.heatmap import Heatmap, group_heatmap, layer_counts
from qrnca_lens.localization.overlaps import jaccard, mean_overlap, overlap
from qrnca_lens.localization.rates import OverlapDifference, OverlapRates, overlap_difference, overlap_rates
from qrnca_lens.localization.significance import concentration_test, layer_test, overlap_test, significant

__all__ = [
    "Heatmap",
    "OverlapDifference",
    "OverlapRates",
    "common_layer_test",
    "common_locations",
    "concentration_test",
    "group_heatmap",
    "jaccard",
    "layer_counts",
    "layer_test",
    "mean_overlap",
    "overlap",
    "overlap_difference",
    "overlap_rates",
    "overlap_test",
    "significant",
]
