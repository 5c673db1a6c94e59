"""What edges are scored for: a number read off the outputs of a network."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from afterfit.graph.problem import GraphProblem

Target = Callable[[GraphProblem, Float[Tensor, "V C"]], Float[Tensor, ""]]
"""``target(problem, outputs)`` is one differentiable number; `validation_loss`, or your own."""


def validation_loss(problem: GraphProblem, outputs: Float[Tensor, "V C"]) -> Float[Tensor, ""]:
    """Mean loss of the validation nodes, in nats."""
    return mean_loss(problem.validation)(problem, outputs)


def mean_loss(nodes: Int[Tensor, " K"]) -> Target:
    """Mean loss of some nodes, in nats."""

    def target(problem: GraphProblem, outputs: Float[Tensor, "V C"]) -> Float[Tensor, ""]:
        return problem.likelihood.loss(outputs[nodes], problem.y[nodes]).mean()

    return target


def node_loss(node: int) -> Target:
    """Loss of one node, in nats."""

    def target(problem: GraphProblem, outputs: Float[Tensor, "V C"]) -> Float[Tensor, ""]:
        rows = slice(node, node + 1)
        return problem.likelihood.loss(outputs[rows], problem.y[rows]).sum()

    return target


def node_output(node: int, output: int) -> Target:
    """One output of one node: a logit of a classifier."""

    def target(problem: GraphProblem, outputs: Float[Tensor, "V C"]) -> Float[Tensor, ""]:  # noqa: ARG001
        return outputs[node, output]

    return target
