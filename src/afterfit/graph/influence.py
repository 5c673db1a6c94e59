"""Influence of edges: a number for every edge, and what it stands for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import networkx
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.graph.edits import Edits, insertions, removals, single_removals
from afterfit.graph.exact import Exact
from afterfit.graph.first_order import FirstOrder
from afterfit.graph.inverse import Inverse, smaller, target_gradient
from afterfit.graph.method import EdgeMethod, Query
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target, validation_loss
from afterfit.linalg import Solution

Pairs = Tensor | Sequence[Sequence[int]]
"""Pairs of nodes (K, 2)."""

Edges = Literal["all"] | Pairs
"""Edges by their endpoints, in either order if undirected; or all of them."""

_EXACT, _FIRST_ORDER = Exact(), FirstOrder()


class EditInfluence:
    """What edits of a graph do to a target: two parts that add up, and a table of them.

    A number above 0 means that the edit would *raise* the target. An edge or a node whose removal
    scores below 0 is an opponent: the validation loss would be lower without it.
    """

    shift: Float[Tensor, " E"]
    propagation: Float[Tensor, " E"] | None

    @property
    def score(self) -> Float[Tensor, " E"]:
        """The shift: the target is read on the graph as it was (Song, Kim, Yang 2023)."""
        return self.shift

    @property
    def total(self) -> Float[Tensor, " E"]:
        """Shift and propagation: the target is read on the edited graph (Heo et al. 2025).

        Raises
        ------
        ValueError
            If the propagation was not asked for.
        """
        if self.propagation is None:
            message = "the propagation was not computed; pass propagation=Exact() or FirstOrder()"
            raise ValueError(message)
        return self.shift + self.propagation

    def _ranked(self, columns: dict[str, Any]) -> pd.DataFrame:
        """Put scores and ranks beside what was edited, the strongest opponent first."""
        columns = {**columns, "score": self.score.cpu().numpy()}
        if self.propagation is not None:
            columns["propagation"] = self.propagation.cpu().numpy()
            columns["total"] = self.total.cpu().numpy()
        table = pd.DataFrame(columns).sort_values("score", kind="stable", ignore_index=True)
        table["rank"] = range(1, len(table) + 1)
        return table


@final
@dataclass(frozen=True)
class EdgeInfluence(EditInfluence):
    """What removing (or inserting) each edge does to a target.

    Attributes
    ----------
    pairs
        Edges by their endpoints (E, 2), in the order of the scores.
    shift
        Predicted change of the target (E,), in its own units, when the network is trained again on
        the edited graph and the target is read on the graph as it was.
    propagation
        Change when the network stays and the target is read on the edited graph; None where it was
        not asked for.
    solved
        How the inverse curvature was applied.
    """

    pairs: Int[Tensor, "E 2"]
    shift: Float[Tensor, " E"]
    propagation: Float[Tensor, " E"] | None
    solved: Solution

    def to_pandas(self) -> pd.DataFrame:
        """One row an edge, the strongest opponent first."""
        u, v = self.pairs.cpu().T.numpy()
        return self._ranked({"u": u, "v": v})

    def to_networkx(self) -> Any:
        """Graph of the scored edges, each with ``score`` (and ``propagation``, ``total``)."""
        graph = networkx.Graph()
        rows = self.to_pandas().drop(columns="rank")
        names = list(rows.columns[2:])
        for u, v, *values in rows.itertuples(index=False):
            graph.add_edge(int(u), int(v), **dict(zip(names, map(float, values), strict=True)))
        return graph


def edge_influence(
    problem: GraphProblem,
    edges: Edges = "all",
    *,
    damping: float | int,
    target: Target = validation_loss,
    method: EdgeMethod = _EXACT,
    propagation: EdgeMethod | None = None,
    inverse: Inverse = smaller,
) -> EdgeInfluence:
    """Find what removing each edge, both directions of it at once, does to a target.

    Parameters
    ----------
    edges
        Which edges.
    damping
        Added to the eigenvalues of the mean curvature: the weight decay of training if that was
        ``(γ/2) ‖θ‖²`` beside the mean loss, or more.
    target
        What is asked about: `validation_loss`, `mean_loss`, `node_loss`, `node_output`, or any
        differentiable function of (problem, outputs).
    method
        `Exact` for any network; `ClosedForm` for SGC, all edges at once; `FirstOrder` for networks
        with edge weights, linearized, all edges at once; `Newton` for few edges.
    propagation
        A method by which the direct change of the target is found too.
    inverse
        `dual`, `conjugate_gradients`, or `smaller`, which takes the cheaper one.

    Raises
    ------
    ValueError
        If an edge is not in the graph, the method does not suit the network, or the damping is not
        above 0.
    """
    graph = problem.edges
    if isinstance(edges, str):
        edits = single_removals(graph, torch.arange(graph.num_edges))
    else:
        edits = single_removals(graph, graph.positions(as_pairs(edges)))
    return influence_of(problem, edits, damping, target, method, propagation, inverse)


def screened_influence(
    problem: GraphProblem,
    keep: int,
    *,
    damping: float | int,
    target: Target = validation_loss,
    screen: EdgeMethod = _FIRST_ORDER,
    method: EdgeMethod = _EXACT,
    propagation: EdgeMethod | None = None,
    inverse: Inverse = smaller,
) -> EdgeInfluence:
    """Find the worst edges by a cheap method, and what removing each of them does by another.

    The curvature is solved with once. On a large graph the screening takes two passes through the
    network for all edges, the rest at most one pass an edge: an edge at a hub reaches most of the
    graph, and is scored on most of it.

    Parameters
    ----------
    keep
        How many edges, those whose scores by ``screen`` are lowest; in that order.
    damping, target, propagation, inverse
        As in `edge_influence`.
    screen, method
        Methods for all edges, and for those that are kept.

    Raises
    ------
    ValueError
        If ``keep`` is below 1, a method does not suit the network, or the damping is not above 0.
    """
    if keep < 1:
        message = f"keep is {keep}, expected 1 or more: the number of edges to score again"
        raise ValueError(message)
    query = prepare(problem, [target], damping, inverse)
    every = single_removals(problem.edges, torch.arange(problem.edges.num_edges))
    worst = screen.shift(problem, every, query)[:, 0].argsort(stable=True)[:keep]
    edits = single_removals(problem.edges, worst.to(problem.edges.pairs.device))
    return _answer(problem, edits, query, method, propagation)


def insertion_influence(
    problem: GraphProblem,
    pairs: Pairs,
    *,
    damping: float | int,
    target: Target = validation_loss,
    method: EdgeMethod = _EXACT,
    propagation: EdgeMethod | None = None,
    inverse: Inverse = smaller,
) -> EdgeInfluence:
    """Find what inserting each pair as an edge does to a target; parameters as `edge_influence`.

    Raises
    ------
    ValueError
        If a pair is an edge already, stands twice or is a self loop, the method does not suit the
        network, or the damping is not above 0.
    """
    new = problem.edges.absent(as_pairs(pairs))
    edits = insertions(problem.edges, list(new[:, None]))
    return influence_of(problem, edits, damping, target, method, propagation, inverse)


def group_influence(
    problem: GraphProblem,
    groups: Sequence[Pairs],
    *,
    damping: float | int,
    target: Target = validation_loss,
    method: EdgeMethod = _EXACT,
    inverse: Inverse = smaller,
) -> Float[Tensor, " E"]:
    """Find what removing each group of edges, all of its edges at once, does to a target.

    Raises
    ------
    ValueError
        If an edge is not in the graph, or the method has no groups.
    """
    edits = removals(problem.edges, [as_pairs(group) for group in groups])
    return method.shift(problem, edits, prepare(problem, [target], damping, inverse))[:, 0]


def influence_of(
    problem: GraphProblem,
    edits: Edits,
    damping: float | int,
    target: Target,
    method: EdgeMethod,
    propagation: EdgeMethod | None,
    inverse: Inverse,
) -> EdgeInfluence:
    """Ask about edits that are made already."""
    query = prepare(problem, [target], damping, inverse)
    return _answer(problem, edits, query, method, propagation)


def _answer(
    problem: GraphProblem,
    edits: Edits,
    query: Query,
    method: EdgeMethod,
    propagation: EdgeMethod | None,
) -> EdgeInfluence:
    shift = method.shift(problem, edits, query)[:, 0]
    direct = None
    if propagation is not None:
        read = replace(edits, graph=problem.read_on)
        direct = propagation.propagation(problem, read, query.targets)[:, 0]
    return EdgeInfluence(edits.pairs, shift, direct, query.solved)


def prepare(
    problem: GraphProblem,
    targets: Sequence[Callable[[GraphProblem, Tensor], Tensor]],
    damping: float | int,
    inverse: Inverse = smaller,
) -> Query:
    """Do once what all edits need: gradients of the targets, and the inverse curvature on them."""
    gradients = torch.stack([target_gradient(problem, target) for target in targets], 1)
    return Query(targets, gradients, inverse(problem, gradients, damping), damping, inverse)


def as_pairs(edges: Pairs) -> Int[Tensor, "K 2"]:
    """Endpoints as a tensor.

    Raises
    ------
    ValueError
        If the shape is not (K, 2).
    """
    pairs = torch.as_tensor(edges, dtype=torch.long)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        message = (
            f"edges have shape {tuple(pairs.shape)}, expected (K, 2), one row of two nodes an "
            "edge; an edge_index becomes that by its .T"
        )
        raise ValueError(message)
    return pairs
