"""Least squares by products with a matrix and its transpose, never with their product."""

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.solvers import Solution, warn_of


def lsmr(
    a: LinearOperator,
    b: Tensor,
    damping: float | int = 0.0,
    tolerance: float | int = 1e-6,
    max_steps: int = 1000,
) -> Solution:
    """Minimize ``‖A x - b‖² + damping² ‖x‖²`` for one right-hand side (m,) or several (m, K).

    In exact arithmetic MINRES on the normal equations; in floating point it keeps digits that
    conjugate gradients on ``AᵀA`` lose, since the condition number is never squared, and the
    gradient falls from step to step. A step is one product with A and one with its transpose.

    Parameters
    ----------
    damping
        δ, in the units of A.
    tolerance
        Gradient ``‖Aᵀ(b - A x) - δ² x‖`` that is asked for, relative to ``‖Aᵀ b‖``.
    max_steps
        Steps at the most; what has not converged by then comes with a warning.

    Returns
    -------
    Solution
        Its `residual` is the largest relative gradient over the columns.

    Raises
    ------
    ValueError
        If the tolerance is not above 0, there is no step, or the damping is negative.

    References
    ----------
    Fong, Saunders (2011), "LSMR: An iterative algorithm for sparse least-squares problems", SIAM
    Journal on Scientific Computing 33(5), arXiv:1006.0758, section 2 and table 2.
    """
    if not tolerance > 0 or max_steps < 1 or damping < 0:
        message = (
            f"lsmr has damping {damping}, tolerance {tolerance} and {max_steps} steps, expected a "
            "damping of at least 0, a tolerance above 0 and at least one step"
        )
        raise ValueError(message)
    columns = b if b.ndim == 2 else b[:, None]
    x, steps = _iterate(a, columns, float(damping), float(tolerance), max_steps)
    pull = a.T @ columns
    size, lost = pull.norm(dim=0), (pull - a.T @ (a @ x) - damping**2 * x).norm(dim=0)
    relative = torch.where(size > 0, lost / size.clamp_min(torch.finfo(b.dtype).tiny), lost)
    residual = float(relative.max()) if relative.numel() else 0.0
    value = x if b.ndim == 2 else x[:, 0]
    found = Solution(value, steps, residual, residual <= 2 * tolerance, "LSMR")
    return warn_of(found, "raise max_steps or the damping")


def _iterate(
    a: LinearOperator, b: Float[Tensor, "m K"], damping: float, tolerance: float, max_steps: int
) -> tuple[Float[Tensor, "n K"], int]:
    """Golub-Kahan bidiagonalization and two rotations, in the letters of the paper."""
    u, beta = _normalized(b)
    v, alpha = _normalized(a.T @ u)
    zeta_bar, alpha_bar = alpha * beta, alpha
    goal = tolerance * zeta_bar
    rho, rho_bar, c_bar = (torch.ones_like(alpha) for _ in range(3))
    s_bar = torch.zeros_like(alpha)
    h, h_bar, x = v, torch.zeros_like(v), torch.zeros_like(v)
    for step in range(max_steps):
        still = zeta_bar.abs() > goal
        if not bool(still.any()):
            return x, step
        u, beta = _normalized(a @ v - alpha * u)
        v, alpha = _normalized(a.T @ u - beta * v)
        damped = torch.hypot(alpha_bar, torch.full_like(alpha_bar, damping))
        rho_old, rho = rho, _positive(torch.hypot(damped, beta))
        theta, alpha_bar = beta / rho * alpha, damped / rho * alpha
        rho_bar_old, theta_bar = rho_bar, s_bar * rho
        rho_bar = _positive(torch.hypot(c_bar * rho, theta))
        c_bar, s_bar = c_bar * rho / rho_bar, theta / rho_bar
        zeta, zeta_bar = c_bar * zeta_bar, -s_bar * zeta_bar
        h_bar = h - theta_bar * rho / (rho_old * rho_bar_old) * h_bar
        x = x + torch.where(still, zeta / (rho * rho_bar), 0) * h_bar
        h = v - theta / rho * h
    return x, max_steps


def _normalized(columns: Float[Tensor, "n K"]) -> tuple[Float[Tensor, "n K"], Float[Tensor, " K"]]:
    norms = columns.norm(dim=0)
    return columns / _positive(norms), norms


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)
