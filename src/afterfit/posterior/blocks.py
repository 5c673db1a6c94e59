"""From the blocks of a curvature to directions in which each is diagonal."""

from functools import singledispatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.blocks import DiagonalBlock, EigenBlock, KroneckerBlock
from afterfit.curvature.diagonal import flat_scale
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.structured import BlockDiagonal
from afterfit.posterior.basis import basis_of_matrix, nonnegative
from afterfit.posterior.kronecker import BlockBasis, LayerPart, LoosePart
from afterfit.problem.problem import Problem


def basis_of_blocks(
    operator: BlockDiagonal, problem: Problem, prior: Float[Tensor, " P"]
) -> tuple[BlockBasis, Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Directions and eigenvalues of the whitened blocks, and the prior that whitens them.

    A Kronecker block in relative coordinates has a scale of rank one, the geometric means of the
    rows and columns of the layer's own scale: there the prior becomes that of the same absolute
    size, ``prior rows columns / scale``.
    """
    scale = flat_scale(problem)
    parts, values, priors = [], [], prior.clone()
    for block, where in zip(operator.blocks, operator.parts(), strict=True):
        part, own, whitening = _whiten(block, scale[where], prior[where])
        parts.append(part)
        values.append(own)
        priors[where] = whitening
    kinds = {type(block) for block in operator.blocks}
    structure = "eigenvalue-corrected Kronecker" if EigenBlock in kinds else "Kronecker"
    basis = BlockBasis(tuple(parts), tuple(operator.parts()), structure)
    return basis, torch.cat(values), priors


@singledispatch
def _whiten(
    block: LinearOperator,
    scale: Float[Tensor, " n"],  # noqa: ARG001
    prior: Float[Tensor, " n"],
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Part, eigenvalues and prior of one block."""
    basis, values = basis_of_matrix(prior[:, None] * block.to_dense() * prior)
    return LoosePart(_names_of(block), basis.vectors), values, prior


@_whiten.register
def _(
    block: DiagonalBlock,
    scale: Float[Tensor, " n"],  # noqa: ARG001
    prior: Float[Tensor, " n"],
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    values = nonnegative(block.entries, block.dtype) * prior.square()
    return LoosePart(block.names, None), values, prior


@_whiten.register
def _(
    block: KroneckerBlock, scale: Float[Tensor, " n"], prior: Float[Tensor, " n"]
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    shape = (len(block.rows), len(block.columns))
    stds = _per_column(prior.view(shape), block.names)
    left, right = block.output_factor.double(), stds[:, None] * block.input_factor.double() * stds
    left_values, left_vectors = torch.linalg.eigh((left + left.mT) / 2)
    right_values, right_vectors = torch.linalg.eigh((right + right.mT) / 2)
    values = torch.outer(
        nonnegative(left_values, block.dtype), nonnegative(right_values, block.dtype)
    )
    part = LayerPart(
        block.names,
        left_vectors.to(prior),
        right_vectors.to(prior),
        block.rows,
        block.columns * stds.to(prior),
        None,
    )
    moves = scale != 0
    ratio = torch.outer(block.rows, block.columns).flatten() / torch.where(moves, scale, 1.0)
    return part, values.flatten().to(prior), prior * torch.where(moves, ratio, 0.0)


@_whiten.register
def _(
    block: EigenBlock, scale: Float[Tensor, " n"], prior: Float[Tensor, " n"]
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    shape = block.values.shape
    stds = _per_column(prior.view(shape), block.names)
    if bool((stds != stds[0]).any()):
        message = (
            f"{block.names} have prior scales {sorted(set(stds.tolist()))}, expected one for the "
            "weight and the bias of a layer: the corrected eigenvalues belong to both; use kfac"
        )
        raise ValueError(message)
    absolute = bool((scale == 1).all())
    part = LayerPart(
        block.names,
        block.output_vectors,
        block.input_vectors,
        torch.ones_like(block.output_vectors[0]),
        stds.to(prior),
        None if absolute else scale.view(shape) * block.signs,
    )
    values = nonnegative(block.values.flatten(), block.dtype) * prior.square()
    return part, values, prior * block.signs.flatten()


def _per_column(prior: Float[Tensor, "O I"], names: tuple[str, ...]) -> Float[Tensor, " I"]:
    """Prior scales of the columns of a layer, the same for all rows; float64."""
    if bool((prior != prior[0]).any()):
        message = f"{names} have prior scales that differ within a column, expected one a tensor"
        raise ValueError(message)
    return prior[0].double()


def _names_of(block: Any) -> tuple[str, ...]:
    return block.names
