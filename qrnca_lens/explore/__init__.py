"""Look at single neurons, queries and circuits: views that show themselves, the Jupyter explorer, a static page."""

from qrnca_lens.explore.circuit import Circuit, circuit
from qrnca_lens.explore.explorer import Explorer
from qrnca_lens.explore.neuron_card import NeuronCard, neuron
from qrnca_lens.explore.page import write_explorer
from qrnca_lens.explore.query_view import QueryView, show

__all__ = ["Circuit", "Explorer", "NeuronCard", "QueryView", "circuit", "neuron", "show", "write_explorer"]
