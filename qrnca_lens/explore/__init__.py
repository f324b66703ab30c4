"""Look at single neurons, queries and circuits: views that show themselves, the Jupyter explorer, a static page.

`Explorer` is loaded on first use: it alone needs anywidget.
"""

from typing import TYPE_CHECKING, Any

from qrnca_lens.explore.circuit import Circuit, circuit
from qrnca_lens.explore.neuron_card import NeuronCard, neuron
from qrnca_lens.explore.page import write_explorer
from qrnca_lens.explore.query_view import QueryView, show
from qrnca_lens.packages import load

if TYPE_CHECKING:
    from qrnca_lens.explore.explorer import Explorer

__all__ = ["Circuit", "Explorer", "NeuronCard", "QueryView", "circuit", "neuron", "show", "write_explorer"]


def __getattr__(name: str) -> Any:
    if name != "Explorer":
        raise AttributeError(f"module 'qrnca_lens.explore' has no attribute {name!r}")
    return load("qrnca_lens.explore.explorer").Explorer
