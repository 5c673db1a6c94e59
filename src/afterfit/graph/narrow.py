"""Directional derivatives of a graph network on many small graphs, with the wide features gone.

The features enter most networks through a product with weights, ``X Wᵀ`` with some aggregation
before or after, and neither that product nor its derivative ``X Uᵀ`` along a direction U depends on
the edges. So they are computed once, and the network is run on the features ``[X Wᵀ, X Uᵀ]`` with
weights ``[I, 0]`` and the tangent ``[0, I]`` instead: the same outputs, and the same derivatives,
from 32 columns in place of 1,433. For SGC this is the projection onto 2C columns. Whether a network
is of that kind is seen by trying; one that is not (a maximum over neighbors, normalized features)
keeps its features.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.problem import GraphProblem, call
from afterfit.problem._autodiff import jvp
from afterfit.problem.problem import Problem
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class Narrow:
    """A network at a point with a direction, on features of its own."""

    problem: Problem
    x: Float[Tensor, "V D"]
    params: Params
    tangent: Params

    def __call__(
        self, nodes: Int[Tensor, " S"], edge_index: Int[Tensor, "2 M"]
    ) -> Float[Tensor, "S D2"]:
        """Outputs and their derivatives along the direction, side by side."""
        x = self.x[nodes]
        pair = jvp(lambda at: call(self.problem, at, x, edge_index), self.params, self.tangent)
        return torch.cat([part.detach() for part in pair], 1)


def narrowed(problem: GraphProblem, direction: Params) -> Narrow:
    """Project the features where that changes nothing, and leave them where it would."""
    whole = Narrow(problem.problem, problem.x, problem.problem.params, dict(direction))
    width = problem.x.shape[1]
    names = [n for n, p in whole.params.items() if p.ndim == 2 and p.shape[1] == width]
    size = 2 * sum(len(whole.params[name]) for name in names)
    if not names or 2 * size > width:
        return whole
    found = _project(whole, names, size)
    return found if _agree(problem.edges, whole, found) else whole


def _project(whole: Narrow, names: list[str], size: int) -> Narrow:
    columns, params, tangent = [], dict(whole.params), dict(whole.tangent)
    start = 0
    for name in names:
        rows = len(whole.params[name])
        columns += [whole.x @ whole.params[name].T, whole.x @ whole.tangent[name].T]
        chosen = torch.eye(size).to(whole.x)
        params[name] = chosen[start : start + rows]
        tangent[name] = chosen[start + rows : start + 2 * rows]
        start += 2 * rows
    return Narrow(whole.problem, torch.cat(columns, 1), params, tangent)


def _agree(edges: EdgeList, whole: Narrow, narrow: Narrow) -> bool:
    """Compare on the graph and on a random half of it."""
    generator = Generator().manual_seed(0)
    half = torch.rand(edges.num_edges, generator=generator) < 0.5
    nodes = torch.arange(edges.num_nodes, device=whole.x.device)
    for graph in (edges, edges.without(half.nonzero()[:, 0].to(nodes.device))):
        try:
            found = narrow(nodes, graph.edge_index())
        except (RuntimeError, ValueError):  # a layer that asks for the width it was built with
            return False
        expected = whole(nodes, graph.edge_index())
        rounding = torch.finfo(expected.dtype).eps ** 0.75 * (1 + float(expected.abs().max()))
        if float((found - expected).abs().max()) > rounding:
            return False
    return True
