"""PyTorch Geometric as the tests use it: its import warns, and warnings are errors here."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.data import Data
    from torch_geometric.nn import (
        APPNP,
        ChebConv,
        GATConv,
        GATv2Conv,
        GCNConv,
        GINConv,
        GraphNorm,
        MessagePassing,
        SAGEConv,
        SGConv,
    )

__all__ = [
    "APPNP",
    "ChebConv",
    "Data",
    "GATConv",
    "GATv2Conv",
    "GCNConv",
    "GINConv",
    "GraphNorm",
    "MessagePassing",
    "SAGEConv",
    "SGConv",
]
