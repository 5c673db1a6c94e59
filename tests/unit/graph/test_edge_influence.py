import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.testing import assert_close

from afterfit import graph
from afterfit.graph import GraphProblem
from afterfit.graph.edits import edited_rows, insertions, removals, single_removals
from afterfit.graph.influence import prepare
from afterfit.graph.inverse import MAX_DUAL, mean_ggn, target_gradient
from afterfit.graph.narrow import narrowed
from afterfit.problem.persample import unflatten
from tests.unit.graph import oracle
from tests.unit.graph.networks import NETWORKS, make_problem


@cache
def problem_of(name: str) -> GraphProblem:
    return make_problem(name)


def validation_gradient(problem: GraphProblem) -> torch.Tensor:
    return target_gradient(problem, graph.validation_loss)


# Solvers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgc", "sgc-bias", "gcn", "gat"])
@pytest.mark.parametrize("inverse", [graph.dual, graph.conjugate_gradients, graph.smaller])
def test_every_solver_solves_the_dense_system(name, inverse):
    problem = problem_of(name)
    gradient = validation_gradient(problem)
    found = inverse(problem, torch.stack([gradient, 2 * gradient.flip(0)], 1), 0.05)
    whole = problem.edges.edge_index()
    expected = oracle.solution(
        problem, whole, 0.05, torch.stack([gradient, 2 * gradient.flip(0)], 1)
    )
    assert_close(found.value, expected, rtol=1e-7, atol=1e-8)
    assert found.converged


def test_the_smaller_system_is_said_to_be_chosen():
    assert graph.edge_influence(problem_of("sgc"), damping=0.1).solved.way == "dual"
    found = graph.edge_influence(problem_of("gcn"), damping=0.1).solved
    assert found.way == "CG"
    assert found.steps > 0
    assert found.residual < 1e-9
    assert MAX_DUAL > 0


@pytest.mark.parametrize("inverse", [graph.dual, graph.conjugate_gradients])
@pytest.mark.parametrize("damping", [0.0, -1.0, math.inf, math.nan])
def test_damping_that_is_not_above_zero_is_refused(inverse, damping):
    problem = problem_of("sgc")
    with pytest.raises(ValueError, match="finite number above 0"):
        inverse(problem, validation_gradient(problem)[:, None], damping)


def test_products_are_those_of_the_dense_curvature():
    problem = problem_of("gat")
    matrix = oracle.curvature(problem, problem.edges.edge_index())
    vector = torch.randn(
        len(matrix), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert_close(mean_ggn(problem) @ vector, matrix @ vector, rtol=1e-8, atol=1e-10)


def test_a_single_precision_network_is_scored_in_single_precision():
    problem = problem_of("gcn")
    single = replace(
        problem,
        problem=replace(
            problem.problem, params={n: p.float() for n, p in problem.problem.params.items()}
        ),
        x=problem.x.float(),
    )
    found = graph.edge_influence(single, damping=0.05)
    expected = graph.edge_influence(problem, damping=0.05).shift
    scale = float(expected.abs().max())
    assert_close(found.shift, expected, rtol=0, atol=1e-3 * scale)


# Edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcn", "gat", "sage-max", "own-layer"])
@pytest.mark.parametrize("max_nodes", [1, 200, 100_000])
def test_rows_after_edits_do_not_depend_on_how_they_are_packed(name, max_nodes):
    problem = problem_of(name)
    edits = single_removals(problem.edges, torch.arange(problem.edges.num_edges))

    def evaluate(nodes, edge_index):
        return problem.problem.forward(problem.problem.params, (problem.x[nodes], edge_index))

    seen = set()
    for rows in edited_rows(evaluate, problem, edits, problem.train, max_nodes):
        for edit, place, values in zip(*rows, strict=True):
            whole = problem.outputs(edits.edited(int(edit)))
            assert_close(values, whole[problem.train[place]])
            seen.add((int(edit), int(place)))
    assert len(seen) == sum(len(nodes) for nodes in graph.affected_nodes(problem))


def test_features_are_narrowed_where_they_enter_by_a_product_and_kept_where_not():
    kept = set()
    for name in NETWORKS:
        problem = problem_of(name)
        direction = unflatten(validation_gradient(problem), problem.problem.params)
        if narrowed(problem, direction).x.shape[1] == problem.x.shape[1]:
            kept.add(name)
    # a maximum over neighbors and products of features are not linear
    assert {"sage-max", "own-layer"} <= kept
    assert not {"sgc", "gcn", "gat", "appnp", "batch-norm"} & kept


def test_edits_keep_their_edges_when_some_are_taken():
    problem = problem_of("gcn")
    pairs = problem.edges.pairs
    edits = removals(problem.edges, [pairs[:2], pairs[2:3], pairs[3:6]])
    taken = edits.take(torch.tensor([0, 2]))
    assert taken.num_edits == 2
    assert taken.owner.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(taken.edited(1).pairs, problem.edges.without(torch.arange(3, 6)).pairs)
    new = insertions(problem.edges, [torch.tensor([[31, 0]])])
    assert new.edited(0).num_edges == problem.edges.num_edges + 1


# Targets ---------------------------------------------------------------------------------------


def test_a_group_of_targets_is_the_mean_of_its_nodes():
    problem = problem_of("gcn")
    each = [
        graph.edge_influence(problem, damping=0.1, target=graph.node_loss(int(node))).shift
        for node in problem.validation
    ]
    whole = graph.edge_influence(problem, damping=0.1).shift
    assert_close(torch.stack(each).mean(0), whole, rtol=1e-6, atol=1e-10)


def test_an_output_and_a_function_of_the_users_are_targets():
    problem = problem_of("gcn")
    node = int(problem.validation[0])

    def margin(at, outputs):
        return outputs[node, 0] - outputs[node, 1]

    first, second, both = (
        graph.edge_influence(problem, damping=0.1, target=target, propagation=graph.Exact())
        for target in (graph.node_output(node, 0), graph.node_output(node, 1), margin)
    )
    assert_close(both.shift, first.shift - second.shift, rtol=1e-6, atol=1e-9)
    assert_close(both.propagation, first.propagation - second.propagation)


def test_a_target_that_reads_the_mean_of_all_outputs_propagates_rightly():
    problem = problem_of("gcn")

    def spread(at, outputs):
        return outputs.var(0).sum()

    found = graph.edge_influence(
        problem, problem.edges.pairs[:4], damping=0.1, target=spread, propagation=graph.Exact()
    )
    before = problem.outputs(problem.edges).var(0).sum()
    for i in range(4):
        after = problem.outputs(problem.edges.without(torch.tensor([i]))).var(0).sum()
        assert_close(found.propagation[i], after - before)


def test_targets_are_read_on_the_given_graph_and_edges_scored_on_the_current():
    problem = problem_of("sgc")
    current = problem.with_edges(problem.edges.without(torch.tensor([0, 5])))
    found = graph.edge_influence(current, damping=0.05, method=graph.ClosedForm()).shift
    groups = oracle.as_groups(current.edges.pairs)
    assert_close(found, oracle.shifts(current, groups, 0.05), rtol=1e-9, atol=1e-13)


# Results ---------------------------------------------------------------------------------------


def test_scores_are_aligned_with_the_edges_asked_for():
    problem = problem_of("sgc")
    whole = graph.edge_influence(problem, damping=0.1)
    some = problem.edges.pairs[[7, 2]].flip(1)
    found = graph.edge_influence(problem, some, damping=0.1)
    assert_close(found.shift, whole.shift[[7, 2]])
    assert_close(found.score, found.shift)
    assert torch.equal(found.pairs, problem.edges.pairs[[7, 2]])
    as_list = [tuple(pair) for pair in some.tolist()]
    assert_close(graph.edge_influence(problem, as_list, damping=0.1).shift, found.shift)


def test_the_table_is_sorted_and_the_network_carries_the_scores():
    found = graph.edge_influence(problem_of("gcn"), damping=0.1, propagation=graph.FirstOrder())
    table = found.to_pandas()
    assert list(table.columns) == ["u", "v", "score", "propagation", "total", "rank"]
    assert table["score"].is_monotonic_increasing
    assert list(table["rank"]) == list(range(1, len(table) + 1))
    network = found.to_networkx()
    assert network.number_of_edges() == len(table)
    for u, v, score in table[["u", "v", "score"]].itertuples(index=False):
        assert network.edges[u, v]["score"] == score


def test_a_total_without_propagation_is_refused():
    found = graph.edge_influence(problem_of("gcn"), damping=0.1)
    with pytest.raises(ValueError, match=r"pass propagation=Exact\(\)"):
        _ = found.total


@pytest.mark.parametrize(
    "edges", [[(0, 1, 2)], torch.tensor([1, 2]), torch.zeros(2, 5, dtype=torch.long)]
)
def test_edges_of_another_shape_are_refused(edges):
    with pytest.raises(ValueError, match="expected \\(K, 2\\)"):
        graph.edge_influence(problem_of("gcn"), edges, damping=0.1)


def test_an_edge_that_is_not_in_the_graph_is_refused():
    with pytest.raises(ValueError, match="is not an edge of the graph"):
        graph.edge_influence(problem_of("gcn"), [(31, 0)], damping=0.1)


def test_groups_have_no_closed_form():
    problem = problem_of("sgc")
    with pytest.raises(ValueError, match="groups of edges have no closed form"):
        graph.group_influence(
            problem, [problem.edges.pairs[:2]], damping=0.1, method=graph.ClosedForm()
        )


def test_first_order_influence_of_a_group_is_the_sum():
    problem = problem_of("gcn")
    whole = graph.edge_influence(problem, damping=0.1, method=graph.FirstOrder()).shift
    group = problem.edges.pairs[:5]
    found = graph.group_influence(problem, [group], damping=0.1, method=graph.FirstOrder())
    assert_close(found[0], whole[:5].sum())


def test_first_order_insertion_is_the_derivative_at_weight_zero():
    problem = problem_of("sgc")
    pair = torch.tensor([[0, 31]])
    found = graph.insertion_influence(problem, pair, damping=0.1, method=graph.FirstOrder()).shift
    joined = problem.edges.joined(pair)
    owner, whole = int(joined.positions(pair)), joined.edge_index()
    at = oracle.leaves(problem)
    u = prepare(problem, [graph.validation_loss], 0.1).solved.value[:, 0]

    def along(weight):
        weights = torch.where(joined.owners() == owner, weight, 1.0).double()
        outputs = problem.problem.forward(at, (problem.x, whole, weights))
        loss = problem.train_losses(outputs).mean()
        return u @ oracle.gradient(loss, at)

    expected = -(along(2e-5) - along(0.0)) / 2e-5
    assert_close(found[0], expected, rtol=1e-3, atol=1e-9)


def test_directed_edges_are_removed_one_direction_at_a_time():
    from tests.unit.graph.networks import make_data, make_network

    problem = graph.graph_problem(make_network("gcn"), make_data(), symmetrize=graph.directed)
    found = graph.edge_influence(problem, damping=0.05, inverse=graph.dual).shift
    whole = problem.edges.edge_index()
    groups = [[(int(u), int(v))] for u, v in problem.edges.pairs]

    def one_way(edge_index, pairs):
        ((u, v),) = pairs
        return edge_index[:, ~((edge_index[0] == u) & (edge_index[1] == v))]

    assert whole.shape[1] == problem.edges.num_edges + len(problem.edges.loops)
    expected = oracle.shifts(problem, groups, 0.05, one_way)
    assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
