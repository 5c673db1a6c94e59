"""Roots of curvatures: matrices A with ``AᵀA`` the curvature, known by their products."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.jacobian import jacobian_rows, require_room
from afterfit.curvature.products import Product, pulled_back, pushed_forward, summed
from afterfit.linalg.operator import Kind, LinearOperator
from afterfit.linalg.structured import FunctionOperator
from afterfit.problem._autodiff import sandwich
from afterfit.problem.data import Batch, Batches
from afterfit.problem.persample import flatten, outputs, unflatten
from afterfit.problem.problem import Problem, move
from afterfit.typing import Params

Columns = Callable[[Float[Tensor, "B C"], Int[Tensor, " B"]], Float[Tensor, "B C R"]]
"""From the outputs of some samples and their positions, the vectors that are pulled back."""

Middle = Callable[[Float[Tensor, "B C"], Int[Tensor, " B"], Tensor], Tensor]
"""From outputs, positions and a tangent (B, C): the product with ``columns columnsᵀ``."""


class Root(LinearOperator):
    """A matrix A (n, P), of which the curvature ``AᵀA`` (P, P) is known by more than products."""

    @abstractmethod
    def curved(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """``AᵀA @ columns``, in the type of the root."""

    @abstractmethod
    def gram(self) -> Float[Tensor, "n n"]:
        """``A Aᵀ``, float64."""

    @abstractmethod
    def square(self) -> Float[Tensor, "P P"]:
        """``AᵀA``, float64."""

    @abstractmethod
    def held(self) -> "Root":
        """Give the same matrix, float64, kept as far as its products would make it again."""


@final
@dataclass(frozen=True)
class Rows(Root):
    """A root that is kept as a matrix."""

    matrix: Float[Tensor, "n P"]

    @property
    def kind(self) -> Kind:
        rows, size = self.matrix.shape
        return Kind((rows, size), self.matrix.dtype, self.matrix.device)

    def apply(self, columns: Tensor) -> Tensor:
        return self.matrix @ columns

    @property
    def T(self) -> FunctionOperator:
        return transposed(self, lambda rows: self.matrix.mT @ rows)

    def to_dense(self) -> Tensor:
        return self.matrix

    def curved(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self.matrix.mT @ (self.matrix @ columns)

    def gram(self) -> Float[Tensor, "n n"]:
        rows = self.matrix.double()
        return rows @ rows.mT

    def square(self) -> Float[Tensor, "P P"]:
        rows = self.matrix.double()
        return rows.mT @ rows

    def held(self) -> "Rows":
        return self if self.matrix.dtype == torch.float64 else Rows(self.matrix.double())


def transposed(root: Root, adjoint: Callable[[Tensor], Tensor]) -> FunctionOperator:
    """Transpose of a root whose adjoint is a function of columns (n, K)."""
    rows, size = root.shape
    return FunctionOperator(Kind((size, rows), root.dtype, root.device), adjoint, root.apply)


@final
@dataclass(frozen=True)
class JacobianRoot(Root):
    """``Rᵀ J``: row ``n R + r`` is the derivative of sample n's outputs along its column r.

    With ``Λ = R Rᵀ`` it is a root of the generalized Gauss-Newton matrix; with R the identity it is
    the Jacobian itself. A product is one forward-mode pass over the data, one with the transpose a
    backward pass, neither forms a row.

    Attributes
    ----------
    problem, data
        The network and the samples.
    columns
        R of some samples.
    middle
        Product with ``R Rᵀ``, which many likelihoods know without R.
    """

    problem: Problem
    data: Batches
    columns: Columns
    middle: Middle

    @cached_property
    def width(self) -> int:
        """Columns R of one sample."""
        first = torch.arange(1)
        return self.columns(outputs(self.problem, self.data.subset(first)), first).shape[2]

    @property
    def kind(self) -> Kind:
        shape = (self.data.num_samples * self.width, self.problem.num_params)
        return Kind(shape, self.problem.dtype, self.problem.device)

    def rows(self) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R P"]]]:
        """Positions and rows of all samples, a chunk at a time."""
        for index, part in jacobian_rows(self.problem, self.data):
            found = outputs(self.problem, self.data.subset(index))
            yield index, self.columns(found, index).mT @ part

    def apply(self, columns: Tensor) -> Tensor:
        def kept(found: Tensor, tangent: Tensor, batch: Batch) -> Tensor:
            return (self.columns(found, batch.index).mT @ tangent[..., None])[..., 0]

        return pushed_forward(self.problem, self.data, columns, kept).flatten(1).mT

    def pulled(self, rows: Float[Tensor, "n K"]) -> Float[Tensor, "P K"]:
        """``Jᵀ R`` times columns, one backward pass over the data for several of them."""
        members = rows.mT.unflatten(1, (self.data.num_samples, -1))

        def cotangents(found: Tensor, batch: Batch) -> Tensor:
            own = members[:, batch.index.to(members.device)]
            return (self.columns(found, batch.index) @ own[..., None])[..., 0]

        return pulled_back(self.problem, self.data, len(members), cotangents).mT

    @property
    def T(self) -> FunctionOperator:
        return transposed(self, self.pulled)

    def curved(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return summed(self.data, self._batch_product, columns)

    def _batch_product(self, batch: Batch) -> Product:
        inputs = move(batch.inputs, self.problem.device)

        def forward(params: Params) -> Tensor:
            return self.problem.forward(params, inputs)

        def middle(found: Tensor, tangent: Tensor) -> Tensor:
            return self.middle(found, batch.index, tangent)

        def product(vector: Tensor) -> Tensor:
            along = unflatten(vector, self.problem.params)
            return flatten(sandwich(forward, self.problem.params, along, middle))

        return product

    def to_dense(self) -> Tensor:
        require_room(self.problem, self.shape, "rooted Jacobian")
        return torch.cat([rows.flatten(0, 1) for _, rows in self.rows()])

    def gram(self) -> Float[Tensor, "n n"]:
        return self.held().gram()

    def square(self) -> Float[Tensor, "P P"]:
        size = self.problem.num_params
        total = torch.zeros(size, size, dtype=torch.float64, device=self.problem.device)
        for _, rows in self.rows():
            flat = rows.flatten(0, 1).double()
            total.addmm_(flat.mT, flat)
        return total

    def held(self) -> Rows:
        return Rows(self.to_dense().double())


def jacobian_root(problem: Problem, data: Batches) -> JacobianRoot:
    """Jacobian of all outputs of all samples as an operator with its adjoint (N C, P)."""

    def columns(found: Tensor, _: Tensor) -> Tensor:
        return torch.eye(found.shape[1]).to(found).expand(len(found), -1, -1)

    return JacobianRoot(problem, data, columns, lambda *seen: seen[-1])


def likelihood_root(problem: Problem, data: Batches) -> JacobianRoot:
    """Root ``Rᵀ J`` of the generalized Gauss-Newton matrix, with ``Λ = R Rᵀ`` of the likelihood."""
    likelihood = problem.likelihood
    return JacobianRoot(
        problem,
        data,
        lambda found, _: likelihood.root(found),
        lambda found, _, tangent: likelihood.hessian(found, tangent),
    )


def columns_root(problem: Problem, data: Batches, each: Float[Tensor, "N C R"]) -> JacobianRoot:
    """Root ``Rᵀ J`` for columns R of every sample that are given."""

    def own(index: Tensor) -> Tensor:
        return each[index.to(each.device)]

    def middle(_: Tensor, index: Tensor, tangent: Tensor) -> Tensor:
        roots = own(index)
        return (roots @ (roots.mT @ tangent[..., None]))[..., 0]

    return JacobianRoot(problem, data, lambda _, index: own(index), middle)


@final
@dataclass(frozen=True)
class Gram(LinearOperator):
    """``factor AᵀA`` of a root A: a curvature that is positive semidefinite by its making."""

    root: Root
    factor: float = 1.0

    @property
    def kind(self) -> Kind:
        size = self.root.shape[1]
        return Kind((size, size), self.root.dtype, self.root.device, symmetric=True, psd=True)

    def apply(self, columns: Tensor) -> Tensor:
        found = self.root.curved(columns)
        return found if self.factor == 1.0 else self.factor * found

    @property
    def T(self) -> "Gram":
        return self

    def to_dense(self) -> Tensor:
        return (self.factor * self.root.square()).to(self.dtype)
