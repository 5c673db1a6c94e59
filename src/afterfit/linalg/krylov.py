"""Krylov spaces of symmetric operators that are known only by their products with vectors."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Apply = Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]
"""Product of a symmetric matrix with a flat vector."""


Enough = Callable[[Float[Tensor, "K K"], float], bool]
"""Whether a tridiagonal matrix and the coupling to the next vector are enough."""

_ROWS_AT_FIRST = 32


class Krylov(NamedTuple):
    """An orthonormal basis, and the operator as it acts within it.

    Attributes
    ----------
    basis
        Orthonormal columns (P, K); K is smaller than what was asked for where the space is
        exhausted.
    tridiagonal
        ``basisᵀ A basis`` (K, K), float64.
    residual
        The coupling to the next vector that was not taken; 0 where the space is invariant.
    """

    basis: Float[Tensor, "P K"]
    tridiagonal: Float[Tensor, "K K"]
    residual: float


class RitzPairs(NamedTuple):
    """Approximate eigenpairs, from the largest absolute value down.

    Attributes
    ----------
    values
        Ritz values (K,), float64.
    vectors
        Orthonormal Ritz vectors (P, K).
    residuals
        ``‖A v - λ v‖`` of each pair (K,): an eigenvalue lies within this distance of the value.
    """

    values: Float[Tensor, " K"]
    vectors: Float[Tensor, "P K"]
    residuals: Float[Tensor, " K"]


def lanczos(
    apply: Apply, start: Float[Tensor, " P"], num_steps: int, enough: Enough | None = None
) -> Krylov:
    """Build the Krylov space of ``start, A start, A² start, …`` by ``num_steps`` products.

    Every new vector is made orthogonal to all earlier ones, twice ("twice is enough", Parlett 1998,
    "The symmetric eigenvalue problem", section 6.9), so that no eigenvalue appears more than once.
    The iteration stops early where the coupling to the next vector falls below ``ε^¾`` of the
    operator's size (ε of the vectors' type): what would follow is rounding error.

    Parameters
    ----------
    enough
        Looks at the tridiagonal matrix and the coupling after each product, and says whether to
        stop before ``num_steps``.

    Raises
    ------
    ValueError
        If ``start`` is zero or not finite, or if ``num_steps`` is below 1.
    FloatingPointError
        If the operator returns NaN or infinite values.
    """
    _require_direction(start, num_steps)
    steps = min(num_steps, len(start))
    rows = start.new_empty(min(steps, _ROWS_AT_FIRST), len(start))
    diagonal: list[float] = []
    couplings: list[float] = []
    vector = start / start.norm()
    while True:
        step = len(diagonal)
        if step == len(rows):
            more = rows.new_empty(min(step, steps - step), len(start))
            rows = torch.cat([rows, more])
        rows[step] = vector
        image = _checked(apply(vector), vector)
        diagonal.append(float(vector.double() @ image.double()))
        for _ in range(2):
            image = image - rows[: step + 1].mT @ (rows[: step + 1] @ image)
        coupling = float(image.norm())
        size = max(map(abs, [*diagonal, *couplings]))
        exhausted = coupling <= torch.finfo(start.dtype).eps ** 0.75 * size or coupling == 0
        if exhausted or len(diagonal) == steps:
            break
        if enough is not None and enough(_tridiagonal(diagonal, couplings), coupling):
            break
        couplings.append(coupling)
        vector = image / coupling
    residual = 0.0 if exhausted else coupling
    return Krylov(rows[: len(diagonal)].mT, _tridiagonal(diagonal, couplings), residual)


def ritz_pairs(krylov: Krylov, num_pairs: int) -> RitzPairs:
    """Approximate eigenpairs of the largest absolute values, at most ``num_pairs`` of them."""
    values, vectors = torch.linalg.eigh(krylov.tridiagonal)
    order = values.abs().argsort(descending=True)[:num_pairs]
    chosen = vectors[:, order]
    residuals = krylov.residual * chosen[-1].abs()
    basis = krylov.basis
    return RitzPairs(values[order], basis @ chosen.to(basis.device, basis.dtype), residuals)


def _tridiagonal(diagonal: list[float], couplings: list[float]) -> Float[Tensor, "K K"]:
    on, off = (torch.tensor(part, dtype=torch.float64) for part in (diagonal, couplings))
    return torch.diag(on) + torch.diag(off, 1) + torch.diag(off, -1)


def _require_direction(start: Tensor, num_steps: int) -> None:
    norm = float(start.norm())
    if not 0 < norm < float("inf"):
        message = f"the start vector has norm {norm}, expected a finite direction; draw another"
        raise ValueError(message)
    if num_steps < 1:
        message = f"num_steps is {num_steps}, expected at least 1"
        raise ValueError(message)


def _checked(image: Tensor, vector: Tensor) -> Tensor:
    if image.shape != vector.shape:
        message = (
            f"the operator turned a vector of shape {tuple(vector.shape)} into "
            f"{tuple(image.shape)}, expected the same shape"
        )
        raise ValueError(message)
    if not bool(torch.isfinite(image).all()):
        message = (
            "the operator returned NaN or infinite values, expected finite products; look at the "
            "losses at this point, or compute in float64"
        )
        raise FloatingPointError(message)
    return image
