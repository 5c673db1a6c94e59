"""Rectification: remove a group of harmful edges, train again, and go on while it helps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from afterfit.graph.closed_form import ClosedForm
from afterfit.graph.edges import EdgeList
from afterfit.graph.exact import Exact
from afterfit.graph.groups import paper_radius
from afterfit.graph.inverse import Inverse, smaller
from afterfit.graph.method import EdgeMethod
from afterfit.graph.problem import GraphProblem
from afterfit.graph.retrained import retrained
from afterfit.graph.rules import Repulsive, Round, Rule, TopShare, published_patience
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
        Sum of their scores: the change of the validation loss that was foretold, in nats; NaN where
        the rule asks no influence.
    actual
        The change that came, after training again.
    validation_loss, held_out_loss, test_loss
        Mean losses on the graph that targets are read on, in nats; NaN where there are no nodes.
    held_out_gain, held_out_gain_stderr
        How far the loss of held-out nodes is below that of round 0, in nats, and the standard error
        of that, from the differences at the single nodes.
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
    held_out_gain: float
    held_out_gain_stderr: float
    validation_accuracy: float
    held_out_accuracy: float
    test_accuracy: float


Keep = Callable[[Sequence[RoundRecord]], int]
"""Chooses the round that is kept: `ClearGain`, `best_held_out` or `last_round`."""


def last_round(history: Sequence[RoundRecord]) -> int:
    """Return the last round, as published."""
    return len(history) - 1


def best_held_out(history: Sequence[RoundRecord]) -> int:
    """Return the round of lowest loss on validation nodes by which no edge was chosen."""
    _require_held_out(history)
    return min(range(len(history)), key=lambda number: history[number].held_out_loss)


@final
@dataclass(frozen=True)
class ClearGain:
    """Keep the graph unless held-out nodes gain beyond what their number leaves to chance.

    Of many rounds one has the lowest held-out loss, whether or not any of them helps. That round is
    taken only among those whose gain over round 0 exceeds ``errors`` of its standard errors, and
    round 0 where there are none.

    Parameters
    ----------
    errors
        How many standard errors; 0 is `best_held_out`.
    """

    errors: float | int = 2

    def __call__(self, history: Sequence[RoundRecord]) -> int:
        _require_held_out(history)
        clear = [
            record.number
            for record in history
            if record.held_out_gain > self.errors * record.held_out_gain_stderr
        ]
        return min(clear, key=lambda number: history[number].held_out_loss, default=0)


_CLEAR_GAIN = ClearGain()


def _require_held_out(history: Sequence[RoundRecord]) -> None:
    if math.isnan(history[0].held_out_loss):
        message = (
            "no validation node is held out from choosing edges, expected some to choose the round "
            "by; raise held_out, or pass keep=last_round"
        )
        raise ValueError(message)


@final
@dataclass(frozen=True)
class Rectified:
    """A cleaner graph, the network trained on it, and how they came about.

    Attributes
    ----------
    stages
        Graph and network of every round, from 0, the graph as it was given; targets are still read
        on that one.
    kept
        Number of the kept round; 0 where the graph is left as it was.
    history
        What each round did: edges, losses, accuracies.
    """

    stages: Sequence[GraphProblem]
    kept: int
    history: Sequence[RoundRecord]

    @property
    def problem(self) -> GraphProblem:
        """The kept graph and network."""
        return self.stages[self.kept]

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
    keep: Keep = _CLEAR_GAIN,
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
        How edges are scored where the rule asks; by default `ClosedForm` where it suits the
        network, else `Exact`.
    held_out
        Share of the validation nodes, drawn at random, that choose the round and never an edge.
    keep
        Chooses the round; by default that of lowest held-out loss if it is clearly below that of
        the given graph, which is kept otherwise.
    max_rounds
        At most so many rounds.
    tolerance
        Stop when the foretold improvement of a round is below it, in nats. Rules that ask no
        influence foretell nothing, and go on.
    seed
        Of the held-out nodes.

    Raises
    ------
    ValueError
        If ``held_out`` leaves no node to choose edges by, or ``keep`` needs held-out nodes and has
        none, or ``train`` returns a network of another architecture, one that caches a graph,
        or the parameters that it was given.

    Warns
    -----
    RuntimeWarning
        If the network that ``train`` returns has forgotten most of what the one before had learned.
    """
    choosing, held = _split(problem, held_out, seed)
    chosen = suited_method(problem) if method is None else method
    now = replace(problem, validation=choosing)
    first = _node_losses(now, held)
    history = [_record(now, held, first, 0, problem.edges.pairs[:0], 0.0, math.nan)]
    keep(history)  # before any training: it may refuse what is held out
    stages = [now]
    while len(history) <= max_rounds:
        asked = Round(now, len(history) - 1, chosen, inverse, damping)
        found = rule(asked)
        predicted = asked.foretold(found)
        if not len(found) or predicted > -tolerance:
            break
        removed = now.edges.pairs[found]
        graph = now.edges.without(found)
        module = train(graph.edge_index(), now.problem.params)
        now = retrained(now, graph, module)
        before = history[-1].validation_loss
        history.append(_record(now, held, first, len(history), removed, predicted, before))
        stages.append(now)
    whole = tuple(replace(stage, validation=problem.validation) for stage in stages)
    return Rectified(whole, keep(history), tuple(history))


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
    first: Float[Tensor, " H"],
    number: int,
    removed: Int[Tensor, "K 2"],
    predicted: float,
    before: float,
) -> RoundRecord:
    outputs = problem.outputs(problem.read_on)
    parts = [_measure(problem, outputs, n) for n in (problem.validation, held, problem.test)]
    (loss, accuracy), (held_loss, held_accuracy), (test_loss, test_accuracy) = parts
    actual = loss - before if number else 0.0
    gains = (first - _node_losses(problem, held)).double()
    gain = float(gains.mean()) if len(gains) else math.nan
    stderr = float(gains.std()) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
    return RoundRecord(
        number, removed, predicted, actual, loss, held_loss, test_loss, gain, stderr,
        accuracy, held_accuracy, test_accuracy,
    )  # fmt: skip


def _node_losses(problem: GraphProblem, nodes: Int[Tensor, " H"]) -> Float[Tensor, " H"]:
    outputs = problem.outputs(problem.read_on)[nodes]
    return problem.likelihood.loss(outputs, problem.y[nodes])


def _measure(problem: GraphProblem, outputs: Tensor, nodes: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of some nodes."""
    if not len(nodes):
        return float("nan"), float("nan")
    found, y = outputs[nodes], problem.y[nodes]
    loss = float(problem.likelihood.loss(found, y).mean())
    if y.is_floating_point() or y.ndim != 1:
        return loss, float("nan")
    return loss, float((found.argmax(1) == y).double().mean())
