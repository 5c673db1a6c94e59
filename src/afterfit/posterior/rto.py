"""Draws without a factorization: randomize the targets and the prior's center, then optimize."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.curvature import CG, inverse, likelihood_root
from afterfit.linalg.least_squares import lsmr
from afterfit.linalg.operator import Kind
from afterfit.linalg.structured import FunctionOperator
from afterfit.posterior.gaussian import PriorScale, as_ensemble, prior_of
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Ensemble
from afterfit.problem.likelihood import Gaussian, Likelihood
from afterfit.problem.persample import flatten, outputs
from afterfit.problem.problem import Problem

Noise = Callable[[Likelihood, Tensor, Tensor], Tensor]
"""``noise(likelihood, targets, draws (M, N, R))`` gives ε (M, N, R) from draws of N(0, I)."""


def full_noise(
    likelihood: Likelihood,  # noqa: ARG001
    targets: Tensor,  # noqa: ARG001
    draws: Float[Tensor, "M N R"],
) -> Float[Tensor, "M N R"]:
    """Noise of the linearized model, with which the draws are exact."""
    return draws


def one_hot_noise(
    likelihood: Likelihood, targets: Tensor, draws: Float[Tensor, "M N R"]
) -> Float[Tensor, "M N R"]:
    """Noise on the output of the true class only, as in the published code: to reproduce it.

    The covariance becomes ``Σ (α⁻² I + σ⁻² Jᵀ M J) Σ`` with M = diag(one-hot), too narrow where
    the data are: use :func:`full_noise` for anything else.

    Raises
    ------
    TypeError
        If the likelihood is not ``Gaussian``, whose targets are one-hot rows here.
    """
    if not isinstance(likelihood, Gaussian):
        message = (
            f"one_hot_noise: the likelihood is {type(likelihood).__name__}, expected Gaussian with "
            "one-hot targets, the squared loss of the published code; use full_noise"
        )
        raise TypeError(message)
    rows = targets.reshape(draws.shape[1:]).to(draws.device)
    return draws * torch.zeros_like(draws[0]).scatter(1, rows.argmax(1, keepdim=True), 1.0)


@final
@dataclass(frozen=True)
class Equations:
    """``(S G S + I) x = right`` of M draws in whitened coordinates, G summed over the data.

    Attributes
    ----------
    problem, train
        What G is the curvature of.
    prior
        The diagonal of S, (P,).
    start
        Draws of the prior (P, M): the solution where the data determine nothing.
    draws
        Noise ε of the targets, in units of its standard deviation (M, N, R).
    """

    problem: Problem
    train: Batches
    prior: Float[Tensor, " P"]
    start: Float[Tensor, "P M"]
    draws: Float[Tensor, "M N R"]

    @property
    def everything(self) -> Int[Tensor, " N"]:
        """Positions of all samples."""
        return torch.arange(self.train.num_samples)

    def curved(
        self, columns: Float[Tensor, "P K"], index: Int[Tensor, " B"]
    ) -> Float[Tensor, "P K"]:
        """``S G S @ columns`` with the curvature of the samples at these positions."""
        root = likelihood_root(self.problem, self.train.subset(index))
        return self.prior[:, None] * root.curved(self.prior[:, None] * columns)

    def pulled(
        self, rows: Float[Tensor, "M N R"], index: Int[Tensor, " B"]
    ) -> Float[Tensor, "P M"]:
        """``S Jᵀ R`` times rows of the samples at these positions."""
        root = likelihood_root(self.problem, self.train.subset(index))
        return self.prior[:, None] * root.pulled(rows[:, index].flatten(1).mT)

    def pushed(self, columns: Float[Tensor, "P M"]) -> Float[Tensor, "M N R"]:
        """``Rᵀ J S`` times columns, for all samples."""
        root = likelihood_root(self.problem, self.train)
        return root.apply(self.prior[:, None] * columns).mT.unflatten(1, self.draws.shape[1:])

    def product(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """``(S G S + I) @ columns``, one pass over the data."""
        return columns + self.curved(columns, self.everything)

    def right(self) -> Float[Tensor, "P M"]:
        """Right-hand sides, one pass over the data."""
        return self.start + self.pulled(self.draws, self.everything)


@runtime_checkable
class Optimizer(Protocol):
    """Solves the equations of M draws."""

    def solve(self, equations: Equations) -> Float[Tensor, "P M"]:
        """Whitened solutions, one column a draw."""
        ...


@final
@dataclass(frozen=True)
class ConjugateGradients:
    """Solve all draws together until each residual is below ``tolerance`` of its right-hand side.

    Warns where ``max_steps`` are not enough. One step costs a forward pass with its tangent and a
    backward pass over the training data, for every draw.
    """

    tolerance: float = 1e-5
    max_steps: int = 500

    def solve(self, equations: Equations) -> Float[Tensor, "P M"]:
        prior = equations.prior
        kind = Kind((len(prior), len(prior)), prior.dtype, prior.device, symmetric=True, psd=True)
        everything = equations.everything
        curved = FunctionOperator(kind, lambda columns: equations.curved(columns, everything))
        prepared = inverse(curved, 1.0, CG(self.tolerance, self.max_steps))
        return prepared.solve(equations.right()).value


@final
@dataclass(frozen=True)
class LeastSquares:
    """Solve all draws together by LSMR on ``‖Rᵀ J S y - (ε - Rᵀ J S z₀)‖² + ‖y‖²``, x = z₀ + y.

    The condition number is that of the Jacobian and not its square, which keeps digits where the
    posterior is far narrower than the prior; warns where ``max_steps`` are not enough. A step costs
    what one of :class:`ConjugateGradients` does, in two passes over the data.

    Attributes
    ----------
    tolerance
        Gradient of that sum that is asked for, relative to the one at y = 0.

    References
    ----------
    Fong, Saunders 2011, "LSMR: An iterative algorithm for sparse least-squares problems", SIAM
    Journal on Scientific Computing 33(5).
    """

    tolerance: float = 1e-8
    max_steps: int = 500

    def solve(self, equations: Equations) -> Float[Tensor, "P M"]:
        prior, shape = equations.prior, equations.draws.shape[1:]

        def forward(columns: Tensor) -> Tensor:
            return equations.pushed(columns).flatten(1).mT

        def backward(columns: Tensor) -> Tensor:
            return equations.pulled(columns.mT.unflatten(1, shape), equations.everything)

        kind = Kind((shape[0] * shape[1], len(prior)), prior.dtype, prior.device)
        operator = FunctionOperator(kind, forward, backward)
        target = equations.draws.flatten(1).mT - forward(equations.start)
        found = lsmr(operator, target, 1.0, self.tolerance, self.max_steps)
        return equations.start + found.value


@final
@dataclass(frozen=True)
class Descent:
    """Nesterov's SGD on batches, averaged over the second half of its steps.

    For networks and data where passes over all data are dear. Directions of small curvature stay at
    the prior's draw, which is right; those in between are biased: look at the residuals.

    Parameters
    ----------
    learning_rate
        As a share of the largest at which a step on the whole data is stable, which is found by
        products (power iterations).

    References
    ----------
    Lin, Antorán, Padhy, Janz, Hernández-Lobato, Terenin 2023, "Sampling from Gaussian process
    posteriors using stochastic gradient descent", NeurIPS.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 0.3
    momentum: float = 0.9
    seed: int = 0

    def solve(self, equations: Equations) -> Float[Tensor, "P M"]:
        generator = Generator().manual_seed(self.seed)
        num = equations.train.num_samples
        rate = self.learning_rate * (1 - self.momentum) / self._largest(equations, generator)
        solution = equations.start.clone()
        velocity, total = torch.zeros_like(solution), torch.zeros_like(solution)
        averaged = self.steps - self.steps // 2
        for step in range(self.steps):
            index = torch.randperm(num, generator=generator)[: min(self.batch_size, num)]
            ahead = solution + self.momentum * velocity
            pull = equations.curved(ahead, index) - equations.pulled(equations.draws, index)
            gradient = num / len(index) * pull + ahead - equations.start
            velocity = self.momentum * velocity - rate * gradient
            solution = solution + velocity
            if step >= self.steps - averaged:
                total = total + solution
        return total / averaged

    def _largest(self, equations: Equations, generator: Generator) -> float:
        """Largest eigenvalue, a little overestimated."""
        size = len(equations.prior)
        vector = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        vector = vector.to(equations.prior)
        for _ in range(12):
            vector = equations.product(vector / vector.norm())
        return 1.2 * float(vector.norm())


@final
@dataclass(frozen=True)
class Randomized:
    """Draws of the posterior, and how far each is from the minimum that it should be.

    Attributes
    ----------
    members
        In the coordinates of the problem, for ``predict_by_members``.
    residuals
        Norm of the gradient over that of the right-hand side, of each draw, (M,).
    """

    members: Ensemble
    residuals: Float[Tensor, " M"]


def randomize_then_optimize(
    problem: Problem,
    train: Batches,
    num: int,
    generator: Generator,
    prior_scale: PriorScale = 1.0,
    optimizer: Optimizer | None = None,
    noise: Noise = full_noise,
) -> Randomized:
    """Draw from the Laplace posterior with the full curvature, which is never formed.

    Each draw minimizes ``½ ‖Rᵀ J c - ε‖² + ½ ‖c - c₀‖² / α²`` with ε ~ N(0, I) and c₀ ~ N(0, α² I):
    the minimizer has exactly the law of the posterior of the linearized network. Memory is that of
    a few vectors a draw. In ``connectivity`` the draws of one seed are the same functions for a
    network that was rescaled, as far as the equations are solved; where units were permuted they
    are others, of the same law, since c₀ belongs to positions.

    Parameters
    ----------
    optimizer
        :class:`ConjugateGradients` (default), :class:`LeastSquares` or :class:`Descent`.
    noise
        :func:`full_noise`, or :func:`one_hot_noise` to reproduce the published code.

    References
    ----------
    Bardsley, Solonen, Haario, Laine 2014, "Randomize-then-optimize: a method for sampling from
    posterior distributions in nonlinear inverse problems". Kim, Park, Kim, Yang 2023,
    "Scale-invariant Bayesian neural networks with connectivity tangent kernel", ICLR.
    """
    if num < 1:
        message = f"num is {num}, expected at least 1 draw"
        raise ValueError(message)
    prior, factor = prior_of(problem, prior_scale)
    prior = factor * prior
    first = problem.likelihood.root(outputs(problem, train.subset(torch.tensor([0]))))
    draw = {"generator": generator, "dtype": torch.float64, "device": generator.device}
    start = torch.randn(num, len(prior), **draw).to(prior).mT
    draws = torch.randn(num, train.num_samples, first.shape[2], **draw).to(prior)
    disturbed = noise(problem.likelihood, train.targets(), draws)
    equations = Equations(problem, train, prior, start, disturbed)
    solution = (optimizer or ConjugateGradients()).solve(equations)
    right = equations.right()
    residual = (equations.product(solution) - right).norm(dim=0) / right.norm(dim=0)
    coordinates = flatten(problem.params) + prior * solution.mT
    return Randomized(as_ensemble(problem, coordinates), residual)
