"""Draws without a factorization: randomize the targets and the prior's center, then optimize."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.curvature import ggn
from afterfit.linalg.operator import Kind
from afterfit.linalg.solvers import CG, solve
from afterfit.linalg.structured import FunctionOperator
from afterfit.posterior.gaussian import PriorScale, as_ensemble, prior_of
from afterfit.problem._autodiff import differentiable_attention
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Ensemble
from afterfit.problem.likelihood import Gaussian, Likelihood
from afterfit.problem.persample import flatten, outputs
from afterfit.problem.problem import Problem, move

_DRAWS_AT_ONCE = 16

Noise = Callable[[Likelihood, Tensor, Tensor, Tensor], Tensor]
"""``noise(likelihood, outputs (B, C), targets, draws (B, R))`` gives what is pulled back (B, C)."""


def full_noise(
    likelihood: Likelihood,
    outputs: Float[Tensor, "B C"],
    targets: Tensor,  # noqa: ARG001 (the noise is that of the model)
    draws: Float[Tensor, "B R"],
) -> Float[Tensor, "B C"]:
    """Noise of the linearized model, with which the draws are exact."""
    return (likelihood.root(outputs) @ draws[:, :, None])[:, :, 0]


def one_hot_noise(
    likelihood: Likelihood,
    outputs: Float[Tensor, "B C"],
    targets: Tensor,
    draws: Float[Tensor, "B R"],
) -> Float[Tensor, "B C"]:
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
    rows = targets.reshape(outputs.shape)
    chosen = torch.zeros_like(outputs).scatter(1, rows.argmax(1, keepdim=True), 1.0)
    return full_noise(likelihood, outputs, targets, draws) * chosen


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
    noise
        ``S Jᵀ R ε`` of the samples at some positions, (P, M); over all data it is
        ``right - start``.
    """

    problem: Problem
    train: Batches
    prior: Float[Tensor, " P"]
    start: Float[Tensor, "P M"]
    noise: Callable[[Tensor], Tensor]

    @property
    def everything(self) -> Int[Tensor, " N"]:
        """Positions of all samples."""
        return torch.arange(self.train.num_samples)

    def curved(
        self, columns: Float[Tensor, "P K"], index: Int[Tensor, " B"]
    ) -> Float[Tensor, "P K"]:
        """``S G S @ columns`` with the curvature of the samples at these positions."""
        operator = ggn(self.problem, self.train.subset(index))
        return self.prior[:, None] * (operator @ (self.prior[:, None] * columns))

    def product(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "P K"]:
        """``(S G S + I) @ columns``, one pass over the data."""
        return columns + self.curved(columns, self.everything)

    def right(self) -> Float[Tensor, "P M"]:
        """Right-hand sides, one pass over the data."""
        return self.start + self.noise(self.everything)


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
        operator = FunctionOperator(kind, equations.product)
        return solve(operator, equations.right(), CG(self.tolerance, self.max_steps)).value


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
            pull = equations.curved(ahead, index) - equations.noise(index)
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
    a few vectors a draw.

    Parameters
    ----------
    optimizer
        :class:`ConjugateGradients` (default) or :class:`Descent`.
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

    def pulled(index: Tensor) -> Tensor:
        rows = _pulled_back(problem, train, index, draws, noise)
        return prior[:, None] * rows.mT

    equations = Equations(problem, train, prior, start, pulled)
    solution = (optimizer or ConjugateGradients()).solve(equations)
    right = equations.right()
    residual = (equations.product(solution) - right).norm(dim=0) / right.norm(dim=0)
    coordinates = flatten(problem.params) + prior * solution.mT
    return Randomized(as_ensemble(problem, coordinates), residual)


def _pulled_back(
    problem: Problem,
    train: Batches,
    index: Int[Tensor, " B"],
    draws: Float[Tensor, "M N R"],
    noise: Noise,
) -> Float[Tensor, "M P"]:
    """``Jᵀ R ε`` summed over the samples at these positions, for every draw."""
    leaves = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    total = draws.new_zeros(len(draws), problem.num_params)
    for batch in train.subset(index):
        with differentiable_attention(), torch.enable_grad():
            found = problem.forward(leaves, move(batch.inputs, problem.device))
        targets = batch.targets.to(problem.device)
        chosen = draws[:, index[batch.index]]
        fixed = found.detach()
        cotangents = torch.stack(
            [noise(problem.likelihood, fixed, targets, rows) for rows in chosen]
        )
        for members in torch.arange(len(draws)).split(_DRAWS_AT_ONCE):
            parts = _pull(found, tuple(leaves.values()), cotangents[members])
            total[members] += torch.cat([part.flatten(1) for part in parts], dim=1)
    return total


def _pull(
    found: Float[Tensor, "B C"], leaves: tuple[Tensor, ...], cotangents: Float[Tensor, "M B C"]
) -> tuple[Tensor, ...]:
    """Gradients along several cotangents, together where the network can be mapped."""
    settings = {"retain_graph": True, "materialize_grads": True}
    with differentiable_attention():
        try:
            return torch.autograd.grad(found, leaves, cotangents, is_grads_batched=True, **settings)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # no rule to map it; an error of the network comes again below
            pass
        rows = [torch.autograd.grad(found, leaves, one, **settings) for one in cotangents]
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))
