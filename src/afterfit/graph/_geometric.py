"""The door to PyTorch Geometric, which scripts some of its classes on import, with a warning."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.nn import SGConv

__all__ = ["SGConv"]
