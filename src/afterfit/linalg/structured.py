"""Operators whose structure is kept: dense, diagonal, low rank, Kronecker, blocks, functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.linalg.operator import Kind, LinearOperator, dense_by_products


@final
@dataclass(frozen=True)
class Dense(LinearOperator):
    """A matrix; the tags are the caller's word."""

    matrix: Float[Tensor, "R C"]
    is_symmetric: bool = False
    is_psd: bool = False

    @property
    def kind(self) -> Kind:
        rows, columns = self.matrix.shape
        return Kind(
            (rows, columns),
            self.matrix.dtype,
            self.matrix.device,
            self.is_symmetric or self.is_psd,
            self.is_psd,
        )

    def apply(self, columns: Tensor) -> Tensor:
        return self.matrix @ columns

    @property
    def T(self) -> LinearOperator:
        return self if self.symmetric else Dense(self.matrix.mT)

    def to_dense(self) -> Tensor:
        return self.matrix


@final
@dataclass(frozen=True)
class Diagonal(LinearOperator):
    """``diag(entries)``."""

    entries: Float[Tensor, " P"]

    @property
    def kind(self) -> Kind:
        size = len(self.entries)
        psd = bool((self.entries >= 0).all())
        return Kind((size, size), self.entries.dtype, self.entries.device, True, psd)

    def apply(self, columns: Tensor) -> Tensor:
        return self.entries[:, None] * columns

    @property
    def T(self) -> LinearOperator:
        return self

    def to_dense(self) -> Tensor:
        return self.entries.diag()


@final
@dataclass(frozen=True)
class LowRank(LinearOperator):
    """``vectors diag(values) vectorsᵀ``; the vectors need not be orthonormal."""

    vectors: Float[Tensor, "P K"]
    values: Float[Tensor, " K"]

    @property
    def kind(self) -> Kind:
        size = len(self.vectors)
        psd = bool((self.values >= 0).all())
        return Kind((size, size), self.vectors.dtype, self.vectors.device, True, psd)

    def apply(self, columns: Tensor) -> Tensor:
        return self.vectors @ (self.values[:, None] * (self.vectors.mT @ columns))

    @property
    def T(self) -> LinearOperator:
        return self

    def to_dense(self) -> Tensor:
        return (self.vectors * self.values) @ self.vectors.mT


@final
@dataclass(frozen=True)
class Kronecker(LinearOperator):
    """``left ⊗ right``, as ``torch.kron``: the entry ``i n + j`` of a vector is ``X[i, j]``.

    With X a vector read row by row as a matrix, the product is ``left X rightᵀ``.
    """

    left: LinearOperator
    right: LinearOperator

    @property
    def kind(self) -> Kind:
        left, right = self.left.kind, self.right.kind
        return Kind(
            (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]),
            left.dtype,
            left.device,
            left.symmetric and right.symmetric,
            left.psd and right.psd,
        )

    def apply(self, columns: Tensor) -> Tensor:
        outer, inner = self.left.shape[1], self.right.shape[1]
        num = columns.shape[1]
        grid = columns.reshape(outer, inner, num).permute(1, 0, 2).reshape(inner, -1)
        righted = self.right.apply(grid).reshape(-1, outer, num).permute(1, 0, 2)
        lefted = self.left.apply(righted.reshape(outer, -1))
        return lefted.reshape(self.shape[0], num)

    @property
    def T(self) -> LinearOperator:
        return self if self.symmetric else Kronecker(self.left.T, self.right.T)

    def to_dense(self) -> Tensor:
        return torch.kron(self.left.to_dense(), self.right.to_dense())


@final
@dataclass(frozen=True)
class BlockDiagonal(LinearOperator):
    """Square blocks along the diagonal, zeros elsewhere.

    Attributes
    ----------
    blocks
        Operators, each of which may be of a kind of its own.
    positions
        For each block the entries of the vector that it acts on, in its own order; empty where
        blocks follow one another.
    """

    blocks: Sequence[LinearOperator]
    positions: Sequence[Int[Tensor, " _"]] = ()

    def __post_init__(self) -> None:
        if not self.blocks or any(len(set(block.shape)) > 1 for block in self.blocks):
            shapes = [block.shape for block in self.blocks]
            message = f"the blocks have shapes {shapes}, expected at least one, all square"
            raise ValueError(message)
        if (
            self.positions
            and torch.cat(list(self.positions))
            .sort()
            .values.ne(torch.arange(self.shape[0], device=self.positions[0].device))
            .any()
        ):
            message = "the positions of the blocks overlap or leave gaps, expected each entry once"
            raise ValueError(message)

    @property
    def kind(self) -> Kind:
        first, size = self.blocks[0], sum(block.shape[0] for block in self.blocks)
        return Kind(
            (size, size),
            first.dtype,
            first.device,
            all(block.symmetric for block in self.blocks),
            all(block.psd for block in self.blocks),
        )

    def parts(self) -> list[Int[Tensor, " _"]]:
        """Entries of the vector that each block acts on."""
        if self.positions:
            return list(self.positions)
        whole = torch.arange(self.shape[0], device=self.device)
        return list(whole.split([block.shape[0] for block in self.blocks]))

    def apply(self, columns: Tensor) -> Tensor:
        product = torch.empty_like(columns)
        for block, part in zip(self.blocks, self.parts(), strict=True):
            product[part] = block.apply(columns[part])
        return product

    @property
    def T(self) -> LinearOperator:
        if self.symmetric:
            return self
        return BlockDiagonal(tuple(block.T for block in self.blocks), self.positions)

    def to_dense(self) -> Tensor:
        matrix = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        for block, part in zip(self.blocks, self.parts(), strict=True):
            matrix[part[:, None], part] = block.to_dense()
        return matrix


Columns = Callable[[Tensor], Tensor]
"""Product of a matrix with columns (n, K)."""


@final
@dataclass(frozen=True)
class FunctionOperator(LinearOperator):
    """A map that is only a function of columns.

    Attributes
    ----------
    told
        What is known of it.
    function
        Takes columns (n, K) and gives (m, K).
    adjoint
        Product with the transpose; not needed where ``told.symmetric``.
    """

    told: Kind
    function: Columns
    adjoint: Columns | None = None

    @property
    def kind(self) -> Kind:
        return self.told

    def apply(self, columns: Tensor) -> Tensor:
        return self.function(columns)

    @property
    def T(self) -> LinearOperator:
        if self.symmetric:
            return self
        if self.adjoint is None:
            message = (
                f"the map of shape {self.shape} was given without its transpose; pass adjoint= as "
                "well, or say that it is symmetric"
            )
            raise TypeError(message)
        rows, columns = self.shape
        return FunctionOperator(
            Kind((columns, rows), self.dtype, self.device), self.adjoint, self.function
        )

    def to_dense(self) -> Tensor:
        return dense_by_products(self)
