"""The laws of edges and nodes are run on objects that are broken on purpose, and must fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from afterfit import graph
from afterfit.graph import GraphProblem, nodes
from afterfit.graph.edits import Edits
from afterfit.graph.features import FeatureEdits
from tests.laws import test_graph_laws as laws
from tests.unit.graph import oracle
from tests.unit.graph.networks import NUM_NODES


def fails(law: Callable[..., None], *arguments: Any) -> None:
    """Require that a law does not hold; that it breaks for another reason is no excuse."""
    with pytest.raises(AssertionError):
        law(*arguments)


Change = Callable[[Tensor], Tensor]
CHANGES: dict[str, Change] = {
    "the sign": torch.neg,
    "a sum for a mean": lambda t: 9 * t,
    "the order": lambda t: t.roll(1),
    "a little": lambda t: t * (1 + 1e-6),
    "a rounding of the largest": lambda t: t + 1e-9 * t.abs().max(),
}
every_change = pytest.mark.parametrize("what", CHANGES)


def telling(function: Callable[..., Any], field: str, change: Change) -> Callable[..., Any]:
    """Another number in one field of a result."""

    def broken(*arguments: Any, **settings: Any) -> Any:
        found = function(*arguments, **settings)
        return replace(found, **{field: change(getattr(found, field))})

    return broken


# Brute force -----------------------------------------------------------------------------------


@every_change
@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("edge_influence", laws.test_exact_influence_equals_removal_by_brute_force),
        ("edge_influence", laws.test_newton_influence_equals_the_step_by_dense_matrices),
        ("insertion_influence", laws.test_exact_influence_of_insertion_equals_brute_force),
        ("node_influence", laws.test_influence_of_nodes_equals_brute_force),
        ("feature_influence", laws.test_influence_of_features_equals_brute_force),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_laws_of_brute_force_see_wrong_scores(monkeypatch, name: str, law: Any, what: str):
    monkeypatch.setattr(graph, name, telling(getattr(graph, name), "shift", CHANGES[what]))
    fails(law, "gcn")


@pytest.mark.parametrize("what", ["the sign", "a sum for a mean", "the order", "a little"])
def test_the_law_of_first_order_sees_wrong_scores(monkeypatch, what: str):
    broken = telling(graph.edge_influence, "shift", CHANGES[what])
    monkeypatch.setattr(graph, "edge_influence", broken)
    fails(laws.test_first_order_influence_is_the_derivative_in_the_weight, "gcn")


@every_change
def test_the_laws_of_propagation_of_the_closed_form_and_of_groups_see_wrong_scores(
    monkeypatch, what: str
):
    change, real = CHANGES[what], graph.edge_influence
    with monkeypatch.context() as patch:
        patch.setattr(graph, "edge_influence", telling(real, "propagation", change))
        fails(laws.test_propagation_equals_the_target_on_the_edited_graph, "gcn")
    law = laws.test_the_closed_form_equals_brute_force_for_removal_and_insertion
    for name in ("edge_influence", "insertion_influence"):
        for field in ("shift", "propagation"):
            with monkeypatch.context() as patch:
                patch.setattr(graph, name, telling(getattr(graph, name), field, change))
                fails(law, "sgc")
    together = graph.group_influence
    monkeypatch.setattr(graph, "group_influence", lambda *a, **k: change(together(*a, **k)))
    fails(laws.test_influence_of_groups_equals_brute_force, "gcn")


def test_the_law_of_removal_sees_degrees_that_are_held_fixed():
    problem = laws.problem_of("gcn")
    # a removal by weight 0 after normalization: what a cached convolution does
    frozen = frozen_degree_shifts(problem, problem.edges.edge_index())
    fails(laws.require_same_scores, frozen, laws.true_shifts("gcn"))


def frozen_degree_shifts(problem: GraphProblem, whole: Tensor) -> Tensor:
    degree = torch.bincount(whole[0], minlength=NUM_NODES).double()
    scale = degree.clamp_min(1).rsqrt()
    keep = [oracle.without(whole, pairs) for pairs in oracle.as_groups(problem.edges.pairs)]
    at = oracle.leaves(problem)
    u = oracle.solution(problem, whole, laws.DAMPING, oracle.target_gradient(problem))

    def slope(edge_index: Tensor) -> Tensor:
        weight = scale[edge_index[0]] * scale[edge_index[1]]
        outputs = problem.problem.forward(at, (problem.x, edge_index, weight))
        loss = torch.nn.functional.cross_entropy(outputs[problem.train], problem.y[problem.train])
        return oracle.gradient(loss, at)

    before = slope(whole)
    return torch.stack([-(u @ (slope(edge_index) - before)) for edge_index in keep])


def test_the_law_of_removal_sees_an_edge_that_stays_in_one_direction(monkeypatch):
    real = Edits.edge_index

    def one_way(edits: Edits) -> Tensor:
        return torch.cat([real(edits), edits.pairs.T], 1)

    monkeypatch.setattr(Edits, "edge_index", one_way)
    fails(laws.test_exact_influence_equals_removal_by_brute_force, "gcn")
    fails(laws.test_influence_of_nodes_equals_brute_force, "gcn")


# Nodes and features ----------------------------------------------------------------------------


def test_the_law_of_nodes_sees_a_loss_that_stays_and_one_of_a_node_not_trained_on(monkeypatch):
    law, real = laws.test_influence_of_nodes_equals_brute_force, nodes._own_losses
    with monkeypatch.context() as patch:
        patch.setattr(nodes, "_own_losses", lambda *arguments: 0 * real(*arguments))
        fails(law, "gcn")

    def of_every_node(problem: GraphProblem, chosen: Tensor, query: Any) -> Tensor:
        everywhere = replace(problem, train=torch.arange(NUM_NODES))
        return real(everywhere, chosen, query) * NUM_NODES / len(problem.train)

    monkeypatch.setattr(nodes, "_own_losses", of_every_node)
    fails(law, "gcn")


def test_the_law_of_features_sees_a_radius_that_is_too_small_and_rows_of_others(monkeypatch):
    law = laws.test_influence_of_features_equals_brute_force
    for name, broken in (
        ("radius", lambda _, reach: reach.hops - 1),
        ("sources", lambda edits, chosen: chosen),
        ("table", lambda edits, x: torch.cat([x, edits.rows.flip(0)])),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(FeatureEdits, name, broken)
            fails(law, "gcn")


# Silence, additivity ---------------------------------------------------------------------------


def test_the_law_of_silence_sees_a_radius_that_is_too_small():
    problem, scores = laws.problem_of("gcn"), laws.true_shifts("gcn")
    laws.require_unmoved(problem, scores, graph.exact_radius)
    fails(laws.require_unmoved, problem, scores, lambda _: 0)
    fails(laws.require_unmoved, problem, scores + 1e-12, graph.exact_radius)


def test_the_laws_of_additivity_see_neighbors_and_a_wrong_radius(monkeypatch):
    problem, scores = laws.problem_of("gcn"), laws.true_shifts("gcn")
    fails(laws.require_additive, problem, problem.edges.pairs, float(scores.abs().max()))
    real = graph.affected_nodes
    monkeypatch.setattr(
        graph, "affected_nodes", lambda at, edges="all": real(at, edges, lambda _: 0)
    )
    fails(laws.test_distant_edges_are_additive_and_neighbors_are_not, "gcn")
    fails(laws.test_a_group_of_pairwise_distant_edges_is_additive, "gcn")


# The user's module, names ----------------------------------------------------------------------


@torch.no_grad()
def nudge(module: nn.Module) -> None:
    next(module.parameters()).view(-1)[0] += 1e-12


def leave_gradient(module: nn.Module) -> None:
    parameter = next(module.parameters())
    parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("disturb", [nudge, leave_gradient, lambda module: module.eval()])
def test_the_law_of_the_users_module_sees_a_disturbance(monkeypatch, disturb: Any):
    real = graph.graph_problem

    def rough(module: nn.Module, data: Any) -> GraphProblem:
        disturb(module)
        return real(module, data)

    monkeypatch.setattr(graph, "graph_problem", rough)
    law = laws.test_neither_the_module_nor_the_random_state_is_touched
    fails(law, "gcn", None)


def test_the_law_of_names_sees_scores_in_the_order_of_the_list(monkeypatch):
    real = graph.edge_influence

    def unordered(problem: GraphProblem, edges: Any, **settings: Any) -> Any:
        return real(problem, "all", **settings)

    monkeypatch.setattr(graph, "edge_influence", unordered)
    fails(laws.test_renaming_the_nodes_permutes_the_scores, "gcn")
