from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCNConv, GraphNorm, SGConv, global_mean_pool
from torch_geometric.transforms import ToSparseTensor

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


def as_booleans(mask: Tensor) -> list[bool]:
    return mask.tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask.to(torch.uint8),
        lambda mask: mask.long(),
        lambda mask: mask.double(),
        lambda mask: mask.numpy(),
        lambda mask: mask.numpy().astype(np.uint8),
        as_booleans,
        lambda mask: mask.long().tolist(),
        lambda mask: mask.nonzero()[:, 0].numpy(),
        lambda mask: mask.nonzero()[:, 0].numpy().astype(np.uint16),
        lambda mask: mask.nonzero()[:, 0].tolist(),
    ],
)
def test_masks_of_every_kind_mean_the_same_nodes(change: Callable[[Tensor], Tensor]):
    data = make_data()
    expected = data.train_mask.nonzero()[:, 0]
    given = graph.graph_problem(make_network("sgc"), data, train=change(data.train_mask))
    data.train_mask = change(data.train_mask)
    named = graph.graph_problem(make_network("sgc"), data)
    assert torch.equal(given.train, expected)
    assert torch.equal(named.train, expected)


@pytest.mark.parametrize(
    ("mask", "error", "seen"),
    [
        (torch.tensor([0, 1, 1, 0, 1]), ValueError, "names node 1 3 times"),
        (torch.tensor([3, 4, 3]), ValueError, "names node 3 2 times"),
        (torch.tensor([0.0, 1.0]), ValueError, "holds torch.float32 values"),
        (torch.full((32,), 0.5), ValueError, "holds torch.float32 values"),
        (torch.tensor([-1, 4]), ValueError, "names node -1 of 32"),
        ([], ValueError, "holds no node"),
        (np.array(["a", "b"]), TypeError, "expected a mask of booleans or positions"),
    ],
)
def test_masks_that_could_be_misread_are_refused(
    mask: Tensor | Sequence[int], error: type[Exception], seen: str
):
    with pytest.raises(error, match=seen):
        graph.graph_problem(make_network("sgc"), make_data(), train=mask)


def test_a_mask_of_two_nodes_that_could_be_positions_is_refused():
    data = Data(
        x=torch.randn(2, NUM_FEATURES).double(),
        y=torch.tensor([0, 1]),
        edge_index=torch.tensor([[0], [1]]),
    )
    with pytest.raises(ValueError, match="make a mask boolean"):
        graph.graph_problem(make_network("sgc"), data, train=[1, 0], validation=[1])


@pytest.mark.parametrize(
    ("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")]
)
def test_parts_that_share_nodes_are_refused(one, other):
    parts = {"train": [2, 3, 4], "validation": [5, 6], "test": [7, 8]}
    parts[other] = [parts[one][1], 9]
    with pytest.raises(ValueError, match=f"1 nodes stand in {one} and in {other}"):
        graph.graph_problem(make_network("sgc"), make_data(), **parts)


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


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_edge_attribute_each_is_a_weight_and_refused(shape):
    data = make_data()
    count = data.edge_index.shape[1]
    data.edge_attr = torch.linspace(0.5, 2, count).reshape(shape)
    with pytest.raises(ValueError, match=r"drop data.edge_attr if the network was trained without"):
        graph.graph_problem(make_network("sgc"), data)
    data.edge_attr = torch.ones(count).reshape(shape)
    graph.graph_problem(make_network("sgc"), data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    data = make_data()
    data.x[7, 3] = value
    with pytest.raises(ValueError, match=r"features of 1 nodes \(such as node 7\)"):
        graph.graph_problem(make_network("sgc"), data)


def heterogeneous() -> HeteroData:
    data = HeteroData()
    data["paper"].x, data["paper"].y = torch.zeros(3, 2), torch.zeros(3)
    data["paper", "cites", "paper"].edge_index = torch.tensor([[0], [1]])
    return data


def with_sparse_features() -> Data:
    data = make_data()
    data.x = data.x.to_sparse()
    return data


def with_numpy_targets() -> Data:
    data = make_data()
    data.y = data.y.numpy()
    return data


@pytest.mark.filterwarnings("ignore:Sparse")  # of torch, as torch_geometric makes the matrix
@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (heterogeneous, "HeteroData with several types of nodes"),
        (lambda: ToSparseTensor()(make_data()), "has adj_t and no edge_index"),
        (with_sparse_features, r"data.x = data.x.to_dense\(\)"),
        (with_numpy_targets, "data.y is a ndarray"),
    ],
)
def test_graphs_of_another_kind_are_refused_with_what_to_do(make, seen):
    with pytest.raises(TypeError, match=seen):
        graph.graph_problem(make_network("sgc"), make())


def test_features_of_one_axis_are_refused():
    data = make_data()
    data.x = data.x[:, 0]
    with pytest.raises(ValueError, match=r"expected \(nodes, features\)"):
        graph.graph_problem(make_network("sgc"), data)


class Pooled(nn.Module):
    """Classifies graphs."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = GCNConv(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return global_mean_pool(self.layer(x, edge_index), None)


def test_classes_of_whole_graphs_are_refused():
    with pytest.raises(ValueError, match="one that pools nodes"):
        graph.graph_problem(Pooled().double(), make_data())
    data = make_data()
    data.y = data.y[:1]
    with pytest.raises(ValueError, match="a row for each of the 32 nodes"):
        graph.graph_problem(make_network("sgc"), data)


class OfData(nn.Module):
    """Takes the whole object."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = GCNConv(NUM_FEATURES, NUM_CLASSES)

    def forward(self, data: Data) -> Tensor:
        return self.layer(data.x, data.edge_index)


class OfEdgeFeatures(nn.Module):
    """Needs features of edges."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = GCNConv(NUM_FEATURES, NUM_CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        return self.layer(x, edge_index) + edge_attr.sum()


@pytest.mark.parametrize(("module", "names"), [(OfData, "data"), (OfEdgeFeatures, "edge_attr")])
def test_networks_that_take_other_inputs_are_refused(module, names):
    with pytest.raises(TypeError, match=rf"{names}\), expected \(x, edge_index\)"):
        graph.graph_problem(module().double(), make_data())


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
    with pytest.raises(ValueError, match="cached=True"):
        make_problem("sgc").with_module(SGConv(NUM_FEATURES, NUM_CLASSES, K=2, cached=True))


def test_targets_are_read_where_they_were_when_the_edges_change():
    problem = make_problem("gcn")
    fewer = problem.with_edges(problem.edges.without(torch.arange(4)))
    assert fewer.edges.num_edges == problem.edges.num_edges - 4
    assert torch.equal(fewer.read_on.pairs, problem.edges.pairs)


_CALLS: list[tuple[int, int]] = []


class Recording(nn.Module):
    """SGC that notes how wide its features are and how many edges it is given."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.layer = SGConv(width, NUM_CLASSES, K=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        _CALLS.append((x.shape[1], edge_index.shape[1]))
        return self.layer(x, edge_index)


def test_wide_features_of_a_linear_network_do_not_travel_along_all_edges():
    width, num_nodes = 300, 400
    generator = torch.Generator().manual_seed(0)
    data = Data(
        x=torch.randn(num_nodes, width, generator=generator).double(),
        y=torch.arange(num_nodes) % NUM_CLASSES,
        edge_index=torch.randint(num_nodes, (2, 3_000), generator=generator),
        train_mask=torch.arange(num_nodes) < 100,
        val_mask=torch.arange(num_nodes) >= 300,
    )
    _CALLS.clear()
    module = Recording(width).double().eval()
    problem = graph.graph_problem(module, data)
    assert problem.linear is not None
    assert max(edges for wide, edges in _CALLS if wide == width) < 1_000
    assert_close(problem.outputs(problem.edges), module(problem.x, problem.edges.edge_index()))
