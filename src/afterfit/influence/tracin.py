"""Influence from gradients alone: their inner products, at one or several points of training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.curvature.sample_gradients import sample_gradients, squared_norms
from afterfit.influence.base import BlockInfluence, Repeats
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE
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

    def fit(self, problem: Problem, train: Batches) -> BlockInfluence:
        """Bind the data; gradients are computed when scores are asked for."""
        return _Dots(problem, train, self.memory_budget)


@final
@dataclass(frozen=True)
class GradientCosine:
    """Cosine between gradients: ``score(q, n) = g_q · g_n / (‖g_q‖ ‖g_n‖)``, between -1 and 1.

    Self-influence is 1 for every sample: it finds relatives, not outliers. Cost: one backward pass
    for each sample. It is θ-RelatIF without curvature, and so without the length of the query.

    References
    ----------
    Barshan, Brunet, Dziugaite (2020), "RelatIF: identifying explanatory training examples via
    relative influence", AISTATS, arXiv:2003.11630; Charpiat et al. (2019), arXiv:2102.05262.
    """

    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Charpiat, Girard, Felardos, Tarabalka (2019), Input similarity from the neural network "
        "perspective, NeurIPS, arXiv:2102.05262"
    )

    def fit(self, problem: Problem, train: Batches) -> BlockInfluence:
        """Bind the data; gradients are computed when scores are asked for."""
        return _Cosines(problem, train, self.memory_budget)


@final
@dataclass(frozen=True)
class TracIn:
    """Sum over checkpoints: ``score(q, n) = Σ_k η_k g_q(θ_k) · g_n(θ_k)`` (TracInCP).

    Cost: one backward pass for each sample and checkpoint. The standard error takes checkpoints as
    draws: it says how far the score hangs on which of them were saved. All parameters of the
    problem take part; for the last layer alone, fit it on ``restrict(problem, "head.*")``.

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

    def fit(self, problem: Problem, train: Batches) -> BlockInfluence:
        """Put the network at each checkpoint; gradients are computed when scores are asked for."""
        points = trajectory(problem, self.checkpoints, self.learning_rates)
        return _CheckpointDots(problem, train, self.memory_budget, points)


@final
@dataclass(frozen=True)
class _Dots(BlockInfluence):
    """Gradients at the trained parameters."""

    problem: Problem
    train: Batches
    memory_budget: int

    def repeats(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        for index, blocks in sample_gradients(self.problem, data, self.memory_budget):
            yield index, [blocks]


@final
@dataclass(frozen=True)
class _Cosines(BlockInfluence):
    """Gradients at the trained parameters, of length one."""

    problem: Problem
    train: Batches
    memory_budget: int

    def repeats(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        for index, blocks in sample_gradients(self.problem, data, self.memory_budget):
            lengths = _require_positive(squared_norms(blocks).sqrt(), index, data)
            yield index, [{name: part.scaled(1 / lengths) for name, part in blocks.items()}]


@final
@dataclass(frozen=True)
class _CheckpointDots(BlockInfluence):
    """Gradients at all checkpoints, each times the root of its weight."""

    problem: Problem
    train: Batches
    memory_budget: int
    points: Points
    varies_over: ClassVar[str | None] = "checkpoints"

    def repeats(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        share = self.memory_budget // len(self.points)
        streams = [sample_gradients(point, data, share) for point, _ in self.points]
        for chunks in zip(*streams, strict=True):
            yield (
                chunks[0][0],
                [
                    {
                        name: part.scaled(part.inputs.new_full((len(part),), weight**0.5))
                        for name, part in blocks.items()
                    }
                    for (_, weight), (_, blocks) in zip(self.points, chunks, strict=True)
                ],
            )


def gradient_norms(
    problem: Problem, data: Batches, params: Params | None = None
) -> Float[Tensor, " N"]:
    """Squared norm of each sample's gradient, ``‖g_n‖²``, at the trained parameters or at others.

    Norms come from the factors of layers; no gradient of a whole layer is made where they suffice.
    """
    point = problem if params is None else at_checkpoint(problem, params)
    return _Dots(point, data, GIBIBYTE).self_scores()


def _require_positive(lengths: Tensor, index: Tensor, data: Batches) -> Tensor:
    zero = (lengths == 0).cpu()
    if bool(zero.any()):
        message = (
            f"the gradient of sample {data.ids[int(index[zero][0])]} is zero ({int(zero.sum())} "
            "such in its chunk), expected a direction to compare: the network fits the sample "
            "perfectly in its precision; use float64, an earlier checkpoint, or GradientDot()"
        )
        raise ValueError(message)
    return lengths


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
    checkpoint = _untied(checkpoint, problem)
    found = {
        name: value.detach().to(like if value.is_floating_point() else like.device)
        for name, value in move(checkpoint, problem.device).items()
    }
    held = {name: value for name, value in found.items() if name not in problem.params}
    buffers = {name: held.get(name, value) for name, value in problem.buffers.items()}

    def holding(params: Params) -> Params:
        return {**held, **params}

    walls = {name: value for name, value in held.items() if name not in problem.buffers}
    return replace(
        problem,
        params={name: found[name] for name in problem.params},
        buffers=buffers,
        forward=_holding(held, problem.forward),
        train_forward=_holding(walls, problem.train_forward),
        coordinates=None if problem.coordinates is None else problem.coordinates.moved(holding),
    )


def _untied(checkpoint: Params, problem: Problem) -> Params:
    """One name for each tensor, as a state dict has several for tied weights."""
    names = sorted(checkpoint, key=lambda name: name not in problem.params)  # its own come first
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name in names:
        value = checkpoint[name]
        same = value.data_ptr(), value.shape, value.stride()
        if not value.numel() or seen.setdefault(same, name) == name:
            continue
        checkpoint = {other: kept for other, kept in checkpoint.items() if other != name}
    return checkpoint


def _holding(held: Params, forward: Forward) -> Forward:
    def hold(params: Params, inputs: Inputs) -> Tensor:
        return forward({**held, **params}, inputs)

    return hold
