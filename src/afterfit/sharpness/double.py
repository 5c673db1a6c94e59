"""Data in double precision, in which rescalings are told from changes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from afterfit.problem.data import Batches
from afterfit.problem.problem import move


def in_double(data: Batches, device: torch.device) -> Batches:
    """Copy samples with their floating numbers in float64."""
    _, inputs, targets = data.fetch(torch.arange(data.num_samples))
    cast = tree_map(_double, (move(inputs, device), targets))
    found, y = cast
    if isinstance(found, Tensor):
        return Batches((found, y), data.batch_size, data.ids)
    if isinstance(found, tuple):
        return Batches((*found, y), data.batch_size, data.ids)
    rows = [
        {**{key: column[i] for key, column in found.items()}, "labels": y[i]}
        for i in range(data.num_samples)
    ]
    return Batches(rows, data.batch_size, data.ids)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
