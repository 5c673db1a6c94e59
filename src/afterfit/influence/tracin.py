"""Influence from gradients alone: their inner products, at one or several points of training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.influence.base import FeatureInfluence, require_finite
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE, gradients
from afterfit.problem.problem import Forward, Problem, move
from afterfit.typing import Inputs, Params

Points = tuple[tuple[Problem, float], ...]
"""The problem at each checkpoint, and how much the checkpoint weighs."""


@final
@dataclass(frozen=True)
class GradientDot:
    """Inner product of gradients: ``score(q, n) = g_q · g_n``.

    The first-order drop of the query's loss after one unit step on the training sample alone. It is
    the influence function with the curvature replaced by the identity. Cost: one backward pass for
    each sample.

    References
    ----------
    Charpiat, Girard, Felardos, Tarabalka (2019), "Input similarity from the neural network
    perspective", arXiv:2102.05262.
    """

    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Charpiat, Girard, Felardos, Tarabalka (2019), Input similarity from the neural network "
        "perspective, NeurIPS, arXiv:2102.05262"
    )

    def fit(self, problem: Problem, train: Batches) -> FeatureInfluence:
        """Bind the data; gradients are computed when scores are asked for."""
        return _CheckpointGradients(problem, train, self.memory_budget, ((problem, 1.0),))


@final
@dataclass(frozen=True)
class TracIn:
    """Sum over checkpoints: ``score(q, n) = Σ_k η_k g_q(θ_k) · g_n(θ_k)`` (TracInCP).

    Cost: one backward pass for each sample and checkpoint. All parameters of the problem take part;
    for the last layer alone, fit it on ``restrict(problem, "head.*")``.

    Parameters
    ----------
    checkpoints
        Parameters, and buffers where the network has them, saved along training: state dicts.
    learning_rates
        The step size η_k around each checkpoint. Without them the checkpoints weigh ``1/K`` each,
        so that the score is a mean and does not grow with their number.

    References
    ----------
    Pruthi, Liu, Kale, Sundararajan (2020), "Estimating training data influence by tracing gradient
    descent", NeurIPS, arXiv:2002.08484, section 3.2.
    """

    checkpoints: Sequence[Params]
    learning_rates: Sequence[float] | None = None
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Pruthi, Liu, Kale, Sundararajan (2020), Estimating training data influence by tracing "
        "gradient descent, NeurIPS, arXiv:2002.08484"
    )

    def fit(self, problem: Problem, train: Batches) -> FeatureInfluence:
        """Put the network at each checkpoint; gradients are computed when scores are asked for."""
        points = trajectory(problem, self.checkpoints, self.learning_rates)
        return _CheckpointGradients(problem, train, self.memory_budget, points)


@final
@dataclass(frozen=True)
class _CheckpointGradients(FeatureInfluence):
    """Gradients at all checkpoints side by side, each times the root of its weight."""

    problem: Problem
    train: Batches
    memory_budget: int
    points: Points

    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        for index, parts in weighted_gradients(self.points, data, self.memory_budget):
            yield index, torch.cat(parts, dim=1)


def gradient_norms(
    problem: Problem, data: Batches, params: Params | None = None
) -> Float[Tensor, " N"]:
    """Squared norm of each sample's gradient, ``‖g_n‖²``, at the trained parameters or at others.

    Gradients are made a chunk at a time and let go.
    """
    point = problem if params is None else at_checkpoint(problem, params)
    chunks = gradients(point, data)
    return torch.cat([require_finite(rows, at, data).square().sum(1) for at, rows in chunks])


def weighted_gradients(
    points: Points, data: Batches, memory_budget: int
) -> Iterator[tuple[Int[Tensor, " B"], list[Float[Tensor, "B P"]]]]:
    """Gradients at all checkpoints, chunk by chunk, each times the root of its weight."""
    streams = [gradients(point, data, memory_budget // len(points)) for point, _ in points]
    for chunks in zip(*streams, strict=True):
        weighted = zip(points, chunks, strict=True)
        yield chunks[0][0], [weight**0.5 * rows for (_, weight), (_, rows) in weighted]


def trajectory(
    problem: Problem, checkpoints: Sequence[Params], learning_rates: Sequence[float] | None
) -> Points:
    """Pair the problem at each checkpoint with its weight: the learning rate, or 1/K.

    Raises
    ------
    ValueError
        If there is no checkpoint, the two lengths differ, or a learning rate is negative or NaN.
    """
    if not checkpoints:
        message = "there are no checkpoints, expected at least one; GradientDot() needs none"
        raise ValueError(message)
    rates = [1 / len(checkpoints)] * len(checkpoints) if learning_rates is None else learning_rates
    if len(rates) != len(checkpoints):
        message = (
            f"{len(rates)} learning rates for {len(checkpoints)} checkpoints, expected as many; "
            "leave them out to weigh all checkpoints alike"
        )
        raise ValueError(message)
    if not all(0 <= rate < float("inf") for rate in rates):
        message = f"the learning rates are {list(rates)}, expected finite numbers of at least 0"
        raise ValueError(message)
    points = [at_checkpoint(problem, checkpoint) for checkpoint in checkpoints]
    return tuple(zip(points, rates, strict=True))


def at_checkpoint(problem: Problem, checkpoint: Params) -> Problem:
    """Put the problem at other parameters; buffers in the checkpoint move along with them.

    Raises
    ------
    ValueError
        If a parameter is missing or has another shape: it would otherwise be that of the trained
        network, and the score no longer be that of the checkpoint.
    """
    for name, value in problem.params.items():
        if name not in checkpoint or checkpoint[name].shape != value.shape:
            seen = tuple(checkpoint[name].shape) if name in checkpoint else "missing"
            message = (
                f"the checkpoint's parameter {name!r} is {seen}, expected shape "
                f"{tuple(value.shape)}; its names are {list(checkpoint)[:4]} …: pass the state "
                "dict of the module that the problem was made from, without a prefix such as "
                "'module.'"
            )
            raise ValueError(message)
    like = next(iter(problem.params.values()))
    found = {
        name: value.detach().to(like if value.is_floating_point() else like.device)
        for name, value in move(checkpoint, problem.device).items()
    }
    held = {name: value for name, value in found.items() if name not in problem.params}
    buffers = {name: held.get(name, value) for name, value in problem.buffers.items()}
    walls = {name: value for name, value in held.items() if name not in problem.buffers}
    return replace(
        problem,
        params={name: found[name] for name in problem.params},
        buffers=buffers,
        forward=_holding(held, problem.forward),
        train_forward=_holding(walls, problem.train_forward),
    )


def _holding(held: Params, forward: Forward) -> Forward:
    def hold(params: Params, inputs: Inputs) -> Tensor:
        return forward({**held, **params}, inputs)

    return hold
