"""From the blocks of a curvature to directions in which each is diagonal."""

from dataclasses import replace
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature import EigenBlock, KroneckerBlock, NamedBlock, rank_one
from afterfit.curvature.diagonal import flat_scale
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.structured import BlockDiagonal, Diagonal
from afterfit.posterior.basis import basis_of_matrix, nonnegative
from afterfit.posterior.kronecker import BlockBasis, LayerPart, LoosePart
from afterfit.problem.persample import unflatten
from afterfit.problem.problem import Problem


def with_rank_one_scale(problem: Problem, example: BlockDiagonal) -> Problem:
    """Give every layer a scale of rank one: the geometric means of its rows and columns.

    Between two diagonals a Kronecker product stays one only if the diagonals are of rank one. The
    means follow a rescaling of units exactly, so what is computed with them ignores it.

    Parameters
    ----------
    example
        Blocks of the same curvature on any data, which tell what the layers are.
    """
    if problem.coordinates is None or not problem.coordinates.scale:
        return problem
    scale = flat_scale(problem).clone()
    for block, where in zip(example.blocks, example.parts(), strict=True):
        if isinstance(block, (KroneckerBlock, EigenBlock)):
            own = scale[where].view(block.signs.shape)
            sign = torch.where(own < 0, -1.0, 1.0).to(own)
            scale[where] = (torch.outer(*rank_one(own)) * sign).flatten()
    coordinates = replace(problem.coordinates, scale=unflatten(scale, problem.params))
    return replace(problem, coordinates=coordinates)


def basis_of_blocks(
    operator: BlockDiagonal, problem: Problem, prior: Float[Tensor, " P"]
) -> tuple[BlockBasis, Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Directions and eigenvalues of the whitened blocks, and the prior that whitens them.

    A layer in relative coordinates has a scale of rank one (see :func:`with_rank_one_scale`); its
    prior becomes that of the same absolute size, ``prior rows columns / scale``.
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
    prior: Float[Tensor, " n"],  # noqa: ARG001
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Part, eigenvalues and prior of one block."""
    message = f"a block is a {type(block).__name__}, expected those of kfac or ekfac"
    raise TypeError(message)


@_whiten.register
def _(
    block: NamedBlock,
    scale: Float[Tensor, " n"],  # noqa: ARG001
    prior: Float[Tensor, " n"],
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    vectors, values = _eigenbasis(block.operator, prior)
    return LoosePart(block.names, vectors), values, prior


@singledispatch
def _eigenbasis(
    operator: LinearOperator, prior: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n r"] | None, Float[Tensor, " r"]]:
    """Directions and eigenvalues of a whitened operator; None for those of the coordinates."""
    basis, values = basis_of_matrix(prior[:, None] * operator.to_dense() * prior)
    return basis.vectors, values


@_eigenbasis.register
def _(operator: Diagonal, prior: Float[Tensor, " n"]) -> tuple[None, Float[Tensor, " n"]]:
    return None, nonnegative(operator.entries, operator.dtype) * prior.square()


@_whiten.register
def _(
    block: KroneckerBlock, scale: Float[Tensor, " n"], prior: Float[Tensor, " n"]
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    rows, columns = rank_one(scale.view(block.signs.shape))
    stds = _per_column(prior.view(block.signs.shape), block.names)
    left_values, left_vectors = _eigenpairs(block.output_factor, block.dtype)
    right = stds[:, None] * block.input_factor.double() * stds
    right_values, right_vectors = _eigenpairs(right, block.dtype)
    part = LayerPart(
        block.names,
        left_vectors.to(prior),
        right_vectors.to(prior),
        rows,
        columns * stds.to(prior),
    )
    values = torch.outer(left_values, right_values).flatten()
    return part, values.to(prior), prior * _ratio(rows, columns, scale)


def _eigenpairs(factor: Float[Tensor, "n n"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((factor.double() + factor.double().mT) / 2)
    return nonnegative(values, dtype), vectors


def _ratio(rows: Tensor, columns: Tensor, scale: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Absolute coordinates of rank one in units of the coordinates; 0 where these move nothing."""
    moves = scale != 0
    return torch.where(
        moves, torch.outer(rows, columns).flatten() / torch.where(moves, scale, 1.0), 0.0
    )


@_whiten.register
def _(
    block: EigenBlock, scale: Float[Tensor, " n"], prior: Float[Tensor, " n"]
) -> tuple[LayerPart | LoosePart, Float[Tensor, " n"], Float[Tensor, " n"]]:
    stds = _per_column(prior.view(block.signs.shape), block.names)
    if bool((stds != stds[0]).any()):
        message = (
            f"{block.names} have prior scales {sorted(set(stds.tolist()))}, expected one for the "
            "weight and the bias of a layer: the corrected eigenvalues belong to both; use kfac"
        )
        raise ValueError(message)
    rows, columns = rank_one(scale.view(block.signs.shape))
    part = LayerPart(
        block.names,
        block.output_vectors,
        block.input_vectors,
        rows,
        columns * stds.to(prior),
    )
    values = nonnegative(block.values.flatten(), block.dtype) * prior.square()
    return part, values, prior * _ratio(rows, columns, scale)


def _per_column(prior: Float[Tensor, "O I"], names: tuple[str, ...]) -> Float[Tensor, " I"]:
    """Prior scales of the columns of a layer, the same for all rows; float64."""
    if bool((prior != prior[0]).any()):
        message = f"{names} have prior scales that differ within a column, expected one a tensor"
        raise ValueError(message)
    return prior[0].double()
