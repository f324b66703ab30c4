"""Shapes by name. The tests check them at run time (`--jaxtyping-packages` in pyproject.toml).

`layer`, `neuron` (d_mlp), `step`, `row`, `token` (vocabulary), `position` and `d_model` mean the same in every module.
"""

from jaxtyping import Float, Int
from torch import Tensor

Scores = Float[Tensor, "layer neuron"]
"""One attribution score for every MLP neuron of a model, in probability units; made by `attribution`."""

LayerValues = Float[Tensor, " layer"]
"""One number a layer, such as the completeness gap in probability units; made by `attribution`."""

LayerCounts = Int[Tensor, " layer"]
"""One whole number a layer, such as the nodes that its integral took; made by `attribution`."""

Tokens = Int[Tensor, " position"]
"""The token ids of one prompt, special tokens included; made by `models.reader`."""

Nodes = Float[Tensor, " step"]
"""Quadrature nodes or weights on [0, 1], without unit; made by `core.rules`."""
