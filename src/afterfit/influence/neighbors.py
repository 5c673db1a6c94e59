"""Influence of nearest neighbors: exact Shapley values of a k-nearest-neighbor classifier."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.influence.base import Influence, require_finite
from afterfit.problem.data import Batches
from afterfit.problem.persample import GIBIBYTE, outputs
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class NearestNeighborShapley:
    """Shapley value of each training sample in what k nearest neighbors say about a query.

    The value of a set of training samples for a query is the share of the k nearest of them that
    have its label. Distances are between outputs of the network; for another space, pass a network
    that returns it (its likelihood is not used). Values of a query sum to that share, so that a
    score is in probability, positive for proponents. Self-influence is the value of a sample for
    itself among all of them. The score is exact by this definition.

    Parameters
    ----------
    num_neighbors
        The number k.
    memory_budget
        Bytes that a block of distances may take.

    References
    ----------
    Jia, Dao, Wang, Hubis, Gurel, Li, Zhang, Spanos, Song (2019), "Efficient task-specific data
    valuation for nearest neighbor algorithms", VLDB, arXiv:1908.08619, theorem 1.
    """

    num_neighbors: int = 10
    memory_budget: int = GIBIBYTE
    reference: ClassVar[str] = (
        "Jia, Dao, Wang, Hubis, Gurel, Li, Zhang, Spanos, Song (2019), Efficient task-specific "
        "data valuation for nearest neighbor algorithms, VLDB, arXiv:1908.08619"
    )

    def fit(self, problem: Problem, train: Batches) -> "NeighborInfluence":
        """Find the features of the training samples.

        Raises
        ------
        ValueError
            If the number of neighbors is not between 1 and N, or targets are no class indices.
        """
        if not 1 <= self.num_neighbors <= train.num_samples:
            message = (
                f"num_neighbors is {self.num_neighbors}, expected between 1 and the "
                f"{train.num_samples} training samples"
            )
            raise ValueError(message)
        return NeighborInfluence(self, problem, train, _features(problem, train), _labels(train))


@final
@dataclass(frozen=True)
class NeighborInfluence(Influence):
    """Features and labels of the training samples."""

    method: NearestNeighborShapley
    problem: Problem
    train: Batches
    features: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]

    def scores(self, query: Batches) -> Float[Tensor, "Q N"]:
        """Shapley value of every training sample (columns) for every query (rows)."""
        return self._values(_features(self.problem, query), _labels(query))

    def self_scores(self) -> Float[Tensor, " N"]:
        """Shapley value of every training sample for itself."""
        size = self._rows_at_once()
        blocks = torch.arange(len(self.features)).split(size)
        found = [self._values(self.features[rows], self.labels[rows])[:, rows] for rows in blocks]
        return torch.cat([block.diagonal() for block in found])

    def _values(self, features: Tensor, labels: Tensor) -> Float[Tensor, "Q N"]:
        size = self._rows_at_once()
        return torch.cat(
            [
                neighbor_shapley(
                    torch.cdist(asked, self.features),
                    y[:, None] == self.labels,
                    self.method.num_neighbors,
                )
                for asked, y in zip(features.split(size), labels.split(size), strict=True)
            ]
        )

    def _rows_at_once(self) -> int:
        return max(1, self.method.memory_budget // (32 * len(self.features)))


def neighbor_shapley(
    distances: Float[Tensor, "Q N"], agree: Tensor, num_neighbors: int
) -> Float[Tensor, "Q N"]:
    """Shapley values from distances and from whether labels agree (Q, N), by the recursion.

    From the farthest sample to the nearest, with 1-based rank i:
    ``s_N = agree_N min(k, N) / (k N)``,
    ``s_i = s_{i+1} + (agree_i - agree_{i+1}) / k · min(k, i) / i``.
    """
    num, k = distances.shape[1], num_neighbors
    order = distances.argsort(dim=1, stable=True)
    right = agree.gather(1, order).to(distances)
    ranks = torch.arange(1, num, device=distances.device).to(distances)
    steps = (right[:, :-1] - right[:, 1:]) / k * (ranks.clamp_max(k) / ranks)
    last = right[:, -1:] * min(k, num) / (k * num)
    ranked = torch.cat([steps.flip(1).cumsum(1).flip(1) + last, last], 1)
    return torch.empty_like(ranked).scatter_(1, order, ranked)


def _features(problem: Problem, data: Batches) -> Float[Tensor, "N D"]:
    found = outputs(problem, data).flatten(1)
    return require_finite(found, torch.arange(data.num_samples), data)


def _labels(data: Batches) -> Int[Tensor, " N"]:
    y = data.targets()
    if y.ndim != 1 or y.is_floating_point():
        message = (
            f"targets have shape {tuple(y.shape)} and dtype {y.dtype}, expected (N,) class indices"
        )
        raise ValueError(message)
    return y
