"""Rectification: remove a group of harmful edges, train again, and go on while it helps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from afterfit.graph.closed_form import ClosedForm
from afterfit.graph.edges import EdgeList
from afterfit.graph.edits import single_removals
from afterfit.graph.exact import Exact
from afterfit.graph.groups import paper_radius
from afterfit.graph.influence import prepare
from afterfit.graph.inverse import Inverse, smaller
from afterfit.graph.method import EdgeMethod
from afterfit.graph.problem import GraphProblem
from afterfit.graph.retrained import retrained
from afterfit.graph.rules import Repulsive, Round, Rule, TopShare, published_patience
from afterfit.graph.target import validation_loss
from afterfit.typing import Params

Train = Callable[[Int[Tensor, "2 M"], Params], nn.Module]
"""``train(edge_index, params)`` trains on a graph and returns the module, in evaluation mode.

``params`` are those of the round before: start from them, or (as published) from the same initial
values each time and ignore them.
"""

_DEFAULT_RULE = TopShare(0.01)


@final
@dataclass(frozen=True)
class RoundRecord:
    """What one round did; round 0 is the network that was given.

    Attributes
    ----------
    number
        Number of the round.
    removed
        Edges removed in it (K, 2).
    predicted
        Sum of their scores: the change of the validation loss that was foretold, in nats.
    actual
        The change that came, after training again.
    validation_loss, held_out_loss, test_loss
        Mean losses on the graph that targets are read on, in nats; NaN where there are no nodes.
    validation_accuracy, held_out_accuracy, test_accuracy
        Shares of nodes whose class is right; NaN where targets are not classes.
    """

    number: int
    removed: Int[Tensor, "K 2"]
    predicted: float
    actual: float
    validation_loss: float
    held_out_loss: float
    test_loss: float
    validation_accuracy: float
    held_out_accuracy: float
    test_accuracy: float


Keep = Callable[[Sequence[RoundRecord]], int]
"""Chooses the round whose graph and network are returned: `last_round` or `best_held_out`."""


def last_round(history: Sequence[RoundRecord]) -> int:
    """Return the last round, as published."""
    return len(history) - 1


def best_held_out(history: Sequence[RoundRecord]) -> int:
    """Return the round of lowest loss on validation nodes by which no edge was chosen."""
    losses = [record.held_out_loss for record in history]
    return min(range(len(losses)), key=losses.__getitem__)


@final
@dataclass(frozen=True)
class Rectified:
    """A cleaner graph, the network trained on it, and how they came about.

    Attributes
    ----------
    problem
        The kept graph and network; targets are still read on the graph as it was given.
    kept
        Number of the kept round.
    history
        All rounds, from 0.
    """

    problem: GraphProblem
    kept: int
    history: Sequence[RoundRecord]

    @property
    def edges(self) -> EdgeList:
        """Edges that are left."""
        return self.problem.edges

    @property
    def removed(self) -> Int[Tensor, "K 2"]:
        """Edges that were removed up to the kept round, in that order."""
        return torch.cat([record.removed for record in self.history[: self.kept + 1]])

    def edge_index(self) -> Int[Tensor, "2 M"]:
        """Edges that are left, as PyG reads them."""
        return self.edges.edge_index()

    def removed_to_pandas(self) -> pd.DataFrame:
        """Removed edges with the round in which they went."""
        rows = [
            (record.number, *pair)
            for record in self.history[: self.kept + 1]
            for pair in record.removed.tolist()
        ]
        return pd.DataFrame(rows, columns=["round", "u", "v"])

    def to_pandas(self) -> pd.DataFrame:
        """One row a round."""
        rows = [
            {**vars(record), "removed": len(record.removed), "kept": record.number == self.kept}
            for record in self.history
        ]
        return pd.DataFrame(rows)


def rectify(
    problem: GraphProblem,
    train: Train,
    *,
    damping: float | int,
    rule: Rule = _DEFAULT_RULE,
    method: EdgeMethod | None = None,
    inverse: Inverse = smaller,
    held_out: float | int = 0.2,
    keep: Keep = best_held_out,
    max_rounds: int = 100,
    tolerance: float | int = 0.0,
    seed: int = 0,
) -> Rectified:
    """Remove groups of edges that harm the validation loss, training again after each.

    Parameters
    ----------
    problem
        The network trained on the whole graph, as ``train`` would train it.
    train
        Trains on a graph.
    damping
        Added to the eigenvalues of the mean curvature; the weight decay of training, or more.
    rule
        Chooses the edges of one round; by default the most harmful percent of all edges.
    method
        How edges are scored; by default `ClosedForm` where it suits the network, else `Exact`.
    held_out
        Share of the validation nodes, drawn at random, that choose the round and never an edge.
    keep
        Chooses the round.
    max_rounds
        At most so many rounds.
    tolerance
        Stop when the foretold improvement of a round is below it, in nats; ``-math.inf`` goes on
        whatever is foretold, for rules that do not ask influence.
    seed
        Of the held-out nodes.

    Raises
    ------
    ValueError
        If ``held_out`` leaves no node to choose edges by, or `best_held_out` has none to choose a
        round by, or ``train`` returns a network of another architecture, one that caches a graph,
        or the parameters that it was given.

    Warns
    -----
    RuntimeWarning
        If the network that ``train`` returns has forgotten most of what the one before had learned.
    """
    choosing, held = _split(problem, held_out, seed)
    if keep is best_held_out and not len(held):
        message = (
            "keep=best_held_out needs validation nodes that choose no edges, and held_out="
            f"{held_out} leaves none; raise it, or pass keep=last_round"
        )
        raise ValueError(message)
    chosen = suited_method(problem) if method is None else method
    now = replace(problem, validation=choosing)
    history = [_record(now, held, 0, problem.edges.pairs[:0], 0.0, float("nan"))]
    stages = [now]
    while len(history) <= max_rounds:
        scores = _scores(now, chosen, inverse, damping)
        found = rule(Round(now, len(history) - 1, scores, chosen, inverse, damping))
        predicted = float(scores[found].sum())
        if not len(found) or predicted > -tolerance:
            break
        removed = now.edges.pairs[found]
        graph = now.edges.without(found)
        module = train(graph.edge_index(), now.problem.params)
        now = retrained(now, graph, module)
        before = history[-1].validation_loss
        history.append(_record(now, held, len(history), removed, predicted, before))
        stages.append(now)
    kept = keep(history)
    final_problem = replace(stages[kept], validation=problem.validation)
    return Rectified(final_problem, kept, tuple(history))


def published(
    problem: GraphProblem, train: Train, *, weight_decay: float | int, max_rounds: int = 2_000
) -> Rectified:
    """Rectify exactly as the authors' code does: RGE with patience, until no opponent is left.

    The radius is K − 1, the ridge twice the weight decay (their influence has ``λ‖θ‖²`` where their
    training has ``(λ/2)‖θ‖²``), all validation nodes choose edges, and the last round is returned.
    ``train`` should start from the same initial values each time.

    References
    ----------
    Song, Kim, Yang (2023), "RGE: A repulsive graph rectification for node classification via
    influence", ICML, PMLR 202:32331, algorithm 1.
    """
    return rectify(
        problem,
        train,
        damping=2 * weight_decay,
        rule=Repulsive(published_patience(problem), paper_radius),
        held_out=0.0,
        keep=last_round,
        max_rounds=max_rounds,
    )


def suited_method(problem: GraphProblem) -> EdgeMethod:
    """Take the closed form for SGC with two hops, the exact method otherwise."""
    closed = problem.linear is not None and problem.linear.hops == 2
    return ClosedForm() if closed else Exact()


def _scores(
    problem: GraphProblem, method: EdgeMethod, inverse: Inverse, damping: float | int
) -> Float[Tensor, " E"]:
    query = prepare(problem, [validation_loss], damping, inverse)
    edits = single_removals(problem.edges, torch.arange(problem.edges.num_edges))
    return method.shift(problem, edits, query)[:, 0]


def _split(
    problem: GraphProblem, held_out: float | int, seed: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " H"]]:
    nodes = problem.validation
    size = round(held_out * len(nodes))
    if not 0 <= size < len(nodes):
        message = (
            f"held_out={held_out} takes {size} of {len(nodes)} validation nodes, expected a share "
            "from 0 to below 1 that leaves some to choose edges by"
        )
        raise ValueError(message)
    order = torch.randperm(len(nodes), generator=Generator().manual_seed(seed)).to(nodes.device)
    return nodes[order[size:]].sort().values, nodes[order[:size]].sort().values


def _record(
    problem: GraphProblem,
    held: Int[Tensor, " H"],
    number: int,
    removed: Int[Tensor, "K 2"],
    predicted: float,
    before: float,
) -> RoundRecord:
    outputs = problem.outputs(problem.read_on)
    parts = [_measure(problem, outputs, n) for n in (problem.validation, held, problem.test)]
    (loss, accuracy), (held_loss, held_accuracy), (test_loss, test_accuracy) = parts
    actual = loss - before if number else 0.0
    return RoundRecord(
        number,
        removed,
        predicted,
        actual,
        loss,
        held_loss,
        test_loss,
        accuracy,
        held_accuracy,
        test_accuracy,
    )


def _measure(problem: GraphProblem, outputs: Tensor, nodes: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of some nodes."""
    if not len(nodes):
        return float("nan"), float("nan")
    found, y = outputs[nodes], problem.y[nodes]
    loss = float(problem.likelihood.loss(found, y).mean())
    if y.is_floating_point() or y.ndim != 1:
        return loss, float("nan")
    return loss, float((found.argmax(1) == y).double().mean())
