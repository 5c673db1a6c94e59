"""A trained graph network and its graph: nodes are the samples, edges are what is scored."""

import inspect
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from afterfit.graph.accepted import (
    require_rows_of_nodes,
    require_two_inputs,
    require_uncached,
    require_whole_graph,
)
from afterfit.graph.edges import EdgeList, Symmetrize, union
from afterfit.graph.linear import LinearNetwork, find_linear
from afterfit.graph.masks import Mask, nodes_of, nodes_or_none, require_disjoint
from afterfit.graph.reach import Reach, find_reach
from afterfit.problem.likelihood import Categorical, Likelihood
from afterfit.problem.problem import Problem, move
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class GraphProblem:
    """What was trained, on which nodes and edges.

    Attributes
    ----------
    problem
        The network, its parameters and the likelihood.
    edges
        The graph that feeds the training loss, and whose edges are scored.
    read_on
        The graph on which targets are read: the one that the problem was made with. It stays when
        :meth:`with_edges` changes ``edges``, as in Song, Kim, Yang (2023): edges are removed from
        what the network is trained on, and validation and test losses are those of the given graph.
    x
        Features (V, F).
    y
        Targets, one row a node.
    train, validation, test
        Nodes whose losses were minimized, nodes to choose edges by, nodes to report on; positions.
    reach
        How far outputs depend on features and on edges.
    weighted
        Whether the network takes edge weights and treats an edge of weight 0 as one that is absent.
    linear
        What the network is if it is linear in its parameters (SGC); None otherwise.
    """

    problem: Problem
    edges: EdgeList
    read_on: EdgeList
    x: Float[Tensor, "V F"]
    y: Tensor
    train: Int[Tensor, " N"]
    validation: Int[Tensor, " N2"]
    test: Int[Tensor, " N3"]
    reach: Reach
    weighted: bool
    linear: LinearNetwork | None

    @property
    def num_nodes(self) -> int:
        """Number of nodes V."""
        return self.edges.num_nodes

    @property
    def likelihood(self) -> Likelihood:
        """Turns outputs and targets into losses in nats."""
        return self.problem.likelihood

    def forward(
        self, params: Params, edge_index: Int[Tensor, "2 M"], weights: Tensor | None = None
    ) -> Float[Tensor, "V C"]:
        """Outputs of all nodes, at any parameters, on any edges."""
        return call(self.problem, params, self.x, edge_index, weights)

    def outputs(self, edges: EdgeList) -> Float[Tensor, "V C"]:
        """Outputs of all nodes at the trained parameters."""
        params = self.problem.params
        if self.linear is not None:
            return self.linear.outputs(params, self.x, edges)
        with torch.no_grad():
            return self.forward(params, edges.edge_index())

    def train_losses(self, outputs: Float[Tensor, "V C"]) -> Float[Tensor, " N"]:
        """Losses of the training nodes in nats."""
        return self.likelihood.loss(outputs[self.train], self.y[self.train])

    def with_edges(self, edges: EdgeList) -> "GraphProblem":
        """Change the graph that feeds the training loss; targets are read where they were."""
        return replace(self, edges=edges)

    def with_module(self, module: nn.Module) -> "GraphProblem":
        """Take over the parameters and buffers of a module of the same architecture.

        Raises
        ------
        ValueError
            If its parameters have other names or shapes, or are not finite, its convolutions cache
            their normalization, or its BatchNorm is in train mode.
        """
        require_uncached(module)
        fresh = Problem.from_module(module, self.likelihood)
        if _shapes(fresh.params) != _shapes(self.problem.params):
            message = (
                f"the module's parameters are {_shapes(fresh.params)}, expected those of the "
                f"problem, {_shapes(self.problem.params)}: train the same architecture"
            )
            raise ValueError(message)
        return replace(self, problem=fresh)


def call(
    problem: Problem, params: Params, x: Tensor, edge_index: Tensor, weights: Tensor | None = None
) -> Float[Tensor, "V C"]:
    """Run a graph network on any features and edges."""
    inputs = (x, edge_index) if weights is None else (x, edge_index, weights)
    return problem.forward(params, inputs)


def graph_problem(
    module: nn.Module,
    data: Any,
    likelihood: Likelihood = Categorical(),
    *,
    train: Mask = "train_mask",
    validation: Mask = "val_mask",
    test: Mask = "test_mask",
    symmetrize: Symmetrize = union,
    reach: Reach | None = None,
) -> GraphProblem:
    """Bind a trained graph network to its graph.

    Parameters
    ----------
    module
        Takes ``(x, edge_index)`` or ``(x, edge_index, edge_weight)`` and returns outputs (V, C). It
        is copied, and never touched; the graph is moved to its device.
    data
        A ``torch_geometric.data.Data``, or any object with ``x``, ``edge_index`` and ``y``.
        Duplicate edges are one edge; isolated nodes stay; self loops stay and are not scored.
    train, validation, test
        Names of masks in the data, masks (booleans, or 0 and 1), or positions of nodes; tensors,
        numpy arrays or lists. No node is in two of them. A test mask may be missing.
    symmetrize
        `union`: edges are undirected, whichever direction is given; `upper`: as the authors' code
        of RGE reads graphs; `directed`: each direction is an edge of its own.
    reach
        How far the network reads. By default it is found by running the network on small graphs.

    Raises
    ------
    ValueError
        If convolutions cache their normalization, BatchNorm is in train mode, a mask has no nodes
        or does not fit, two masks share a node, the graph was sampled, edges have weights or name
        unknown nodes, features are not finite, targets or outputs do not fit the nodes, or the
        network couples all nodes.
    TypeError
        If the data is not one whole graph, or the network does not take ``(x, edge_index)``.

    References
    ----------
    Song, Kim, Yang (2023), "RGE: A repulsive graph rectification for node classification via
    influence", ICML, PMLR 202:32331.
    """
    require_whole_graph(data)
    require_uncached(module)
    require_two_inputs(module)
    problem = Problem.from_module(module, likelihood)
    x, y, pairs = move((data.x.detach(), data.y.detach(), data.edge_index.detach()), problem.device)
    edges = symmetrize(pairs, len(x))
    nodes = [nodes_of(data, mask, len(x)).to(problem.device) for mask in (train, validation)]
    tested = move(nodes_or_none(data, test, len(x)), problem.device)
    require_disjoint(train=nodes[0], validation=nodes[1], test=tested)
    linear = find_linear(module, problem, x, edges)
    params, features = linear.narrowed(problem, x) if linear else (problem.params, x)
    with torch.no_grad():
        found = call(problem, params, features, edges.edge_index())
    require_rows_of_nodes(found, len(x))
    for index in nodes:
        problem.likelihood.check(found[index], y[index])
    return GraphProblem(
        problem=problem,
        edges=edges,
        read_on=edges,
        x=x,
        y=y,
        train=nodes[0],
        validation=nodes[1],
        test=tested,
        reach=_reach(problem, x) if reach is None else reach,
        weighted=_weights_are_edges(module, replace(problem, params=params), features, edges),
        linear=linear,
    )


def _reach(problem: Problem, x: Tensor) -> Reach:
    buffers = {n: b.double() if b.is_floating_point() else b for n, b in problem.buffers.items()}

    def network(params: Params, features: Tensor, edge_index: Tensor) -> Tensor:
        return call(problem, {**buffers, **params}, features, edge_index)

    return find_reach(network, problem.params, x.shape[1])


def _weights_are_edges(module: nn.Module, problem: Problem, x: Tensor, edges: EdgeList) -> bool:
    """Whether the network takes weights, and weight 0 acts as removal does."""
    names = list(inspect.signature(module.forward).parameters)
    if len(names) < 3 or "weight" not in names[2] or edges.num_edges < 2:
        return False
    generator = Generator().manual_seed(0)
    kept = torch.rand(edges.num_edges, generator=generator).to(x.device) < 0.5
    owners, edge_index = edges.owners(), edges.edge_index()
    weights = torch.where(owners < 0, 1.0, kept[owners.clamp_min(0)].to(x.dtype)).to(x)
    fewer = edges.without((~kept).nonzero()[:, 0])
    with torch.no_grad():
        weighted = call(problem, problem.params, x, edge_index, weights)
        whole = call(problem, problem.params, x, edge_index)
        removed = call(problem, problem.params, x, fewer.edge_index())
    scale = float((whole - removed).abs().max())
    return scale > 0 and float((weighted - removed).abs().max()) <= 1e-3 * scale


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in params.items()}
