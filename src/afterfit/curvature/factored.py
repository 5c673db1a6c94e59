"""Inverses of damped curvatures by factors, each with a half power, one for each structure."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.blocks import EigenBlock, KroneckerBlock, NamedBlock
from afterfit.curvature.root import Gram, Root
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.solvers import Solution, found_with
from afterfit.linalg.structured import BlockDiagonal, Diagonal, LowRank

MAX_DENSE = 20_000
"""Above this many rows a dense factor (3.2 GB in float64) is refused."""

Damping = float | int | Callable[[LinearOperator], float | int]
"""What is added to all eigenvalues: a number, or a rule that finds one for each block."""


class Inverse(ABC):
    """``(C + damping I)⁻¹`` of one curvature, ready to be applied."""

    @property
    @abstractmethod
    def way(self) -> str:
        """How it is applied, in a word or two: "primal", "dual", "diagonal", "CG", …."""

    @abstractmethod
    def solve(self, columns: Tensor) -> Solution:
        """Apply it to one vector (P,) or several as columns (P, K)."""


class FactoredInverse(Inverse):
    """An inverse with a half power: ``whiten(a) @ whiten(b).T`` is ``a (C + damping I)⁻¹ bᵀ``.

    So influence can keep features of samples, of which every score is an inner product. Factors and
    what is computed with them are float64 where a factorization made them.
    """

    @abstractmethod
    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """``(C + damping I)⁻¹ @ columns``."""

    @abstractmethod
    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """``(C + damping I) @ columns``, for the residual."""

    @abstractmethod
    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        """Apply the half power to rows, such as gradients of samples."""

    def solve(self, columns: Tensor) -> Solution:
        """Apply it to one vector (P,) or several as columns (P, K), and look at the residual."""
        sides = columns if columns.ndim == 2 else columns[:, None]
        value = self.apply(sides)
        lost = (self.damped(value) - sides).double().norm(dim=0)
        tolerance = torch.finfo(columns.dtype).eps ** 0.5
        return found_with(columns, value.view(columns.shape), lost, 0, tolerance, self.way)


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


def _eigen_inverse(block: EigenBlock, damping: float) -> "EigenInverse":
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


def primal(operator: LinearOperator, damping: Damping) -> "PrimalInverse":
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


def dual(operator: LinearOperator, damping: Damping) -> "DualInverse":
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


@final
@dataclass(frozen=True)
class PrimalInverse(FactoredInverse):
    """``L⁻ᵀ L⁻¹`` with the Cholesky factor L of the damped matrix, float64."""

    factor: Float[Tensor, "P P"]

    @property
    def way(self) -> str:
        return "primal"

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return torch.cholesky_solve(columns.double(), self.factor)

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self.factor @ (self.factor.mT @ columns)

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        white = torch.linalg.solve_triangular(self.factor, rows.double().mT, upper=False)
        return white.mT.to(rows.dtype)


@final
@dataclass(frozen=True)
class DualInverse(FactoredInverse):
    """``(I - Aᵀ f (f A Aᵀ + damping I)⁻¹ A) / damping`` of the curvature ``f AᵀA``.

    References
    ----------
    Woodbury (1950), "Inverting modified matrices", Princeton.
    """

    root: Root
    scale: float
    damping: float
    gram: Float[Tensor, "n n"]

    @property
    def way(self) -> str:
        return "dual"

    @cached_property
    def _factor(self) -> Float[Tensor, "n n"]:
        matrix = self.gram.clone()
        matrix.diagonal().add_(self.damping)
        return torch.linalg.cholesky(matrix)

    @cached_property
    def _half(self) -> Float[Tensor, "n n"]:
        """``((σ + d) (1 + s))⁻¹ f`` in the eigenbasis of the gram, with ``s² = d / (σ + d)``."""
        values, vectors = torch.linalg.eigh(self.gram)
        damped = values.clamp_min(0) + self.damping
        weights = self.scale / (damped * (1 + (self.damping / damped).sqrt()))
        return vectors * weights @ vectors.mT

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        value = columns.double()
        inner = torch.cholesky_solve(self.scale * self.root.apply(value), self._factor)
        return (value - self.root.T.apply(inner)) / self.damping

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self.scale * self.root.curved(columns) + self.damping * columns

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        value = rows.double()
        inner = self._half @ self.root.apply(value.mT)
        return ((value - self.root.T.apply(inner).mT) / self.damping**0.5).to(rows.dtype)


# Structures ---------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class DiagonalInverse(FactoredInverse):
    """``diag(1 / values)``."""

    values: Float[Tensor, " P"]

    @property
    def way(self) -> str:
        return "diagonal"

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return columns / self.values[:, None]

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self.values[:, None] * columns

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        return rows * self.values.rsqrt().to(rows.dtype)


@final
@dataclass(frozen=True)
class LowRankInverse(FactoredInverse):
    """``V diag(1 / (λ + damping)) Vᵀ + (I - V Vᵀ) / damping`` with orthonormal V."""

    vectors: Float[Tensor, "P K"]
    values: Float[Tensor, " K"]
    damping: float

    @property
    def way(self) -> str:
        return f"low rank ({len(self.values)})"

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        kept = self.values / (self.values + self.damping)
        value = columns.double()
        return (value - (self.vectors * kept) @ (self.vectors.mT @ value)) / self.damping

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        seen = (self.vectors * self.values) @ (self.vectors.mT @ columns)
        return seen + self.damping * columns

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        root = (self.damping / (self.values + self.damping)).sqrt()
        value = rows.double()
        seen = (value @ self.vectors) * (1 - root) @ self.vectors.mT
        return ((value - seen) / self.damping**0.5).to(rows.dtype)


@final
@dataclass(frozen=True)
class EigenInverse(FactoredInverse):
    """``S (U ⊗ V) diag(1 / values) (U ⊗ V)ᵀ S`` of a layer, on vectors read as (out, in)."""

    output_vectors: Float[Tensor, "O O"]
    input_vectors: Float[Tensor, "I I"]
    values: Float[Tensor, "O I"]
    signs: Float[Tensor, "O I"]

    @property
    def way(self) -> str:
        return "eigenbasis of Kronecker factors"

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self._weighted(columns, 1 / self.values)

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self._weighted(columns, self.values)

    def _weighted(self, columns: Tensor, weights: Float[Tensor, "O I"]) -> Tensor:
        grid = columns.double().mT.unflatten(1, self.signs.shape) * self.signs
        rotated = self.output_vectors.mT @ grid @ self.input_vectors * weights
        back = self.output_vectors @ rotated @ self.input_vectors.mT
        return (back * self.signs).flatten(1).mT

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        outer, inner, root = self.whitening(rows.dtype)
        grid = rows.unflatten(1, self.signs.shape) * self.signs.to(rows.dtype)
        return (outer.mT @ grid @ inner * root).flatten(1)

    def whitening(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Give U, V and ``1 / √values`` in the type of what is whitened."""
        parts = (self.output_vectors, self.input_vectors, self.values.rsqrt())
        return tuple(part.to(dtype) for part in parts)  # pyright: ignore[reportReturnType]


@final
@dataclass(frozen=True)
class BlockInverse(FactoredInverse):
    """One inverse for each block of entries."""

    blocks: tuple[FactoredInverse, ...]
    positions: tuple[Int[Tensor, " _"], ...]

    @property
    def way(self) -> str:
        return "by block: " + ", ".join(sorted({block.way for block in self.blocks}))

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        found = torch.empty_like(columns, dtype=torch.float64)
        for block, part in zip(self.blocks, self.positions, strict=True):
            found[part] = block.apply(columns[part]).double()
        return found

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        found = torch.empty_like(columns)
        for block, part in zip(self.blocks, self.positions, strict=True):
            found[part] = block.damped(columns[part]).to(columns.dtype)
        return found

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        pairs = zip(self.blocks, self.positions, strict=True)
        return torch.cat([block.whiten(rows[:, part]) for block, part in pairs], dim=1)
