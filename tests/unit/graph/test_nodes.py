"""Influence of nodes and of their features, beside brute force and beside training again."""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from afterfit import graph
from afterfit.graph import GraphProblem
from afterfit.graph.features import FeatureEdits
from tests.unit.graph import oracle
from tests.unit.graph.networks import (
    NUM_CLASSES,
    NUM_FEATURES,
    NUM_NODES,
    make_data,
    make_network,
    make_problem,
)

DAMPING, DECAY = 0.05, 0.3
kinds = pytest.mark.parametrize("name", ["sgc", "gcn", "gat", "sage"])


@cache
def problem_of(name: str) -> GraphProblem:
    return make_problem(name)


def new_rows(problem: GraphProblem) -> Tensor:
    return 0.7 * problem.x.roll(1, 0)


# Brute force -----------------------------------------------------------------------------------


@kinds
def test_propagation_is_the_target_on_the_edited_graph(name):
    problem = problem_of(name)
    nodes, whole = torch.arange(NUM_NODES), problem.edges.edge_index()
    settings = {"damping": DAMPING, "propagation": graph.Exact()}
    before = oracle.validation_losses(problem, [(problem.x, whole)])
    found = graph.node_influence(problem, **settings)
    alone = [(problem.x, oracle.isolated(whole, node)) for node in nodes.tolist()]
    expected = oracle.validation_losses(problem, alone) - before
    assert_close(found.propagation, expected, rtol=0, atol=1e-13)
    assert_close(found.total, found.shift + expected)
    rows = new_rows(problem)
    found = graph.feature_influence(problem, nodes, rows, **settings)
    moved = [(oracle.with_row(problem, node, rows[node]), whole) for node in nodes.tolist()]
    expected = oracle.validation_losses(problem, moved) - before
    assert_close(found.propagation, expected, rtol=0, atol=1e-13)


@kinds
@pytest.mark.parametrize("memory_budget", [1, 2**30])
def test_scores_do_not_depend_on_how_edits_are_packed(name, memory_budget):
    problem, method = problem_of(name), graph.Exact(memory_budget)
    nodes, rows = torch.arange(NUM_NODES), new_rows(problem)
    settings = {"damping": DAMPING, "inverse": graph.dual}
    one = graph.node_influence(problem, **settings, method=method)
    assert_close(one.shift, graph.node_influence(problem, **settings).shift)
    one = graph.feature_influence(problem, nodes, rows, **settings, method=method)
    assert_close(one.shift, graph.feature_influence(problem, nodes, rows, **settings).shift)


def test_targets_are_read_on_the_given_graph_without_all_edges_of_the_node():
    problem = problem_of("gcn")
    gone = problem.edges.positions(problem.edges.pairs[:3])
    current = problem.with_edges(problem.edges.without(gone))
    node = int(problem.edges.pairs[0, 0])
    found = graph.node_influence(current, [node], damping=DAMPING, propagation=graph.Exact())
    whole = problem.read_on.edge_index()
    graphs = [(problem.x, whole), (problem.x, oracle.isolated(whole, node))]
    before, after = oracle.validation_losses(problem, graphs)
    assert_close(found.propagation, (after - before)[None])
    expected = oracle.node_shifts(current, [node], DAMPING)
    assert_close(found.shift, expected, rtol=1e-7, atol=1e-12)


# Training again --------------------------------------------------------------------------------


def train(x: Tensor, edge_index: Tensor, nodes: list[int]) -> GraphProblem:
    """SGC at the optimum of its regularized loss, by Newton's method on dense matrices."""
    data, reader = make_data(), make_network("sgc")
    reader.lin = torch.nn.Linear(NUM_FEATURES, NUM_FEATURES, bias=False).double()
    with torch.no_grad():  # rows of S² X, read off a network whose weights are the identity
        reader.lin.weight.copy_(torch.eye(NUM_FEATURES))
        z = reader(x, edge_index)
    num_train = int(data.train_mask.sum())

    def loss(weight: Tensor) -> Tensor:
        outputs = z[nodes] @ weight.view(-1, NUM_FEATURES).T
        total = functional.cross_entropy(outputs, data.y[nodes], reduction="sum")
        return total / num_train + DECAY / 2 * weight.square().sum()

    weight = torch.zeros(NUM_CLASSES * NUM_FEATURES).double()
    for _ in range(12):
        slope = torch.func.grad(loss)(weight)
        weight = weight - torch.linalg.solve(torch.func.hessian(loss)(weight), slope)
    assert float(torch.func.grad(loss)(weight).abs().max()) < 1e-13
    trained = make_network("sgc")
    with torch.no_grad():
        trained.lin.weight.copy_(weight.view(-1, NUM_FEATURES))
    return graph.graph_problem(trained, data)


@cache
def trained() -> GraphProblem:
    data = make_data()
    whole = graph.union(data.edge_index, NUM_NODES).edge_index()
    return train(data.x, whole, data.train_mask.nonzero()[:, 0].tolist())


def require_foretold(found: Tensor, actual: Tensor) -> None:
    """Correlated, of the same sign and size where it matters, and silent elsewhere."""
    moved = actual.abs() > 1e-9
    assert bool((found[~moved].abs() < 1e-8).all())
    assert float(torch.corrcoef(torch.stack([found[moved], actual[moved]]))[0, 1]) > 0.9
    large = actual.abs() > actual.abs().median()
    assert float((found.sign() == actual.sign())[large].double().mean()) > 0.9
    slope = float(found @ actual / (found @ found))
    assert 0.5 < slope < 1.5


def loss_of(found: GraphProblem) -> float:
    return float(graph.validation_loss(found, found.outputs(trained().edges)))


def test_influence_foretells_training_again_without_a_node():
    problem = trained()
    whole, before = problem.edges.edge_index(), loss_of(problem)
    actual = []
    for node in range(NUM_NODES):
        left = [v for v in problem.train.tolist() if v != node]
        actual.append(loss_of(train(problem.x, oracle.isolated(whole, node), left)) - before)
    found = graph.node_influence(problem, damping=DECAY).shift
    require_foretold(found, torch.tensor(actual).double())


def test_influence_foretells_training_again_with_other_features():
    problem = trained()
    whole, before = problem.edges.edge_index(), loss_of(problem)
    rows = 0.5 * problem.x
    actual = [
        loss_of(train(oracle.with_row(problem, n, rows[n]), whole, problem.train.tolist())) - before
        for n in range(NUM_NODES)
    ]
    found = graph.feature_influence(problem, range(NUM_NODES), rows, damping=DECAY).shift
    require_foretold(found, torch.tensor(actual).double())


# What is asked, and what comes back ------------------------------------------------------------


def test_the_own_loss_of_a_training_node_counts_though_it_has_no_edges():
    data = make_data()
    data.train_mask[NUM_NODES - 1] = True  # the isolated node
    problem = graph.graph_problem(make_network("gcn"), data)
    found = graph.node_influence(problem, [NUM_NODES - 1], damping=DAMPING, inverse=graph.dual)
    expected = oracle.node_shifts(problem, [NUM_NODES - 1], DAMPING)
    assert float(expected.abs()) > 1e-6
    assert_close(found.shift, expected)


def test_the_same_features_change_nothing_and_one_node_may_be_asked_twice():
    problem = problem_of("gcn")
    nodes, rows = [3, 5, 3], torch.stack([problem.x[3], 2 * problem.x[5], -problem.x[3]])
    found = graph.feature_influence(problem, nodes, rows, damping=DAMPING, inverse=graph.dual)
    assert found.nodes.tolist() == nodes
    assert float(found.shift[0].abs()) < 1e-15
    expected = oracle.feature_shifts(problem, nodes, rows, DAMPING)
    assert_close(found.shift, expected)


def test_the_table_is_sorted_by_score():
    found = graph.node_influence(problem_of("gcn"), damping=DAMPING, propagation=graph.Exact())
    table = found.to_pandas()
    assert list(table.columns) == ["node", "score", "propagation", "total", "rank"]
    assert table["score"].is_monotonic_increasing
    assert table["node"][0] == int(found.score.argmin())
    assert len(table) == NUM_NODES


def test_a_total_without_propagation_is_refused():
    found = graph.node_influence(problem_of("gcn"), [0], damping=DAMPING)
    with pytest.raises(ValueError, match=r"pass propagation=Exact\(\)"):
        _ = found.total


@pytest.mark.parametrize("nodes", [[-1], [NUM_NODES], torch.zeros(2, 2, dtype=torch.long)])
def test_nodes_that_are_not_there_are_refused(nodes):
    with pytest.raises(ValueError, match="expected numbers"):
        graph.node_influence(problem_of("gcn"), nodes, damping=DAMPING)


@pytest.mark.parametrize(
    "rows", [torch.zeros(1, NUM_FEATURES), torch.full((2, NUM_FEATURES), torch.nan)]
)
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match="one row for each node"):
        graph.feature_influence(problem_of("gcn"), [0, 1], rows, damping=DAMPING)


def test_feature_edits_read_new_rows_only_where_they_are_made():
    problem = problem_of("gcn")
    rows = torch.zeros(2, NUM_FEATURES).double()
    edits = FeatureEdits(problem.edges, rows, torch.tensor([4, 9]), torch.tensor([1, 0]))
    assert edits.table(problem.x).shape == (NUM_NODES + 2, NUM_FEATURES)
    nodes = torch.tensor([4, 5, 9])
    assert edits.sources(nodes).tolist() == [NUM_NODES + 1, 5, NUM_NODES]
    assert edits.take(torch.tensor([1])).sources(nodes).tolist() == [4, 5, NUM_NODES]
