# %% [markdown]
# # Which edges of a graph hurt
# Cora from the folder in `AFTERFIT_DATA` (`graphs/Cora/raw`), or else scikit-learn's digits, joined
# to their nearest neighbors and to some others at random.
# `AFTERFIT_DATA=... afterfit edges examples/edges_graph.py`.

# %%
import os
import shutil
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch import Generator, Tensor, nn
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import SGConv

from afterfit import graph

WEIGHT_DECAY = 1e-3


# %%
def cora(folder: Path) -> Data:
    """The citation graph with its public split; rows of features sum to 1."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(folder / "graphs" / "Cora" / "raw", Path(scratch) / "Cora" / "raw")
        data = Planetoid(scratch, "Cora")[0]
    data.x = (data.x / data.x.sum(1, keepdim=True).clamp_min(1)).double()
    return data


def digits(size: int = 800) -> Data:
    """Digits, each joined to the four nearest of them, and half as many edges drawn at random."""
    x, y = load_digits(return_X_y=True)
    x, y = x[:size] / 16, y[:size]
    near = kneighbors_graph(x, 4).tocoo()
    generator = Generator().manual_seed(0)
    drawn = torch.randint(size, (2, len(near.row) // 2), generator=generator)
    edges = torch.cat([torch.tensor([near.row.tolist(), near.col.tolist()]), drawn], 1)
    masks = torch.zeros(3, size, dtype=torch.bool)
    order = torch.randperm(size, generator=generator).tensor_split([120, 360])
    for mask, part in zip(masks, order, strict=True):
        mask[part] = True
    return Data(
        x=torch.tensor(x), y=torch.tensor(y), edge_index=edges,
        train_mask=masks[0], val_mask=masks[1], test_mask=masks[2],
    )  # fmt: skip


# %%
def train(data: Data, edge_index: Tensor) -> nn.Module:
    """Two-hop SGC (Wu et al. 2019) by Adam, from the same initial values each time."""
    torch.manual_seed(0)
    size = int(data.y.max()) + 1
    net, fast = (
        SGConv(data.x.shape[1], size, K=2, cached=cached, bias=False).double()
        for cached in (False, True)
    )
    optimizer = torch.optim.Adam(fast.parameters(), 0.2)
    for _ in range(200):
        optimizer.zero_grad()
        outputs = fast(data.x, edge_index)[data.train_mask]
        decay = 0.5 * WEIGHT_DECAY * fast.lin.weight.square().sum()
        (nn.functional.cross_entropy(outputs, data.y[data.train_mask]) + decay).backward()
        optimizer.step()
    net.load_state_dict(fast.state_dict())
    return net.eval()


# %%
def factory() -> graph.TrainedGraph:
    """SGC on the graph, with how to train it again on another one."""
    folder = os.environ.get("AFTERFIT_DATA")
    data = digits() if folder is None else cora(Path(folder))
    edges = graph.union(data.edge_index, data.num_nodes).edge_index()
    return graph.TrainedGraph(
        train(data, edges), data, WEIGHT_DECAY, lambda edge_index, _: train(data, edge_index)
    )


# %%
if __name__ == "__main__":
    trained = factory()
    problem = trained.problem()
    print(graph.edge_influence(problem, damping=WEIGHT_DECAY).to_pandas().head(10))
