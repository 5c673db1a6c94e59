"""The graph part of the demonstration: digits joined to their neighbors, and to some at random."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch import Generator, Tensor, nn

NEIGHBORS = 4
WEIGHT_DECAY = 1e-3


def digits_graph(graph: Any, seed: int = 0) -> Any:
    """Build the graph, a third of whose edges are drawn at random, and train SGC on it.

    Parameters
    ----------
    graph
        The package ``afterfit.graph``.

    Returns
    -------
    graph.TrainedGraph
    """
    from torch_geometric.data import Data  # only here, where it is known to be installed

    pixels, target = load_digits(return_X_y=True)
    near = kneighbors_graph(pixels, NEIGHBORS).tocoo()
    true = torch.from_numpy(np.stack([near.row, near.col])).long()
    generator = Generator().manual_seed(seed)
    num = len(pixels)
    drawn = torch.randint(num, (2, true.shape[1] // 2), generator=generator)
    drawn = drawn[:, drawn[0] != drawn[1]]
    order = torch.randperm(num, generator=generator)
    masks = [torch.zeros(num, dtype=torch.bool) for _ in range(3)]
    for mask, part in zip(masks, order.tensor_split([200, 700]), strict=True):
        mask[part] = True
    data = Data(
        x=torch.from_numpy(pixels / 16.0), y=torch.from_numpy(target).long(),
        edge_index=torch.cat([true, drawn], 1),
        train_mask=masks[0], val_mask=masks[1], test_mask=masks[2],
    )  # fmt: skip
    undirected = graph.union(data.edge_index, num).edge_index()

    def train_again(edge_index: Tensor, params: Any = None) -> nn.Module:  # noqa: ARG001
        return trained_sgc(data, edge_index, seed)

    return graph.TrainedGraph(
        train_again(undirected), data, WEIGHT_DECAY, train_again,
        classes=[str(k) for k in range(10)], names=[f"digit {k}" for k in range(num)],
    )  # fmt: skip


def trained_sgc(data: Any, edge_index: Tensor, seed: int) -> nn.Module:
    """Train two-hop SGC by Adam, always from the same initial values."""
    from torch_geometric.nn import SGConv

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, fast = (
            SGConv(data.x.shape[1], 10, 2, cached, bias=False).double() for cached in (False, True)
        )
    optimizer = torch.optim.Adam(fast.parameters(), 0.2)
    index, y = data.train_mask, data.y[data.train_mask]
    for _ in range(100):
        optimizer.zero_grad()
        decay = 0.5 * WEIGHT_DECAY * sum(p.square().sum() for p in fast.parameters())
        loss = nn.functional.cross_entropy(fast(data.x, edge_index)[index], y) + decay
        loss.backward()
        optimizer.step()
    net.load_state_dict(fast.state_dict())
    return net.eval()
