"""Scales for relative coordinates, and their part that a Kronecker product can take."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature.diagonal import squared_jacobian
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem


def g_prior_scale(problem: Problem, data: Batches) -> dict[str, Tensor]:
    """Scale ``s_i = (Σ_n Σ_c J_{nc,i}²)^(-½)`` of the g-prior, for ``connectivity(problem, s)``.

    It is rescaled with the parameters, as ``|θ|`` is, so that whatever is computed in its
    coordinates ignores rescalings of the network. A parameter on which no output depends gets 0.

    References
    ----------
    Antorán, Padhy, Barbano, Nalisnick, Janz, Hernández-Lobato (2023), "Sampling-based inference for
    large linear models, with application to linearised Laplace", ICLR, arXiv:2210.04994.
    """
    squares = squared_jacobian(problem, data)
    return {
        name: torch.where(total > 0, total.clamp_min(torch.finfo(total.dtype).tiny).rsqrt(), 0)
        for name, total in squares.items()
    }


def grouped_scale(problem: Problem, factors: Mapping[str, float | int]) -> dict[str, Tensor]:
    """Scale ``factor · θ`` with a factor of its own for each group of parameters.

    Parameters
    ----------
    factors
        For patterns of names, as ``restrict`` takes them, what multiplies ``θ``; the first pattern
        that matches a name counts, and 1 where none does.

    Raises
    ------
    ValueError
        If a pattern matches no name.
    """
    chosen = {name: _first(name, factors) for name in problem.params}
    for pattern in factors:
        if pattern not in chosen.values():
            message = (
                f"the pattern {pattern!r} is the first match of no parameter; the names are "
                f"{list(problem.params)[:8]} …"
            )
            raise ValueError(message)
    return {
        name: value * (1 if (pattern := chosen[name]) is None else factors[pattern])
        for name, value in problem.params.items()
    }


def _first(name: str, factors: Mapping[str, float | int]) -> str | None:
    for patterns in factors:
        if any(fnmatchcase(name, pattern.strip()) for pattern in patterns.split("|")):
            return patterns
    return None


def rank_one(scale: Float[Tensor, "O I"]) -> tuple[Float[Tensor, " O"], Float[Tensor, " I"]]:
    """Fit ``|scale[i, j]| ≈ rows[i] columns[j]`` by least squares of the logarithms.

    For entries without zeros these are the geometric means of rows and columns. The fit follows any
    rescaling of rows and columns exactly. Zeros are left out of it; a row or column of zeros alone
    gets 0.
    """
    there = scale != 0
    logs = torch.where(there, scale.abs(), 1.0).double().log()
    weights = there.double()
    per_row, per_column = weights.sum(1), weights.sum(0)
    if bool(there.all()):
        rows, columns = logs.mean(1), logs.mean(0) - logs.mean()
    else:
        rows, columns = _masked_fit(logs, weights, per_row, per_column)
    kept = (per_row > 0).double(), (per_column > 0).double()
    return (rows.exp() * kept[0]).to(scale.dtype), (columns.exp() * kept[1]).to(scale.dtype)


def _masked_fit(
    logs: Float[Tensor, "O I"],
    weights: Float[Tensor, "O I"],
    per_row: Float[Tensor, " O"],
    per_column: Float[Tensor, " I"],
) -> tuple[Float[Tensor, " O"], Float[Tensor, " I"]]:
    """Least squares over the entries that are there, by the normal equations of the columns."""
    inverse = per_row.clamp_min(1).reciprocal()
    row_sums, column_sums = (weights * logs).sum(1), (weights * logs).sum(0)
    normal = torch.diag(per_column) - weights.mT @ (inverse[:, None] * weights)
    target = column_sums - weights.mT @ (inverse * row_sums)
    columns = torch.linalg.pinv(normal, hermitian=True) @ target
    return inverse * (row_sums - weights @ columns), columns


def signs_of(scale: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """-1 where a scale is negative, 1 elsewhere."""
    return torch.where(scale < 0, -1.0, 1.0).to(scale.dtype)
