"""What to factor of a damped curvature, by its structure: the choice behind ``inverse``."""

from collections.abc import Callable
from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.blocks import EigenBlock, KroneckerBlock, NamedBlock
from afterfit.curvature.factored import (
    BlockInverse,
    DiagonalInverse,
    DualInverse,
    EigenInverse,
    FactoredInverse,
    LowRankInverse,
    PrimalInverse,
)
from afterfit.curvature.root import Gram
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.structured import BlockDiagonal, Diagonal, LowRank

MAX_DENSE = 20_000
"""Above this many rows a dense factor (3.2 GB in float64) is refused."""

Damping = float | int | Callable[[LinearOperator], float | int]
"""What is added to all eigenvalues: a number, or a rule that finds one for each block."""


def damping_of(damping: Damping, operator: LinearOperator) -> float:
    """Damping of one block.

    Raises
    ------
    ValueError
        If it is negative or not finite.
    """
    found = float(damping(operator) if callable(damping) else damping)
    if not 0 <= found < float("inf"):
        message = f"damping is {found:g}, expected a finite number of at least 0"
        raise ValueError(message)
    return found


# A choice by structure ----------------------------------------------------------------------------


@singledispatch
def factored(operator: LinearOperator, damping: Damping) -> FactoredInverse:
    """Factor a damped curvature by its structure; without any, from all of its entries."""
    return primal(operator, damping)


@factored.register
def _(operator: Gram, damping: Damping) -> FactoredInverse:
    rows, size = operator.root.shape
    return (dual if rows < size else primal)(operator, damping)


@factored.register
def _(operator: Diagonal, damping: Damping) -> FactoredInverse:
    strength = damping_of(damping, operator)
    return DiagonalInverse(_above_zero(operator.entries, strength))


@factored.register
def _(operator: LowRank, damping: Damping) -> FactoredInverse:
    strength = damping_of(damping, operator)
    basis, triangle = torch.linalg.qr(operator.vectors.double())
    values, vectors = torch.linalg.eigh(triangle * operator.values.double() @ triangle.mT)
    _above_zero(torch.cat([values, values.new_zeros(1)]), strength)
    return LowRankInverse(basis @ vectors, values, strength)


@factored.register
def _(operator: KroneckerBlock, damping: Damping) -> FactoredInverse:
    strength = damping_of(damping, operator)
    return _eigen_inverse(diagonalized(operator), strength)


@factored.register
def _(operator: EigenBlock, damping: Damping) -> FactoredInverse:
    return _eigen_inverse(operator, damping_of(damping, operator))


@factored.register
def _(operator: NamedBlock, damping: Damping) -> FactoredInverse:
    return factored(operator.operator, damping)


@factored.register
def _(operator: BlockDiagonal, damping: Damping) -> FactoredInverse:
    blocks = tuple(factored(block, damping) for block in operator.blocks)
    return BlockInverse(blocks, tuple(operator.parts()))


def diagonalized(block: KroneckerBlock) -> EigenBlock:
    """Put a Kronecker product in its eigenbasis, in float64."""
    pairs = [torch.linalg.eigh(f.double()) for f in (block.output_factor, block.input_factor)]
    (left, outer), (right, inner) = ((values.clamp_min(0), vectors) for values, vectors in pairs)
    return EigenBlock(block.names, outer, inner, torch.outer(left, right), block.signs)


def _eigen_inverse(block: EigenBlock, damping: float) -> EigenInverse:
    values = _above_zero(block.values.double(), damping)
    outer, inner = block.output_vectors.double(), block.input_vectors.double()
    return EigenInverse(outer, inner, values, block.signs.double())


def _above_zero(values: Tensor, damping: float) -> Tensor:
    """Damped eigenvalues, float64, after a check that each is above zero."""
    damped = values.double() + damping
    if not bool(torch.isfinite(damped).all()):
        raise ValueError(_NOT_FINITE)
    if not bool((damped > 0).all()):
        raise _indefinite(float(damped.min()), float(damped.max()), damping, 0.0)
    return damped


_NOT_FINITE = "the curvature holds NaN or infinite values; look at the losses and parameters"


def _indefinite(smallest: float, largest: float, damping: float, rounding: float) -> ValueError:
    bound = max(damping - smallest, rounding * abs(largest))
    return ValueError(
        f"C + damping I has smallest eigenvalue {smallest:.3g} (largest {largest:.3g}, damping "
        f"{damping:g}), expected a positive definite matrix; raise damping above {bound:.2g}, or "
        "use curvature=ggn, which has no negative eigenvalues"
    )


# Dense factors ------------------------------------------------------------------------------------


def primal(operator: LinearOperator, damping: Damping) -> PrimalInverse:
    """Cholesky factor of all entries.

    Raises
    ------
    ValueError
        If there are too many parameters, or the matrix is not positive definite or not finite.
    """
    strength = damping_of(damping, operator)
    require_dense(operator.shape[0], "parameters")
    matrix = operator.to_dense().double()
    matrix = (matrix + matrix.mT) / 2
    matrix.diagonal().add_(strength)
    return PrimalInverse(cholesky(matrix, strength))


def dual(operator: LinearOperator, damping: Damping) -> DualInverse:
    """Cholesky factor of the size of the root's rows (Woodbury).

    Raises
    ------
    TypeError
        If the curvature has no root.
    ValueError
        If the damping is not above 0, there are too many rows, or a row is not finite.
    """
    strength = damping_of(damping, operator)
    if not isinstance(operator, Gram):
        message = (
            f"the curvature is a {type(operator).__name__}, which has no root, expected ggn, "
            "fisher or empirical_fisher; use Primal() or CG()"
        )
        raise TypeError(message)
    if strength == 0:
        message = "damping is 0, expected a number above 0 for Dual(); or use Primal()"
        raise ValueError(message)
    require_dense(operator.root.shape[0], "rows of RᵀJ (samples times outputs)")
    root = operator.root.held()
    gram = root.gram().mul_(operator.factor)
    if not bool(torch.isfinite(gram).all()):
        raise ValueError(_NOT_FINITE)
    return DualInverse(root, operator.factor, strength, gram)


def require_dense(size: int, what: str) -> None:
    """Refuse dense matrices that are too large, before they are begun.

    Raises
    ------
    ValueError
        If there are more rows than a dense factor is made for.
    """
    if size > MAX_DENSE:
        message = (
            f"there are {size:,} {what}, so that one dense matrix takes {8 * size**2 / 1e9:,.1f} "
            f"GB and its factor as much again, expected at most {MAX_DENSE:,}; take a part of the "
            "network with restrict(problem, 'head.*'), solver=CG(), curvature=ekfac, or a method "
            "without a curvature: GEX, TracIn"
        )
        raise ValueError(message)


def cholesky(matrix: Float[Tensor, "n n"], damping: float) -> Float[Tensor, "n n"]:
    """Cholesky factor, once it is certain that rounding errors do not make up the small pivots."""
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(_NOT_FINITE)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    pivots = factor.diagonal().square()
    if int(failed) or float(pivots.min()) <= rounding * float(pivots.max()):
        values = torch.linalg.eigvalsh(matrix)
        smallest, largest = float(values[0]), float(values[-1])
        if int(failed) or smallest <= rounding * abs(largest):
            raise _indefinite(smallest, largest, damping, rounding)
    return factor
