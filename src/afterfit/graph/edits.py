"""Edits of a graph, and the rows of any per-node quantity after each of them.

An edit is a set of edges that are removed, or inserted, together (or other features of a node, see
:mod:`~afterfit.graph.features`). After an edit only the nodes within some radius of what it touches
have other outputs, and each of them reads no more than the ball around it. Two removals that share
no watched node can therefore be made in one graph: each watched node sees at most one of them (this
is Proposition 3.1 of Song, Kim, Yang 2023 at work), and removing edges only shrinks balls. Edits
are packed by that rule into as few graphs as greedy coloring finds, and the graphs, cut to the
balls that matter, run together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from afterfit.graph.balls import (
    balls,
    coordinates,
    incidence,
    neighbors,
    row_sizes,
    spread,
)
from afterfit.graph.edges import EdgeList
from afterfit.graph.problem import GraphProblem
from afterfit.graph.reach import Reach


@runtime_checkable
class Change(Protocol):
    """Several edits, each apart from the others, of edges (`Edits`) or features."""

    @property
    def graph(self) -> EdgeList:
        """The graph that is edited."""
        ...

    @property
    def num_edits(self) -> int:
        """Number of edits E."""
        ...

    @property
    def inserts(self) -> bool:
        """Whether an edit may bring nodes within reach that were not."""
        ...

    def take(self, positions: Int[Tensor, " S"]) -> "Change":
        """Keep some of the edits, in ascending order."""
        ...

    def touched(self) -> csr_matrix:
        """Edits by the nodes that they touch, (E, V)."""
        ...

    def radius(self, reach: Reach) -> int:
        """Hops from touched nodes within which outputs change."""
        ...

    def edge_index(self) -> Int[Tensor, "2 M"]:
        """Edges when all edits are made at once."""
        ...

    def table(self, x: Float[Tensor, "V F"]) -> Float[Tensor, "T F"]:
        """Rows of features: those of the nodes, then new ones."""
        ...

    def sources(self, nodes: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """Row of the table that each node reads when all edits are made at once."""
        ...


@final
@dataclass(frozen=True)
class Edits:
    """Several edits of the edges of one graph, each apart from the others.

    Attributes
    ----------
    graph
        The graph that is edited.
    owner
        Which edit each pair belongs to (K,), not decreasing.
    pairs
        Endpoints (K, 2).
    num_edits
        Number of edits E.
    inserts
        Whether pairs are inserted; otherwise they are removed.
    """

    graph: EdgeList
    owner: Int[Tensor, " K"]
    pairs: Int[Tensor, "K 2"]
    num_edits: int
    inserts: bool = False

    def take(self, positions: Int[Tensor, " S"]) -> "Edits":
        """Keep some of the edits, in ascending order."""
        new = torch.full((self.num_edits,), -1)
        new[positions] = torch.arange(len(positions))
        keep = new[self.owner] >= 0
        return Edits(
            self.graph, new[self.owner[keep]], self.pairs[keep], len(positions), self.inserts
        )

    def touched(self) -> csr_matrix:
        """Edits by the endpoints of their pairs, (E, V)."""
        return incidence(self.owner, self.pairs, (self.num_edits, self.graph.num_nodes))

    def radius(self, reach: Reach) -> int:
        """Hops from an endpoint within which outputs change."""
        return reach.edges

    def edge_index(self) -> Int[Tensor, "2 M"]:
        """Edges when all edits are made at once."""
        edge_index = self.graph.edge_index()
        if self.inserts:
            ways = [self.pairs.T, self.pairs.T.flip(0)][: self.graph.directions]
            return torch.cat([edge_index, *ways], 1)
        gone = torch.zeros(self.graph.num_edges + 1, dtype=torch.bool, device=edge_index.device)
        gone[self.graph.positions(self.pairs)] = True
        return edge_index[:, ~gone[self.graph.owners()]]  # loops have position −1: the last entry

    def table(self, x: Float[Tensor, "V F"]) -> Float[Tensor, "V F"]:
        """Features stay as they are."""
        return x

    def sources(self, nodes: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """Each node reads its own features."""
        return nodes

    def edited(self, position: int) -> EdgeList:
        """Return the whole graph after one of the edits."""
        pairs = self.pairs[self.owner == position]
        if self.inserts:
            return self.graph.joined(pairs)
        return self.graph.without(self.graph.positions(pairs))


def removals(graph: EdgeList, groups: list[Tensor]) -> Edits:
    """Remove each group of edges at once."""
    checked = [graph.pairs[graph.positions(group).unique()] for group in groups]
    return _edits(graph, checked, inserts=False)


def single_removals(graph: EdgeList, positions: Int[Tensor, " K"]) -> Edits:
    """Remove one edge at a time, given by its position."""
    return Edits(graph, torch.arange(len(positions)), graph.pairs[positions], len(positions))


def insertions(graph: EdgeList, groups: list[Tensor]) -> Edits:
    """Insert each group of pairs at once."""
    return _edits(graph, [graph.absent(group) for group in groups], inserts=True)


def _edits(graph: EdgeList, groups: list[Tensor], inserts: bool) -> Edits:
    sizes = torch.tensor([len(group) for group in groups])
    owner = torch.arange(len(groups)).repeat_interleave(sizes)
    pairs = torch.cat(groups) if groups else graph.pairs[:0]
    return Edits(graph, owner, pairs, len(groups), inserts)


def affected(edits: Edits, watched: Int[Tensor, " N"], radius: int) -> csr_matrix:
    """Edits by the watched nodes that they change (E, N), as a sparse matrix of booleans."""
    reached = balls(edits.touched(), neighbors(edits.graph), radius)
    return csr_matrix(reached[:, watched.cpu().numpy()])


class Rows(NamedTuple):
    """Per-node quantities after edits.

    Attributes
    ----------
    edit
        Which edit a row belongs to.
    place
        Which of the watched nodes.
    values
        The quantity (R, D).
    """

    edit: Int[Tensor, " R"]
    place: Int[Tensor, " R"]
    values: Float[Tensor, "R D"]


Evaluate = Callable[[Int[Tensor, " S"], Int[Tensor, "2 M"]], Float[Tensor, "S D"]]
"""Quantity of each node of a graph, given which row of the table of features each node reads."""


def edited_rows(
    evaluate: Evaluate,
    problem: GraphProblem,
    edits: Change,
    watched: Int[Tensor, " N"],
    max_nodes: int,
) -> Iterator[Rows]:
    """Quantity of every watched node that an edit changes, after that edit.

    Parameters
    ----------
    watched
        Nodes that matter, without duplicates.
    max_nodes
        Nodes that run together; one graph is never cut.
    """
    adjacency = neighbors(edits.graph)
    reached = csr_matrix(
        balls(edits.touched(), adjacency, edits.radius(problem.reach))[:, watched.cpu().numpy()]
    )
    colors = _alone(reached) if edits.inserts else _colors(reached, len(watched))
    pack: list[_Scene] = []
    size = 0
    for color in colors:
        scene = _scene(problem, edits, reached, watched, adjacency, color)
        if pack and size + len(scene.nodes) > max_nodes:
            yield _run(evaluate, pack)
            pack, size = [], 0
        pack.append(scene)
        size += len(scene.nodes)
    if pack:
        yield _run(evaluate, pack)


def _alone(reached: csr_matrix) -> list[np.ndarray]:
    """One edit in each graph: insertions may bring others within reach."""
    return [np.array([edit]) for edit in np.flatnonzero(row_sizes(reached))]


def _colors(reached: csr_matrix, num_watched: int) -> list[np.ndarray]:
    """Group edits that share no watched node, those with many first."""
    sizes = row_sizes(reached)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    used = np.zeros((64, num_watched), dtype=bool)
    groups: list[list[int]] = []
    first = np.zeros(num_watched, dtype=int)  # all colors below are taken at this node
    for edit in order:
        nodes = reached.indices[reached.indptr[edit] : reached.indptr[edit + 1]]
        color = int(first[nodes].max())
        while color < len(groups) and used[color, nodes].any():
            color += 1
        if color == len(groups):
            groups.append([])
            if color == len(used):
                used = np.concatenate([used, np.zeros_like(used)])
        groups[color].append(edit)
        used[color, nodes] = True
        for node in nodes[first[nodes] == color]:
            while first[node] < len(used) and used[first[node], node]:
                first[node] += 1
    return [np.sort(group) for group in groups]


class _Scene(NamedTuple):
    """One graph with the edits that were made in it; ``nodes`` are rows of features."""

    nodes: Tensor
    edge_index: Tensor
    edit: Tensor
    place: Tensor
    local: Tensor


def _scene(
    problem: GraphProblem,
    edits: Change,
    reached: csr_matrix,
    watched: Tensor,
    adjacency: csr_matrix,
    color: np.ndarray,
) -> _Scene:
    """Make the edits of one color in the part of the graph that their watched nodes read."""
    chosen = edits.take(torch.from_numpy(color))
    rows, places = coordinates(csr_matrix(reached[color]))
    mask = np.zeros(edits.graph.num_nodes, dtype=bool)
    mask[watched.cpu().numpy()[places.numpy()]] = True
    if edits.inserts:
        mask[chosen.touched().indices] = True  # reached over the new edges
    halo = max(problem.reach.hops, problem.reach.edges + 1)  # both ends of all edges that matter
    inside = torch.from_numpy(spread(mask, adjacency, halo)).to(watched.device)
    columns = chosen.edge_index()
    columns = columns[:, inside[columns[0]] & inside[columns[1]]]
    local = inside.cumsum(0) - 1
    places = places.to(watched.device)
    edit = torch.from_numpy(color)[rows]
    rows_read = chosen.sources(inside.nonzero()[:, 0])
    return _Scene(rows_read, local[columns], edit, places, local[watched[places]])


def _run(evaluate: Evaluate, pack: list[_Scene]) -> Rows:
    sizes = torch.tensor([len(scene.nodes) for scene in pack])
    starts = (sizes.cumsum(0) - sizes).tolist()
    edge_index = torch.cat([s.edge_index + start for s, start in zip(pack, starts, strict=True)], 1)
    values = evaluate(torch.cat([scene.nodes for scene in pack]), edge_index)
    local = torch.cat([s.local + start for s, start in zip(pack, starts, strict=True)])
    edit = torch.cat([scene.edit for scene in pack]).to(values.device)
    return Rows(edit, torch.cat([scene.place for scene in pack]), values[local])
