"""The influence function itself: gradients through the inverse of a dense curvature matrix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.influence.base import FeatureInfluence
from afterfit.problem._autodiff import hessian_product
from afterfit.problem.data import Batch, Batches
from afterfit.problem.likelihood import Likelihood, PerSample
from afterfit.problem.persample import (
    GIBIBYTE,
    batch_losses,
    flatten,
    gradients,
    outputs,
    unflatten,
)
from afterfit.problem.problem import Problem
from afterfit.typing import Params

MAX_DENSE_PARAMS = 20_000
"""Above this many parameters a dense curvature matrix (3.2 GB in float64) is refused."""

_COLUMNS_AT_ONCE = 32

DenseCurvature = Callable[[Problem, Batches], Float[Tensor, "P P"]]
"""Curvature of the sum of all losses as a matrix: `dense_ggn`, `dense_hessian`, or your own."""


def dense_ggn(problem: Problem, train: Batches) -> Float[Tensor, "P P"]:
    """Generalized Gauss-Newton matrix ``Σ_n J_nᵀ Λ_n J_n`` of the summed loss, in float64.

    Never indefinite, and equal to the Fisher matrix for the likelihoods of this library. With
    ``Λ = R Rᵀ`` it is the sum of the squares of ``Rᵀ J``, whose rows come one column of R at a
    time: C backward passes for each sample.

    Raises
    ------
    ValueError
        If the network has too many parameters for a dense matrix.
    TypeError
        If the likelihood has no curvature (``PerSample``); `dense_hessian` needs none.

    References
    ----------
    Martens (2020), "New insights and perspectives on the natural gradient method", JMLR 21(146).
    """
    _require_dense(problem)
    total = _square(problem)
    first = outputs(problem, train.subset(torch.arange(1)))
    for column in range(problem.likelihood.root(first).shape[-1]):
        rooted = replace(problem, likelihood=_along_root(problem.likelihood, column))
        for _, rows in gradients(rooted, train):
            total += rows.double().mT @ rows.double()
    return total


def _along_root(likelihood: Likelihood, column: int) -> PerSample:
    """Stand-in for a loss whose gradient is ``Jᵀ`` times one column of the root of ``Λ``."""

    def function(found: Tensor, _: Tensor) -> Tensor:
        return (found * likelihood.root(found.detach())[..., column]).sum(-1)

    return PerSample(function)


def dense_hessian(problem: Problem, train: Batches) -> Float[Tensor, "P P"]:
    """Hessian of the summed loss, in float64: P products with unit vectors, several at once.

    It may have negative eigenvalues away from a minimum, also at a trained network.

    Raises
    ------
    ValueError
        If the network has too many parameters for a dense matrix.
    """
    _require_dense(problem)
    total = _square(problem)
    for batch in train:
        product = torch.func.vmap(_hessian_of(problem, batch))
        for columns in torch.arange(problem.num_params).split(_COLUMNS_AT_ONCE):
            directions = torch.zeros(
                len(columns), problem.num_params, dtype=problem.dtype, device=problem.device
            )
            directions[torch.arange(len(columns)), columns] = 1
            total[columns] += cast(Tensor, product(directions)).double()
    return (total + total.mT) / 2


def _hessian_of(problem: Problem, batch: Batch) -> Callable[[Tensor], Tensor]:
    def loss(params: Params) -> Tensor:
        return batch_losses(problem, params, batch).sum()

    def product(direction: Tensor) -> Tensor:
        along = unflatten(direction, problem.params)
        return flatten(hessian_product(loss, problem.params, along))

    return product


def _square(problem: Problem) -> Float[Tensor, "P P"]:
    size = problem.num_params
    return torch.zeros(size, size, dtype=torch.float64, device=problem.device)


def _require_dense(problem: Problem) -> None:
    size = problem.num_params
    if size > MAX_DENSE_PARAMS:
        message = (
            f"the network has {size:,} parameters, so that one dense matrix takes "
            f"{8 * size**2 / 1e9:,.1f} GB and its factor as much again, expected at most "
            f"{MAX_DENSE_PARAMS:,}; take a part of the network with restrict(problem, 'head.*'), "
            "or a method without a matrix: GEX, ArnoldiInfluence, RandomProjection, TracIn"
        )
        raise ValueError(message)


@final
@dataclass(frozen=True)
class InfluenceFunction:
    """Influence function: ``score(q, n) = g_qᵀ (H + damping I)⁻¹ g_n``, exact and dense.

    ``H`` is the *mean* curvature of the training samples and the score leaves out the factor 1/N,
    as the literature writes it; ``score / N`` is in nats for one removed sample: the predicted rise
    of the query's loss when the network is trained again without it. A weight decay of
    ``(γ/2) ‖θ‖²`` on the mean loss belongs to the curvature and is ``damping=γ``.

    Parameters
    ----------
    damping
        Added to the eigenvalues of the mean curvature; at least 0.
    curvature
        Function of (problem, train) that gives the curvature of the *sum* of all losses.

    References
    ----------
    Koh, Liang (2017), "Understanding black-box predictions via influence functions", ICML,
    arXiv:1703.04730, eq. (2), whose score has the opposite sign: theirs is for adding weight.
    """

    damping: float
    curvature: DenseCurvature = dense_ggn
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Koh, Liang (2017), Understanding black-box predictions via influence functions, ICML, "
        "arXiv:1703.04730"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            message = f"damping is {self.damping}, expected a finite number of at least 0"
            raise ValueError(message)

    def fit(self, problem: Problem, train: Batches) -> FeatureInfluence:
        """Compute the curvature and its Cholesky factor.

        Raises
        ------
        ValueError
            If the damped curvature is not positive definite, or is too large to be dense.
        """
        _require_dense(problem)
        matrix = self.curvature(problem, train).double() / train.num_samples
        matrix.diagonal().add_(self.damping)
        factor = _cholesky(matrix, self.damping)
        return _WhitenedGradients(problem, train, self.memory_budget, factor)


@final
@dataclass(frozen=True)
class _WhitenedGradients(FeatureInfluence):
    """``L⁻¹ g`` with ``L Lᵀ = H + damping I``."""

    problem: Problem
    train: Batches
    memory_budget: int
    factor: Float[Tensor, "P P"]

    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        for index, rows in gradients(self.problem, data, self.memory_budget):
            white = torch.linalg.solve_triangular(self.factor, rows.double().mT, upper=False)
            yield index, white.mT.to(rows.dtype)


def _cholesky(matrix: Float[Tensor, "P P"], damping: float) -> Float[Tensor, "P P"]:
    """Cholesky factor, once it is certain that rounding errors do not make up the small pivots."""
    if not bool(torch.isfinite(matrix).all()):
        message = "the curvature holds NaN or infinite values; look at the losses and parameters"
        raise ValueError(message)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    pivots = factor.diagonal().square()
    if int(failed) or float(pivots.min()) <= rounding * float(pivots.max()):
        values = torch.linalg.eigvalsh(matrix)
        smallest, largest = float(values[0]), float(values[-1])
        if int(failed) or smallest <= rounding * abs(largest):
            message = (
                f"H + damping I has smallest eigenvalue {smallest:.3g} (largest {largest:.3g}, "
                f"damping {damping:g}), expected a positive definite matrix; raise damping above "
                f"{max(damping - smallest, rounding * abs(largest)):.2g}, or use "
                "curvature=dense_ggn, which has no negative eigenvalues"
            )
            raise ValueError(message)
    return factor
