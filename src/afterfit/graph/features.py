"""Edits of what a node is rather than of what it is tied to: other features."""

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.reach import Reach


@final
@dataclass(frozen=True)
class FeatureEdits:
    """Several edits, each of them other features for one node.

    Attributes
    ----------
    graph
        The graph that the nodes are in; it stays.
    rows
        New features (T, F).
    nodes
        Which node each edit changes (E,).
    places
        Which of the rows it gets (E,).
    """

    graph: EdgeList
    rows: Float[Tensor, "T F"]
    nodes: Int[Tensor, " E"]
    places: Int[Tensor, " E"]

    @property
    def num_edits(self) -> int:
        """Number of edits E."""
        return len(self.nodes)

    @property
    def inserts(self) -> bool:
        """Distances stay."""
        return False

    def take(self, positions: Int[Tensor, " S"]) -> "FeatureEdits":
        """Keep some of the edits."""
        kept = positions.to(self.nodes.device)
        return replace(self, nodes=self.nodes[kept], places=self.places[kept])

    def touched(self) -> csr_matrix:
        """Edits by the node that each changes, (E, V)."""
        there = np.arange(self.num_edits), self.nodes.cpu().numpy()
        ones = np.ones(self.num_edits, dtype=np.bool_)
        return csr_matrix((ones, there), (self.num_edits, self.graph.num_nodes))

    def radius(self, reach: Reach) -> int:
        """Hops from a node within which its features are read."""
        return reach.hops

    def edge_index(self) -> Int[Tensor, "2 M"]:
        """Edges stay."""
        return self.graph.edge_index()

    def table(self, x: Float[Tensor, "V F"]) -> Float[Tensor, "_ F"]:
        """Features of the nodes, then the new rows."""
        return torch.cat([x, self.rows])

    def sources(self, nodes: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """Row of the table that each node reads when all edits are made at once."""
        whole = torch.arange(self.graph.num_nodes, device=nodes.device)
        whole[self.nodes] = self.graph.num_nodes + self.places
        return whole[nodes]
