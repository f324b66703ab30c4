"""Look at single neurons, queries and circuits: views that show themselves, the Jupyter explorer, a static page.

`Explorer` is loaded on first use: it alone needs anywidget.
"""

from typing import TYPE_CHECKING, Any

from qrnca_lens.core.packages import load
from qrnca_lens.views.circuits import Circuit, circuit
from qrnca_lens.views.explorer.page import write_explorer
from qrnca_lens.views.neuron_card import NeuronCard, neuron
from qrnca_lens.views.query_view import QueryView, show

if TYPE_CHECKING:
    from qrnca_lens.views.explorer.widget import Explorer

__all__ = ["Circuit", "Explorer", "NeuronCard", "QueryView", "circuit", "neuron", "show", "write_explorer"]


def __getattr__(name: str) -> Any:
    if name != "Explorer":
        raise AttributeError(f"module 'qrnca_lens.views' has no attribute {name!r}")
    return load("qrnca_lens.views.explorer.widget").Explorer
