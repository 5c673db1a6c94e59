"""Small graph networks of every kind of layer, in float64, and a graph with all its oddities.

The graph has a self loop, duplicate edges, edges given in one direction only, an isolated node and
a path apart from the rest. To add an architecture, add a row to :data:`NETWORKS`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    ChebConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    MessagePassing,
    SAGEConv,
    SGConv,
)

from afterfit.graph import GraphProblem, graph_problem

NUM_NODES, NUM_FEATURES, NUM_CLASSES = 32, 30, 3


class Weighted(nn.Module):
    """Two layers that take edge weights."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        nn.Module.__init__(self)
        self.first, self.second = first, second

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        hidden = functional.elu(self.first(x, edge_index, edge_weight))
        return self.second(hidden, edge_index, edge_weight)


class Unweighted(nn.Module):
    """Two layers that do not."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        nn.Module.__init__(self)
        self.first, self.second = first, second

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Predicting(nn.Module):
    """Layers of a plain network, then propagation."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.second = nn.Linear(NUM_FEATURES, 5), nn.Linear(5, NUM_CLASSES)
        self.dropout, self.propagate = nn.Dropout(0.5), APPNP(3, 0.2)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        hidden = self.dropout(self.first(x).relu())
        return self.propagate(self.second(hidden), edge_index, edge_weight)


class OwnLayer(MessagePassing):
    """A layer of the user's: messages weighed by how alike the features are, nothing linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        MessagePassing.__init__(self, aggr="add")
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(x + self.propagate(edge_index, x=x))

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return x_j * (x_i * x_j).mean(1, keepdim=True).tanh()


def _gin(inputs: int, outputs: int) -> GINConv:
    return GINConv(nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)))


def _normed() -> nn.Module:
    first = nn.Linear(NUM_FEATURES, 4)
    return nn.Sequential(first, nn.BatchNorm1d(4)).eval()


class Normed(nn.Module):
    """Batch normalization by stored statistics before a convolution."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.body, self.head = _normed(), GCNConv(4, NUM_CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return self.head(self.body(x).relu(), edge_index, edge_weight)


F, C = NUM_FEATURES, NUM_CLASSES
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "sgc": lambda: SGConv(F, C, K=2, bias=False),
    "sgc-bias": lambda: SGConv(F, C, K=2),
    "sgc-3": lambda: SGConv(F, C, K=3),
    "gcn": lambda: Weighted(GCNConv(F, 4), GCNConv(4, C)),
    "gat": lambda: Unweighted(GATConv(F, 2, heads=2), GATConv(4, C)),
    "gatv2": lambda: Unweighted(GATv2Conv(F, 2, heads=2), GATv2Conv(4, C)),
    "sage": lambda: Unweighted(SAGEConv(F, 4), SAGEConv(4, C)),
    "sage-max": lambda: Unweighted(SAGEConv(F, 4, aggr="max"), SAGEConv(4, C, aggr="max")),
    "gin": lambda: Unweighted(_gin(F, 4), _gin(4, C)),
    "appnp": Predicting,
    "cheb": lambda: Weighted(ChebConv(F, 4, K=2), ChebConv(4, C, K=3)),
    "batch-norm": Normed,
    "own-layer": lambda: Unweighted(OwnLayer(F, 4), OwnLayer(4, C)),
}
REACH = {
    "sgc": (2, 2),
    "sgc-bias": (2, 2),
    "sgc-3": (3, 3),
    "gcn": (2, 2),
    "gat": (2, 1),
    "gatv2": (2, 1),
    "sage": (2, 1),
    "sage-max": (2, 1),
    "gin": (2, 1),
    "appnp": (3, 3),
    "cheb": (3, 3),
    "batch-norm": (1, 1),
    "own-layer": (2, 1),
}
"""Hops of features and of edges, worked out by hand from the layers."""


def make_network(name: str) -> nn.Module:
    """Build a network with weights that are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        module = NETWORKS[name]().double()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                nn.init.uniform_(part.running_var, 0.5, 2.0)  # pyright: ignore[reportArgumentType]
        return module


def make_data() -> Data:
    """Draw the graph."""
    generator = Generator().manual_seed(3)
    path = torch.arange(NUM_NODES - 9, NUM_NODES - 1)  # the last node is isolated
    edges = torch.randint(0, int(path[0]), (2, 30), generator=generator)
    odd = torch.tensor([[4, 1, 2], [4, 2, 1]])
    train, validation, test = (torch.zeros(NUM_NODES, dtype=torch.bool) for _ in range(3))
    order = torch.randperm(int(path[0]), generator=generator)
    train[order[:8]], validation[order[8:15]], test[order[15:]] = True, True, True
    train[path[0]], validation[path[2]], test[path[3:]] = True, True, True
    return Data(
        x=torch.randn(NUM_NODES, NUM_FEATURES, generator=generator, dtype=torch.float64),
        y=torch.randint(0, NUM_CLASSES, (NUM_NODES,), generator=generator),
        edge_index=torch.cat([edges, edges[:, :5], odd, torch.stack([path[1:], path[:-1]])], 1),
        train_mask=train,
        val_mask=validation,
        test_mask=test,
    )


def make_problem(name: str) -> GraphProblem:
    """Bind a network to the graph."""
    return graph_problem(make_network(name), make_data())
