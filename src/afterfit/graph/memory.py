"""What one derivative in the edge weights of a graph will take, from the same on tiny graphs."""

import torch
from torch import Generator, Tensor

from afterfit.graph.problem import GraphProblem, call
from afterfit.problem._autodiff import jvp
from afterfit.problem.persample import GIBIBYTE
from afterfit.typing import Params

_NODES, _COLUMNS, _BACKWARD = 64, 256, 1.5


def weight_derivative_bytes(problem: GraphProblem, num_columns: int) -> int:
    """Estimate the bytes of a backward pass through a derivative along parameters.

    Message passing keeps so many bytes a node, so many a column of ``edge_index``, and some that
    depend on neither. The three numbers are read off three tiny graphs, and half is added for what
    the backward pass itself holds at a time.

    Parameters
    ----------
    num_columns
        Of the ``edge_index``: twice the edges, and the loops.
    """
    base = _kept_bytes(problem, _NODES, _COLUMNS)
    per_node = (_kept_bytes(problem, 2 * _NODES, _COLUMNS) - base) / _NODES
    per_column = (_kept_bytes(problem, _NODES, 2 * _COLUMNS) - base) / _COLUMNS
    nodes, columns = problem.num_nodes - _NODES, num_columns - _COLUMNS
    return round(_BACKWARD * max(0.0, base + per_node * nodes + per_column * columns))


def require_memory(problem: GraphProblem, num_columns: int, memory_budget: int) -> None:
    """Refuse a graph that a budget does not hold.

    Raises
    ------
    ValueError
        If the estimate is above the budget.
    """
    need = weight_derivative_bytes(problem, num_columns)
    if need > memory_budget:
        message = (
            f"the derivative in the weights of {num_columns:,} columns of edge_index needs about "
            f"{need / GIBIBYTE:.3g} GiB, and memory_budget is {memory_budget / GIBIBYTE:.3g} GiB, "
            "expected at least as much: it is one backward pass over the whole graph, and cannot "
            f"be cut; pass FirstOrder(memory_budget={need}) if the machine has it, or "
            "method=Exact() for the edges that matter"
        )
        raise ValueError(message)


def _kept_bytes(problem: GraphProblem, num_nodes: int, num_columns: int) -> int:
    """Bytes that a pass with tangents keeps for the backward one, on a random graph."""
    generator = Generator().manual_seed(0)
    ends = torch.randint(0, num_nodes, (2, num_columns), generator=generator).to(problem.x.device)
    nodes = problem.train[torch.arange(num_nodes).to(ends) % len(problem.train)]
    x, y, params = problem.x[nodes], problem.y[nodes], problem.problem.params
    leaf = torch.ones(num_columns).to(x).requires_grad_()
    owners = torch.arange(num_columns).to(ends)

    def loss(at: Params) -> Tensor:
        weights = torch.where(owners < 0, torch.ones_like(leaf[:1]), leaf[owners.clamp_min(0)])
        outputs = call(problem.problem, at, x, ends, weights)
        return problem.likelihood.loss(outputs, y).mean()

    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        if not tensor._is_zerotensor():  # the tangent of what does not move takes no memory
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        jvp(loss, params, params)
    return sum(sizes.values())
