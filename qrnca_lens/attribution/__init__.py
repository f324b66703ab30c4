"""Attribution: one score for every MLP neuron, from a hooked model and a prompt."""

from qrnca_lens.attribution.integrated import AttributionError, SlowPathWarning, attribute
from qrnca_lens.attribution.result import Attribution

__all__ = ["Attribution", "AttributionError", "SlowPathWarning", "attribute"]
