"""Inverses of damped curvatures by factors, each with a half power, one for each structure."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.root import Root
from afterfit.linalg.solvers import Solution, found_with


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
