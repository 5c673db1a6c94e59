"""What a graph problem accepts: one whole graph, and a network that reads it as it is."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLED = ("n_id", "e_id", "input_id")
_WHOLE = "expected one whole graph such as torch_geometric.data.Data"


def require_whole_graph(data: Any) -> None:
    """Refuse data that is not one whole unweighted graph with targets for its nodes.

    Raises
    ------
    TypeError
        If it is of another kind: heterogeneous, without one of its parts, or sparse.
    ValueError
        If it was sampled, has weights, features that are not finite, or targets of whole graphs.
    """
    _require_parts(data)
    sampled = [name for name in _SAMPLED if getattr(data, name, None) is not None]
    if sampled:
        message = (
            f"the data has {sampled}: it is a sampled part of a graph, whose degrees are wrong and "
            "whose edges are incomplete; pass the whole graph"
        )
        raise ValueError(message)
    _require_features(data.x)
    if data.y.ndim == 0 or len(data.y) != len(data.x):
        message = (
            f"y has shape {tuple(data.y.shape)}, expected a row for each of the {len(data.x)} "
            "nodes: edges are scored for targets of nodes, and classes of whole graphs have no "
            "training nodes"
        )
        raise ValueError(message)
    _require_unweighted(data)


def _require_parts(data: Any) -> None:
    kind = type(data).__name__
    if getattr(data, "node_types", None) is not None:
        message = (
            f"the data is a {kind} with several types of nodes, {_WHOLE}: one kind of node and of "
            "edge; data.to_homogeneous() makes one, if the network was trained on it"
        )
        raise TypeError(message)
    missing = [name for name in ("x", "edge_index", "y") if getattr(data, name, None) is None]
    if missing == ["edge_index"] and getattr(data, "adj_t", None) is not None:
        message = (
            "the data has adj_t and no edge_index, expected edge_index (2, number of edges): set "
            "row, column, _ = data.adj_t.coo(); data.edge_index = torch.stack([column, row]), and "
            "pass a network that reads it"
        )
        raise TypeError(message)
    if missing:
        message = (
            f"the data is a {kind} without {missing}, {_WHOLE}; loaders that sample neighborhoods "
            "change degrees and leave edges out, so that no score would be right"
        )
        raise TypeError(message)
    for name in ("x", "edge_index", "y"):
        value = getattr(data, name)
        if not isinstance(value, Tensor):
            message = f"data.{name} is a {type(value).__name__}, expected a torch.Tensor"
            raise TypeError(message)
        if value.layout != torch.strided:
            advice = (
                "pass its .indices()"
                if name == "edge_index"
                else f"set data.{name} = data.{name}.to_dense()"
            )
            message = f"data.{name} is sparse ({value.layout}), expected a dense tensor; {advice}"
            raise TypeError(message)


def _require_features(x: Tensor) -> None:
    if x.ndim != 2:
        message = f"data.x has shape {tuple(x.shape)}, expected (nodes, features)"
        raise ValueError(message)
    bad = ~torch.isfinite(x).all(1)
    if bool(bad.any()):
        message = (
            f"the features of {int(bad.sum())} nodes (such as node {int(bad.nonzero()[0, 0])}) are "
            "NaN or infinite, expected finite ones: they would spread to all scores; impute them "
            "as in training"
        )
        raise ValueError(message)


def _require_unweighted(data: Any) -> None:
    for name in ("edge_weight", "edge_attr"):
        value = getattr(data, name, None)
        one_each = isinstance(value, Tensor) and value.numel() == data.edge_index.shape[1]
        if one_each and not bool((value == 1).all()):
            seen = {"edge_weight": "edge weights", "edge_attr": "an edge_attr of one number each"}
            message = (
                f"the data has {seen[name]} other than 1, expected an unweighted graph: removing "
                f"an edge is not defined apart from its weight; drop data.{name} if the network "
                "was trained without it"
            )
            raise ValueError(message)


def require_two_inputs(module: nn.Module) -> None:
    """Refuse a network that cannot be called as ``module(x, edge_index)``.

    Raises
    ------
    TypeError
        If its ``forward`` takes fewer inputs, or needs more.
    """
    found = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in found):
        return
    places = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in places if p.default is p.empty]
    if len(places) < 2 or len(needed) > 2:
        names = ", ".join(p.name for p in places)
        message = (
            f"{type(module).__name__}.forward takes ({names}), expected (x, edge_index) and at "
            "most edge_weight=None after them; wrap it in a module whose forward takes those and "
            "calls it, with no edge features"
        )
        raise TypeError(message)


def require_rows_of_nodes(outputs: Tensor, num_nodes: int) -> None:
    """Refuse outputs that are not one row a node.

    Raises
    ------
    ValueError
        If they have another shape.
    """
    if outputs.ndim != 2 or len(outputs) != num_nodes:
        message = (
            f"the network returned outputs of shape {tuple(outputs.shape)}, expected a row for "
            f"each node, ({num_nodes}, C): one that pools nodes classifies graphs, and has no "
            "training nodes"
        )
        raise ValueError(message)


def require_uncached(module: nn.Module) -> None:
    """Refuse a network whose outputs would not follow the edges.

    Raises
    ------
    ValueError
        If convolutions cache their normalization, or BatchNorm is in train mode.
    """
    for name, part in module.named_modules():
        if getattr(part, "cached", False):
            message = (
                f"{name or 'the module'} ({type(part).__name__}) has cached=True, expected False: "
                "it would go on using the normalization of the graph that it saw first; build it "
                "with cached=False and load the same state_dict"
            )
            raise ValueError(message)
        if part.training and "BatchNorm" in type(part).__name__:
            message = (
                f"{name or 'the module'} ({type(part).__name__}) is in train mode, where its batch "
                "statistics couple all nodes, expected evaluation mode: call module.eval() first, "
                "so that the stored statistics are what is analyzed"
            )
            raise ValueError(message)
