"""Influence of the edges of a graph, and rectification by edges that do not interact."""

from afterfit.graph.closed_form import ClosedForm
from afterfit.graph.edges import EdgeList, directed, union, upper
from afterfit.graph.exact import Exact
from afterfit.graph.first_order import FirstOrder
from afterfit.graph.influence import (
    EdgeInfluence,
    edge_influence,
    group_influence,
    insertion_influence,
)
from afterfit.graph.inverse import conjugate_gradients, dual, smaller
from afterfit.graph.newton import Newton
from afterfit.graph.problem import GraphProblem, graph_problem
from afterfit.graph.reach import Reach
from afterfit.graph.target import mean_loss, node_loss, node_output, validation_loss

__all__ = [
    "ClosedForm",
    "EdgeInfluence",
    "EdgeList",
    "Exact",
    "FirstOrder",
    "GraphProblem",
    "Newton",
    "Reach",
    "conjugate_gradients",
    "directed",
    "dual",
    "edge_influence",
    "graph_problem",
    "group_influence",
    "insertion_influence",
    "mean_loss",
    "node_loss",
    "node_output",
    "smaller",
    "union",
    "upper",
    "validation_loss",
]
