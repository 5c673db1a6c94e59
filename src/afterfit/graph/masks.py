"""Nodes of a part of a graph, from a mask, from positions, or from the name of one in the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Mask = str | Tensor | np.ndarray | Sequence[bool] | Sequence[int]
"""Nodes: the name of a mask in the data, a mask (V,) of booleans or of 0 and 1, or positions (N,).

Tensors, numpy arrays and lists are taken alike.
"""


def nodes_of(data: Any, mask: Mask, num_nodes: int) -> Int[Tensor, " N"]:
    """Positions of the nodes that a mask means, on the device of the features.

    Raises
    ------
    ValueError
        If there is no such mask, or it holds no node, fits not the number of nodes, names a node
        twice or an unknown one, or could be a mask as well as positions.
    TypeError
        If it holds neither numbers nor booleans.
    """
    name = mask if isinstance(mask, str) else "the mask"
    given = getattr(data, mask, None) if isinstance(mask, str) else mask
    if given is None:
        message = f"the data has no {name!r}, expected a mask; pass a mask or positions of nodes"
        raise ValueError(message)
    values = _as_tensor(name, given)
    if values.ndim != 1:
        message = (
            f"{name} has shape {tuple(values.shape)}, expected ({num_nodes},): it holds several "
            "splits, pass one of its columns"
        )
        raise ValueError(message)
    if values.dtype == torch.bool and len(values) != num_nodes:
        message = f"{name} has {len(values)} entries for {num_nodes} nodes, expected as many"
        raise ValueError(message)
    found = values.nonzero()[:, 0] if _is_mask(name, values, num_nodes) else values.long()
    if not len(found):
        message = f"{name} holds no node, expected at least one"
        raise ValueError(message)
    _require_nodes_once(name, found, num_nodes)
    return found.to(data.x.device)


def nodes_or_none(data: Any, mask: Mask, num_nodes: int) -> Int[Tensor, " N"]:
    """Positions of the nodes that a mask means; none where the data has no mask of that name."""
    if isinstance(mask, str) and getattr(data, mask, None) is None:
        return torch.zeros(0, dtype=torch.long, device=data.x.device)
    return nodes_of(data, mask, num_nodes)


def require_disjoint(**parts: Int[Tensor, " _"]) -> None:
    """Refuse nodes that stand in two parts.

    Raises
    ------
    ValueError
        If two parts share a node.
    """
    names = list(parts)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            shared = parts[one][torch.isin(parts[one], parts[other])]
            if len(shared):
                message = (
                    f"{len(shared)} nodes stand in {one} and in {other} (such as node "
                    f"{int(shared[0])}), expected none: a loss on nodes that were trained on or "
                    "chosen by says nothing of others; take them out of one of the two"
                )
                raise ValueError(message)


def _as_tensor(name: str, given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach()
    array = np.array(given)
    if array.dtype.kind not in "biuf":
        message = (
            f"{name} holds {array.dtype} values, expected a mask of booleans or positions of nodes"
        )
        raise TypeError(message)
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else array)


def _is_mask(name: str, values: Tensor, num_nodes: int) -> bool:
    """Whether values are a mask; what has an entry for each node, all of them 0 or 1, is one."""
    if values.dtype == torch.bool:
        return True
    binary = bool(((values == 0) | (values == 1)).all())
    if binary and len(values) == num_nodes and len(values):
        if len(values.unique()) == len(values) and not values.is_floating_point():
            message = (
                f"{name} is {values.tolist()}, which is a mask of {num_nodes} nodes and could as "
                "well be positions, expected one of them: make a mask boolean"
            )
            raise ValueError(message)
        return True
    if values.is_floating_point() and len(values):
        message = (
            f"{name} holds {values.dtype} values, expected booleans, or 0 and 1 for each of the "
            f"{num_nodes} nodes, or positions as integers"
        )
        raise ValueError(message)
    return False


def _require_nodes_once(name: str, found: Tensor, num_nodes: int) -> None:
    nodes, counts = found.unique(return_counts=True)
    if int(nodes[0]) < 0 or int(nodes[-1]) >= num_nodes:
        unknown = int(nodes[0]) if int(nodes[0]) < 0 else int(nodes[-1])
        message = (
            f"{name} names node {unknown} of {num_nodes} nodes, expected positions from 0 to "
            f"{num_nodes - 1}"
        )
        raise ValueError(message)
    if int(counts.max()) > 1:
        often = int(counts.argmax())
        message = (
            f"{name} names node {int(nodes[often])} {int(counts[often])} times, expected each "
            f"once; a mask of 0 and 1 has an entry for each of the {num_nodes} nodes, and this has "
            f"{len(found)}"
        )
        raise ValueError(message)
