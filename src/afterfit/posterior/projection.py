"""Jacobians projected on many directions, layer by layer, without their rows."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature import FactoredPart, RowsPart, jacobian_rows, layer_jacobians
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
    own = [_whitened(part, flat_scale(problem), prior, vectors) for part in first.parts]
    size = _entries_of_a_sample(first.parts, first.outputs.shape[1], vectors.shape[1])
    rows = max(1, memory_budget // (size * vectors.element_size()))
    for seen in layer_jacobians(problem, Batches(data, min(rows, data.batch_size))):
        shape = (*seen.outputs.shape, vectors.shape[1])
        total = vectors.new_zeros(shape)
        for part, columns in zip(seen.parts, own, strict=True):
            total += _project(part, columns)
        yield seen.index, total


def _whitened(
    part: FactoredPart | RowsPart, scale: Tensor, prior: Tensor, vectors: Float[Tensor, "P R"]
) -> Float[Tensor, "n R"]:
    """Directions in the coordinates in which the parts of a Jacobian come."""
    factor = prior * scale if isinstance(part, FactoredPart) else prior
    own = vectors[part.positions]
    return own.mul_(factor[part.positions, None])


def _entries_of_a_sample(
    parts: Sequence[FactoredPart | RowsPart], num_outputs: int, num_directions: int
) -> int:
    """Numbers that are held for one sample: factors, sums over inputs, and the product."""
    factors = sum(
        part.values.numel()
        if isinstance(part, RowsPart)
        else part.inputs.numel() + part.outputs.numel() + num_outputs * prod(part.scale.shape)
        for part in parts
    )
    widest = max(0 if isinstance(p, RowsPart) else p.scale.shape[0] for p in parts)
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
