"""The Laplace approximation: a Gaussian with the curvature of the loss, for any problem."""

from functools import singledispatch

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature import Curvature, Gram, ggn
from afterfit.linalg.operator import LinearOperator
from afterfit.linalg.structured import BlockDiagonal, Diagonal, LowRank
from afterfit.posterior.basis import (
    Basis,
    CoordinateBasis,
    basis_of_matrix,
    basis_of_rows,
    nonnegative,
)
from afterfit.posterior.blocks import basis_of_blocks, with_rank_one_scale
from afterfit.posterior.gaussian import GaussianPosterior, PriorScale, prior_of
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE, losses, outputs
from afterfit.problem.problem import Problem

Whitened = tuple[Basis, Float[Tensor, " R"], Float[Tensor, " P"]]
"""Directions, eigenvalues, and the prior in whose units they are."""

MAX_DENSE_BYTES = 4 * GIBIBYTE
"""Directions of a full posterior above this size are refused."""


def laplace(
    problem: Problem,
    train: Batches,
    prior_scale: PriorScale = 1.0,
    curvature: Curvature = ggn,
) -> GaussianPosterior:
    """Approximate the posterior by a Gaussian: the prior's precision plus the curvature.

    ``Σ⁻¹ = prior_scale⁻² I + Σ_n J_nᵀ Λ_n J_n`` in the coordinates of the problem, around θ̂. Of
    ``connectivity(problem)`` it is connectivity Laplace, whose predictions do not change when the
    network is rescaled and whose natural prior scale is 1 (a relative change of order one); of the
    problem itself linearized Laplace; of ``restrict(problem, "head.*")`` that of the last layer.

    Parameters
    ----------
    prior_scale
        Standard deviation of the prior in the coordinates of the problem, or one for each pattern
        of names, ``{"*.bias": 0.1, "*": 1.0}``.
    curvature
        ``ggn`` (full: by P directions or by those of the N·C outputs, whichever are fewer),
        ``kfac``, ``ekfac``, ``diagonal``, ``low_rank(k)``, or another function that gives an
        operator.

    Raises
    ------
    ValueError
        If a prior scale is not above 0, a loss or the curvature is not finite, the curvature has
        negative eigenvalues, or a full posterior takes more than 4 GiB.
    TypeError
        If the likelihood has no curvature (``PerSample``).

    References
    ----------
    MacKay 1992, "A practical Bayesian framework for backpropagation networks". Kim, Park, Kim,
    Yang 2023, "Scale-invariant Bayesian neural networks with connectivity tangent kernel", ICLR,
    arXiv:2209.15208, section 4 for connectivity.
    """
    prior, factor = prior_of(problem, prior_scale)
    nats = losses(problem, train)
    operator = _with_structure(curvature, problem, train)
    basis, values, prior = whitened(operator, problem, prior)
    if not bool(torch.isfinite(values).all()):
        message = "the curvature holds NaN or infinite values; look at the losses, or use float64"
        raise ValueError(message)
    num_outputs = outputs(problem, train.subset(torch.tensor([0]))).shape[1]
    return GaussianPosterior(
        problem=problem,
        basis=basis,
        values=values,
        prior=prior,
        factor=factor,
        log_likelihood=-float(nats.double().sum()),
        num_targets=train.num_samples * num_outputs,
    )


def _with_structure(curvature: Curvature, problem: Problem, train: Batches) -> LinearOperator:
    """Compute a curvature in the coordinates that its structure can keep, seen on one sample."""
    example = curvature(problem, train.subset(torch.tensor([0])))
    if isinstance(example, BlockDiagonal):
        return curvature(with_rank_one_scale(problem, example), train)
    return curvature(problem, train)


@singledispatch
def whitened(
    operator: LinearOperator,
    problem: Problem,  # noqa: ARG001
    prior: Float[Tensor, " P"],
) -> Whitened:
    """Directions and eigenvalues of ``S H S`` for a curvature H, by its structure, and S.

    Without structure: all entries by products with unit vectors.
    """
    _require_room(operator.shape[0], len(prior), operator.dtype)
    return *basis_of_matrix(prior[:, None] * operator.to_dense() * prior), prior


@whitened.register
def _(
    operator: Diagonal,
    problem: Problem,  # noqa: ARG001
    prior: Float[Tensor, " P"],
) -> Whitened:
    values = nonnegative(operator.entries, operator.dtype) * prior.square()
    return CoordinateBasis(), values, prior


@whitened.register
def _(
    operator: LowRank,
    problem: Problem,  # noqa: ARG001
    prior: Float[Tensor, " P"],
) -> Whitened:
    roots = nonnegative(operator.values, operator.dtype).sqrt()
    rows = (prior[:, None] * operator.vectors * roots).mT
    return *basis_of_rows(rows, f"low rank ({len(rows)})"), prior


@whitened.register
def _(operator: BlockDiagonal, problem: Problem, prior: Float[Tensor, " P"]) -> Whitened:
    return basis_of_blocks(operator, problem, prior)


def _full(operator: Gram, prior: Float[Tensor, " P"]) -> tuple[Basis, Float[Tensor, " R"]]:
    """Diagonalize the generalized Gauss-Newton matrix from its entries or from its N·R rows."""
    num_rows, size = operator.root.shape
    _require_room(min(num_rows, size), size, torch.float64)
    if num_rows < size:
        return basis_of_rows(operator.root.to_dense() * prior, "full (dual)")
    matrix = operator.factor * operator.root.square()
    return basis_of_matrix((prior[:, None] * matrix * prior).to(prior.dtype))


@whitened.register
def _(operator: Gram, problem: Problem, prior: Float[Tensor, " P"]) -> Whitened:  # noqa: ARG001
    return *_full(operator, prior), prior


def _require_room(num_directions: int, num_params: int, dtype: torch.dtype) -> None:
    needed = num_directions * num_params * torch.finfo(dtype).bits // 8
    if needed > MAX_DENSE_BYTES:
        message = (
            f"a full posterior of {num_directions} directions of {num_params} parameters takes "
            f"{needed / GIBIBYTE:,.1f} GiB, expected at most {MAX_DENSE_BYTES // GIBIBYTE}; use "
            "curvature=kfac, ekfac, diagonal or low_rank(k), or a part of the network: "
            "restrict(problem, names)"
        )
        raise ValueError(message)
