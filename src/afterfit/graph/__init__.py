"""Influence of the edges and nodes of a graph, and rectification by edges that do not interact."""

from afterfit.graph.closed_form import ClosedForm
from afterfit.graph.edges import EdgeList, directed, union, upper
from afterfit.graph.exact import Exact
from afterfit.graph.first_order import FirstOrder
from afterfit.graph.groups import (
    Additivity,
    Radius,
    additivity_gap,
    affected_nodes,
    exact_radius,
    interacts,
    is_distant,
    paper_radius,
)
from afterfit.graph.influence import (
    EdgeInfluence,
    edge_influence,
    group_influence,
    insertion_influence,
    screened_influence,
)
from afterfit.graph.inverse import conjugate_gradients, dual, smaller
from afterfit.graph.newton import Newton
from afterfit.graph.nodes import NodeInfluence, feature_influence, node_influence
from afterfit.graph.problem import GraphProblem, graph_problem
from afterfit.graph.reach import Reach
from afterfit.graph.rectify import (
    ClearGain,
    Rectified,
    best_held_out,
    last_round,
    published,
    rectify,
)
from afterfit.graph.rules import (
    Consistent,
    RandomEdges,
    RandomShare,
    Repulsive,
    Top,
    TopShare,
    all_opponents,
    published_patience,
)
from afterfit.graph.similarity import Dissimilar, LeastSimilar, cosine, jaccard
from afterfit.graph.target import mean_loss, node_loss, node_output, validation_loss
from afterfit.graph.trained import TrainedGraph

__all__ = [
    "Additivity",
    "ClearGain",
    "ClosedForm",
    "Consistent",
    "Dissimilar",
    "EdgeInfluence",
    "EdgeList",
    "Exact",
    "FirstOrder",
    "GraphProblem",
    "LeastSimilar",
    "Newton",
    "NodeInfluence",
    "Radius",
    "RandomEdges",
    "RandomShare",
    "Reach",
    "Rectified",
    "Repulsive",
    "Top",
    "TopShare",
    "TrainedGraph",
    "additivity_gap",
    "affected_nodes",
    "all_opponents",
    "best_held_out",
    "conjugate_gradients",
    "cosine",
    "directed",
    "dual",
    "edge_influence",
    "exact_radius",
    "feature_influence",
    "graph_problem",
    "group_influence",
    "insertion_influence",
    "interacts",
    "is_distant",
    "jaccard",
    "last_round",
    "mean_loss",
    "node_influence",
    "node_loss",
    "node_output",
    "paper_radius",
    "published",
    "published_patience",
    "rectify",
    "screened_influence",
    "smaller",
    "union",
    "upper",
    "validation_loss",
]
