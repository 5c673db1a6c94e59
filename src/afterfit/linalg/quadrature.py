"""Sums of a function over a spectrum, such as log-determinants, without eigenvalues."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.linalg.estimate import Estimate
from afterfit.linalg.krylov import lanczos
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.trace import random_signs

Function = Callable[[Float[Tensor, " K"]], Float[Tensor, " K"]]


@final
@dataclass(frozen=True)
class SLQ:
    """Stochastic Lanczos quadrature: random signs, each with a Krylov space of its own.

    Attributes
    ----------
    num_probes
        Random vectors; the error falls with their root.
    num_steps
        Products for each; what it leaves of the quadrature's own error falls exponentially.

    References
    ----------
    Ubaru, Chen, Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM
    J. Matrix Analysis 38(4), algorithm 1.
    """

    num_probes: int = 10
    num_steps: int = 30

    def __post_init__(self) -> None:
        if self.num_probes < 2 or self.num_steps < 1:
            message = (
                f"SLQ has {self.num_probes} probes and {self.num_steps} steps, expected at least 2 "
                "probes, to tell the error, and 1 step"
            )
            raise ValueError(message)


def estimate_spectral_sum(
    a: LinearOperator, function: Function, how: SLQ, generator: Generator
) -> Estimate:
    """Estimate ``tr f(A) = Σ_i f(λ_i)`` of a symmetric operator.

    Parameters
    ----------
    function
        Takes eigenvalues (K,) in float64; where the operator is known to be positive semidefinite,
        Ritz values below zero come as 0.

    Raises
    ------
    ValueError
        If the operator is not known to be symmetric.
    FloatingPointError
        If the function is not finite at a Ritz value.
    """
    if not a.symmetric:
        message = (
            f"a {type(a).__name__} is not known to be symmetric, expected a symmetric operator"
        )
        raise ValueError(message)
    starts = random_signs(a.shape[0], how.num_probes, a, generator)
    sums = torch.stack([_quadrature(a, function, start, how.num_steps) for start in starts.mT])
    stderr = float(sums.std()) / how.num_probes**0.5
    return Estimate(float(sums.mean()), stderr, how.num_probes)


def _quadrature(
    a: LinearOperator, function: Function, start: Float[Tensor, " P"], num_steps: int
) -> Float[Tensor, ""]:
    krylov = lanczos(lambda v: a @ v, start, num_steps)
    nodes, vectors = torch.linalg.eigh(krylov.tridiagonal)
    nodes = nodes.clamp_min(0) if a.psd else nodes
    values = function(nodes)
    if not bool(torch.isfinite(values).all()):
        message = (
            f"the function is not finite at a Ritz value between {float(nodes.min()):.3g} and "
            f"{float(nodes.max()):.3g}; add a damping to the operator, or use log1p"
        )
        raise FloatingPointError(message)
    return len(start) * (vectors[0].square() * values).sum()


def estimate_logdet(a: LinearOperator, how: SLQ, generator: Generator) -> Estimate:
    """Estimate ``log det A`` of a symmetric positive definite operator, in nats.

    For ``log det (I + γ A)`` of a semidefinite one, `estimate_spectral_sum` with ``log1p`` needs no
    sum of operators.

    Raises
    ------
    ValueError
        If the operator is not known to be symmetric.
    FloatingPointError
        If a Ritz value is not positive.
    """
    return estimate_spectral_sum(a, torch.log, how, generator)
