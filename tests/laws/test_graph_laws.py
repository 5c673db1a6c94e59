"""Laws of edge influence: what holds for every graph network, by definition or by theorem.

Networks are the rows of :mod:`tests.unit.graph.networks`, definitions stand in
:mod:`tests.unit.graph.oracle`.
"""

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from afterfit import graph
from afterfit.graph import GraphProblem
from tests.unit.graph import oracle
from tests.unit.graph.networks import NETWORKS, NUM_NODES, make_data, make_network, make_problem

DAMPING = 0.05
every_network = pytest.mark.parametrize("name", NETWORKS)
weighted = pytest.mark.parametrize("name", ["sgc", "sgc-3", "gcn", "appnp", "cheb", "batch-norm"])


@cache
def problem_of(name: str) -> GraphProblem:
    return make_problem(name)


@cache
def true_shifts(name: str) -> Tensor:
    problem = problem_of(name)
    return oracle.shifts(problem, oracle.as_groups(problem.edges.pairs), DAMPING)


def new_pairs(problem: GraphProblem) -> Tensor:
    every = torch.tensor(list(itertools.combinations(range(0, NUM_NODES, 2), 2)))
    _, there = problem.edges._look_up(every)
    return every[~there][::3]


# The laws --------------------------------------------------------------------------------------


def require_same_scores(found: Tensor, expected: Tensor) -> None:
    """Scores agree to 1e-12 of the largest."""
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((found - expected).abs().max()) <= 1e-12 * scale


def require_additive(problem: GraphProblem, group: Tensor, scale: float) -> None:
    """The influence of a group is the sum of its members'."""
    found = graph.additivity_gap(problem, group, damping=DAMPING, inverse=graph.dual)
    assert abs(found.gap) <= 1e-12 * scale


def require_unmoved(problem: GraphProblem, shifts: Tensor, radius: graph.Radius) -> None:
    """Edges that affect no training node have no influence at all."""
    counts = torch.tensor([len(nodes) for nodes in graph.affected_nodes(problem, "all", radius)])
    assert bool((counts == 0).any())
    assert bool((shifts[counts == 0].abs() <= 1e-15).all())


# What they hold for ----------------------------------------------------------------------------


@every_network
def test_exact_influence_equals_removal_by_brute_force(name):
    found = graph.edge_influence(problem_of(name), damping=DAMPING, inverse=graph.dual)
    require_same_scores(found.shift, true_shifts(name))


@every_network
def test_exact_influence_of_insertion_equals_brute_force(name):
    problem = problem_of(name)
    pairs = new_pairs(problem)
    found = graph.insertion_influence(problem, pairs, damping=DAMPING, inverse=graph.dual)
    expected = oracle.shifts(problem, oracle.as_groups(pairs), DAMPING, oracle.joined)
    require_same_scores(found.shift, expected)


@every_network
def test_propagation_equals_the_target_on_the_edited_graph(name):
    problem = problem_of(name)
    found = graph.edge_influence(problem, damping=DAMPING, propagation=graph.Exact())
    expected = oracle.propagations(problem, oracle.as_groups(problem.edges.pairs))
    assert found.propagation is not None
    require_same_scores(found.propagation, expected)
    require_same_scores(found.total, found.shift + expected)


@every_network
def test_influence_of_nodes_equals_brute_force(name):
    problem = problem_of(name)
    found = graph.node_influence(problem, damping=DAMPING, inverse=graph.dual)
    require_same_scores(found.shift, oracle.node_shifts(problem, range(NUM_NODES), DAMPING))


@every_network
def test_influence_of_features_equals_brute_force(name):
    problem = problem_of(name)
    nodes = torch.arange(NUM_NODES)
    rows = problem.x.roll(1, 0) * 0.7
    found = graph.feature_influence(problem, nodes, rows, damping=DAMPING, inverse=graph.dual)
    require_same_scores(found.shift, oracle.feature_shifts(problem, nodes.tolist(), rows, DAMPING))


@pytest.mark.parametrize("name", ["sgc", "sgc-bias"])
def test_the_closed_form_equals_brute_force_for_removal_and_insertion(name):
    problem, method = problem_of(name), graph.ClosedForm()
    settings = {"damping": DAMPING, "method": method, "propagation": method}
    found = graph.edge_influence(problem, **settings)
    require_same_scores(found.shift, true_shifts(name))
    edges = oracle.as_groups(problem.edges.pairs)
    require_same_scores(found.propagation, oracle.propagations(problem, edges))
    pairs = new_pairs(problem)
    found = graph.insertion_influence(problem, pairs, **settings)
    groups = oracle.as_groups(pairs)
    require_same_scores(found.shift, oracle.shifts(problem, groups, DAMPING, oracle.joined))
    require_same_scores(found.propagation, oracle.propagations(problem, groups, oracle.joined))


@weighted
def test_first_order_influence_is_the_derivative_in_the_weight(name):
    problem = problem_of(name)
    found = graph.edge_influence(
        problem, damping=DAMPING, method=graph.FirstOrder(), inverse=graph.dual
    )
    expected = oracle.weight_derivatives(problem, DAMPING)
    scale = float(expected.abs().max())
    assert_close(found.shift, expected, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize("name", ["sgc", "gcn", "gat"])
def test_newton_influence_equals_the_step_by_dense_matrices(name):
    problem = problem_of(name)
    pairs = problem.edges.pairs[::5]
    found = graph.edge_influence(
        problem, pairs, damping=DAMPING, method=graph.Newton(0.02), inverse=graph.dual
    )
    expected = oracle.newton_shifts(problem, oracle.as_groups(pairs), DAMPING, 0.02)
    require_same_scores(found.shift, expected)


@every_network
def test_influence_of_groups_equals_brute_force(name):
    problem = problem_of(name)
    groups = list(problem.edges.pairs[:12].split(4))
    found = graph.group_influence(problem, groups, damping=DAMPING, inverse=graph.dual)
    as_lists = [[(int(u), int(v)) for u, v in group] for group in groups]
    require_same_scores(found, oracle.shifts(problem, as_lists, DAMPING))


@every_network
def test_edges_without_training_nodes_in_reach_have_no_influence(name):
    require_unmoved(problem_of(name), true_shifts(name), graph.exact_radius)


@every_network
def test_distant_edges_are_additive_and_neighbors_are_not(name):
    problem, scores = problem_of(name), true_shifts(name)
    scale = float(scores.abs().max())
    nodes = [set(found.tolist()) for found in graph.affected_nodes(problem)]
    active = [i for i in range(len(nodes)) if scores[i].abs() > 1e-3 * scale][:20]
    pairs = list(itertools.combinations(active, 2))
    groups = [problem.edges.pairs[[i, j]] for i, j in pairs]
    found = graph.group_influence(problem, groups, damping=DAMPING, inverse=graph.dual)
    gaps = (found - torch.stack([scores[i] + scores[j] for i, j in pairs])).abs()
    apart = torch.tensor([not nodes[i] & nodes[j] for i, j in pairs])
    assert bool(apart.any())
    assert float(gaps[apart].max()) <= 1e-12 * scale
    assert float(gaps[~apart].max()) >= 100 * float(gaps[apart].max())
    assert float(gaps[~apart].max()) > 1e-4 * scale
    for group, distant in list(zip(groups, apart.tolist(), strict=True))[::40]:
        one, other = (tuple(edge) for edge in group.tolist())
        assert graph.interacts(problem, one, other) is not distant
        assert graph.is_distant(problem, group) is distant


@every_network
def test_a_group_of_pairwise_distant_edges_is_additive(name):
    problem, scores = problem_of(name), true_shifts(name)
    taken, used = [], set()
    for edge, nodes in enumerate(graph.affected_nodes(problem)):
        if len(nodes) and not used & set(nodes.tolist()):
            taken.append(edge)
            used |= set(nodes.tolist())
    assert len(taken) >= 2
    require_additive(problem, problem.edges.pairs[taken], float(scores.abs().max()))


@every_network
def test_neither_the_module_nor_the_random_state_is_touched(name, random_state_is_kept):
    module = make_network(name)
    module.train() if name != "batch-norm" else None
    before = {n: (p.data_ptr(), p.clone()) for n, p in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    problem = graph.graph_problem(module, make_data())
    graph.edge_influence(problem, problem.edges.pairs[:3], damping=DAMPING)
    after = module.state_dict()
    assert [part.training for part in module.modules()] == modes
    assert all(p.grad is None for p in module.parameters())
    for key, (place, value) in before.items():
        assert after[key].data_ptr() == place
        assert torch.equal(after[key], value)


@pytest.mark.parametrize("name", ["sgc", "gcn", "gat"])
def test_renaming_the_nodes_permutes_the_scores(name):
    problem, data = problem_of(name), make_data()
    order = torch.randperm(NUM_NODES, generator=torch.Generator().manual_seed(1))
    place = order.argsort()  # old node → new node
    data.x, data.y = data.x[order], data.y[order]
    data.edge_index = place[data.edge_index]
    for name_of_mask in ("train_mask", "val_mask", "test_mask"):
        data[name_of_mask] = data[name_of_mask][order]
    renamed = graph.graph_problem(make_network(name), data)
    found = graph.edge_influence(
        renamed, place[problem.edges.pairs], damping=DAMPING, inverse=graph.dual
    )
    scale = float(true_shifts(name).abs().max())
    assert_close(found.shift, true_shifts(name), rtol=0, atol=1e-11 * scale)
