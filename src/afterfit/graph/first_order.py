"""All edges of a graph at once by one derivative in their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import Edits
from afterfit.graph.memory import require_memory
from afterfit.graph.method import Query
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target
from afterfit.problem._autodiff import differentiable_attention, jvp
from afterfit.problem.persample import GIBIBYTE, unflatten
from afterfit.typing import Params


@final
@dataclass(frozen=True)
class FirstOrder:
    """Linearized edits: an edge has a weight, and its removal is a step of −1 in it.

    One forward and one backward pass give all edges. The degrees move with the weights, as they
    must. The finite step mostly does more than the linear one, since normalization is convex in
    the degrees. Of the hundred edges with the lowest scores on Cora or CiteSeer (SGC) the exact
    score is 1.2 times this one in the median, .6 to 2 times for four fifths of them, and for single
    edges anything from −4 to 8 times; for the two worst of a graph of 1.5 million edges it was 3
    times. So it ranks edges, and does not say how much or, for single ones, which sign: use it to
    screen, and `Exact` on what it finds.

    Parameters
    ----------
    memory_budget
        Bytes that the passes may take. They read the whole graph and cannot be cut: a graph that
        would take more, as estimated on tiny graphs, is refused.

    References
    ----------
    Heo, Lee, Jung, Kim, Kim (2025), "Influence functions for edge edits in non-convex graph neural
    networks", NeurIPS, arXiv:2506.04694.
    """

    memory_budget: int = 8 * GIBIBYTE
    reference: ClassVar[str] = (
        "Heo et al. (2025), Influence functions for edge edits in non-convex graph neural "
        "networks, NeurIPS, arXiv:2506.04694"
    )

    def shift(self, problem: GraphProblem, edits: Edits, query: Query) -> Float[Tensor, "E K"]:
        params = problem.problem.params

        def along(graph: Callable[[Params], Tensor], u: Tensor) -> Tensor:
            direction = unflatten(u.to(problem.problem.dtype), params)
            _, derivative = jvp(
                lambda at: problem.train_losses(graph(at)).mean(), params, direction
            )
            return -derivative

        directions = query.solved.value.T
        return self._weight_derivatives(
            problem, edits, [lambda graph, u=u: along(graph, u) for u in directions]
        )

    def propagation(
        self, problem: GraphProblem, edits: Edits, targets: Sequence[Target]
    ) -> Float[Tensor, "E K"]:
        params = problem.problem.params
        numbers = [lambda graph, t=target: t(problem, graph(params)) for target in targets]
        return self._weight_derivatives(problem, edits, numbers)

    def _weight_derivatives(
        self,
        problem: GraphProblem,
        edits: Edits,
        numbers: Sequence[Callable[[Callable[[Params], Tensor]], Tensor]],
    ) -> Float[Tensor, "E K"]:
        """Sum over the pairs of each edit of the derivative in its weight, with the edit's sign."""
        require_weighted(problem)
        graph, weights, positions = _weighted_graph(problem, edits)
        edge_index, owners = graph.edge_index(), graph.owners()
        require_memory(problem, edge_index.shape[1], self.memory_budget)
        loops = owners < 0
        columns = []
        for number in numbers:
            leaf = weights.clone().requires_grad_()
            with differentiable_attention(), torch.enable_grad():
                expanded = torch.where(loops, torch.ones_like(leaf[:1]), leaf[owners.clamp_min(0)])
                value = number(lambda at, w=expanded: problem.forward(at, edge_index, w))
                (gradient,) = torch.autograd.grad(value, leaf)
            columns.append(gradient[positions])
        by_pair = torch.stack(columns, 1).double() * (1 if edits.inserts else -1)
        total = by_pair.new_zeros(edits.num_edits, len(numbers))
        return total.index_add_(0, edits.owner.to(total.device), by_pair)


def _weighted_graph(problem: GraphProblem, edits: Edits) -> tuple[EdgeList, Tensor, Tensor]:
    """Edges, their weights (0 for those to insert), and where the edits' pairs stand."""
    if not edits.inserts:
        graph = edits.graph
        return graph, torch.ones(graph.num_edges).to(problem.x), graph.positions(edits.pairs)
    graph = edits.graph.joined(edits.pairs.unique(dim=0))
    weights = torch.zeros(graph.num_edges).to(problem.x)
    weights[graph.positions(edits.graph.pairs)] = 1
    return graph, weights, graph.positions(edits.pairs)


def require_weighted(problem: GraphProblem) -> None:
    """Refuse networks that do not read edge weights as edges.

    Raises
    ------
    ValueError
        If weights are ignored, or weight 0 is not the same as no edge.
    """
    if not problem.weighted:
        message = (
            "the network takes no edge weights, or an edge of weight 0 is not the same to it as no "
            "edge, expected forward(x, edge_index, edge_weight) that passes weights to layers such "
            "as GCNConv; use method=Exact(), which removes edges and suits every layer"
        )
        raise ValueError(message)
