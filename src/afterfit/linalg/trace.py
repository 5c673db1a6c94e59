"""Traces: exact where the structure gives them, estimated with an error where it does not."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import singledispatch
from typing import final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.linalg.estimate import Estimate
from afterfit.linalg.operator import LinearOperator, Scaled, Sum
from afterfit.linalg.structured import BlockDiagonal, Dense, Diagonal, Kronecker, LowRank


@singledispatch
def trace(a: LinearOperator) -> float:
    """Exact trace of an operator whose structure gives it without products.

    Raises
    ------
    TypeError
        If only products could give it.
    """
    message = (
        f"the trace of a {type(a).__name__} of shape {a.shape} cannot be read from its structure; "
        "use estimate_trace(a, XTrace(...), generator), or trace(Dense(a.to_dense())) if it is "
        "small"
    )
    raise TypeError(message)


@trace.register
def _(a: Dense) -> float:
    _require_square(a)
    return float(a.matrix.diagonal().double().sum())


@trace.register
def _(a: Diagonal) -> float:
    return float(a.entries.double().sum())


@trace.register
def _(a: LowRank) -> float:
    return float((a.values.double() * a.vectors.double().square().sum(0)).sum())


@trace.register
def _(a: Kronecker) -> float:
    _require_square(a.left)
    _require_square(a.right)
    return trace(a.left) * trace(a.right)


@trace.register
def _(a: BlockDiagonal) -> float:
    return sum(trace(block) for block in a.blocks)


@trace.register
def _(a: Sum) -> float:
    return trace(a.left) + trace(a.right)


@trace.register
def _(a: Scaled) -> float:
    return a.factor * trace(a.of)


def _require_square(a: LinearOperator) -> None:
    if a.shape[0] != a.shape[1]:
        message = f"the operator has shape {a.shape}, expected a square one: only those have traces"
        raise ValueError(message)


def random_signs(size: int, num: int, a: LinearOperator, generator: Generator) -> Tensor:
    """Draw columns of -1 and 1, of the type and on the device of an operator."""
    drawn = torch.randint(0, 2, (size, num), generator=generator, device=generator.device)
    return (2 * drawn - 1).to(a.device, a.dtype)


class TraceEstimator(ABC):
    """A way to estimate the trace of a square operator from its products."""

    @abstractmethod
    def estimate(self, a: LinearOperator, generator: Generator) -> Estimate:
        """Estimate the trace."""


def estimate_trace(a: LinearOperator, how: TraceEstimator, generator: Generator) -> Estimate:
    """Estimate ``tr A`` from products with random vectors.

    Raises
    ------
    ValueError
        If the operator is not square.
    """
    _require_square(a)
    return how.estimate(a, generator)


def _require_at_least(num: int, least: int, name: str) -> None:
    if num < least:
        message = f"{name} was given {num} products, expected at least {least} to tell the error"
        raise ValueError(message)


def _mean(samples: Float[Tensor, " K"], offset: float, num: int) -> Estimate:
    stderr = float(samples.std()) / len(samples) ** 0.5
    return Estimate(offset + float(samples.mean()), stderr, num)


@final
@dataclass(frozen=True)
class Hutchinson(TraceEstimator):
    """Mean of ``zᵀ A z`` over random signs z; the error falls as 1/√num.

    The variance of one probe is ``2 (‖A‖_F² - Σ_i A_ii²)``.

    References
    ----------
    Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix for Laplacian
    smoothing splines", Communications in Statistics 19(2).
    """

    num_products: int

    def __post_init__(self) -> None:
        _require_at_least(self.num_products, 2, "Hutchinson")

    def estimate(self, a: LinearOperator, generator: Generator) -> Estimate:
        signs = random_signs(a.shape[1], self.num_products, a, generator)
        return _mean(_forms(signs, a @ signs), 0.0, self.num_products)


def _forms(left: Tensor, right: Tensor) -> Float[Tensor, " K"]:
    """Inner products column by column."""
    return (left.double() * right.double()).sum(0)


@final
@dataclass(frozen=True)
class HutchPlusPlus(TraceEstimator):
    """Exact trace on a random sketch of the range, `Hutchinson` on what is left.

    A third of the products goes to the sketch, to the trace in it, and to the rest.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), "Hutch++: optimal stochastic trace estimation", SOSA,
    arXiv:2010.09649, algorithm 1.
    """

    num_products: int

    def __post_init__(self) -> None:
        _require_at_least(self.num_products, 6, "HutchPlusPlus")

    def estimate(self, a: LinearOperator, generator: Generator) -> Estimate:
        size, third = a.shape[1], self.num_products // 3
        sketch = a @ random_signs(size, min(third, size), a, generator)
        basis = torch.linalg.qr(sketch).Q
        within = float(_forms(basis, a @ basis).sum())
        signs = random_signs(size, third, a, generator)
        outside = signs - basis @ (basis.mT @ signs)
        image = a @ outside
        return _mean(_forms(outside, image), within, self.num_products)


@final
@dataclass(frozen=True)
class XTrace(TraceEstimator):
    """As `HutchPlusPlus`, but every vector is sketch and probe in turn; best at few products.

    For each of num/2 random directions the others are the sketch; what it is outside of the sketch
    is scaled to the size that it has on average. The error is that of the mean of independent
    numbers; the numbers are not quite independent, and where the spectrum hardly falls the true
    error is up to a third larger.

    References
    ----------
    Epperly, Tropp, Webber (2024), "XTrace: making the most of every sample in stochastic trace
    estimation", SIAM J. Matrix Analysis 45(1), arXiv:2301.07825, sections 2.2 and 3.
    """

    num_products: int

    def __post_init__(self) -> None:
        _require_at_least(self.num_products, 4, "XTrace")

    def estimate(self, a: LinearOperator, generator: Generator) -> Estimate:
        size = a.shape[1]
        num = min(self.num_products // 2, size)
        drawn = torch.randn(
            size, num, generator=generator, device=generator.device, dtype=torch.float64
        )
        probes = drawn.to(a.device, a.dtype)
        images = a @ probes
        basis, lost = _leave_one_out(images)
        carried = a @ basis
        kernel = basis.mT @ carried
        within = kernel.trace() - (lost * (kernel @ lost)).sum(0)
        coefficients = basis.mT @ probes
        coefficients = coefficients - lost * (lost * coefficients).sum(0)
        rest = probes - basis @ coefficients
        dimension = size - basis.shape[1] + lost.square().sum(0)
        quotients = _forms(rest, images - carried @ coefficients) / _forms(rest, rest)
        outside = torch.where(dimension > 0.5, dimension * quotients, 0)
        return _mean(within + outside, 0.0, 2 * num)


def _leave_one_out(
    images: Float[Tensor, "P K"],
) -> tuple[Float[Tensor, "P R"], Float[Tensor, "R K"]]:
    """Basis of all columns, and in it the direction that is lost when one column is left out.

    A column that depends on the others takes nothing with it: its direction is zero.
    """
    basis, values, right = torch.linalg.svd(images, full_matrices=False)
    kept = values > values.max() * max(images.shape) * torch.finfo(images.dtype).eps
    basis, values, right = basis[:, kept], values[kept], right[kept]
    lost = right / values[:, None]
    alone = right.square().sum(0) > 1 - 1e-6  # one only where no other column helps
    return basis, torch.where(alone, lost / lost.norm(dim=0), 0)
