"""Solvers of ``A x = b``: prepared once for an operator, then used for many right-hand sides."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.linalg.operator import LinearOperator, Sum
from afterfit.linalg.structured import Diagonal, LowRank


@final
@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes
    ----------
    value
        ``x``, in the shape of the right-hand side.
    steps
        Products with the operator that the solve took; 0 for a factorization.
    residual
        The largest ``‖A x - b‖ / ‖b‖`` over the columns.
    converged
        Whether that is within what was asked for.
    """

    value: Tensor
    steps: int
    residual: float
    converged: bool


Solve = Callable[[Tensor], Solution]
"""Solves for one right-hand side (n,) or several as columns (n, K)."""


class Solver(ABC):
    """A way to solve linear systems with a symmetric positive definite operator."""

    @abstractmethod
    def prepare(self, a: LinearOperator) -> Solve:
        """Do once what does not depend on the right-hand side."""


def solve(a: LinearOperator, b: Tensor, how: Solver) -> Solution:
    """Solve ``A x = b`` once.

    Raises
    ------
    ValueError
        If the operator is not square, or is found not to be positive definite.
    """
    return how.prepare(a)(b)


def _require_symmetric(a: LinearOperator) -> None:
    if not a.symmetric:
        message = (
            f"a {type(a).__name__} of shape {a.shape} is not known to be symmetric, expected a "
            "symmetric operator: solve the normal equations a.T @ a, or tag it"
        )
        raise ValueError(message)


def _checked(a: LinearOperator, b: Tensor, x: Tensor, steps: int, tolerance: float) -> Solution:
    """Put a solution together with the residual that it really has."""
    size = b.norm(dim=0)
    lost = (a @ x - b).norm(dim=0)
    relative = torch.where(size > 0, lost / size.clamp_min(torch.finfo(b.dtype).tiny), lost)
    residual = float(relative.max()) if relative.numel() else 0.0
    return Solution(x, steps, residual, residual <= tolerance)


def warn_of(solution: Solution, name: str, knob: str) -> Solution:
    """Warn of a solution that has not converged, with what to turn."""
    if not solution.converged:
        message = (
            f"{name} stopped after {solution.steps} products with a residual of "
            f"{solution.residual:.2g} of the right-hand side; {knob}"
        )
        warnings.warn(message, stacklevel=3)
    return solution


@final
@dataclass(frozen=True)
class Cholesky(Solver):
    """Dense Cholesky factor; exact, P² memory and P³ time."""

    def prepare(self, a: LinearOperator) -> Solve:
        _require_symmetric(a)
        factor, failed = torch.linalg.cholesky_ex(a.to_dense())
        if int(failed):
            message = (
                f"the matrix of shape {a.shape} is not positive definite (pivot {int(failed)} is "
                "not positive); add a damping to its diagonal, or use Eigh(cutoff)"
            )
            raise ValueError(message)
        tolerance = torch.finfo(a.dtype).eps ** 0.5

        def compute(b: Tensor) -> Solution:
            columns = b if b.ndim == 2 else b[:, None]
            return _checked(a, b, torch.cholesky_solve(columns, factor).view_as(b), 0, tolerance)

        return compute


@final
@dataclass(frozen=True)
class Eigh(Solver):
    """Dense eigenvectors, without those whose eigenvalue is small: the pseudo-inverse.

    Attributes
    ----------
    cutoff
        Smallest eigenvalue that counts, relative to the largest.
    """

    cutoff: float | int = 1e-10

    def prepare(self, a: LinearOperator) -> Solve:
        _require_symmetric(a)
        values, vectors = torch.linalg.eigh(a.to_dense())
        kept = values > self.cutoff * values.abs().max()
        values, vectors = values[kept], vectors[:, kept]
        tolerance = torch.finfo(a.dtype).eps ** 0.5

        def compute(b: Tensor) -> Solution:
            columns = b if b.ndim == 2 else b[:, None]
            x = (vectors @ ((vectors.mT @ columns) / values[:, None])).view_as(b)
            return _checked(a, b, x, 0, tolerance)

        return compute


@final
@dataclass(frozen=True)
class CG(Solver):
    """Conjugate gradients, all columns at once, each with step lengths of its own.

    Attributes
    ----------
    tolerance
        Residual that is asked for, relative to the right-hand side.
    max_steps
        Products at the most; a solution that is not reached by then comes with a warning.
    preconditioner
        An operator near the inverse, symmetric positive definite.

    References
    ----------
    Hestenes, Stiefel (1952), "Methods of conjugate gradients for solving linear systems", Journal
    of Research of the National Bureau of Standards 49(6).
    """

    tolerance: float | int = 1e-6
    max_steps: int = 1000
    preconditioner: LinearOperator | None = None

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.max_steps < 1:
            message = (
                f"CG has tolerance {self.tolerance} and {self.max_steps} steps, expected a "
                "tolerance above 0 and at least one step"
            )
            raise ValueError(message)

    def prepare(self, a: LinearOperator) -> Solve:
        _require_symmetric(a)

        def compute(b: Tensor) -> Solution:
            columns = b if b.ndim == 2 else b[:, None]
            x, steps = self._iterate(a, columns)
            found = _checked(a, b, x.view_as(b), steps, 2 * self.tolerance)
            return warn_of(found, "CG", "raise max_steps, the damping, or give a preconditioner")

        return compute

    def _near_inverse(self, residual: Tensor) -> Tensor:
        return residual if self.preconditioner is None else self.preconditioner @ residual

    def _iterate(self, a: LinearOperator, b: Float[Tensor, "n K"]) -> tuple[Tensor, int]:
        x, residual, goal = torch.zeros_like(b), b.clone(), self.tolerance * b.norm(dim=0)
        direction = near = self._near_inverse(residual)
        power = (residual * near).sum(0)
        for step in range(self.max_steps):
            open_columns = residual.norm(dim=0) > goal
            if not bool(open_columns.any()):
                return x, step
            image = a @ direction
            curvature = (direction * image).sum(0)
            if bool((curvature[open_columns] <= 0).any()):
                message = (
                    "CG met a direction of curvature "
                    f"{float(curvature[open_columns].min()):.3g}, expected a positive definite "
                    "operator; raise the damping"
                )
                raise ValueError(message)
            length = torch.where(open_columns, power / curvature, 0)
            x, residual = x + length * direction, residual - length * image
            near = self._near_inverse(residual)
            old, power = power, (residual * near).sum(0)
            direction = near + torch.where(open_columns, power / old, 0) * direction
        return x, self.max_steps


@final
@dataclass(frozen=True)
class Neumann(Solver):
    """Truncated Neumann series ``x = s Σ_k (I - s A)^k b``, as in LiSSA without sampling.

    Attributes
    ----------
    scale
        ``s``, below 2 over the largest eigenvalue.
    num_steps
        Terms of the series, one product each.

    References
    ----------
    Agarwal, Bullins, Hazan (2017), "Second-order stochastic optimization for machine learning in
    linear time", JMLR 18(116), arXiv:1602.03943.
    """

    scale: float | int
    num_steps: int = 1000
    tolerance: float | int = 1e-3

    def prepare(self, a: LinearOperator) -> Solve:
        _require_symmetric(a)

        def compute(b: Tensor) -> Solution:
            x, start = torch.zeros_like(b), b.norm()
            residual = b
            for _ in range(self.num_steps):
                x = x + self.scale * residual
                residual = residual - self.scale * (a @ residual)
                if not float(residual.norm()) < 1e6 * max(float(start), 1e-30):
                    message = (
                        f"the Neumann series diverges with scale {self.scale:g}, expected one "
                        "below 2 / (largest eigenvalue); lower it, or use CG"
                    )
                    raise ValueError(message)
            found = _checked(a, b, x, self.num_steps, self.tolerance)
            return warn_of(found, "the Neumann series", "raise num_steps or the damping")

        return compute


@final
@dataclass(frozen=True)
class Woodbury(Solver):
    """Exact solves with ``Diagonal + LowRank``: one small factor of the size of the rank.

    ``(D + V Λ Vᵀ)⁻¹ = D⁻¹ - D⁻¹ V (Λ⁻¹ + Vᵀ D⁻¹ V)⁻¹ Vᵀ D⁻¹``, written so that zeros in Λ do no
    harm.

    References
    ----------
    Woodbury (1950), "Inverting modified matrices", Princeton.
    """

    def prepare(self, a: LinearOperator) -> Solve:
        base, low = _diagonal_and_low_rank(a)
        if not bool((base.entries > 0).all()):
            message = "the diagonal holds values that are not positive; add a damping to it"
            raise ValueError(message)
        roots = low.vectors * low.values.abs().sqrt()
        signed = roots * low.values.sign()
        weighted = roots / base.entries[:, None]
        core = torch.eye(roots.shape[1], dtype=roots.dtype, device=roots.device)
        factor = torch.linalg.lu_factor(core + signed.mT @ weighted)
        tolerance = torch.finfo(a.dtype).eps ** 0.5

        def compute(b: Tensor) -> Solution:
            columns = b if b.ndim == 2 else b[:, None]
            near = columns / base.entries[:, None]
            inner = torch.linalg.lu_solve(*factor, signed.mT @ near)
            return _checked(a, b, (near - weighted @ inner).view_as(b), 0, tolerance)

        return compute


def _diagonal_and_low_rank(a: LinearOperator) -> tuple[Diagonal, LowRank]:
    if isinstance(a, Sum):
        pair = (a.left, a.right) if isinstance(a.left, Diagonal) else (a.right, a.left)
        if isinstance(pair[0], Diagonal) and isinstance(pair[1], LowRank):
            return pair[0], pair[1]
    message = (
        f"Woodbury was given a {type(a).__name__}, expected Diagonal + LowRank; use CG or Cholesky "
        "for others"
    )
    raise TypeError(message)
