"""Which edges interact, and how far the influence of a group is from the sum of its members'.

Two edges are *distant* if removing them changes the outputs of different training nodes. The
influence of a group of pairwise distant edges is the sum of the influences (Song, Kim, Yang 2023,
Proposition 3.1): the gradient of a training node sees at most one of the edits. For edges that
share training nodes it is not, and the difference is the mixed second difference of those nodes'
loss gradients. It belongs to the edits and not to the curvature, the same on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from scipy.sparse import csr_matrix
from torch import Tensor

from afterfit.graph.balls import row_sizes
from afterfit.graph.edits import Edits, affected, removals, single_removals
from afterfit.graph.exact import Exact
from afterfit.graph.influence import Edges, as_pairs, prepare
from afterfit.graph.inverse import Inverse, smaller
from afterfit.graph.method import EdgeMethod
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target, validation_loss

Radius = Callable[[GraphProblem], int]
"""Hops from an edge's endpoints within which nodes count as affected by its removal."""

_EXACT = Exact()


def exact_radius(problem: GraphProblem) -> int:
    """Hops within which outputs really change: K under symmetric normalization."""
    return problem.reach.edges


def paper_radius(problem: GraphProblem) -> int:
    """K − 1, as in the authors' code: exact where normalization is over the receiver's edges."""
    return max(0, problem.reach.hops - 1)


def affected_nodes(
    problem: GraphProblem, edges: Edges = "all", radius: Radius = exact_radius
) -> list[Int[Tensor, " A"]]:
    """Training nodes that each edge affects, by their number in the graph."""
    matrix = affected_matrix(problem, _edits(problem, edges), radius)
    places = torch.from_numpy(matrix.indices.copy()).long()
    return list(problem.train.cpu()[places].split(row_sizes(matrix).tolist()))


def affected_matrix(problem: GraphProblem, edits: Edits, radius: Radius) -> csr_matrix:
    """Edits by training nodes (E, N), true where the node is affected."""
    return affected(edits, problem.train, radius(problem))


def interacts(
    problem: GraphProblem,
    one: tuple[int, int],
    other: tuple[int, int],
    radius: Radius = exact_radius,
) -> bool:
    """Whether two edges affect a common training node; if not, their influences add up."""
    matrix = affected_matrix(problem, _edits(problem, [one, other]), radius)
    return bool(matrix[0].multiply(matrix[1]).nnz)


def is_distant(problem: GraphProblem, group: Edges, radius: Radius = exact_radius) -> bool:
    """Whether no two edges of a group affect a common training node."""
    matrix = affected_matrix(problem, _edits(problem, group), radius)
    return bool((torch.bincount(torch.from_numpy(matrix.indices).long()) <= 1).all())


@final
@dataclass(frozen=True)
class Additivity:
    """Influence of a group beside the sum of its members'.

    Attributes
    ----------
    group
        Influence of removing all edges at once.
    total
        Sum of the influences of the edges, each removed alone.
    """

    group: float
    total: float

    @property
    def gap(self) -> float:
        """How far the group is from additive: its influence less the sum."""
        return self.group - self.total


def additivity_gap(
    problem: GraphProblem,
    group: Edges,
    *,
    damping: float | int,
    target: Target = validation_loss,
    method: EdgeMethod = _EXACT,
    inverse: Inverse = smaller,
) -> Additivity:
    """Compare the influence of a group of edges with the sum of their influences.

    Raises
    ------
    ValueError
        If an edge is not in the graph, or the method has no groups.
    """
    query = prepare(problem, [target], damping, inverse)
    single = _edits(problem, group)
    together = removals(problem.edges, [single.pairs])
    alone = method.shift(problem, single, query)[:, 0]
    return Additivity(float(method.shift(problem, together, query)[0, 0]), float(alone.sum()))


def _edits(problem: GraphProblem, edges: Edges) -> Edits:
    graph = problem.edges
    if isinstance(edges, str):
        return single_removals(graph, torch.arange(graph.num_edges))
    return single_removals(graph, graph.positions(as_pairs(edges)))
