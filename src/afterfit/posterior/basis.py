"""Orthonormal bases in which a curvature is diagonal: what makes a Gaussian cheap to use.

In whitened coordinates z, where the prior is N(0, I), a curvature is ``V diag(λ) Vᵀ``; every
function of the posterior is then ``V diag(w) Vᵀ + r (I - V Vᵀ)`` with weights w and a rest r for
the directions that the curvature does not see. A structure (full, low rank, diagonal, Kronecker) is
one way of holding V.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature import jacobian_rows
from afterfit.posterior.projection import projected_jacobians
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


@runtime_checkable
class Basis(Protocol):
    """R orthonormal directions of whitened coordinates, ``V`` (P, R)."""

    @property
    def structure(self) -> str:
        """What it is, in a word or two, for reports."""
        ...

    def apply(
        self, weights: Float[Tensor, " R"], rest: float, columns: Float[Tensor, "P M"]
    ) -> Float[Tensor, "P M"]:
        """``(V diag(weights) Vᵀ + rest (I - V Vᵀ)) @ columns``."""
        ...

    def diagonal(self, weights: Float[Tensor, " R"], rest: float) -> Float[Tensor, " P"]:
        """Diagonal of that matrix."""
        ...

    def covariances(
        self, problem: Problem, data: Batches, several: "Weightings", memory_budget: int
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "A B C C"]]]:
        """Positions and ``J S (V diag(weights) Vᵀ + rest (I - V Vᵀ)) S Jᵀ``, a chunk at a time."""
        ...


@final
@dataclass(frozen=True)
class Weightings:
    """Functions of a posterior ``S (V diag(weights) Vᵀ + rest (I - V Vᵀ)) S``, A of them.

    Attributes
    ----------
    weights
        Not negative, one for each direction, (A, R).
    rest
        Those of all other directions, (A,).
    prior
        The diagonal of S, (P,).
    """

    weights: Float[Tensor, "A R"]
    rest: Float[Tensor, " A"]
    prior: Float[Tensor, " P"]


@final
@dataclass(frozen=True)
class DenseBasis:
    """Directions as the columns of a matrix: all P of them (full), or fewer (low rank, dual)."""

    vectors: Float[Tensor, "P R"]
    structure: str

    def apply(
        self, weights: Float[Tensor, " R"], rest: float, columns: Float[Tensor, "P M"]
    ) -> Float[Tensor, "P M"]:
        inner = self.vectors.mT @ columns
        seen = self.vectors @ (weights[:, None] * inner)
        return seen if self._complete else seen + rest * (columns - self.vectors @ inner)

    def diagonal(self, weights: Float[Tensor, " R"], rest: float) -> Float[Tensor, " P"]:
        squares = self.vectors.square()
        seen = squares @ weights
        return seen if self._complete else seen + rest * (1 - squares.sum(1)).clamp_min(0)

    def covariances(
        self, problem: Problem, data: Batches, several: Weightings, memory_budget: int
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "A B C C"]]]:
        if self._complete:
            found = projected_jacobians(problem, data, several.prior, self.vectors, memory_budget)
            for index, inner in found:
                yield index, grams(inner, several.weights)
            return
        for index, jacobian in jacobian_rows(problem, data, memory_budget // 2):
            rows = jacobian * several.prior
            inner = rows @ self.vectors
            outside = rows - inner @ self.vectors.mT
            rest = several.rest[:, None, None, None] * (outside @ outside.mT)
            yield index, grams(inner, several.weights) + rest

    @property
    def _complete(self) -> bool:
        return self.vectors.shape[0] == self.vectors.shape[1]


@final
@dataclass(frozen=True)
class CoordinateBasis:
    """The coordinates themselves: a diagonal curvature."""

    structure: str = "diagonal"

    def apply(
        self,
        weights: Float[Tensor, " P"],
        rest: float,  # noqa: ARG002 (nothing is outside)
        columns: Float[Tensor, "P M"],
    ) -> Float[Tensor, "P M"]:
        return weights[:, None] * columns

    def diagonal(
        self,
        weights: Float[Tensor, " P"],
        rest: float,  # noqa: ARG002 (nothing is outside)
    ) -> Float[Tensor, " P"]:
        return weights

    def covariances(
        self, problem: Problem, data: Batches, several: Weightings, memory_budget: int
    ) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "A B C C"]]]:
        for index, jacobian in jacobian_rows(problem, data, memory_budget // 2):
            yield index, grams(jacobian * several.prior, several.weights)


def grams(rows: Float[Tensor, "B C n"], weights: Float[Tensor, "A n"]) -> Float[Tensor, "A B C C"]:
    """``rows diag(weights) rowsᵀ`` of each sample for each set of weights."""
    scaled = (rows * root for root in weights.clamp_min(0).sqrt())
    return torch.stack([own @ own.mT for own in scaled])


def basis_of_matrix(matrix: Float[Tensor, "P P"]) -> tuple[DenseBasis, Float[Tensor, " P"]]:
    """All directions of a whitened curvature, and their eigenvalues; computed in float64.

    Raises
    ------
    ValueError
        If the matrix has a negative eigenvalue beyond rounding.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    values = nonnegative(values, matrix.dtype)
    return DenseBasis(vectors.to(matrix.dtype), "full (primal)"), values.to(matrix.dtype)


def basis_of_rows(
    rows: Float[Tensor, "R P"], structure: str
) -> tuple[DenseBasis, Float[Tensor, " R"]]:
    """Directions of the whitened curvature ``rowsᵀ rows`` and their eigenvalues, for R < P.

    By the singular values of the rows, which keep twice the digits that their Gram matrix does.
    """
    _, singular, right = torch.linalg.svd(rows.double(), full_matrices=False)
    basis = DenseBasis(right.mT.contiguous().to(rows.dtype), structure)
    return basis, singular.square().to(rows.dtype)


def nonnegative(values: Float[Tensor, " R"], dtype: torch.dtype) -> Float[Tensor, " R"]:
    """Clamp eigenvalues that rounding made negative, and refuse others."""
    largest = float(values.abs().max())
    lowest = float(values.min())
    allowed = 1e-9 if dtype == torch.float64 else 1e-4
    if lowest < -allowed * largest:
        message = (
            f"the curvature has the eigenvalue {lowest:.3g} beside {largest:.3g}, expected none "
            "below zero: a Hessian has such away from a minimum; use ggn, fisher or kfac"
        )
        raise ValueError(message)
    return values.clamp_min(0)
