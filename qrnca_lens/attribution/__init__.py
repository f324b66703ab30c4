"""Attribution: one score for every MLP neuron, from a hooked model and a prompt."""

from qrnca_lens.attribution.integrals import AttributionError
from qrnca_lens.attribution.integrated import attribute
from qrnca_lens.attribution.result import Attribution
from qrnca_lens.engine.fallback import SlowPathWarning

__all__ = ["Attribution", "AttributionError", "SlowPathWarning", "attribute"]
