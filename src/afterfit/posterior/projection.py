"""Jacobians projected on many directions, layer by layer, without their rows."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature import FactoredPart, RowsPart, UnusedPart, jacobian_rows, layer_jacobians
from afterfit.curvature.diagonal import flat_scale
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


def projected_jacobians(
    problem: Problem,
    data: Batches,
    prior: Float[Tensor, " P"],
    vectors: Float[Tensor, "P R"],
    memory_budget: int,
) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B C R"]]]:
    """Positions and ``J S V`` of some samples at a time, with S = diag(prior).

    The Jacobian of a linear layer is ``g aᵀ`` for each output of the network. Summed over the
    inputs first, which all outputs share, the product costs C times less than with Jacobian rows.
    """
    if problem.coordinates is None:
        for index, rows in jacobian_rows(problem, data, memory_budget // 2):
            yield index, (rows * prior) @ vectors
        return
    (first,) = layer_jacobians(problem, data.subset(torch.arange(1)))
    own = _Whitened(flat_scale(problem), prior, vectors)
    size = _entries_of_a_sample(first.parts, first.outputs.shape[1], vectors.shape[1])
    rows = max(1, memory_budget // (size * vectors.element_size()))
    for seen in layer_jacobians(problem, Batches(data, min(rows, data.batch_size))):
        shape = (*seen.outputs.shape, vectors.shape[1])
        total = vectors.new_zeros(shape)
        for part in seen.parts:
            if not isinstance(part, UnusedPart):
                total += _project(part, own.of(part))
        yield seen.index, total


@final
class _Whitened:
    """Directions in the coordinates in which the parts of a Jacobian come, each made once."""

    def __init__(self, scale: Tensor, prior: Tensor, vectors: Float[Tensor, "P R"]) -> None:
        self._scale, self._prior, self._vectors = scale, prior, vectors
        self._found: dict[tuple[tuple[str, ...], int, bool], Tensor] = {}

    def of(self, part: FactoredPart | RowsPart) -> Float[Tensor, "n R"]:
        """Directions of one part."""
        factored = isinstance(part, FactoredPart)
        key = part.names, int(part.positions[0]), factored
        if key not in self._found:
            factor = self._prior * self._scale if factored else self._prior
            own = self._vectors[part.positions]
            self._found[key] = own.mul_(factor[part.positions, None])
        return self._found[key]


def _entries_of_a_sample(
    parts: Sequence[FactoredPart | RowsPart | UnusedPart], num_outputs: int, num_directions: int
) -> int:
    """Numbers that are held for one sample: factors, sums over inputs, and the product."""
    layers = [part for part in parts if isinstance(part, FactoredPart)]
    factors = sum(part.values.numel() for part in parts if isinstance(part, RowsPart)) + sum(
        part.inputs.numel() + part.outputs.numel() + num_outputs * prod(part.scale.shape)
        for part in layers
    )
    widest = max((part.scale.shape[0] for part in layers), default=0)
    return 3 * factors + 3 * (widest + num_outputs) * num_directions


def _project(
    part: FactoredPart | RowsPart, vectors: Float[Tensor, "n R"]
) -> Float[Tensor, "B C R"]:
    if isinstance(part, RowsPart):
        return part.values @ vectors
    if part.inputs.shape[1] > 1:  # sums over positions first are cheaper
        return (part.outputs.mT @ part.inputs[:, None]).flatten(2) @ vectors
    by_row = vectors.view(*part.scale.shape, -1)
    summed = part.inputs[:, 0] @ by_row  # (O, B, R)
    return part.outputs[:, :, 0] @ summed.transpose(0, 1)
