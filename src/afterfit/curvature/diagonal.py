"""Exact diagonals: of the generalized Gauss-Newton matrix, and of the Jacobian's square."""

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.jacobian import jacobian_rows
from afterfit.linalg.structured import Diagonal
from afterfit.problem.data import Batches
from afterfit.problem.persample import outputs, unflatten
from afterfit.problem.problem import Problem


def squared_jacobian(problem: Problem, data: Batches) -> dict[str, Tensor]:
    """For each parameter ``Σ_n Σ_c (∂f_c(x_n)/∂θ_i)²``, by name and in the shape of the parameter.

    The diagonal of ``Jᵀ J``, which is the generalized Gauss-Newton matrix of the squared loss; its
    sum is the trace of the tangent kernel.
    """
    total = torch.zeros(problem.num_params, dtype=torch.float64, device=problem.device)
    for _, rows in jacobian_rows(problem, data):
        total += rows.double().square().sum((0, 1))
    return unflatten(total.to(problem.dtype), problem.params)


def diagonal(problem: Problem, data: Batches) -> Diagonal:
    """Exact diagonal of the generalized Gauss-Newton matrix ``Σ_n J_nᵀ Λ_n J_n``.

    With ``Λ = R Rᵀ`` it is ``Σ_n Σ_r (Rᵀ J)²``.

    Raises
    ------
    TypeError
        If the likelihood has no curvature (``PerSample``).
    """
    total = torch.zeros(problem.num_params, dtype=torch.float64, device=problem.device)
    for index, rows in jacobian_rows(problem, data):
        roots: Float[Tensor, "B C R"] = problem.likelihood.root(
            outputs(problem, data.subset(index))
        )
        total += (roots.mT @ rows).double().square().sum((0, 1))
    return Diagonal(total.to(problem.dtype))
