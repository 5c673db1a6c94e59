"""Linear maps that are known by their products with vectors, and their lazy algebra."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final, overload

import torch
from scipy.sparse.linalg import LinearOperator as ScipyOperator
from torch import Tensor

_COLUMNS_AT_ONCE = 64


@final
@dataclass(frozen=True)
class Kind:
    """What is known of a linear map without a product.

    Attributes
    ----------
    shape
        Rows and columns.
    dtype, device
        Of the vectors that it takes and gives.
    symmetric, psd
        Whether it equals its transpose, and whether it has no negative eigenvalue beside; False
        says only that it is not known.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    symmetric: bool = False
    psd: bool = False

    def __post_init__(self) -> None:
        if self.symmetric and self.shape[0] != self.shape[1]:
            message = f"a map of shape {self.shape} is called symmetric, expected a square one"
            raise ValueError(message)
        if self.psd and not self.symmetric:
            message = "a map is called positive semidefinite but not symmetric, expected both"
            raise ValueError(message)


class LinearOperator(ABC):
    """A linear map of flat vectors: ``a @ v`` for one vector (n,) or several as columns (n, K)."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Shape, type and tags."""

    @abstractmethod
    def apply(self, columns: Tensor) -> Tensor:
        """Product with columns (n, K), which are known to fit."""

    @property
    @abstractmethod
    def T(self) -> "LinearOperator":
        """The transpose."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """All entries as a matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.kind.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""
        return self.kind.dtype

    @property
    def device(self) -> torch.device:
        """Where products are computed."""
        return self.kind.device

    @property
    def symmetric(self) -> bool:
        """Whether it is known to equal its transpose."""
        return self.kind.symmetric

    @property
    def psd(self) -> bool:
        """Whether it is known to be symmetric without negative eigenvalues."""
        return self.kind.psd

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: "LinearOperator") -> "LinearOperator": ...
    def __matmul__(self, other: "Tensor | LinearOperator") -> "Tensor | LinearOperator":
        """Multiply with vectors at once, or with another operator lazily."""
        if isinstance(other, LinearOperator):
            return Product(self, other)
        _require_fits(self.kind, other)
        if other.ndim == 1:
            return self.apply(other[:, None])[:, 0]
        return self.apply(other)

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        """Add lazily."""
        return Sum(self, other)

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        """Subtract lazily."""
        return Sum(self, Scaled(-1.0, other))

    def __mul__(self, factor: float | int) -> "LinearOperator":
        """Multiply by a number lazily."""
        return Scaled(float(factor), self)

    def __rmul__(self, factor: float | int) -> "LinearOperator":
        """Multiply by a number lazily."""
        return Scaled(float(factor), self)

    def __neg__(self) -> "LinearOperator":
        """Change the sign lazily."""
        return Scaled(-1.0, self)

    def to_scipy(self) -> Any:
        """Give the same map to scipy's ``eigsh``, ``cg``, ``lsmr``, …, as arrays on the host."""

        def through(operator: LinearOperator) -> Any:
            def product(array: Any) -> Any:
                columns = torch.as_tensor(array).to(operator.device, operator.dtype)
                return (operator @ columns).detach().cpu().numpy()

            return product

        forth, back = through(self), through(self.T)
        make: Any = ScipyOperator  # scipy has no types
        return make(
            shape=self.shape,
            matvec=lambda v: forth(v.reshape(-1)),
            rmatvec=lambda v: back(v.reshape(-1)),
            matmat=forth,
            rmatmat=back,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )


def _require_fits(kind: Kind, vectors: Tensor) -> None:
    if vectors.ndim not in (1, 2) or len(vectors) != kind.shape[1]:
        message = (
            f"a map of shape {kind.shape} meets vectors of shape {tuple(vectors.shape)}, expected "
            f"({kind.shape[1]},) or ({kind.shape[1]}, K) with vectors as columns"
        )
        raise ValueError(message)
    if vectors.dtype != kind.dtype or vectors.device != kind.device:
        message = (
            f"a map of {kind.dtype} on {kind.device} meets vectors of {vectors.dtype} on "
            f"{vectors.device}, expected the same; convert them with .to(a.device, a.dtype)"
        )
        raise ValueError(message)


def dense_by_products(a: LinearOperator) -> Tensor:
    """Entries of an operator from its products with unit vectors, several at once."""
    rows, size = a.shape
    entries = torch.empty(rows, size, dtype=a.dtype, device=a.device)
    for chosen in torch.arange(size, device=a.device).split(_COLUMNS_AT_ONCE):
        units = torch.zeros(size, len(chosen), dtype=a.dtype, device=a.device)
        units[chosen, torch.arange(len(chosen), device=a.device)] = 1
        entries[:, chosen] = a.apply(units)
    return entries


def _meets(left: Kind, right: Kind, fits: bool, sign: str) -> None:
    same = left.dtype == right.dtype and left.device == right.device
    if not (fits and same):
        message = (
            f"{left.shape} {sign} {right.shape} ({left.dtype} on {left.device}, {right.dtype} on "
            f"{right.device}): shapes that fit, one dtype and one device are expected"
        )
        raise ValueError(message)


@final
@dataclass(frozen=True)
class Sum(LinearOperator):
    """``left + right``."""

    left: LinearOperator
    right: LinearOperator

    def __post_init__(self) -> None:
        _meets(self.left.kind, self.right.kind, self.left.shape == self.right.shape, "+")

    @property
    def kind(self) -> Kind:
        symmetric = self.left.symmetric and self.right.symmetric
        psd = self.left.psd and self.right.psd
        return Kind(self.left.shape, self.left.dtype, self.left.device, symmetric, psd)

    def apply(self, columns: Tensor) -> Tensor:
        return self.left.apply(columns) + self.right.apply(columns)

    @property
    def T(self) -> LinearOperator:
        return self if self.symmetric else Sum(self.left.T, self.right.T)

    def to_dense(self) -> Tensor:
        return self.left.to_dense() + self.right.to_dense()


@final
@dataclass(frozen=True)
class Scaled(LinearOperator):
    """``factor * of``."""

    factor: float
    of: LinearOperator

    @property
    def kind(self) -> Kind:
        psd = self.of.psd and self.factor >= 0
        return Kind(self.of.shape, self.of.dtype, self.of.device, self.of.symmetric, psd)

    def apply(self, columns: Tensor) -> Tensor:
        return self.factor * self.of.apply(columns)

    @property
    def T(self) -> LinearOperator:
        return self if self.symmetric else Scaled(self.factor, self.of.T)

    def to_dense(self) -> Tensor:
        return self.factor * self.of.to_dense()


@final
@dataclass(frozen=True)
class Product(LinearOperator):
    """``left @ right``."""

    left: LinearOperator
    right: LinearOperator

    def __post_init__(self) -> None:
        _meets(self.left.kind, self.right.kind, self.left.shape[1] == self.right.shape[0], "@")

    @property
    def kind(self) -> Kind:
        shape = (self.left.shape[0], self.right.shape[1])
        return Kind(shape, self.left.dtype, self.left.device)

    def apply(self, columns: Tensor) -> Tensor:
        return self.left.apply(self.right.apply(columns))

    @property
    def T(self) -> LinearOperator:
        return Product(self.right.T, self.left.T)

    def to_dense(self) -> Tensor:
        return self.left.to_dense() @ self.right.to_dense()
