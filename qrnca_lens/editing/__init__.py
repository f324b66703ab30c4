"""Editing: interventions on neurons."""

from qrnca_lens.editing.interventions import enhance, scale, suppress

__all__ = ["enhance", "scale", "suppress"]
