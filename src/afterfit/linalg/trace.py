"""Traces: exact where the structure gives them, estimated with an error where it does not."""

from functools import singledispatch

import torch
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
        "use estimate_trace(a, 100, generator), or trace(Dense(a.to_dense())) if it is small"
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


def estimate_trace(a: LinearOperator, num_probes: int, generator: Generator) -> Estimate:
    """Mean of ``zᵀ A z`` over random signs z; the error falls as 1/√num_probes.

    The variance of one probe is ``2 (‖A‖_F² - Σ_i A_ii²)``.

    Raises
    ------
    ValueError
        If the operator is not square, or there are fewer than 2 probes.

    References
    ----------
    Hutchinson (1990), "A stochastic estimator of the trace of the influence matrix for Laplacian
    smoothing splines", Communications in Statistics 19(2).
    """
    _require_square(a)
    if num_probes < 2:
        message = f"num_probes is {num_probes}, expected at least 2, to tell the error"
        raise ValueError(message)
    signs = random_signs(a.shape[1], num_probes, a, generator)
    forms = (signs.double() * (a @ signs).double()).sum(0)
    return Estimate(float(forms.mean()), float(forms.std()) / num_probes**0.5, num_probes)
