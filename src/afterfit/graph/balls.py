"""Neighborhoods: which nodes are within a number of hops, as sparse matrices of booleans."""

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import csr_matrix, identity
from torch import Tensor

from afterfit.graph.edges import EdgeList


def neighbors(edges: EdgeList) -> csr_matrix:
    """Adjacency (V, V) with ones on the diagonal, directions ignored."""
    u, v = edges.pairs.cpu().numpy().T
    size = edges.num_nodes
    ones = np.ones(2 * len(u), dtype=np.bool_)
    both = (np.concatenate([u, v]), np.concatenate([v, u]))
    matrix = csr_matrix((ones, both), (size, size)) + identity(size, format="csr").astype(np.bool_)
    return _boolean(matrix)


def incidence(
    owner: Int[Tensor, " K"], pairs: Int[Tensor, "K 2"], shape: tuple[int, int]
) -> csr_matrix:
    """Edits (rows) by the nodes that their pairs touch (columns)."""
    rows = owner.cpu().numpy().repeat(2)
    columns = pairs.cpu().numpy().reshape(-1)
    return _boolean(csr_matrix((np.ones(len(rows), dtype=np.bool_), (rows, columns)), shape))


def balls(seeds: csr_matrix, adjacency: csr_matrix, radius: int) -> csr_matrix:
    """Nodes within ``radius`` hops of the seeds of each row."""
    for _ in range(radius):
        seeds = _boolean(seeds @ adjacency)
    return seeds


def spread(mask: np.ndarray, adjacency: csr_matrix, radius: int) -> np.ndarray:
    """Grow one set of nodes, given as a mask, by ``radius`` hops."""
    for _ in range(radius):
        mask = adjacency @ mask
    return mask


def row_sizes(matrix: csr_matrix) -> np.ndarray:
    """Count the entries of each row."""
    return np.diff(matrix.indptr)


def coordinates(matrix: csr_matrix) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries, row by row."""
    rows = np.repeat(np.arange(len(matrix.indptr) - 1), row_sizes(matrix))
    return torch.from_numpy(rows).long(), torch.from_numpy(matrix.indices.copy()).long()


def _boolean(matrix: csr_matrix) -> csr_matrix:
    matrix = csr_matrix(matrix)
    matrix.data = np.ones(len(matrix.data), dtype=np.bool_)
    matrix.sort_indices()
    return matrix
