"""Graphs of the experiments and how their networks are trained, as published where that is known."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GATConv, GCNConv, SGConv

from afterfit.graph.edges import EdgeList, Symmetrize, union, upper

WEIGHT_DECAY = {
    "Cora": 8.5e-6,
    "CiteSeer": 8.5e-6,
    "texas": 4e-5,
    "wisconsin": 3e-5,
    "texas-directed": 4e-5,
    "wisconsin-directed": 3e-5,
    "chameleon_filtered": 1e-5,
}
RATE = {"CiteSeer": 0.5, "chameleon_filtered": 0.05}  # chameleon: lowest validation loss in tune.py


def load(folder: Path, name: str, split: int = 0) -> Data:
    """One graph with the masks of one split, features normalized by rows, float64."""
    if name in ("Cora", "CiteSeer"):
        return _normalized(_planetoid(folder, name))
    if name.endswith("-directed"):
        return _normalized(_geom_gcn(folder, name.removesuffix("-directed"), split))
    stored = np.load(folder / f"{name}.npz")
    masks = {
        part: torch.from_numpy(stored[f"{part}_masks"][split]) for part in ("train", "val", "test")
    }
    return _normalized(
        Data(
            x=torch.from_numpy(stored["node_features"]),
            y=torch.from_numpy(stored["node_labels"]).long(),
            edge_index=torch.from_numpy(stored["edges"]).long().T.contiguous(),
            **{f"{part}_mask": mask.bool() for part, mask in masks.items()},
        )
    )


def symmetrize(name: str) -> Symmetrize:
    """The authors' code reads the directed originals from the smaller to the larger node only."""
    return upper if name.endswith("-directed") else union


def _planetoid(folder: Path, name: str) -> Data:
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder / name / "raw", Path(scratch) / name / "raw")
        import contextlib
        import io

        with contextlib.redirect_stderr(io.StringIO()):
            return Planetoid(scratch, name)[0]


def _geom_gcn(folder: Path, name: str, split: int) -> Data:
    raw = folder / "geom-gcn" / name / "raw"
    lines = (raw / "out1_node_feature_label.txt").read_text().splitlines()[1:]
    rows = sorted((int(i), f, int(y)) for i, f, y in (line.split("\t") for line in lines))
    x = torch.tensor([[float(v) for v in f.split(",")] for _, f, _ in rows])
    pairs = [line.split() for line in (raw / "out1_graph_edges.txt").read_text().splitlines()[1:]]
    (path,) = raw.glob(f"{name}_split_0.6_0.2_{split}.npz")
    masks = np.load(path)
    return Data(
        x=x,
        y=torch.tensor([y for *_, y in rows]),
        edge_index=torch.tensor([[int(u), int(v)] for u, v in pairs]).T.contiguous(),
        **{
            f"{part}_mask": torch.from_numpy(masks[f"{part}_mask"]).bool()
            for part in ("train", "val", "test")
        },
    )


def _normalized(data: Data) -> Data:
    data.x = data.x.double()
    data.x = data.x / data.x.sum(1, keepdim=True).clamp_min(1.0)
    return data


# SGC as published: 200 epochs of Adam, the whole graph, (λ/2) ‖W‖² in the loss -----------------


@dataclass
class SgcTrainer:
    """Trains SGC from the same initial values each time; only rows of training nodes are propagated."""

    data: Data
    weight_decay: float
    rate: float = 0.2
    epochs: int = 200
    seed: int = 0

    def __call__(self, edge_index: Tensor, params: object = None) -> nn.Module:  # noqa: ARG002
        nodes = self.data.train_mask.nonzero()[:, 0]
        graph = union(edge_index, self.data.num_nodes)
        z, y = train_features(self.data.x, graph, nodes), self.data.y[nodes]
        module = SGConv(self.data.x.shape[1], int(self.data.y.max()) + 1, K=2, bias=False).double()
        generator = Generator().manual_seed(self.seed)
        shape = module.lin.weight.shape
        weight = torch.empty(shape, dtype=torch.float64)
        nn.init.trunc_normal_(
            weight,
            std=(1 / shape[1]) ** 0.5,
            a=-2 / shape[1] ** 0.5,
            b=2 / shape[1] ** 0.5,
            generator=generator,
        )
        weight.requires_grad_()
        optimizer = torch.optim.Adam([weight], self.rate)
        for _ in range(self.epochs):
            optimizer.zero_grad()
            loss = functional.cross_entropy(z @ weight.T, y)
            (loss + 0.5 * self.weight_decay * weight.square().sum()).backward()
            optimizer.step()
        with torch.no_grad():
            module.lin.weight.copy_(weight)
        return module.eval()


def train_features(x: Tensor, graph: EdgeList, nodes: Tensor) -> Tensor:
    """Rows of S² X."""
    from afterfit.graph.linear import LinearNetwork

    return LinearNetwork(2, "lin.weight", None).features(x, graph, nodes)


def sgc_optimum(
    data: Data, weight_decay: float, edges: EdgeList, start: nn.Module, tolerance: float = 1e-10
) -> nn.Module:
    """Newton's method with the dual Hessian from a start: the optimum that retraining would reach."""
    import copy

    nodes = data.train_mask.nonzero()[:, 0]
    z, y = train_features(data.x, edges, nodes), data.y[nodes]
    weight = newton(z, y, weight_decay, start.lin.weight.detach().clone(), tolerance)
    module = copy.deepcopy(start)
    with torch.no_grad():
        module.lin.weight.copy_(weight)
    return module


def newton(
    z: Tensor, y: Tensor, weight_decay: float, weight: Tensor, tolerance: float = 1e-10
) -> Tensor:
    n, c = len(z), len(weight)
    inner = z @ z.T
    target = functional.one_hot(y, c).double()

    def objective(at: Tensor) -> float:
        return float(functional.cross_entropy(z @ at.T, y) + 0.5 * weight_decay * at.square().sum())

    for _ in range(60):
        p = (z @ weight.T).softmax(1)
        gradient = (p - target).T @ z / n + weight_decay * weight
        if float(gradient.abs().max()) < tolerance:
            break
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        gram = torch.einsum("vca,wcb->vawb", root, root) * inner[:, None, :, None] / n
        gram = gram.reshape(n * c, n * c)
        gram.diagonal().add_(weight_decay)
        moved = torch.einsum("ncr,nc->nr", root, z @ gradient.T).flatten() / n**0.5
        inner_solution = torch.linalg.solve(gram, moved).view(n, c)
        pulled = torch.einsum("ncr,nr->nc", root, inner_solution) / n**0.5
        step = (gradient - pulled.T @ z) / weight_decay
        scale, before = 1.0, objective(weight)
        while objective(weight - scale * step) > before and scale > 1e-6:
            scale /= 2
        weight = weight - scale * step
    return weight


# GCN and GAT ------------------------------------------------------------------------------------


class Gcn(nn.Module):
    def __init__(self, inputs: int, outputs: int, hidden: int = 16) -> None:
        nn.Module.__init__(self)
        self.first, self.second = GCNConv(inputs, hidden), GCNConv(hidden, outputs)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return self.second(self.first(x, edge_index, edge_weight).relu(), edge_index, edge_weight)


class Gat(nn.Module):
    """Two layers, eight heads of eight; dropout of attention and hidden units in training."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 8, heads: int = 8) -> None:
        nn.Module.__init__(self)
        self.first = GATConv(inputs, hidden, heads=heads, dropout=0.6)
        self.second = GATConv(hidden * heads, outputs, dropout=0.6)
        self.dropout = nn.Dropout(0.6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.dropout(functional.elu(self.first(x, edge_index)))
        return self.second(hidden, edge_index)


@dataclass
class GnnTrainer:
    """Adam on the whole graph from the same initial values and seed, weight decay in the loss."""

    data: Data
    build: Callable[[int, int], nn.Module]
    weight_decay: float = 1e-3
    rate: float = 0.01
    epochs: int = 200
    seed: int = 0

    def __call__(self, edge_index: Tensor, params: object = None) -> nn.Module:  # noqa: ARG002
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return self._train(edge_index)

    def _train(self, edge_index: Tensor) -> nn.Module:
        data = self.data
        module = self.build(data.x.shape[1], int(data.y.max()) + 1).double()
        sparse = _sparse(data.x)  # the product with the first weights is most of the work
        optimizer = torch.optim.Adam(module.parameters(), self.rate)
        mask = data.train_mask
        for _ in range(self.epochs):
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(sparse, edge_index)[mask], data.y[mask])
            penalty = sum(p.square().sum() for p in module.parameters())
            (loss + 0.5 * self.weight_decay * penalty).backward()
            optimizer.step()
        return module.eval()


def _sparse(x: Tensor) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse CSR is in beta
        return x.to_sparse_csr()
