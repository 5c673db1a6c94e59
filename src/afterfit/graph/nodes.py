"""Influence of nodes: of taking one away, and of giving one other features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.graph.balls import coordinates, incidence
from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import Change, Edits
from afterfit.graph.exact import Exact, directional_losses
from afterfit.graph.features import FeatureEdits
from afterfit.graph.influence import EditInfluence, prepare
from afterfit.graph.inverse import Inverse, smaller
from afterfit.graph.method import Query
from afterfit.graph.narrow import Narrow
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target, validation_loss
from afterfit.linalg import Solution
from afterfit.problem.persample import unflatten

Nodes = Literal["all"] | Tensor | Sequence[int]
"""Nodes by their number, or all of them."""

_EXACT = Exact()


@final
@dataclass(frozen=True)
class NodeInfluence(EditInfluence):
    """What removing (or changing) each node does to a target.

    Attributes
    ----------
    nodes
        Nodes (E,), in the order of the scores.
    shift, propagation, solved
        As in :class:`~afterfit.graph.EdgeInfluence`.
    """

    nodes: Int[Tensor, " E"]
    shift: Float[Tensor, " E"]
    propagation: Float[Tensor, " E"] | None
    solved: Solution

    def to_pandas(self) -> pd.DataFrame:
        """One row a node, the strongest opponent first."""
        return self._ranked({"node": self.nodes.cpu().numpy()})


def node_influence(
    problem: GraphProblem,
    nodes: Nodes = "all",
    *,
    damping: float | int,
    target: Target = validation_loss,
    method: Exact = _EXACT,
    propagation: Exact | None = None,
    inverse: Inverse = smaller,
) -> NodeInfluence:
    """Find what removing each node does to a target: all of its edges, and its training loss.

    ``shift = −u · [Σ_{v≠i} ∇ℓ_v(G′) − Σ_v ∇ℓ_v(G)] / N`` with the sums over training nodes: the
    loss of a removed training node leaves the sum, and the weight 1/N of the others stays. A target
    goes on reading all of its nodes, a removed one as an isolated node.

    Parameters
    ----------
    nodes
        Which nodes.
    damping, target, method, propagation, inverse
        As in `edge_influence`. A node is a group of edges, removed exactly.

    Raises
    ------
    ValueError
        If a node is not in the graph, or the damping is not above 0.

    References
    ----------
    Chen, Li, Liu, Hong (2023), "Characterizing the influence of graph elements", ICLR,
    arXiv:2210.07441.
    """
    chosen = _as_nodes(problem, nodes)
    query = prepare(problem, [target], damping, inverse)
    edges = method.shift(problem, isolations(problem.edges, chosen), query)
    shift = edges + _own_losses(problem, chosen, query)
    direct = _direct(problem, isolations(problem.read_on, chosen), target, propagation)
    return NodeInfluence(chosen, shift[:, 0], direct, query.solved)


def feature_influence(
    problem: GraphProblem,
    nodes: Nodes,
    rows: Float[Tensor, "E F"],
    *,
    damping: float | int,
    target: Target = validation_loss,
    method: Exact = _EXACT,
    propagation: Exact | None = None,
    inverse: Inverse = smaller,
) -> NodeInfluence:
    """Find what giving each node other features, one node at a time, does to a target.

    Parameters
    ----------
    nodes
        Which nodes (E,); one may stand several times, with several rows.
    rows
        Its new features.
    damping, target, method, propagation, inverse
        As in `edge_influence`.

    Raises
    ------
    ValueError
        If a node is not in the graph, the rows do not fit, or the damping is not above 0.

    References
    ----------
    Wu et al. (2023), "GIF: A general graph unlearning strategy via influence function", WWW,
    arXiv:2304.02835; here the edit is finite and its gradient exact.
    """
    chosen = _as_nodes(problem, nodes)
    expected = (len(chosen), problem.x.shape[1])
    if tuple(rows.shape) != expected or not bool(rows.isfinite().all()):
        message = (
            f"new features have shape {tuple(rows.shape)} and "
            f"{int((~rows.isfinite()).sum())} entries that are not finite, expected {expected} and "
            "none: one row for each node asked about"
        )
        raise ValueError(message)
    places = torch.arange(len(chosen), device=chosen.device)
    edits = FeatureEdits(problem.edges, rows.to(problem.x), chosen, places)
    query = prepare(problem, [target], damping, inverse)
    shift = method.shift(problem, edits, query)[:, 0]
    direct = _direct(problem, replace(edits, graph=problem.read_on), target, propagation)
    return NodeInfluence(chosen, shift, direct, query.solved)


def isolations(graph: EdgeList, nodes: Int[Tensor, " E"]) -> Edits:
    """Remove all edges of a node, for one node after another."""
    every = torch.arange(graph.num_edges)
    ends = incidence(every, graph.pairs, (graph.num_edges, graph.num_nodes)).T.tocsr()
    owner, edges = coordinates(ends[nodes.cpu().numpy().astype(np.int64)])
    return Edits(graph, owner, graph.pairs[edges.to(graph.pairs.device)], len(nodes))


def _own_losses(
    problem: GraphProblem, nodes: Int[Tensor, " E"], query: Query
) -> Float[Tensor, "E K"]:
    """``u · ∇ℓ / N`` of training nodes without edges, 0 for others: the loss that is left out."""
    bare = replace(problem.edges, pairs=problem.edges.pairs[:0]).edge_index()
    everything = torch.arange(problem.num_nodes, device=problem.x.device)
    params = problem.problem.params
    columns = []
    for u in query.solved.value.T:
        direction = unflatten(u.to(problem.problem.dtype), params)
        rows = Narrow(problem.problem, problem.x, params, direction)(everything, bare)[nodes]
        columns.append(directional_losses(problem, rows, nodes).double())
    trained = torch.isin(nodes, problem.train)[:, None]
    return torch.stack(columns, 1) * trained / len(problem.train)


def _direct(
    problem: GraphProblem, edits: Change, target: Target, propagation: Exact | None
) -> Float[Tensor, " E"] | None:
    if propagation is None:
        return None
    return propagation.propagation(problem, edits, [target])[:, 0]


def _as_nodes(problem: GraphProblem, nodes: Nodes) -> Int[Tensor, " E"]:
    """Nodes as a tensor, after a check that they are there."""
    if isinstance(nodes, str):
        return torch.arange(problem.num_nodes, device=problem.x.device)
    found = torch.as_tensor(nodes, dtype=torch.long, device=problem.x.device)
    if found.ndim != 1 or bool(((found < 0) | (found >= problem.num_nodes)).any()):
        message = (
            f"nodes have shape {tuple(found.shape)} and values "
            f"{found.flatten()[:5].tolist()}…, expected numbers (E,) from 0 to "
            f"{problem.num_nodes - 1}; a mask becomes that by its .nonzero()[:, 0]"
        )
        raise ValueError(message)
    return found
