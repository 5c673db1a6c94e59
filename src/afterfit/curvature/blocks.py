"""Blocks of a curvature matrix, which know the parameters that they cover."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.linalg.operator import Kind, LinearOperator


@final
@dataclass(frozen=True)
class KroneckerBlock(LinearOperator):
    """``S (output_factor ⊗ input_factor) S``, on vectors read row by row as (out, in).

    Attributes
    ----------
    names
        The parameters: of a weight and its bias both, with the bias as the last column.
    output_factor
        Summed over samples (out, out).
    input_factor
        Mean over samples (in, in), or (in + 1, in + 1) with a bias.
    rows, columns
        What the factors were multiplied with from both sides, ``rows ⊗ columns`` being the size of
        the scale as far as it is of rank one; ones where parameters move absolutely.
    signs
        The signs S of the scale (out, in): ones where parameters move absolutely.
    """

    names: tuple[str, ...]
    output_factor: Float[Tensor, "O O"]
    input_factor: Float[Tensor, "I I"]
    rows: Float[Tensor, " O"]
    columns: Float[Tensor, " I"]
    signs: Float[Tensor, "O I"]

    @property
    def kind(self) -> Kind:
        return _square(self.signs)

    def apply(self, columns: Tensor) -> Tensor:
        grid = columns.mT.unflatten(1, self.signs.shape) * self.signs
        return (self.output_factor @ grid @ self.input_factor * self.signs).flatten(1).mT

    @property
    def T(self) -> LinearOperator:
        return self

    def to_dense(self) -> Tensor:
        signs = self.signs.flatten()
        return signs[:, None] * torch.kron(self.output_factor, self.input_factor) * signs


@final
@dataclass(frozen=True)
class EigenBlock(LinearOperator):
    """``S (U ⊗ V) diag(values) (U ⊗ V)ᵀ S``, on vectors read row by row as (out, in).

    Attributes
    ----------
    names
        The parameters: of a weight and its bias both, with the bias as the last column.
    output_vectors, input_vectors
        Orthonormal columns U (out, out) and V (in, in), of the Kronecker factors.
    values
        Second moments of the gradients in that basis (out, in), summed over samples.
    signs
        The signs S of the scale (out, in): ones where parameters move absolutely.
    """

    names: tuple[str, ...]
    output_vectors: Float[Tensor, "O O"]
    input_vectors: Float[Tensor, "I I"]
    values: Float[Tensor, "O I"]
    signs: Float[Tensor, "O I"]

    @property
    def kind(self) -> Kind:
        return _square(self.signs)

    def apply(self, columns: Tensor) -> Tensor:
        grid = columns.mT.unflatten(1, self.signs.shape) * self.signs
        rotated = self.output_vectors.mT @ grid @ self.input_vectors * self.values
        back = self.output_vectors @ rotated @ self.input_vectors.mT
        return (back * self.signs).flatten(1).mT

    @property
    def T(self) -> LinearOperator:
        return self

    def to_dense(self) -> Tensor:
        signs = self.signs.flatten()
        basis = signs[:, None] * torch.kron(self.output_vectors, self.input_vectors)
        return basis * self.values.flatten() @ basis.mT


@final
@dataclass(frozen=True)
class NamedBlock(LinearOperator):
    """Any operator over some parameters, one after another."""

    names: tuple[str, ...]
    operator: LinearOperator

    @property
    def kind(self) -> Kind:
        return self.operator.kind

    def apply(self, columns: Tensor) -> Tensor:
        return self.operator.apply(columns)

    @property
    def T(self) -> LinearOperator:
        return NamedBlock(self.names, self.operator.T)

    def to_dense(self) -> Tensor:
        return self.operator.to_dense()


def _square(entries: Tensor) -> Kind:
    """Kind of a positive semidefinite map with one row for each of these entries."""
    size = entries.numel()
    return Kind((size, size), entries.dtype, entries.device, symmetric=True, psd=True)
