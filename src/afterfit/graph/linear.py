"""Networks that are linear in their parameters: SGC, for which much has a closed form."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix, diags, identity
from torch import Tensor, nn

from afterfit.graph._geometric import SGConv
from afterfit.graph.balls import neighbors
from afterfit.graph.edges import EdgeList
from afterfit.problem.problem import Problem
from afterfit.typing import Params

_EDGES_OF_A_PART = 200


@final
@dataclass(frozen=True)
class LinearNetwork:
    """Outputs ``S^K X Wᵀ + b`` with ``S = D^(−½) (A + I) D^(−½)``: SGC (Wu et al. 2019).

    Attributes
    ----------
    hops
        K.
    weight, bias
        Names of the parameters W (C, F) and b (C,); a network may have no bias.
    """

    hops: int
    weight: str
    bias: str | None

    def outputs(
        self, params: Params, x: Float[Tensor, "V F"], edges: EdgeList
    ) -> Float[Tensor, "V C"]:
        """Outputs of all nodes, the features multiplied first."""
        rows = x @ params[self.weight].T
        for _ in range(self.hops):
            rows = propagate(rows, edges)
        return rows if self.bias is None else rows + params[self.bias]

    def narrowed(
        self, problem: Problem, x: Float[Tensor, "V F"]
    ) -> tuple[Params, Float[Tensor, "V C"]]:
        """Parameters and features of the same network with the features multiplied first."""
        weight = problem.params[self.weight]
        return {**problem.params, self.weight: torch.eye(len(weight)).to(weight)}, x @ weight.T

    def features(
        self, x: Float[Tensor, "V F"], edges: EdgeList, nodes: Int[Tensor, " N"]
    ) -> Float[Tensor, "N F"]:
        """Rows of ``S^K X`` of some nodes, float64."""
        matrix = normalized(edges)
        rows = csr_matrix(csr_matrix(identity(edges.num_nodes))[nodes.cpu().numpy().copy()])
        for _ in range(self.hops):
            rows = rows @ matrix
        return torch.from_numpy(rows @ x.detach().double().cpu().numpy()).to(x.device)

    def pull(
        self, cotangent: Float[Tensor, "V C"], x: Float[Tensor, "V F"], edges: EdgeList
    ) -> dict[str, Tensor]:
        """Gradient in the parameters of a number whose gradient in the outputs is given."""
        rows = cotangent
        for _ in range(self.hops):
            rows = propagate(rows, edges)  # S is symmetric
        parts = {self.weight: rows.T @ x}
        return parts if self.bias is None else {**parts, self.bias: cotangent.sum(0)}


def find_linear(
    module: nn.Module, problem: Problem, x: Float[Tensor, "V F"], edges: EdgeList
) -> LinearNetwork | None:
    """Recognize SGC, and see that it is nothing else.

    Wide features are never sent along all edges: the module itself runs on a part of the graph, and
    on all of it with the features ``X Wᵀ`` and weights I.
    """
    layers = {n: part for n, part in module.named_modules() if isinstance(part, SGConv)}
    if len(layers) != 1 or edges.directions != 2:
        return None
    ((name, layer),) = layers.items()
    prefix = f"{name}." if name else ""
    names = (f"{prefix}lin.weight", f"{prefix}lin.bias")
    known = set(problem.params)
    if names[0] not in known or not known <= set(names):
        return None
    found = LinearNetwork(layer.K, names[0], names[1] if names[1] in known else None)
    nodes, part = _part(edges)
    narrow = found.narrowed(problem, x)
    same = _agrees(found, problem, problem.params, x[nodes], part)
    return found if same and _agrees(found, problem, *narrow, edges) else None


def _part(edges: EdgeList) -> tuple[Int[Tensor, " S"], EdgeList]:
    """Nodes of the first edges, and those edges with the loops of the nodes, numbered anew."""
    nodes, pairs = edges.pairs[:_EDGES_OF_A_PART].unique(return_inverse=True)
    if not len(nodes):
        nodes = torch.arange(min(edges.num_nodes, _EDGES_OF_A_PART), device=nodes.device)
    loops = torch.isin(nodes, edges.loops).nonzero()[:, 0]
    return nodes, EdgeList(pairs, loops, len(nodes), edges.directions)


def _agrees(
    found: LinearNetwork, problem: Problem, params: Params, x: Tensor, edges: EdgeList
) -> bool:
    with torch.no_grad():
        try:
            outputs = problem.forward(params, (x, edges.edge_index()))
        except (RuntimeError, ValueError):  # a network that asks for the width it was built with
            return False
        formula = found.outputs(params, x, edges)
    rounding = torch.finfo(x.dtype).eps ** 0.75 * (1 + float(outputs.abs().max()))
    return outputs.shape == formula.shape and bool((outputs - formula).abs().max() < rounding)


def normalized(edges: EdgeList) -> csr_matrix:
    """``S = D^(−½) (A + I) D^(−½)`` as a sparse matrix, float64."""
    pattern = neighbors(edges).astype(np.float64)
    scale = diags(np.asarray(pattern.sum(1)).ravel() ** -0.5)
    return csr_matrix(scale @ pattern @ scale)


def degrees(edges: EdgeList, like: Tensor) -> Float[Tensor, " V"]:
    """Degrees, the added self loop included."""
    counts = torch.bincount(edges.pairs.flatten(), minlength=edges.num_nodes)
    return (counts + 1).to(like)


def propagate(rows: Float[Tensor, "V R"], edges: EdgeList) -> Float[Tensor, "V R"]:
    """Multiply by ``S = D^(−½) (A + I) D^(−½)``."""
    scale = degrees(edges, rows).rsqrt()[:, None]
    scaled = scale * rows
    u, v = edges.pairs.T
    total = scaled.clone()
    total.index_add_(0, u, scaled[v])
    total.index_add_(0, v, scaled[u])
    return scale * total
