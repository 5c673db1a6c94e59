"""One Newton step on the edited graph: the curvature is the edited graph's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import Edits, affected
from afterfit.graph.exact import Exact
from afterfit.graph.inverse import target_gradient
from afterfit.graph.method import Query
from afterfit.graph.problem import GraphProblem
from afterfit.graph.target import Target, mean_loss
from afterfit.problem.persample import flatten


@final
@dataclass(frozen=True)
class Newton:
    """Change of a target by the Newton step of the regularized loss on the edited graph.

    ``shift = −∇target · [(H′ + damping I)⁻¹ ∇J(G′) − (H + damping I)⁻¹ ∇J(G)]`` with ``J = L +
    (weight_decay/2) ‖θ‖²``; the second term is 0 at an optimum. Nearer to training again than
    `Exact`, since H′ is not stale, at the price of one solve an edit: for the top hundred edges.

    Parameters
    ----------
    weight_decay
        That of training, beside the mean loss.
    """

    weight_decay: float | int
    reference: ClassVar[str] = (
        "Chen, Li, Liu, Hong (2023), Characterizing the influence of graph elements, ICLR, "
        "arXiv:2210.07441"
    )

    def shift(self, problem: GraphProblem, edits: Edits, query: Query) -> Float[Tensor, "E K"]:
        pulled = (query.solved.value * self._gradient(problem, edits.graph)[:, None]).sum(0)
        changes = torch.zeros(
            edits.num_edits, len(query.targets), dtype=torch.float64, device=pulled.device
        )
        reached = affected(edits, problem.train, problem.reach.edges)
        for edit in (reached.sum(1) > 0).nonzero()[0].tolist():
            graph = edits.edited(edit)
            moved = problem.with_edges(graph)
            step = query.inverse(moved, query.gradients, query.damping)
            changes[edit] = pulled - step.value.T @ self._gradient(problem, graph)
        return changes

    def propagation(
        self, problem: GraphProblem, edits: Edits, targets: Sequence[Target]
    ) -> Float[Tensor, "E K"]:
        return Exact().propagation(problem, edits, targets)

    def _gradient(self, problem: GraphProblem, graph: EdgeList) -> Float[Tensor, " P"]:
        """Gradient of the regularized mean loss on some edges, float64."""
        there = replace(problem, read_on=graph)
        slope = target_gradient(there, mean_loss(problem.train))
        return (slope + self.weight_decay * flatten(problem.problem.params)).double()
