"""The edges of a graph as what is scored and removed: each undirected pair once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor


@final
@dataclass(frozen=True)
class EdgeList:
    """Edges in a fixed order, each of them one unit of removal.

    Attributes
    ----------
    pairs
        Endpoints (E, 2), sorted and without duplicates. Where ``directions`` is 2 an edge stands
        once, with the smaller endpoint first; where it is 1 it leads from the first to the second.
    loops
        Nodes with a self loop in the data, in order. Loops stay where they are: they are part of
        the graph, and are never scored or removed.
    num_nodes
        Number of nodes V; isolated ones count.
    directions
        2 where every edge is read in both directions, 1 where it leads one way.
    """

    pairs: Int[Tensor, "E 2"]
    loops: Int[Tensor, " L"]
    num_nodes: int
    directions: int = 2

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return len(self.pairs)

    def edge_index(self) -> Int[Tensor, "2 M"]:
        """Edges as PyG reads them: all pairs, then all pairs reversed, then the loops."""
        return self._columns[0]

    def owners(self) -> Int[Tensor, " M"]:
        """Position of the edge behind each column of :meth:`edge_index`; −1 for loops."""
        return self._columns[1]

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor]:
        ways = [self.pairs.T, self.pairs.T.flip(0)][: self.directions]
        edges = torch.arange(self.num_edges, device=self.pairs.device).repeat(self.directions)
        return (
            torch.cat([*ways, self.loops.expand(2, -1)], 1),
            torch.cat([edges, torch.full_like(self.loops, -1)]),
        )

    def positions(self, pairs: Int[Tensor, "K 2"]) -> Int[Tensor, " K"]:
        """Where these pairs stand in the list, whichever endpoint comes first if undirected.

        Raises
        ------
        ValueError
            If a pair is not an edge of the graph.
        """
        found, there = self._look_up(pairs)
        if not bool(there.all()):
            u, v = pairs[~there][0].tolist()
            message = (
                f"({u}, {v}) is not an edge of the graph ({int((~there).sum())} of {len(pairs)} "
                f"pairs are not), expected some of its {self.num_edges} edges; self loops are "
                "never scored"
            )
            raise ValueError(message)
        return found

    def without(self, positions: Int[Tensor, " K"]) -> "EdgeList":
        """Remove the edges at these positions."""
        keep = torch.ones(self.num_edges, dtype=torch.bool, device=self.pairs.device)
        keep[positions] = False
        return replace(self, pairs=self.pairs[keep])

    def joined(self, pairs: Int[Tensor, "K 2"]) -> "EdgeList":
        """Insert edges.

        Raises
        ------
        ValueError
            If a pair is an edge already, stands twice, is a self loop, or names an unknown node.
        """
        new = self.absent(pairs)
        return replace(self, pairs=_sorted(torch.cat([self.pairs, new]), self.num_nodes))

    def absent(self, pairs: Int[Tensor, "K 2"]) -> Int[Tensor, "K 2"]:
        """Return pairs in canonical form, after a check that they can be inserted.

        Raises
        ------
        ValueError
            If a pair is an edge already, stands twice, is a self loop, or names an unknown node.
        """
        _require_nodes(pairs, self.num_nodes)
        canonical = self._canonical(pairs)
        _, there = self._look_up(canonical)
        loops = canonical[:, 0] == canonical[:, 1]
        twice = len(canonical) - len(canonical.unique(dim=0))
        if bool(there.any()) or bool(loops.any()) or twice:
            message = (
                f"of {len(pairs)} pairs to insert {int(there.sum())} are edges already, "
                f"{int(loops.sum())} are self loops and {twice} stand twice, expected new pairs "
                "of two different nodes"
            )
            raise ValueError(message)
        return canonical

    def _canonical(self, pairs: Tensor) -> Tensor:
        pairs = pairs.to(self.pairs)
        return pairs.sort(1).values if self.directions == 2 else pairs

    def _look_up(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.pairs[:, 0] * self.num_nodes + self.pairs[:, 1]
        canonical = self._canonical(pairs)
        wanted = canonical[:, 0] * self.num_nodes + canonical[:, 1]
        if not len(keys):
            return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
        found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
        inside = ((canonical >= 0) & (canonical < self.num_nodes)).all(1)
        return found, (keys[found] == wanted) & inside


Symmetrize = Callable[[Tensor, int], EdgeList]
"""Turns an ``edge_index`` (2, M) and a number of nodes into edges: `union`, `upper`, `directed`."""


def union(edge_index: Tensor, num_nodes: int) -> EdgeList:
    """Make every edge undirected, whichever of its directions is given."""
    pairs, loops = _split_loops(edge_index, num_nodes)
    return EdgeList(_sorted(pairs.sort(1).values, num_nodes), loops, num_nodes)


def upper(edge_index: Tensor, num_nodes: int) -> EdgeList:
    """Keep only edges given from the smaller to the larger node, and make them undirected.

    The authors' code of RGE reads graphs this way. Of directed data (the originals of Cornell,
    Texas, Wisconsin) it loses the edges that are given the other way only.
    """
    pairs, loops = _split_loops(edge_index, num_nodes)
    return EdgeList(_sorted(pairs[pairs[:, 0] < pairs[:, 1]], num_nodes), loops, num_nodes)


def directed(edge_index: Tensor, num_nodes: int) -> EdgeList:
    """Keep directions: (u, v) and (v, u) are two edges, each removed alone."""
    pairs, loops = _split_loops(edge_index, num_nodes)
    return EdgeList(_sorted(pairs, num_nodes), loops, num_nodes, directions=1)


def _split_loops(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    if edge_index.ndim != 2 or len(edge_index) != 2:
        message = (
            f"edge_index has shape {tuple(edge_index.shape)}, expected (2, number of edges); an "
            "adjacency matrix becomes one with its .nonzero().T"
        )
        raise ValueError(message)
    _require_nodes(edge_index.T, num_nodes)
    loop = edge_index[0] == edge_index[1]
    return edge_index[:, ~loop].T, edge_index[0, loop].unique()


def _require_nodes(pairs: Tensor, num_nodes: int) -> None:
    if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= num_nodes):
        message = (
            f"edges name nodes from {int(pairs.min())} to {int(pairs.max())}, expected 0 to "
            f"{num_nodes - 1}: the features have {num_nodes} rows"
        )
        raise ValueError(message)


def _sorted(pairs: Tensor, num_nodes: int) -> Tensor:
    keys = (pairs[:, 0] * num_nodes + pairs[:, 1]).unique()
    return torch.stack([keys // num_nodes, keys % num_nodes], 1)
