"""Kronecker-factored curvature with exact second moments in its eigenbasis."""

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.blocks import EigenBlock
from afterfit.curvature.diagonal import diagonal, flat_scale
from afterfit.curvature.factors import Sharing, expand, factors, pulled_traces, stacked
from afterfit.curvature.kfac import (
    Curvature,
    Placed,
    assembled,
    diagonal_blocks,
    split_covered,
)
from afterfit.curvature.scale import rank_one, signs_of
from afterfit.curvature.units import Block, Unit
from afterfit.linalg.structured import BlockDiagonal
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem

_ENTRIES_AT_ONCE = 2**25
_OF_THE_DIAGONAL, _TINY = 1e-4, 1e-300


def ekfac(
    problem: Problem, data: Batches, sharing: Sharing = expand, others: Curvature | None = None
) -> BlockDiagonal:
    """Eigenvalue-corrected `kfac`: in the eigenbasis of its factors, the exact diagonal.

    Among all matrices that are diagonal in that basis it is the closest to the block. In relative
    coordinates the basis comes from the factors with the scale of rank one, and the second moments
    from gradients with the full scale: nothing is approximated but the basis, and both ignore
    rescalings of units. Directions on which the factors are silent would there have any basis, so
    0.01 % of the exact diagonal of the block is added to each factor before its eigenvectors are
    taken. Two passes over the data, three in relative coordinates.

    Parameters, warnings and errors are those of :func:`kfac`; `sharing` decides about the basis
    alone.

    References
    ----------
    George, Laurent, Bouthillier, Ballas, Vincent (2018), "Fast approximate natural gradient descent
    in a Kronecker-factored eigenbasis", NeurIPS, arXiv:1806.03884.
    """
    layered, rest = split_covered(problem, data, others)
    if layered is None:
        return assembled(problem, problem, [], rest)
    sums = factors(layered, data, sharing)
    scale = flat_scale(layered)
    places = {u.block: u.positions(layered.num_params).to(problem.device) for u in sums.units}
    exact = _exact_diagonal(layered, data)
    bases: dict[Block, tuple[Tensor, Tensor]] = {}
    for unit, left, right in zip(sums.units, sums.outputs, sums.inputs, strict=True):
        where = places[unit.block]
        rows, columns = rank_one(scale[where])
        known = _is_product(scale[where], rows, columns)
        part = exact[where] * (0 if known else 1)
        pairs = ((left, rows, part.sum(1)), (right, columns, part.sum(0)))
        outer, inner = (_eigenvectors(way[:, None] * f * way, of) for f, way, of in pairs)
        bases[unit.block] = outer.to(problem.dtype), inner.to(problem.dtype)
    values = {
        block: torch.zeros(where.shape, dtype=torch.float64, device=problem.device)
        for block, where in places.items()
    }
    for trace, units, pulls in pulled_traces(layered, data, layered.likelihood.root):
        for pulled in pulls:
            for unit in units:
                a, g = unit.inputs(trace), stacked(unit, trace, pulled)
                at = unit.block
                factor = scale[places[at]].abs() if _is_scaled(layered, unit) else None
                values[at] += second_moments(a, g, *bases[at], factor)
    blocks: list[Placed] = [
        (_block(u, bases[u.block], values[u.block], scale[where]), where.flatten())
        for u, where in zip(sums.units, places.values(), strict=True)
    ]
    return assembled(problem, layered, [*blocks, *diagonal_blocks(layered, sums)], rest)


def _block(unit: Unit, basis: tuple[Tensor, Tensor], values: Tensor, scale: Tensor) -> EigenBlock:
    return EigenBlock(unit.names, *basis, values.to(scale.dtype), signs_of(scale))


def _is_scaled(problem: Problem, unit: Unit) -> bool:
    scale = {} if problem.coordinates is None else problem.coordinates.scale
    return not scale.keys().isdisjoint(unit.names)


def _is_product(scale: Tensor, rows: Tensor, columns: Tensor) -> bool:
    """Whether a scale is of rank one, so that the factors are silent where the gradients are."""
    product = rows[:, None] * columns
    return torch.allclose(scale.abs(), product, rtol=1e-5, atol=0.0)


def _exact_diagonal(problem: Problem, data: Batches) -> Float[Tensor, " P"]:
    """Diagonal of the matrix in relative coordinates; zeros in those that are absolute."""
    if problem.coordinates is None or not problem.coordinates.scale:
        return torch.zeros(problem.num_params, dtype=torch.float64, device=problem.device)
    return diagonal(problem, data).entries.double()


def _eigenvectors(factor: Float[Tensor, "n n"], exact: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """Eigenvectors of a factor, made definite by a little of the diagonal where that is given."""
    strength = _OF_THE_DIAGONAL * factor.trace() / exact.sum().clamp_min(_TINY)
    definite = (factor + factor.mT) / 2 + strength * exact.to(factor).diag()
    return torch.linalg.eigh(definite).eigenvectors


def second_moments(
    inputs: Float[Tensor, "B S I"],
    outputs: Float[Tensor, "K B S O"],
    output_vectors: Float[Tensor, "O O"],
    input_vectors: Float[Tensor, "I I"],
    scale: Float[Tensor, "O I"] | None,
) -> Float[Tensor, "O I"]:
    """Sum of the squared gradients in a basis: ``(Uᵀ (scale ⊙ Σ_s g_s a_sᵀ) V)²``."""
    if scale is None and inputs.shape[1] == 1:
        rotated = (outputs[:, :, 0] @ output_vectors).square().sum(0)
        return (rotated.mT @ (inputs[:, 0] @ input_vectors).square()).double()
    if scale is None:
        inputs, outputs = inputs @ input_vectors, outputs @ output_vectors
    total = inputs.new_zeros(len(output_vectors), len(input_vectors), dtype=torch.float64)
    chunk = max(1, _ENTRIES_AT_ONCE // total.numel())
    for column in outputs:
        for a, g in zip(inputs.split(chunk), column.split(chunk), strict=True):
            rows = g.mT @ a
            if scale is not None:
                rows = output_vectors.mT @ (rows * scale) @ input_vectors
            total += rows.square().sum(0)
    return total
