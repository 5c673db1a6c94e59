"""Exact finite edits, for any layer: the graph is edited, and the network run where it matters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import Change, Rows, edited_rows
from afterfit.graph.method import Query
from afterfit.graph.narrow import narrowed
from afterfit.graph.problem import GraphProblem, call
from afterfit.graph.target import Target
from afterfit.problem.persample import GIBIBYTE, unflatten
from afterfit.typing import Params

_COPIES_OF_A_ROW = 24  # what a forward pass with tangents holds of one row of features or outputs


@final
@dataclass(frozen=True)
class Exact:
    """Effect of the finite edit, degrees and attention normalized anew.

    ``shift = −u · [∇L(G′) − ∇L(G)]`` with L the mean training loss and ``u = (H + damping I)⁻¹
    ∇target``: one derivative along u for each edit, of the training nodes that the edit reaches, by
    forward mode on the balls that they read; edits that do not interact share one graph. No layer
    has to know of edge weights. The propagation is the target on the edited graph less the target.

    Parameters
    ----------
    memory_budget
        Bytes that the networks that run together may take. The floor is one pass over the whole
        graph, which every score is compared with, and no ball of a hub takes more than that.

    References
    ----------
    Song, Kim, Yang (2023), "RGE: A repulsive graph rectification for node classification via
    influence", ICML, PMLR 202:32331; Chen, Li, Liu, Hong (2023), "Characterizing the
    influence of graph elements", ICLR, arXiv:2210.07441.
    """

    memory_budget: int = GIBIBYTE // 4
    reference: ClassVar[str] = (
        "Song, Kim, Yang (2023), RGE: A repulsive graph rectification for node classification via "
        "influence, ICML, PMLR 202:32331"
    )

    def shift(self, problem: GraphProblem, edits: Change, query: Query) -> Float[Tensor, "E K"]:
        columns = [
            self._along(problem, edits, unflatten(u.to(problem.problem.dtype), _params(problem)))
            for u in query.solved.value.T
        ]
        return torch.stack(columns, 1)

    def _along(
        self, problem: GraphProblem, edits: Change, direction: Params
    ) -> Float[Tensor, " E"]:
        evaluate = narrowed(replace(problem, x=edits.table(problem.x)), direction)
        whole = torch.arange(problem.num_nodes, device=problem.x.device)
        base = evaluate(whole, edits.graph.edge_index())[problem.train]
        before = directional_losses(problem, base, problem.train)
        total = torch.zeros(edits.num_edits, dtype=torch.float64, device=base.device)
        max_nodes = self._max_nodes(evaluate.x.shape[1] + base.shape[1], problem)
        for rows in edited_rows(evaluate, problem, edits, problem.train, max_nodes):
            after = directional_losses(problem, rows.values, problem.train[rows.place])
            total.index_add_(0, rows.edit, (after - before[rows.place]).double())
        return -total / len(problem.train)

    def propagation(
        self, problem: GraphProblem, edits: Change, targets: Sequence[Target]
    ) -> Float[Tensor, "E K"]:
        watched = _read_nodes(problem, edits.graph, targets)
        table = edits.table(problem.x)

        def evaluate(nodes: Tensor, edge_index: Tensor) -> Tensor:
            with torch.no_grad():
                return call(problem.problem, _params(problem), table[nodes], edge_index)

        outputs = problem.outputs(edits.graph)
        before = torch.stack([target(problem, outputs) for target in targets])
        changes = torch.zeros(edits.num_edits, len(targets), dtype=torch.float64)
        max_nodes = self._max_nodes(problem.x.shape[1] + outputs.shape[1], problem)
        for rows in edited_rows(evaluate, problem, edits, watched, max_nodes):
            for edit, places, values in _by_edit(rows):
                after = outputs.index_copy(0, watched[places], values)
                moved = torch.stack([target(problem, after) for target in targets]) - before
                changes[edit] = moved.double().cpu()
        return changes.to(outputs.device)

    def _max_nodes(self, width: int, problem: GraphProblem) -> int:
        row = _COPIES_OF_A_ROW * width * torch.finfo(problem.problem.dtype).bits // 8
        return max(1, self.memory_budget // row)


def directional_losses(
    problem: GraphProblem, rows: Float[Tensor, "R D"], nodes: Int[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Derivative of each node's loss, from its outputs and their derivatives side by side."""
    outputs, moved = rows.chunk(2, 1)
    y = problem.y[nodes]
    pair = torch.func.jvp(lambda f: problem.likelihood.loss(f, y), (outputs,), (moved,))
    return pair[1]


def _params(problem: GraphProblem) -> Params:
    return problem.problem.params


def _read_nodes(
    problem: GraphProblem, graph: EdgeList, targets: Sequence[Target]
) -> Int[Tensor, " W"]:
    """Nodes whose outputs a target depends on, found by a derivative at moved outputs."""
    outputs = problem.outputs(graph)
    read = torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)
    for shift in (0.0, 0.37):
        moved = (outputs + shift * outputs.roll(1, 1)).requires_grad_()
        for target in targets:
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(target(problem, moved), moved)
            read |= (gradient != 0).any(1)
    return read.nonzero()[:, 0]


def _by_edit(rows: Rows) -> list[tuple[int, Tensor, Tensor]]:
    order = rows.edit.argsort(stable=True)
    edits, counts = rows.edit[order].unique_consecutive(return_counts=True)
    sizes = counts.tolist()
    places, values = rows.place[order].split(sizes), rows.values[order].split(sizes)
    return list(zip(edits.tolist(), places, values, strict=True))
