"""The largest eigenvalues of a symmetric operator, with the error of each."""

import warnings

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.linalg.krylov import Enough, RitzPairs, lanczos, ritz_pairs
from afterfit.linalg.operator import LinearOperator


def spectrum(
    a: LinearOperator,
    num: int,
    start: Generator | Float[Tensor, " P"],
    tolerance: float = 1e-6,
    max_steps: int = 300,
) -> RitzPairs:
    """Eigenpairs of the largest absolute eigenvalues of a symmetric operator, by Lanczos.

    Products are added until the residual of each pair is below ``tolerance`` times the largest
    value. Every eigenvalue is within its residual of the value given (for a single one the error is
    of second order in it). Of an eigenvalue that occurs several times one pair is found, since all
    comes from one start vector.

    Parameters
    ----------
    num
        Pairs asked for; fewer come where the operator has no more.
    start
        The first vector, or what draws it from N(0, I).
    max_steps
        Products, and vectors of length P that are held, at the most; pairs that have not converged
        by then come with a warning.

    Raises
    ------
    ValueError
        If the operator is not known to be symmetric, or `num` is below 1 or above `max_steps`.
    """
    if not a.symmetric:
        message = (
            f"a {type(a).__name__} is not known to be symmetric, expected a symmetric operator"
        )
        raise ValueError(message)
    if not 1 <= num <= max_steps:
        message = f"num is {num} with max_steps {max_steps}, expected between 1 and max_steps"
        raise ValueError(message)
    first = start if isinstance(start, Tensor) else _drawn(a.shape[0], start)
    krylov = lanczos(
        lambda v: a @ v, first.to(a.device, a.dtype), max_steps, _converged(num, tolerance)
    )
    found = ritz_pairs(krylov, num)
    rough = int((found.residuals > tolerance * found.values.abs().max()).sum())
    if rough:
        message = (
            f"{rough} of {num} eigenpairs have not converged after {krylov.basis.shape[1]} "
            f"products (residual up to {float(found.residuals.max()):.2g}); raise max_steps or "
            "tolerance"
        )
        warnings.warn(message, stacklevel=2)
    return found


def _drawn(size: int, generator: Generator) -> Float[Tensor, " P"]:
    return torch.randn(size, generator=generator, device=generator.device, dtype=torch.float64)


def _converged(num: int, tolerance: float) -> Enough:
    def enough(tridiagonal: Float[Tensor, "K K"], coupling: float) -> bool:
        size = len(tridiagonal)
        if size < num or (size - num) % 3:  # looking costs more than a product for small operators
            return False
        values, vectors = torch.linalg.eigh(tridiagonal)
        order = values.abs().argsort(descending=True)[:num]
        residuals = coupling * vectors[-1, order].abs()
        return bool((residuals <= tolerance * values.abs().max()).all())

    return enough
