"""What edge influence is by definition: dense matrices, whole graphs, one edge at a time, float64.

Of our own code only the network's function and the list of edges are used.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from afterfit.graph import GraphProblem

Pairs = Sequence[tuple[int, int]]


def leaves(problem: GraphProblem) -> dict[str, Tensor]:
    return {name: p.clone().requires_grad_() for name, p in problem.problem.params.items()}


def gradient(value: Tensor, at: dict[str, Tensor]) -> Tensor:
    parts = torch.autograd.grad(
        value, tuple(at.values()), retain_graph=True, materialize_grads=True
    )
    return torch.cat([part.flatten() for part in parts])


def without(edge_index: Tensor, pairs: Pairs) -> Tensor:
    """Delete both directions of each pair, all copies of them."""
    keep = torch.ones(edge_index.shape[1], dtype=torch.bool)
    for u, v in pairs:
        one = (edge_index[0] == u) & (edge_index[1] == v)
        other = (edge_index[0] == v) & (edge_index[1] == u)
        keep &= ~(one | other)
    return edge_index[:, keep]


def joined(edge_index: Tensor, pairs: Pairs) -> Tensor:
    new = torch.tensor([[*pair] for pair in pairs]).T
    return torch.cat([edge_index, new, new.flip(0)], 1)


def mean_loss(
    problem: GraphProblem, at: dict[str, Tensor], edge_index: Tensor, nodes: Tensor
) -> Tensor:
    outputs = problem.problem.forward(at, (problem.x, edge_index))
    return functional.cross_entropy(outputs[nodes], problem.y[nodes])


def curvature(problem: GraphProblem, edge_index: Tensor) -> Tensor:
    """Mean over training nodes of ``Jᵀ Λ J``."""
    at = leaves(problem)
    outputs = problem.problem.forward(at, (problem.x, edge_index))
    total = torch.zeros(problem.problem.num_params, problem.problem.num_params).double()
    for node in problem.train.tolist():
        jacobian = torch.stack([gradient(output, at) for output in outputs[node]])
        p = outputs[node].detach().softmax(0)
        total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total / len(problem.train)


def solution(problem: GraphProblem, edge_index: Tensor, damping: float, right: Tensor) -> Tensor:
    matrix = curvature(problem, edge_index)
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix)).double(), right)


def target_gradient(problem: GraphProblem) -> Tensor:
    at = leaves(problem)
    edge_index = problem.read_on.edge_index()
    return gradient(mean_loss(problem, at, edge_index, problem.validation), at)


def shifts(
    problem: GraphProblem,
    groups: Sequence[Pairs],
    damping: float,
    edit: Callable[[Tensor, Pairs], Tensor] = without,
) -> Tensor:
    """``−u · (∇L(G′) − ∇L(G))`` for each group of pairs."""
    whole = problem.edges.edge_index()
    at = leaves(problem)
    u = solution(problem, whole, damping, target_gradient(problem))
    before = gradient(mean_loss(problem, at, whole, problem.train), at)
    found = []
    for pairs in groups:
        after = gradient(mean_loss(problem, at, edit(whole, pairs), problem.train), at)
        found.append(-(u @ (after - before)))
    return torch.stack(found)


def isolated(edge_index: Tensor, node: int) -> Tensor:
    """Delete all edges of a node but its self loops."""
    touching = (edge_index == node).any(0) & (edge_index[0] != edge_index[1])
    return edge_index[:, ~touching]


def total_loss(
    problem: GraphProblem, at: dict[str, Tensor], x: Tensor, edge_index: Tensor, nodes: list[int]
) -> Tensor:
    outputs = problem.problem.forward(at, (x, edge_index))
    return functional.cross_entropy(outputs[nodes], problem.y[nodes], reduction="sum")


def node_shifts(problem: GraphProblem, nodes: Sequence[int], damping: float) -> Tensor:
    """``−u · (Σ_{v≠i} ∇ℓ_v(G′) − Σ_v ∇ℓ_v(G)) / N`` for each node i taken away."""
    whole, at = problem.edges.edge_index(), leaves(problem)
    u = solution(problem, whole, damping, target_gradient(problem))
    train = problem.train.tolist()
    before = gradient(total_loss(problem, at, problem.x, whole, train), at)
    found = []
    for node in nodes:
        left = [v for v in train if v != node]
        after = total_loss(problem, at, problem.x, isolated(whole, node), left)
        found.append(-(u @ (gradient(after, at) - before)) / len(train))
    return torch.stack(found)


def with_row(problem: GraphProblem, node: int, row: Tensor) -> Tensor:
    x = problem.x.clone()
    x[node] = row
    return x


def feature_shifts(
    problem: GraphProblem, nodes: Sequence[int], rows: Tensor, damping: float
) -> Tensor:
    """``−u · (∇L(X′) − ∇L(X))`` for each node with another row of features."""
    whole, at = problem.edges.edge_index(), leaves(problem)
    u = solution(problem, whole, damping, target_gradient(problem))
    train = problem.train.tolist()
    before = gradient(total_loss(problem, at, problem.x, whole, train), at)
    found = []
    for node, row in zip(nodes, rows, strict=True):
        after = total_loss(problem, at, with_row(problem, node, row), whole, train)
        found.append(-(u @ (gradient(after, at) - before)) / len(train))
    return torch.stack(found)


def validation_losses(problem: GraphProblem, graphs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean validation loss on each pair of features and edges."""
    at, nodes = leaves(problem), problem.validation.tolist()
    found = [total_loss(problem, at, x, edges, nodes).detach() / len(nodes) for x, edges in graphs]
    return torch.stack(found)


def newton_shifts(
    problem: GraphProblem, groups: Sequence[Pairs], damping: float, weight_decay: float
) -> Tensor:
    """Change of the target by a Newton step on the edited graph, less that on the graph."""
    at = leaves(problem)
    theta = torch.cat([p.detach().flatten() for p in at.values()])
    right = target_gradient(problem)

    def step(edge_index: Tensor) -> Tensor:
        loss = mean_loss(problem, at, edge_index, problem.train)
        slope = gradient(loss, at) + weight_decay * theta
        return right @ solution(problem, edge_index, damping, slope)

    whole = problem.edges.edge_index()
    return torch.stack([step(whole) - step(without(whole, pairs)) for pairs in groups])


def propagations(
    problem: GraphProblem,
    groups: Sequence[Pairs],
    edit: Callable[[Tensor, Pairs], Tensor] = without,
) -> Tensor:
    """Validation loss on the edited graph less that on the graph, at the same parameters."""
    whole = problem.read_on.edge_index()
    at = leaves(problem)
    before = mean_loss(problem, at, whole, problem.validation)
    after = [
        mean_loss(problem, at, edit(whole, pairs), problem.validation).detach() for pairs in groups
    ]
    return torch.stack(after) - before.detach()


def weight_derivatives(problem: GraphProblem, damping: float, step: float = 1e-5) -> Tensor:
    """Derivative of ``u · ∇L`` in each edge's weight, by central differences."""
    whole, owners = problem.edges.edge_index(), problem.edges.owners()
    at = leaves(problem)
    u = solution(problem, whole, damping, target_gradient(problem))

    def along(weights: Tensor) -> Tensor:
        expanded = torch.where(owners < 0, 1.0, weights[owners.clamp_min(0)])
        outputs = problem.problem.forward(at, (problem.x, whole, expanded))
        loss = functional.cross_entropy(outputs[problem.train], problem.y[problem.train])
        return u @ gradient(loss, at)

    ones = torch.ones(problem.edges.num_edges).double()
    moves = step * torch.eye(len(ones)).double()
    return torch.stack([(along(ones + m) - along(ones - m)) / (2 * step) for m in moves])


def as_groups(pairs: Tensor) -> list[Pairs]:
    return [[(int(u), int(v))] for u, v in pairs]
