"""Inverse curvature: ``(C + damping I)⁻¹``, prepared once and applied often.

The one room that solves with a curvature, for samples, edges, nodes and posteriors alike.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.curvature.factored import (
    DualInverse,
    FactoredInverse,
    Inverse,
    PrimalInverse,
)
from afterfit.curvature.factorize import Damping, damping_of, dual, factored, primal
from afterfit.curvature.structure import mean_eigenvalue, scaled
from afterfit.linalg.krylov import RitzPairs, lanczos, ritz_pairs
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.solvers import Solution, conjugate_gradients, neumann
from afterfit.linalg.structured import Diagonal


@runtime_checkable
class Solver(Protocol):
    """A way to invert: `Direct`, `Primal`, `Dual`, `CG`, `LiSSA` or `Ritz`."""

    def prepare(self, operator: LinearOperator, damping: Damping) -> Inverse:
        """Do once what does not depend on the right-hand side."""
        ...


def inverse(
    curvature: LinearOperator,
    damping: Damping,
    solver: Solver | None = None,
    num_samples: int = 1,
) -> Inverse:
    """Prepare ``(C / num_samples + damping I)⁻¹``.

    Parameters
    ----------
    curvature
        What ``ggn``, ``fisher``, ``hessian``, ``kfac``, ``ekfac``, ``diagonal``, ``low_rank`` or
        any function of yours gives for a problem and its data: a sum over samples.
    damping
        Added to all eigenvalues; at least 0. A rule such as ``relative(0.1)`` finds one for each
        block of a block-diagonal curvature.
    solver
        :class:`Direct` (default) factors by structure; :class:`Primal` and :class:`Dual` choose the
        side of a matrix with a root; :class:`CG` and :class:`LiSSA` take products alone;
        :class:`Ritz` keeps the strongest directions.
    num_samples
        What the sum is divided by: the number of samples for the curvature of a mean loss.

    Raises
    ------
    ValueError
        If the damping is negative or not finite, or the damped curvature is not positive definite
        or not finite; the message names what to turn.
    """
    if not callable(damping):
        damping_of(damping, curvature)
    operator = curvature if num_samples == 1 else scaled(curvature, 1 / num_samples)
    return (solver or Direct()).prepare(operator, damping)


def relative(share: float | int) -> Callable[[LinearOperator], float]:
    """Make a damping rule: this share of the mean eigenvalue of each block.

    References
    ----------
    Grosse et al. (2023), "Studying large language model generalization with influence functions",
    arXiv:2308.03296, section 2.2: 0.1 for each module of EK-FAC.
    """
    if not 0 <= share < float("inf"):
        message = f"the relative damping is {share}, expected a finite number of at least 0"
        raise ValueError(message)
    return _Relative(share)


@final
@dataclass(frozen=True)
class _Relative:
    """A rule that a run can name."""

    share: float | int

    def __call__(self, block: LinearOperator) -> float:
        return self.share * mean_eigenvalue(block)


# Solvers ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Direct:
    """Factor by structure: exact, and the smaller of primal and dual where there is a choice."""

    def prepare(self, operator: LinearOperator, damping: Damping) -> FactoredInverse:
        return factored(operator, damping)


@final
@dataclass(frozen=True)
class Primal:
    """Cholesky factor of all P x P entries."""

    def prepare(self, operator: LinearOperator, damping: Damping) -> PrimalInverse:
        return primal(operator, damping)


@final
@dataclass(frozen=True)
class Dual:
    """Cholesky factor of the size of the N·R rows of the root (Woodbury)."""

    def prepare(self, operator: LinearOperator, damping: Damping) -> DualInverse:
        return dual(operator, damping)


@final
@dataclass(frozen=True)
class CG:
    """Conjugate gradients: products alone, all columns at once.

    Attributes
    ----------
    tolerance
        Residual that is asked for, relative to the right-hand side.
    max_steps
        Products at the most; a solution that is not reached by then comes with a warning.
    preconditioner
        The inverse of a cheaper curvature, such as ``inverse(kfac(...), damping)``.
    """

    tolerance: float | int = 1e-6
    max_steps: int = 1000
    preconditioner: FactoredInverse | None = None

    def prepare(self, operator: LinearOperator, damping: Damping) -> "Iterated":
        near = None if self.preconditioner is None else self.preconditioner.apply

        def solve(a: LinearOperator, b: Tensor) -> Solution:
            return conjugate_gradients(a, b, self.tolerance, self.max_steps, near)

        return Iterated(damped(operator, damping_of(damping, operator)), solve, "CG")


@final
@dataclass(frozen=True)
class LiSSA:
    """Truncated Neumann series, as in LiSSA without its sampling.

    Attributes
    ----------
    scale
        Step of the series, below 2 over the largest eigenvalue; without it 1 over that eigenvalue,
        which is found by a few products.
    num_steps, tolerance
        Products at the most, and the residual at which the series ends before.
    """

    scale: float | int | None = None
    num_steps: int = 1000
    tolerance: float | int = 1e-3

    def prepare(self, operator: LinearOperator, damping: Damping) -> "Iterated":
        a = damped(operator, damping_of(damping, operator))
        scale = 1 / _largest(a) if self.scale is None else self.scale

        def solve(a: LinearOperator, b: Tensor) -> Solution:
            return neumann(a, b, scale, self.num_steps, self.tolerance)

        return Iterated(a, solve, "LiSSA")


@final
@dataclass(frozen=True)
class Iterated(Inverse):
    """A solver by products with the damped operator."""

    operator: LinearOperator
    how: Callable[[LinearOperator, Tensor], Solution]
    name: str

    @property
    def way(self) -> str:
        return self.name

    def solve(self, columns: Tensor) -> Solution:
        return self.how(self.operator, columns)


def damped(operator: LinearOperator, damping: float) -> LinearOperator:
    """``C + damping I``."""
    entries = torch.full((operator.shape[0],), damping, dtype=operator.dtype)
    return operator + Diagonal(entries.to(operator.device))


def _largest(a: LinearOperator) -> float:
    """Largest eigenvalue, a little overestimated."""
    start = torch.randn(a.shape[0], generator=Generator().manual_seed(0), dtype=torch.float64)
    found = ritz_pairs(lanczos(lambda v: a @ v, start.to(a.device, a.dtype), 12), 1)
    return float((found.values.abs() + found.residuals).max())


# The strongest directions alone -------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Ritz:
    """The inverse on the Ritz vectors of largest ``|λ|``, and zero across them.

    Every product is with the same operator, and all Lanczos vectors are orthogonalized again. Pairs
    with ``λ ≤ 0``, or so small that they are rounding error, are dropped and counted, since the
    inverse square root of a negative curvature is no feature. Of an eigenvalue that occurs several
    times the space of one start vector holds one eigenvector.

    Attributes
    ----------
    num_pairs
        Ritz pairs to take.
    num_steps
        Products, and vectors of length P that are held.
    seed
        Of the start vector.

    References
    ----------
    Schioppa, Zablotskaia, Vilar, Sokolov (2022), "Scaling up influence functions", AAAI,
    arXiv:2112.03052, algorithm 1.
    """

    num_pairs: int = 20
    num_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_pairs <= self.num_steps:
            message = (
                f"num_pairs is {self.num_pairs} with {self.num_steps} steps, expected between 1 "
                "and num_steps"
            )
            raise ValueError(message)

    def prepare(self, operator: LinearOperator, damping: Damping) -> "RitzInverse":
        strength = damping_of(damping, operator)
        generator = Generator().manual_seed(self.seed)
        start = torch.randn(operator.shape[0], generator=generator, dtype=operator.dtype)
        krylov = lanczos(lambda v: operator @ v, start.to(operator.device), self.num_steps)
        found = ritz_pairs(krylov, self.num_pairs)
        positive = _positive(found, operator.dtype)
        _warn_of_residuals(positive)
        dropped = len(found.values) - len(positive.values)
        return RitzInverse(operator, positive, dropped, strength)


@final
@dataclass(frozen=True)
class RitzInverse(FactoredInverse):
    """``V diag(1 / (λ + damping)) Vᵀ`` over Ritz pairs (λ, V).

    What lies across the pairs is not inverted, and counts in the residual of a solution.

    Attributes
    ----------
    operator
        The curvature.
    pairs
        The positive Ritz values, their vectors and their residuals.
    num_dropped
        How many of the pairs asked for had no positive value.
    """

    operator: LinearOperator
    pairs: RitzPairs
    num_dropped: int
    damping: float

    @property
    def way(self) -> str:
        return f"Ritz pairs ({len(self.pairs.values)})"

    def apply(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        own = self.pairs.vectors.mT @ columns.to(self.pairs.vectors)
        weights = 1 / (self.pairs.values + self.damping)
        return self.pairs.vectors @ (weights.to(own)[:, None] * own)

    def damped(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        return self.operator @ columns.to(self.operator.dtype) + self.damping * columns

    def whiten(self, rows: Float[Tensor, "B P"]) -> Float[Tensor, "B R"]:
        roots = (self.pairs.values + self.damping).sqrt()
        return rows @ (self.pairs.vectors / roots.to(self.pairs.vectors)).to(rows)


def _positive(found: RitzPairs, dtype: torch.dtype) -> RitzPairs:
    """Keep the pairs whose value is above zero by more than rounding error."""
    largest = float(found.values.abs().max())
    keep = found.values > torch.finfo(dtype).eps ** 0.75 * largest
    if not bool(keep.any()):
        message = (
            f"none of {len(found.values)} Ritz values is positive (the largest by absolute value "
            f"is {float(found.values[0]):.3g}), expected a network near a minimum of its loss; "
            "train on, raise num_pairs, or use GEX or GradientDot, which need no curvature"
        )
        raise ValueError(message)
    return RitzPairs(found.values[keep], found.vectors[:, keep], found.residuals[keep])


def _warn_of_residuals(pairs: RitzPairs) -> None:
    rough = int((pairs.residuals > 0.1 * pairs.values).sum())
    if 2 * rough > len(pairs.values):
        message = (
            f"{rough} of {len(pairs.values)} Ritz pairs have not converged (residual above 10 % of "
            "the value); raise num_steps (num_iterations) or lower num_pairs"
        )
        warnings.warn(message, stacklevel=4)
