"""What a user hands over: a trained graph network, its graph, and how to train it again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from afterfit.graph.edges import Symmetrize, union
from afterfit.graph.masks import Mask
from afterfit.graph.problem import GraphProblem, graph_problem
from afterfit.graph.rectify import Train
from afterfit.problem.likelihood import Categorical, Likelihood


@final
@dataclass(frozen=True)
class TrainedGraph:
    """A trained graph network with its graph: what a factory file returns to ``afterfit edges``.

    Attributes
    ----------
    module
        The trained network.
    data
        The graph, as :func:`~afterfit.graph.graph_problem` takes it.
    weight_decay
        That of its training, ``(γ/2) ‖θ‖²`` beside the mean loss; the damping of the curvature.
    train_again
        Trains on another ``edge_index``; without it edges are scored and none is removed.
    likelihood, train, validation, test, symmetrize
        As in :func:`~afterfit.graph.graph_problem`.
    names
        Names of the nodes, in their order.
    classes
        Names of the classes, in the order of the outputs.
    """

    module: nn.Module
    data: Any
    weight_decay: float
    train_again: Train | None = None
    likelihood: Likelihood = Categorical()
    train: Mask = "train_mask"
    validation: Mask = "val_mask"
    test: Mask = "test_mask"
    symmetrize: Symmetrize = union
    names: Sequence[str] = ()
    classes: Sequence[str] = ()

    def problem(self) -> GraphProblem:
        """Copy the network, and bind it to its graph."""
        return graph_problem(
            self.module,
            self.data,
            self.likelihood,
            train=self.train,
            validation=self.validation,
            test=self.test,
            symmetrize=self.symmetrize,
        )

    def name(self, node: int) -> str:
        """Name of a node, or its number."""
        return str(self.names[node]) if self.names else str(node)
