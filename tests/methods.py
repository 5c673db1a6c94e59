"""A table of methods of influence, each with the dense oracle that it must equal.

To add a method, add a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Generator, Tensor

from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.projected import RandomProjection
from afterfit.influence.tracin import GradientDot, TracIn
from afterfit.problem import Batches, Problem
from tests import truth
from tests.cases import make_case

DAMPING, RATES = 0.3, (0.2, 0.0, 0.5)


def elsewhere(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Parameters and buffers of another point of training."""
    generator = Generator().manual_seed(seed)
    tensors = {**problem.params, **problem.buffers}
    return {
        name: value + 0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point()
        else value
        for name, value in tensors.items()
    }


def checkpoints(problem: Problem) -> list[dict[str, Tensor]]:
    return [elsewhere(problem, seed) for seed in range(len(RATES))]


def projections(problem: Problem) -> Tensor:
    """The directions that the seed 0 stands for."""
    shape = (20, problem.num_params)
    return torch.randn(shape, generator=Generator().manual_seed(0), dtype=problem.dtype)


def influence_truth(problem: Problem, train: Batches, query: Batches) -> Tensor:
    return truth.influence(problem, train, query, DAMPING, truth.ggn)


def dot_truth(problem: Problem, train: Batches, query: Batches) -> Tensor:
    return truth.gradients(problem, query) @ truth.gradients(problem, train).T


def tracin_truth(problem: Problem, train: Batches, query: Batches) -> Tensor:
    total = torch.zeros(query.num_samples, train.num_samples, dtype=torch.float64)
    for rate, point in zip(RATES, checkpoints(problem), strict=True):

        def forward(params: Any, inputs: Any, point: dict[str, Tensor] = point) -> Tensor:
            return problem.forward({**point, **params}, inputs)

        params = {name: point[name] for name in problem.params}
        total += rate * dot_truth(replace(problem, params=params, forward=forward), train, query)
    return total


def projection_truth(problem: Problem, train: Batches, query: Batches) -> Tensor:
    directions = projections(problem)
    pairs = (truth.gradients(problem, data) @ directions.T for data in (query, train))
    one, other = pairs
    return one @ other.T / len(directions)


def eigenspace_truth(problem: Problem, train: Batches, query: Batches) -> Tensor:
    """Inverse of the damped mean Hessian on its eigenvectors of positive value."""
    values, vectors = torch.linalg.eigh(truth.hessian(problem, train) / train.num_samples)
    keep = values > 1e-11 * values.abs().max()
    inverse = vectors[:, keep] / (values[keep] + DAMPING) @ vectors[:, keep].T
    return truth.gradients(problem, query) @ inverse @ truth.gradients(problem, train).T


@final
@dataclass(frozen=True)
class Row:
    """A method that is made for a problem, and what its scores are by definition."""

    make: Callable[[Problem], Any]
    scores: Callable[[Problem, Batches, Batches], Tensor]


def whole_krylov_space(problem: Problem) -> ArnoldiInfluence:
    size = problem.num_params
    return ArnoldiInfluence(num_iterations=size, num_pairs=size, damping=DAMPING)


METHODS: Mapping[str, Row] = {
    "influence-function": Row(lambda _: InfluenceFunction(damping=DAMPING), influence_truth),
    "gradient-dot": Row(lambda _: GradientDot(), dot_truth),
    "tracin": Row(lambda problem: TracIn(checkpoints(problem), RATES), tracin_truth),
    "random-projection": Row(lambda _: RandomProjection(), projection_truth),
    "arnoldi": Row(whole_krylov_space, eigenspace_truth),
}
SMALL = tuple(
    make_case(network, likelihood)
    for network, likelihood in [
        ("linear", "categorical"),
        ("mlp", "bernoulli"),
        ("cnn", "poisson"),
        ("batch-norm", "categorical"),
        ("tied", "gaussian"),
        ("attention", "categorical"),
        ("token-bag", "multi-label"),
        ("named-inputs", "gaussian"),
    ]
)
