"""Influence through the strongest directions of curvature, found by Hessian products alone."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.influence.base import FeatureInfluence
from afterfit.linalg.krylov import RitzPairs, lanczos, ritz_pairs
from afterfit.problem._autodiff import hessian_product
from afterfit.problem.data import Batch, Batches
from afterfit.problem.persample import GIBIBYTE, batch_losses, flatten, gradients, unflatten
from afterfit.problem.problem import Problem
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class ArnoldiInfluence:
    """``score(q, n) = Σ_k (g_q · v_k)(g_n · v_k) / (λ_k + damping)`` over Ritz pairs (λ, v).

    The influence function restricted to a few directions of the Hessian of the *mean* loss (the
    training objective without its weight decay). Two things differ from common implementations, and
    both were found to matter: every product uses the *same* samples, since products with changing
    mini-batches span no Krylov space; and all basis vectors are orthogonalized again. Pairs are
    taken by ``|λ|``; those with ``λ ≤ 0``, or so small that they are rounding error, are dropped
    and counted, since the inverse square root of a negative curvature is no feature. The sum is not
    divided by the number of pairs. Of an eigenvalue that occurs several times (as for a linear
    network with several Gaussian outputs) the space of one start vector holds one eigenvector. As
    for :class:`~afterfit.influence.classic.InfluenceFunction`, ``score / N`` is in nats.

    Parameters
    ----------
    num_iterations
        Hessian products, and basis vectors of length P that are held.
    num_pairs
        Ritz pairs to take, at most as many as iterations.
    damping
        Added to each Ritz value.
    curvature_samples
        How many training samples, drawn once, make up the Hessian.
    seed
        Of that draw and of the start vector.

    References
    ----------
    Schioppa, Zablotskaia, Vilar, Sokolov (2022), "Scaling up influence functions", AAAI,
    arXiv:2112.03052, algorithm 1.
    """

    num_iterations: int = 50
    num_pairs: int = 20
    damping: float = 0.0
    curvature_samples: int = 2048
    seed: int = 0
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Schioppa, Zablotskaia, Vilar, Sokolov (2022), Scaling up influence functions, AAAI, "
        "arXiv:2112.03052"
    )

    def __post_init__(self) -> None:
        if not 1 <= self.num_pairs <= self.num_iterations:
            message = (
                f"num_pairs is {self.num_pairs} with {self.num_iterations} iterations, expected "
                "between 1 and num_iterations"
            )
            raise ValueError(message)
        if not 0 <= self.damping < float("inf"):
            message = f"damping is {self.damping}, expected a finite number of at least 0"
            raise ValueError(message)
        if self.curvature_samples < 1:
            message = f"curvature_samples is {self.curvature_samples}, expected at least 1"
            raise ValueError(message)

    def fit(self, problem: Problem, train: Batches) -> "RitzInfluence":
        """Find the Ritz pairs.

        Raises
        ------
        ValueError
            If no Ritz value is positive.
        """
        generator = Generator().manual_seed(self.seed)
        order = torch.randperm(train.num_samples, generator=generator)
        chosen = train.subset(order[: self.curvature_samples].sort().values)
        start = torch.randn(problem.num_params, generator=generator, dtype=problem.dtype)

        def product(direction: Tensor) -> Tensor:
            return mean_hessian_product(problem, chosen, direction)

        krylov = lanczos(product, start.to(problem.device), self.num_iterations)
        found = ritz_pairs(krylov, self.num_pairs)
        positive = _positive(found, problem.dtype)
        _warn_of_residuals(positive)
        return RitzInfluence(
            problem=problem,
            train=train,
            memory_budget=self.memory_budget,
            pairs=positive,
            num_dropped=len(found.values) - len(positive.values),
            damping=self.damping,
        )


@final
@dataclass(frozen=True)
class RitzInfluence(FeatureInfluence):
    """Influence over Ritz pairs.

    Attributes
    ----------
    pairs
        The positive Ritz values, their vectors and their residuals.
    num_dropped
        How many of the pairs asked for had no positive value.
    """

    problem: Problem
    train: Batches
    memory_budget: int
    pairs: RitzPairs
    num_dropped: int
    damping: float

    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        """Gradients in the directions of the pairs, each divided by the root of its curvature."""
        roots = (self.pairs.values + self.damping).sqrt()
        scaled = self.pairs.vectors / roots.to(self.problem.device, self.problem.dtype)
        for index, rows in gradients(self.problem, data, self.memory_budget):
            yield index, rows @ scaled


def mean_hessian_product(
    problem: Problem, data: Batches, direction: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """Hessian of the mean loss times a flat vector, forward over reverse, batch by batch."""
    along = unflatten(direction, problem.params)
    total = torch.zeros_like(direction)
    for batch in data:
        total += flatten(_batch_product(problem, batch, along))
    return total / data.num_samples


def _batch_product(problem: Problem, batch: Batch, along: Params) -> Params:
    def loss(params: Params) -> Tensor:
        return batch_losses(problem, params, batch).sum()

    return hessian_product(loss, problem.params, along)


def _positive(found: RitzPairs, dtype: torch.dtype) -> RitzPairs:
    """Keep the pairs whose value is above zero by more than rounding error."""
    largest = float(found.values.abs().max())
    keep = found.values > torch.finfo(dtype).eps ** 0.75 * largest
    if not bool(keep.any()):
        message = (
            f"none of {len(found.values)} Ritz values is positive (the largest by absolute value "
            f"is {float(found.values[0]):.3g}), expected a network near a minimum of its loss; "
            "train on, raise num_pairs, or use GEX or GradientDot, which need no curvature"
        )
        raise ValueError(message)
    return RitzPairs(found.values[keep], found.vectors[:, keep], found.residuals[keep])


def _warn_of_residuals(pairs: RitzPairs) -> None:
    rough = int((pairs.residuals > 0.1 * pairs.values).sum())
    if 2 * rough > len(pairs.values):
        message = (
            f"{rough} of {len(pairs.values)} Ritz pairs have not converged (residual above 10 % of "
            "the value); raise num_iterations or lower num_pairs"
        )
        warnings.warn(message, stacklevel=3)
