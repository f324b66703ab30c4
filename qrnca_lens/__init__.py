"""qrnca_lens: find, judge and edit the neurons that carry knowledge in language models.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

from qrnca_lens._version import __version__

_PUBLIC = {
    "Attribution": "qrnca_lens.attribution",
    "DataError": "qrnca_lens.data",
    "ModelError": "qrnca_lens.models",
    "Neuron": "qrnca_lens.neurons",
    "NeuronSet": "qrnca_lens.neurons",
    "QRNCAConfig": "qrnca_lens.clustering",
    "QRNeurons": "qrnca_lens.clustering",
    "QuerySet": "qrnca_lens.data",
    "RunError": "qrnca_lens.store",
    "answers": "qrnca_lens.models.letters",
    "attribute": "qrnca_lens.attribution",
    "letter_probabilities": "qrnca_lens.models.letters",
    "load_model": "qrnca_lens.models",
    "load_queries": "qrnca_lens.data",
    "locate": "qrnca_lens.pipeline",
    "plots": "qrnca_lens.plots",
}
__all__ = [
    "__version__",
    "Attribution",
    "DataError",
    "ModelError",
    "Neuron",
    "NeuronSet",
    "QRNCAConfig",
    "QRNeurons",
    "QuerySet",
    "RunError",
    "answers",
    "attribute",
    "letter_probabilities",
    "load_model",
    "load_queries",
    "locate",
    "plots",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qrnca_lens' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    value = module if module.__name__ == f"qrnca_lens.{name}" and name == "plots" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
