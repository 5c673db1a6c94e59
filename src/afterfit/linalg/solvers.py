"""Iterations that solve ``A x = b`` by products with A, and what they say of their solutions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.linalg.operator import LinearOperator

NearInverse = Callable[[Float[Tensor, "n K"]], Float[Tensor, "n K"]]
"""Product with something near the inverse: symmetric, positive definite."""


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
    way
        How it was found: "CG", "dual", ….
    """

    value: Tensor
    steps: int
    residual: float
    converged: bool
    way: str = ""


def conjugate_gradients(
    a: LinearOperator,
    b: Tensor,
    tolerance: float | int = 1e-6,
    max_steps: int = 1000,
    near_inverse: NearInverse | None = None,
) -> Solution:
    """Solve ``A x = b`` for one right-hand side (n,) or several (n, K), all columns at once.

    Each column has step lengths of its own. Sums are in float64, products in the operator's type.

    Parameters
    ----------
    tolerance
        Residual that is asked for, relative to the right-hand side.
    max_steps
        Products at the most; a solution that is not reached by then comes with a warning.

    Raises
    ------
    ValueError
        If the operator is not known to be symmetric, is found not to be positive definite, or
        returns NaN; if the tolerance is not above 0, or there is no step.

    References
    ----------
    Hestenes, Stiefel (1952), "Methods of conjugate gradients for solving linear systems", Journal
    of Research of the National Bureau of Standards 49(6).
    """
    if not tolerance > 0 or max_steps < 1:
        message = (
            f"CG has tolerance {tolerance} and {max_steps} steps, expected a tolerance above 0 "
            "and at least one step"
        )
        raise ValueError(message)
    _require_symmetric(a)
    columns = (b if b.ndim == 2 else b[:, None]).double()
    x, steps = _iterate(a, columns, tolerance, max_steps, near_inverse)
    found = checked(a, b, x.view(b.shape), steps, 2 * tolerance, "CG")
    return warn_of(found, "raise max_steps, the damping, or give a preconditioner")


def _iterate(
    a: LinearOperator,
    b: Float[Tensor, "n K"],
    tolerance: float | int,
    max_steps: int,
    near_inverse: NearInverse | None,
) -> tuple[Tensor, int]:
    x, residual, goal = torch.zeros_like(b), b.clone(), tolerance * b.norm(dim=0)
    direction = near = residual if near_inverse is None else near_inverse(residual)
    power = (residual * near).sum(0)
    for step in range(max_steps):
        still = residual.norm(dim=0) > goal
        if not bool(still.any()):
            return x, step
        image = _product(a, direction)
        curvature = (direction * image).sum(0)
        if bool((curvature[still] <= 0).any()):
            message = (
                f"CG met a direction of curvature {float(curvature[still].min()):.3g}, expected a "
                "positive definite operator; raise the damping"
            )
            raise ValueError(message)
        length = torch.where(still, power / curvature, 0)
        x, residual = x + length * direction, residual - length * image
        near = residual if near_inverse is None else near_inverse(residual)
        old, power = power, (residual * near).sum(0)
        direction = near + torch.where(still, power / old, 0) * direction
    return x, max_steps


def neumann(
    a: LinearOperator,
    b: Tensor,
    scale: float | int,
    num_steps: int = 1000,
    tolerance: float | int = 1e-3,
) -> Solution:
    """Sum the truncated Neumann series ``x = s Σ_k (I - s A)^k b``, as in LiSSA without sampling.

    Parameters
    ----------
    scale
        ``s``, below 2 over the largest eigenvalue.
    num_steps
        Terms of the series at the most, one product each; it ends early where the residual is
        below the tolerance, and warns where it never is.

    Raises
    ------
    ValueError
        If the operator is not known to be symmetric, the series diverges, or products are NaN.

    References
    ----------
    Agarwal, Bullins, Hazan (2017), "Second-order stochastic optimization for machine learning in
    linear time", JMLR 18(116), arXiv:1602.03943.
    """
    _require_symmetric(a)
    residual = b.double()
    x, start, steps = torch.zeros_like(residual), residual.norm(dim=0), 0
    while steps < num_steps and bool((residual.norm(dim=0) > 0.5 * tolerance * start).any()):
        x = x + scale * residual
        residual = residual - scale * _product(a, residual)
        steps += 1
        if not float((residual.norm(dim=0) / start.clamp_min(1e-300)).max()) < 1e6:
            message = (
                f"the Neumann series (LiSSA) diverges with scale {scale:g} after {steps} products, "
                "expected a scale below 2 / (largest eigenvalue) and no negative eigenvalue; lower "
                "scale, raise the damping, or use CG"
            )
            raise ValueError(message)
    found = checked(a, b, x, steps, tolerance, "LiSSA")
    return warn_of(found, "raise num_steps or the damping, or use CG")


def checked(
    a: LinearOperator, b: Tensor, x: Tensor, steps: int, tolerance: float, way: str
) -> Solution:
    """Put a solution together with the residual that it really has."""
    lost = (_product(a, x) - b).norm(dim=0)
    return found_with(b, x, lost, steps, tolerance, way)


def found_with(
    b: Tensor, x: Tensor, lost: Tensor, steps: int, tolerance: float, way: str
) -> Solution:
    """Put a solution together with the norm of what its columns lack."""
    size = b.double().norm(dim=0)
    relative = torch.where(size > 0, lost / size.clamp_min(torch.finfo(size.dtype).tiny), lost)
    residual = float(relative.max()) if relative.numel() else 0.0
    return Solution(x.to(b.dtype), steps, residual, residual <= tolerance, way)


def warn_of(solution: Solution, knob: str) -> Solution:
    """Warn of a solution that has not converged, with what to turn."""
    if not solution.converged:
        message = (
            f"{solution.way} stopped after {solution.steps} products with a residual of "
            f"{solution.residual:.2g} of the right-hand side; {knob}"
        )
        warnings.warn(message, stacklevel=3)
    return solution


def _product(a: LinearOperator, columns: Tensor) -> Tensor:
    image = (a @ columns.to(a.dtype)).double()
    if not bool(torch.isfinite(image).all()):
        message = (
            "a product with the operator holds NaN or infinite values, expected finite ones; look "
            "at the losses and parameters, lower the scale of a series, or compute in float64"
        )
        raise ValueError(message)
    return image


def _require_symmetric(a: LinearOperator) -> None:
    if not a.symmetric:
        message = (
            f"a {type(a).__name__} of shape {a.shape} is not known to be symmetric, expected a "
            "symmetric operator: solve the normal equations a.T @ a, or tag it"
        )
        raise ValueError(message)
