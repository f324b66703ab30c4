"""Localization: where in a model the neurons of a group sit; touches no model."""

from qrnca_lens.localization.heatmap import Heatmap, group_heatmap, layer_counts

__all__ = ["Heatmap", "group_heatmap", "layer_counts"]
