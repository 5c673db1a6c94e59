"""Inner products of gradients from a handful of random projections."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.curvature.sample_gradients import Factored
from afterfit.influence.base import BlockInfluence, Repeats
from afterfit.influence.tracin import Points, trajectory
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE, gradients
from afterfit.problem.problem import Problem
from afterfit.typing import Params

_MAX_GROUPS = 10
"""Groups of projections, from whose scores the standard error comes."""


@final
@dataclass(frozen=True)
class RandomProjection:
    """Unbiased sketch: ``score(q, n) = (1/d) Σ_k (g_q · r_k)(g_n · r_k)`` with ``r_k ~ N(0, I)``.

    Its mean over the projections is :class:`~afterfit.influence.tracin.GradientDot`. Given the
    gradients, a self-influence has the law ``‖g‖² χ²_d / d``: a relative standard deviation of
    ``√(2/d)``, 0.32 at d = 20. With checkpoints it is TracInRP, the sketch of
    :class:`~afterfit.influence.tracin.TracIn`, with the same projections at every checkpoint.

    The standard error comes from the scores of ten groups of projections.

    Kept for each sample are d numbers a checkpoint; the projections take d × P numbers.

    Parameters
    ----------
    num_projections
        The number d of directions.
    seed
        Of the directions; the same seed gives the same scores.
    checkpoints, learning_rates
        As in :class:`~afterfit.influence.tracin.TracIn`; without checkpoints, the trained network.

    References
    ----------
    Pruthi, Liu, Kale, Sundararajan (2020), "Estimating training data influence by tracing gradient
    descent", NeurIPS, arXiv:2002.08484, appendix on random projections.
    """

    num_projections: int = 20
    seed: int = 0
    checkpoints: Sequence[Params] | None = None
    learning_rates: Sequence[float] | None = None
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Pruthi, Liu, Kale, Sundararajan (2020), Estimating training data influence by tracing "
        "gradient descent, NeurIPS, arXiv:2002.08484"
    )

    def __post_init__(self) -> None:
        if self.num_projections < 1:
            message = f"num_projections is {self.num_projections}, expected at least 1"
            raise ValueError(message)

    def fit(self, problem: Problem, train: Batches) -> BlockInfluence:
        """Draw the directions; gradients are projected when scores are asked for."""
        checkpoints = [problem.params] if self.checkpoints is None else self.checkpoints
        points = trajectory(problem, checkpoints, self.learning_rates)
        shape = (self.num_projections, problem.num_params)
        generator = Generator().manual_seed(self.seed)
        drawn = torch.randn(shape, generator=generator, dtype=problem.dtype)
        directions = drawn.to(problem.device)
        return _Projections(problem, train, self.memory_budget, points, directions)


@final
@dataclass(frozen=True)
class _Projections(BlockInfluence):
    """Projected gradients at all checkpoints side by side, times the roots of weight and 1/d."""

    problem: Problem
    train: Batches
    memory_budget: int
    points: Points
    directions: Float[Tensor, "K P"]
    varies_over: ClassVar[str | None] = "projections"

    def repeats(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Repeats]]:
        num = len(self.directions)
        groups = min(num, _MAX_GROUPS)
        for index, rows in self.features(data):
            columns = rows.unflatten(1, (-1, num))
            parts = [columns[:, :, group::groups].flatten(1) for group in range(groups)]
            yield index, [{"projections": Factored.of_rows(part)} for part in parts]

    def features(self, data: Batches) -> Iterator[tuple[Int[Tensor, " B"], Float[Tensor, "B R"]]]:
        """Projections at one checkpoint after the other, all directions of one together."""
        scale = len(self.directions) ** -0.5
        for index, parts in _weighted_gradients(self.points, data, self.memory_budget):
            yield index, torch.cat([scale * (g @ self.directions.mT) for g in parts], dim=1)


def _weighted_gradients(
    points: Points, data: Batches, memory_budget: int
) -> Iterator[tuple[Int[Tensor, " B"], list[Float[Tensor, "B P"]]]]:
    """Gradients at all checkpoints, chunk by chunk, each times the root of its weight."""
    streams = [gradients(point, data, memory_budget // len(points)) for point, _ in points]
    for chunks in zip(*streams, strict=True):
        weighted = zip(points, chunks, strict=True)
        yield chunks[0][0], [weight**0.5 * rows for (_, weight), (_, rows) in weighted]
