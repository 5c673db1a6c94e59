"""Which edges to remove in one round, given their scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Generator, Tensor

from afterfit.graph.balls import row_sizes
from afterfit.graph.edits import affected, single_removals
from afterfit.graph.groups import Radius, exact_radius
from afterfit.graph.influence import prepare
from afterfit.graph.inverse import Inverse
from afterfit.graph.method import EdgeMethod
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target, mean_loss, validation_loss

ROUNDING = 1e-12
"""Scores smaller than this share of the largest are rounding errors: neither good nor bad."""


@final
@dataclass(frozen=True)
class Round:
    """What a rule may look at.

    Attributes
    ----------
    problem
        The current graph with the network trained on it.
    number
        Rounds done before.
    method, inverse, damping
        How influence is computed.
    """

    problem: GraphProblem
    number: int
    method: EdgeMethod
    inverse: Inverse
    damping: float | int

    @cached_property
    def scores(self) -> Float[Tensor, " E"]:
        """Influence of every edge of the current graph on the validation loss; computed if read."""
        return self.influences([validation_loss])[:, 0]

    def foretold(self, positions: Int[Tensor, " K"]) -> float:
        """Sum of the scores of some edges, in nats; NaN where the rule has read no scores."""
        read = "scores" in vars(self)
        return float(self.scores[positions].sum()) if read else math.nan

    def influences(self, targets: Sequence[Target]) -> Float[Tensor, "E K"]:
        """Influence of every edge on other targets."""
        every = torch.arange(self.problem.edges.num_edges)
        query = prepare(self.problem, targets, self.damping, self.inverse)
        edits = single_removals(self.problem.edges, every)
        return self.method.shift(self.problem, edits, query)


Rule = Callable[[Round], Int[Tensor, " K"]]
"""Positions of the edges to remove; none ends the search."""


def opponents(scores: Float[Tensor, " E"]) -> Int[Tensor, " K"]:
    """Positions of the edges whose removal lowers the target, the most harmful first."""
    if not len(scores):
        return torch.zeros(0, dtype=torch.long)
    order = scores.argsort(stable=True)
    return order[scores[order] < -ROUNDING * scores.abs().max()]


def all_opponents(now: Round) -> Int[Tensor, " K"]:
    """Remove every opponent at once (EGE): right only if influences added up."""
    return opponents(now.scores)


@final
@dataclass(frozen=True)
class Top:
    """Remove the ``size`` most harmful opponents."""

    size: int

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        return opponents(now.scores)[: self.size]


@final
@dataclass(frozen=True)
class TopShare:
    """Remove the most harmful opponents, at most a share of all edges and at least one."""

    share: float

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        return opponents(now.scores)[: math.ceil(self.share * len(now.scores))]


@final
@dataclass(frozen=True)
class RandomShare:
    """Remove a random share of the opponents, at least one: the control for small groups."""

    share: float
    seed: int = 0

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        found = opponents(now.scores)
        generator = Generator().manual_seed(self.seed * 1_000_003 + now.number)
        order = torch.randperm(len(found), generator=generator)
        return found[order[: math.ceil(self.share * len(found))]]


@final
@dataclass(frozen=True)
class RandomEdges:
    """Remove as many edges of any kind, drawn at random: the control for influence itself."""

    size: int
    seed: int = 0

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        generator = Generator().manual_seed(self.seed * 1_000_003 + now.number)
        return torch.randperm(now.problem.edges.num_edges, generator=generator)[: self.size]


@final
@dataclass(frozen=True)
class Repulsive:
    """Remove opponents that do not interact, the most harmful first.

    An opponent is taken if none of the training nodes that it affects is affected by one taken
    before. After more than ``patience`` of them were passed over in a row the next is taken all the
    same, and the count starts again. ``patience=math.inf`` is strictly repulsive, ``patience=-1``
    takes every opponent that affects a training node.

    Parameters
    ----------
    patience
        How many opponents may be passed over in a row.
    radius
        Which nodes count as affected; edges that affect none are left alone.

    References
    ----------
    Song, Kim, Yang (2023), "RGE: A repulsive graph rectification for node classification via
    influence", ICML, PMLR 202:32331, algorithm 1.
    """

    patience: float | int
    radius: Radius = exact_radius

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        found = opponents(now.scores)
        edits = single_removals(now.problem.edges, found)
        reached = affected(edits, now.problem.train, self.radius(now.problem))
        return found[_apart(reached, len(now.problem.train), self.patience)]


def _apart(reached: csr_matrix, num_train: int, patience: float | int) -> Int[Tensor, " K"]:
    used = np.zeros(num_train, dtype=bool)
    taken, passed = [], 0
    rows = np.split(reached.indices, row_sizes(reached).cumsum())[:-1]
    for edge, nodes in enumerate(rows):
        if not len(nodes):
            continue
        if passed > patience or not used[nodes].any():
            taken.append(edge)
            used[nodes] = True
            passed = 0
        else:
            passed += 1
    return torch.tensor(taken, dtype=torch.long)


def published_patience(problem: GraphProblem) -> int:
    """``max(round(log2(d − 1)) + 3, 1)``, d the mean degree of training nodes, loop included."""
    counts = torch.bincount(problem.edges.pairs.flatten(), minlength=problem.num_nodes) + 1
    degree = float(counts[problem.train].double().mean())
    return max(round(math.log2(max(degree - 1, 1e-9))) + 3, 1)


@final
@dataclass(frozen=True)
class Consistent:
    """Remove opponents of most folds of the validation nodes, the most harmful first.

    The validation loss is itself a sample: an edge may be an opponent of these nodes only. The mean
    influence over ``folds`` parts of them has a standard error, and edges are taken only where the
    mean lies more than ``errors`` of it below zero.

    Parameters
    ----------
    errors
        How many standard errors below zero.
    share
        At most this share of all edges a round, at least one.
    folds
        How many parts.
    seed
        Of the parts.
    """

    errors: float | int = 1.0
    share: float = 0.01
    folds: int = 5
    seed: int = 0

    def __call__(self, now: Round) -> Int[Tensor, " K"]:
        mean, stderr = fold_scores(now, self.folds, self.seed)
        found = opponents(mean)
        limit = math.ceil(self.share * len(mean))
        return found[mean[found] < -self.errors * stderr[found]][:limit]


def fold_scores(
    now: Round, folds: int, seed: int
) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Mean over folds of the validation nodes of the influence on each, and its standard error."""
    nodes = now.problem.validation
    generator = Generator().manual_seed(seed)
    order = torch.randperm(len(nodes), generator=generator).to(nodes.device)
    parts = [part for part in nodes[order].tensor_split(folds) if len(part)]
    columns = now.influences([mean_loss(part) for part in parts])
    return columns.mean(1), columns.std(1) / len(parts) ** 0.5
