import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch_geometric.nn import GCNConv, GraphNorm, SGConv

from afterfit import graph
from afterfit.graph import Reach
from afterfit.graph.first_order import require_weighted
from afterfit.problem import Bernoulli, Categorical
from tests.unit.graph.networks import (
    NETWORKS,
    NUM_CLASSES,
    NUM_FEATURES,
    REACH,
    make_data,
    make_network,
    make_problem,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reach_of_every_layer_is_found(name):
    assert make_problem(name).reach == Reach(*REACH[name])


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_module_on_the_graph(name):
    module = make_network(name).eval()
    problem = make_problem(name)
    edges = problem.edges
    assert_close(problem.outputs(edges), module(problem.x, edges.edge_index()).detach())


def test_weights_are_recognized_where_they_act_as_edges():
    weighted = {name for name in NETWORKS if make_problem(name).weighted}
    assert weighted == {"sgc", "sgc-bias", "sgc-3", "gcn", "appnp", "cheb", "batch-norm"}


class Ignoring(nn.Module):
    """Takes edge weights and does not use them."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = GCNConv(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        return self.layer(x, edge_index)


@pytest.mark.parametrize("module", [Ignoring().double(), make_network("gat")])
def test_a_network_that_ignores_weights_is_refused_by_the_method_that_needs_them(module):
    problem = graph.graph_problem(module, make_data())
    with pytest.raises(ValueError, match="takes no edge weights"):
        graph.edge_influence(problem, damping=0.1, method=graph.FirstOrder())
    with pytest.raises(ValueError, match="method=Exact"):
        require_weighted(problem)


def test_only_sgc_is_linear_and_only_undirected():
    linear = {name for name in NETWORKS if make_problem(name).linear is not None}
    assert linear == {"sgc", "sgc-bias", "sgc-3"}
    found = graph.graph_problem(make_network("sgc"), make_data(), symmetrize=graph.directed)
    assert found.linear is None


class Scaled(nn.Module):
    """SGC, and something after it."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = SGConv(NUM_FEATURES, NUM_CLASSES, K=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.layer(x, edge_index).tanh()


def test_the_closed_form_refuses_what_is_not_sgc_with_two_hops():
    scaled = graph.graph_problem(Scaled().double(), make_data())
    for problem, seen in (
        (scaled, "another network"),
        (make_problem("sgc-3"), "SGC with K=3"),
        (
            graph.graph_problem(make_network("sgc"), make_data(), symmetrize=graph.directed),
            "on an undirected graph",
        ),
    ):
        with pytest.raises(ValueError, match=seen):
            graph.edge_influence(problem, damping=0.1, method=graph.ClosedForm())


def test_cached_convolutions_are_refused():
    with pytest.raises(ValueError, match="cached=True"):
        graph.graph_problem(SGConv(NUM_FEATURES, NUM_CLASSES, cached=True).double(), make_data())


def test_batch_normalization_in_train_mode_is_refused():
    module = make_network("batch-norm").train()
    with pytest.raises(ValueError, match=r"call module.eval\(\) first"):
        graph.graph_problem(module, make_data())


class Coupled(nn.Module):
    """A convolution after something that couples all nodes."""

    def __init__(self, norm: nn.Module) -> None:
        nn.Module.__init__(self)
        self.layer, self.norm = GCNConv(NUM_FEATURES, NUM_CLASSES), norm

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.norm(self.layer(x, edge_index))


class Spread(nn.Module):
    """Centers all nodes together."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(
    "norm",
    [
        GraphNorm(NUM_CLASSES),
        nn.BatchNorm1d(NUM_CLASSES, track_running_stats=False).eval(),
        Spread(),
    ],
)
def test_networks_that_couple_all_nodes_are_refused(norm):
    with pytest.raises(ValueError, match="couples all nodes"):
        graph.graph_problem(Coupled(norm).double(), make_data())


def test_a_reach_that_is_given_is_not_looked_for():
    found = graph.graph_problem(
        Coupled(Spread()).double(), make_data(), reach=Reach(hops=5, edges=5)
    )
    assert found.reach == Reach(5, 5)


def test_the_random_state_is_kept(random_state_is_kept):
    make_problem("gcn")


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_mask_without_nodes_is_refused(part):
    nothing = torch.zeros(len(make_data().x), dtype=torch.bool)
    with pytest.raises(ValueError, match="holds no node"):
        graph.graph_problem(make_network("sgc"), make_data(), **{part: nothing})


def test_masks_are_taken_by_name_as_masks_and_as_positions():
    data = make_data()
    data.chosen = data.train_mask
    by_name = graph.graph_problem(make_network("sgc"), data, train="chosen")
    by_place = graph.graph_problem(make_network("sgc"), data, train=by_name.train)
    by_mask = graph.graph_problem(make_network("sgc"), data, train=data.train_mask)
    assert by_name.train.tolist() == by_place.train.tolist() == by_mask.train.tolist()


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        ("no_such_mask", "has no 'no_such_mask'"),
        (torch.ones(32, 10, dtype=torch.bool), "several splits"),
        (torch.ones(5, dtype=torch.bool), "5 entries for 32 nodes"),
        (torch.tensor([0, 99]), "names node 99 of 32"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, seen):
    with pytest.raises(ValueError, match=seen):
        graph.graph_problem(make_network("sgc"), make_data(), train=mask)


def test_a_test_mask_may_be_missing():
    data = make_data()
    del data.test_mask
    assert not len(graph.graph_problem(make_network("sgc"), data).test)


def test_sampled_parts_of_a_graph_are_refused():
    data = make_data()
    data.n_id = torch.arange(32)
    with pytest.raises(ValueError, match="sampled part of a graph"):
        graph.graph_problem(make_network("sgc"), data)
    with pytest.raises(TypeError, match="one whole graph"):
        graph.graph_problem(make_network("sgc"), [make_data()])


def test_weighted_graphs_are_refused():
    data = make_data()
    data.edge_weight = torch.full((data.edge_index.shape[1],), 0.5)
    with pytest.raises(ValueError, match="edge weights other than 1"):
        graph.graph_problem(make_network("sgc"), data)


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="y has shape"):
        graph.graph_problem(make_network("sgc"), make_data(), Bernoulli())
    data = make_data()
    data.y = data.y + 5
    with pytest.raises(ValueError, match="labels range"):
        graph.graph_problem(make_network("sgc"), data, Categorical())


def test_another_module_of_the_same_shape_is_taken_over_and_others_are_not():
    problem = make_problem("gcn")
    module = make_network("gcn")
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)
    moved = problem.with_module(module)
    assert_close(moved.outputs(moved.edges), module.eval()(problem.x, problem.edges.edge_index()))
    with pytest.raises(ValueError, match="same architecture"):
        problem.with_module(make_network("gat"))


def test_targets_are_read_where_they_were_when_the_edges_change():
    problem = make_problem("gcn")
    fewer = problem.with_edges(problem.edges.without(torch.arange(4)))
    assert fewer.edges.num_edges == problem.edges.num_edges - 4
    assert torch.equal(fewer.read_on.pairs, problem.edges.pairs)
