"""qrnca_lens: find, judge and edit the neurons on which a language model's answers depend.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qrnca_lens._version import __version__
from qrnca_lens.core.packages import load

if TYPE_CHECKING:
    from qrnca_lens.attribution import Attribution, attribute
    from qrnca_lens.attribution.letters import LetterWarning, letter_probabilities, option_tokens
    from qrnca_lens.attribution.options import answers, option_probabilities
    from qrnca_lens.clustering import QRNCAConfig, QRNeurons, cluster_neurons
    from qrnca_lens.core.neurons import Neuron, NeuronSet
    from qrnca_lens.core.store import DamagedRunError, DamageWarning, RunError
    from qrnca_lens.data import DataError, QuerySet, load_queries
    from qrnca_lens.editing import enhance, scale, suppress
    from qrnca_lens.editing.effects import edit_effects
    from qrnca_lens.editing.statistics import edit_success, probability_change_ratio
    from qrnca_lens.methods.registry import Evidence, find_neurons, rank_neurons
    from qrnca_lens.models import BusyModelError, ModelError, load_model
    from qrnca_lens.readout.activity import activations
    from qrnca_lens.readout.promoted import promoted_tokens
    from qrnca_lens.runs.answering import ChanceWarning, Check
    from qrnca_lens.runs.checking import check
    from qrnca_lens.runs.forecast import Estimate, estimate
    from qrnca_lens.runs.pipeline import locate
    from qrnca_lens.runs.ray_executor import RayExecutor
    from qrnca_lens.runs.status import status_of
    from qrnca_lens.study import reproduce, subject
    from qrnca_lens.study.prediction import predict_from_neurons
    from qrnca_lens.study.transfer.measure import transfer
    from qrnca_lens.study.transfer.result import Transfer
    from qrnca_lens.views import Circuit, Explorer, NeuronCard, QueryView, circuit, neuron, show, write_explorer
    from qrnca_lens.views.plots import figures as plots

_PUBLIC = {
    "write_explorer": "qrnca_lens.views",
    "show": "qrnca_lens.views",
    "neuron": "qrnca_lens.views",
    "circuit": "qrnca_lens.views",
    "QueryView": "qrnca_lens.views",
    "NeuronCard": "qrnca_lens.views",
    "Explorer": "qrnca_lens.views",
    "Circuit": "qrnca_lens.views",
    "Attribution": "qrnca_lens.attribution",
    "BusyModelError": "qrnca_lens.models",
    "ChanceWarning": "qrnca_lens.runs.answering",
    "Check": "qrnca_lens.runs.answering",
    "DamageWarning": "qrnca_lens.core.store",
    "DamagedRunError": "qrnca_lens.core.store",
    "DataError": "qrnca_lens.data",
    "Estimate": "qrnca_lens.runs.forecast",
    "Evidence": "qrnca_lens.methods.registry",
    "LetterWarning": "qrnca_lens.attribution.letters",
    "ModelError": "qrnca_lens.models",
    "Neuron": "qrnca_lens.core.neurons",
    "NeuronSet": "qrnca_lens.core.neurons",
    "QRNCAConfig": "qrnca_lens.clustering",
    "QRNeurons": "qrnca_lens.clustering",
    "QuerySet": "qrnca_lens.data",
    "RayExecutor": "qrnca_lens.runs.ray_executor",
    "RunError": "qrnca_lens.core.store",
    "Transfer": "qrnca_lens.study.transfer.result",
    "activations": "qrnca_lens.readout.activity",
    "answers": "qrnca_lens.attribution.options",
    "attribute": "qrnca_lens.attribution",
    "check": "qrnca_lens.runs.checking",
    "cluster_neurons": "qrnca_lens.clustering",
    "edit_effects": "qrnca_lens.editing.effects",
    "edit_success": "qrnca_lens.editing.statistics",
    "enhance": "qrnca_lens.editing",
    "estimate": "qrnca_lens.runs.forecast",
    "find_neurons": "qrnca_lens.methods.registry",
    "letter_probabilities": "qrnca_lens.attribution.letters",
    "load_model": "qrnca_lens.models",
    "load_queries": "qrnca_lens.data",
    "locate": "qrnca_lens.runs.pipeline",
    "option_probabilities": "qrnca_lens.attribution.options",
    "option_tokens": "qrnca_lens.attribution.letters",
    "predict_from_neurons": "qrnca_lens.study.prediction",
    "probability_change_ratio": "qrnca_lens.editing.statistics",
    "promoted_tokens": "qrnca_lens.readout.promoted",
    "rank_neurons": "qrnca_lens.methods.registry",
    "reproduce": "qrnca_lens.study",
    "scale": "qrnca_lens.editing",
    "status_of": "qrnca_lens.runs.status",
    "subject": "qrnca_lens.study",
    "suppress": "qrnca_lens.editing",
    "transfer": "qrnca_lens.study.transfer.measure",
    "plots": "qrnca_lens.views.plots.figures",
}
__all__ = [
    "__version__",
    "write_explorer",
    "show",
    "neuron",
    "circuit",
    "QueryView",
    "NeuronCard",
    "Explorer",
    "Circuit",
    "Attribution",
    "BusyModelError",
    "ChanceWarning",
    "Check",
    "DamageWarning",
    "DamagedRunError",
    "DataError",
    "Estimate",
    "Evidence",
    "LetterWarning",
    "ModelError",
    "Neuron",
    "NeuronSet",
    "QRNCAConfig",
    "QRNeurons",
    "QuerySet",
    "RayExecutor",
    "RunError",
    "Transfer",
    "activations",
    "answers",
    "attribute",
    "check",
    "cluster_neurons",
    "edit_effects",
    "edit_success",
    "enhance",
    "estimate",
    "find_neurons",
    "letter_probabilities",
    "load_model",
    "load_queries",
    "locate",
    "option_probabilities",
    "option_tokens",
    "predict_from_neurons",
    "probability_change_ratio",
    "promoted_tokens",
    "rank_neurons",
    "reproduce",
    "scale",
    "status_of",
    "subject",
    "suppress",
    "transfer",
    "plots",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qrnca_lens' has no attribute {name!r}")
    module = load(_PUBLIC[name])
    value = module if name == "plots" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
