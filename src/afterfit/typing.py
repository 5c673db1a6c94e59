"""Names of the shapes and containers that the whole library shares.

Axes: ``N`` samples, ``B`` samples of one batch, ``C`` outputs of one sample, ``P`` parameters,
``M`` members of an ensemble, ``Q`` queries, ``K`` checkpoints or probes.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Params = Mapping[str, Tensor]
"""Tensors by their names in the module: parameters, or parameters and buffers of a member."""

Inputs = Any
"""What one call of the network takes: a tensor, a tuple of them, or a dict of them."""
