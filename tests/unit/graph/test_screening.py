"""Screening a graph by first-order scores, and what the screening takes."""

from functools import cache

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close
from torch_geometric.data import Data

from afterfit import graph
from afterfit.graph import GraphProblem
from afterfit.graph.edits import single_removals
from afterfit.graph.influence import prepare
from afterfit.graph.memory import weight_derivative_bytes
from afterfit.linalg import Solution
from tests.unit.graph import oracle
from tests.unit.graph.networks import NUM_CLASSES, NUM_FEATURES, make_network, make_problem

DAMPING = 0.05
weighted = pytest.mark.parametrize("name", ["sgc", "gcn", "appnp", "cheb", "batch-norm"])


@cache
def large(name: str, num_nodes: int, num_edges: int) -> GraphProblem:
    generator = Generator().manual_seed(0)
    half = torch.rand(num_nodes, generator=generator) < 0.5
    data = Data(
        x=torch.randn(num_nodes, NUM_FEATURES, generator=generator).double(),
        y=torch.randint(0, NUM_CLASSES, (num_nodes,), generator=generator),
        edge_index=torch.randint(0, num_nodes, (2, num_edges), generator=generator),
        train_mask=half,
        val_mask=~half,
    )
    return graph.graph_problem(make_network(name), data)


# Memory ----------------------------------------------------------------------------------------


def one_direction(problem: GraphProblem, columns: Tensor, damping: float) -> Solution:
    """Solve nothing: the memory of a pass does not depend on its direction."""
    return Solution(columns.double(), 0, 0.0, converged=True, way="none")


def kept_bytes(problem: GraphProblem) -> int:
    """Bytes of what a real pass keeps for its backward pass."""
    query = prepare(problem, [graph.validation_loss], DAMPING, one_direction)
    edits = single_removals(problem.edges, torch.arange(problem.edges.num_edges))
    sizes: dict[int, int] = {}
    held = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        if not tensor._is_zerotensor():
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph.FirstOrder().shift(problem, edits, query)
    return sum(sizes.values())


@weighted
@pytest.mark.parametrize(("num_nodes", "num_edges"), [(2_000, 3_000), (500, 9_000)])
def test_the_estimate_is_what_a_pass_keeps_and_half_as_much(name, num_nodes, num_edges):
    problem = large(name, num_nodes, num_edges)
    columns = problem.edges.edge_index().shape[1]
    found = weight_derivative_bytes(problem, columns) / 1.5
    # all nodes count as training nodes, and the features themselves as kept
    assert 0.95 * kept_bytes(problem) <= found <= 1.5 * kept_bytes(problem)


@weighted
def test_a_graph_that_the_budget_does_not_hold_is_refused_with_the_need(name):
    problem = large(name, 500, 9_000)
    need = weight_derivative_bytes(problem, problem.edges.edge_index().shape[1])
    enough, little = graph.FirstOrder(need), graph.FirstOrder(need - 1)
    edges = problem.edges.pairs[:3]
    settings = {"damping": DAMPING, "inverse": one_direction}
    graph.edge_influence(problem, edges, **settings, method=enough, propagation=enough)
    with pytest.raises(ValueError, match=rf"memory_budget is .* FirstOrder\(memory_budget={need}"):
        graph.edge_influence(problem, edges, **settings, method=little)
    with pytest.raises(ValueError, match="cannot be cut"):
        graph.edge_influence(problem, edges, **settings, method=enough, propagation=little)


def test_an_estimate_leaves_the_random_state_and_the_parameters_alone(random_state_is_kept):
    problem = large("gcn", 500, 9_000)
    before = {name: p.clone() for name, p in problem.problem.params.items()}
    weight_derivative_bytes(problem, 100)
    assert all(torch.equal(before[n], p) for n, p in problem.problem.params.items())


# Screening -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgc", "gcn", "appnp"])
def test_screened_edges_are_the_worst_by_the_screen_and_their_scores_are_exact(name):
    problem = make_problem(name)
    settings = {"damping": DAMPING, "inverse": graph.dual}
    first = graph.edge_influence(problem, **settings, method=graph.FirstOrder()).shift
    found = graph.screened_influence(problem, 6, **settings, propagation=graph.Exact())
    worst = first.argsort(stable=True)[:6]
    assert torch.equal(found.pairs, problem.edges.pairs[worst])
    groups = oracle.as_groups(found.pairs)
    expected = oracle.shifts(problem, groups, DAMPING)
    assert_close(found.shift, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    moved = oracle.propagations(problem, groups)
    assert found.propagation is not None
    assert_close(found.propagation, moved, rtol=0, atol=1e-12)


def test_edges_at_a_hub_are_exact_whatever_the_budget():
    problem = large("gcn", 500, 900)
    star = torch.stack([torch.zeros(300, dtype=torch.long), torch.arange(1, 301)], 1)
    _, there = problem.edges._look_up(star)
    hub = problem.with_edges(problem.edges.joined(star[~there]))
    edges = star[:4]
    settings = {"damping": DAMPING, "inverse": graph.conjugate_gradients}
    small = graph.edge_influence(hub, edges, **settings, method=graph.Exact(memory_budget=1))
    at = oracle.leaves(hub)
    u = small.solved.value[:, 0]
    whole = hub.edges.edge_index()
    before = oracle.gradient(oracle.mean_loss(hub, at, whole, hub.train), at)
    after = [
        oracle.gradient(oracle.mean_loss(hub, at, oracle.without(whole, group), hub.train), at)
        for group in oracle.as_groups(edges)
    ]
    expected = torch.stack([-(u @ (row - before)) for row in after])
    assert_close(small.shift, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_more_edges_than_there_are_is_all_of_them_and_none_is_refused():
    problem = make_problem("gcn")
    found = graph.screened_influence(problem, 10_000, damping=DAMPING)
    assert len(found.pairs) == problem.edges.num_edges
    with pytest.raises(ValueError, match="expected 1 or more"):
        graph.screened_influence(problem, 0, damping=DAMPING)
    with pytest.raises(ValueError, match="takes no edge weights"):
        graph.screened_influence(make_problem("gat"), 3, damping=DAMPING)
