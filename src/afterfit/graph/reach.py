"""How far a network reads: found by editing small graphs and looking which outputs move.

Removing an edge changes the outputs of the nodes near it. How near follows from the layers, but
layers do not say: symmetric normalization reads the degrees of the senders and so reaches one hop
further than attention does, and users write layers of their own. So the network is asked. It is run
on a caterpillar (a long path, every node of it with a leaf), with random features and random
parameters, and the distance of the farthest edit that moves the output at one end is noted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.typing import Params

Network = Callable[[Params, Tensor, Tensor], Tensor]
"""``network(params, x, edge_index)`` gives outputs (V, C)."""

_LONGEST, _COPIES, _ROUNDING = 96, 4, 1e-13


@final
@dataclass(frozen=True)
class Reach:
    """Distances within which an output depends on features and on edges.

    Attributes
    ----------
    hops
        An output depends on the features of nodes within this many hops; K of a network with K
        message-passing layers.
    edges
        Removing or inserting the edge (u, v) changes the outputs of nodes within this many hops of
        u or v, and of no others: K under symmetric normalization, K − 1 where normalization is over
        the receiver's own edges.
    """

    hops: int
    edges: int


def find_reach(network: Network, params: Params, num_features: int, seed: int = 0) -> Reach:
    """Edit caterpillars of growing length until the far end no longer matters.

    Raises
    ------
    ValueError
        If outputs depend on nodes that no path leads to (batch statistics, GraphNorm, a virtual
        node), or on nodes at any distance.
    """
    points = [_double(params), _random(params, seed)]
    length = 6
    while length <= _LONGEST:
        hops = max(_feature_distance(network, at, num_features, length, seed) for at in points)
        edges = max(_edge_distance(network, at, num_features, length, seed) for at in points)
        if max(hops, edges) < length - 2:
            return Reach(hops, edges)
        length *= 2
    message = (
        f"outputs depend on nodes more than {length // 2 - 2} hops away, expected a network with a "
        "number of message-passing steps that is fixed and smaller; every edge would reach every "
        "node"
    )
    raise ValueError(message)


def _double(params: Params) -> dict[str, Tensor]:
    return {name: p.double() if p.is_floating_point() else p for name, p in params.items()}


def _random(params: Params, seed: int) -> dict[str, Tensor]:
    """Other values of the same shapes, under which no unit is dead and no weight zero."""
    generator = Generator().manual_seed(seed)

    def drawn(p: Tensor) -> Tensor:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        return noise.to(p.device) / max(1, p.shape[-1] if p.ndim > 1 else 1) ** 0.5

    return {name: drawn(p) if p.is_floating_point() else p for name, p in params.items()}


def _caterpillar(length: int) -> Int[Tensor, "2 M"]:
    """Path 0 … length − 1; node i has the leaf length + i."""
    path = torch.stack([torch.arange(length - 1), torch.arange(1, length)])
    legs = torch.stack([torch.arange(length), torch.arange(length, 2 * length)])
    one_way = torch.cat([path, legs], 1)
    return torch.cat([one_way, one_way.flip(0)], 1)


def _together(graphs: list[Tensor], size: int) -> Int[Tensor, "2 M"]:
    return torch.cat([graph + size * i for i, graph in enumerate(graphs)], 1)


def _run(
    network: Network, at: Params, x: Float[Tensor, "K S F"], graphs: list[Tensor]
) -> Float[Tensor, "K S C"]:
    device = next(iter(at.values())).device
    edge_index = _together(graphs, x.shape[1]).to(device)
    with torch.no_grad():
        found = network(at, x.flatten(0, 1).to(device), edge_index)
    return found.view(*x.shape[:2], -1).cpu()


def _features(num_features: int, length: int, seed: int) -> Float[Tensor, "K S F"]:
    generator = Generator().manual_seed(seed)
    shape = (_COPIES, 2 * length, num_features)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _farthest(moved: list[bool]) -> int:
    return max((i for i, is_moved in enumerate(moved) if is_moved), default=-1)


def _feature_distance(
    network: Network, at: Params, num_features: int, length: int, seed: int
) -> int:
    """Distance of the farthest node whose features move the output at node 0."""
    x = _features(num_features, length, seed)
    graphs = [_caterpillar(length)] * _COPIES
    base = _run(network, at, x, graphs)
    moved = []
    for node in range(length):
        other = x.clone()
        other[1:, node] += 1 + x[1:, node].abs()
        moved.append(_end_moves(base, _run(network, at, other, graphs)))
    return _farthest(moved)


def _edge_distance(network: Network, at: Params, num_features: int, length: int, seed: int) -> int:
    """Distance from node 0 of the nearer end of the farthest edge whose removal moves its output.

    At each distance the next edge of the path and the leaf's edge are removed in turn.
    """
    x = _features(num_features, length, seed)
    whole = _caterpillar(length)
    base = _run(network, at, x, [whole] * _COPIES)
    moved = []
    for node in range(length - 1):
        ends = []
        for other in (node + 1, length + node):
            pair = torch.tensor([node, other])[:, None]
            gone = (whole == pair).all(0) | (whole == pair.flip(0)).all(0)
            graphs = [whole, *[whole[:, ~gone]] * (_COPIES - 1)]
            ends.append(_end_moves(base, _run(network, at, x, graphs)))
        moved.append(any(ends))
    return _farthest(moved)


def _end_moves(base: Float[Tensor, "K S C"], edited: Float[Tensor, "K S C"]) -> bool:
    """Whether node 0 moved in an edited copy; the first copy is untouched and must not move."""
    change = (edited - base).abs().amax(-1)
    scale = _ROUNDING * (1 + float(base.abs().max()))
    if float(change[0].max()) > scale:
        message = (
            "a node's output moved when another part of the graph, not connected with it, was "
            "edited: the network couples all nodes (batch statistics in BatchNorm without running "
            "ones, GraphNorm, PairNorm, a virtual node), expected outputs that depend on a node's "
            "neighborhood; every edge would reach every node"
        )
        raise ValueError(message)
    return bool((change[1:, 0] > scale).any())
