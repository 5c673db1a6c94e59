"""TRAK, DataInf, RelatIF, cosines, representer points and neighbors against dense definitions."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn
from torch.testing import assert_close

from afterfit.influence import (
    TRAK,
    DataInf,
    GradientCosine,
    GradientDot,
    NearestNeighborShapley,
    RandomProjection,
    RelatIF,
    RepresenterPoints,
    TracIn,
    load_features,
    store_features,
)
from afterfit.influence.base import InfluenceMethod
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity, linearize
from afterfit.problem.persample import outputs
from tests import truth
from tests.cases import Case, make_case, name_of
from tests.methods import checkpoints

CASES = tuple(
    make_case(network, likelihood)
    for network, likelihood in [
        ("mlp", "categorical"),
        ("cnn", "categorical"),
        ("tied", "categorical"),
        ("attention", "categorical"),
        ("token-bag", "categorical"),
        ("batch-norm", "bernoulli"),
    ]
)
every_case = pytest.mark.parametrize("case", CASES, ids=name_of)
QUERY = torch.tensor([5, 0, 2, 2])


def margin_problem(problem):
    """The problem whose loss is the log-odds of the given label, by the definition."""

    def odds(found, y):
        p = (-problem.likelihood.loss(found, y)).exp()
        return p.log() - (1 - p).log()

    return Problem(
        problem.forward,
        Problem.from_module(nn.Linear(1, 1), odds).likelihood,
        problem.params,
        problem.buffers,
        problem.train_forward,
    )


def at(problem, point):
    params = {name: point[name] for name in problem.params}
    return replace(problem, params=params, forward=lambda p, x: problem.forward({**point, **p}, x))


@every_case
def test_trak_is_a_regression_on_projected_gradients_of_the_log_odds(case: Case):
    points, d, seed = checkpoints(case.problem), 3, 5
    query = case.data.subset(QUERY)
    kernel, doubts = [], []
    for m, point in enumerate(points):
        there = at(case.problem, point)
        shape = d, case.problem.num_params
        draw = torch.randn(shape, generator=Generator().manual_seed(seed + m), dtype=torch.float64)
        phi, asked = (
            truth.gradients(margin_problem(there), data) @ draw.T / d**0.5
            for data in (case.data, query)
        )
        kernel.append(asked @ torch.linalg.inv(phi.T @ phi) @ phi.T)
        y = case.data.targets()
        doubts.append(1 - (-there.likelihood.loss(outputs(there, case.data), y)).exp())
    expected = torch.stack(kernel).mean(0) * torch.stack(doubts).mean(0)

    found = TRAK(d, points, seed=seed).fit(case.problem, case.data)

    assert_close(found.scores(query), expected, rtol=1e-6, atol=1e-8)
    assert_close(found.self_scores(), found.scores(case.data).diagonal())
    draws = torch.stack(kernel) * torch.stack(doubts).mean(0)
    assert_close(found.cross_influence(query).stderr, draws.std(0) / 3**0.5, rtol=1e-6, atol=1e-8)


def test_trak_says_what_to_change_where_its_matrix_has_no_inverse():
    case = CASES[0]
    with pytest.raises(ValueError, match="num_projections is 8, expected between 1 and the 7"):
        TRAK(8).fit(case.problem, case.data)
    with pytest.raises(ValueError, match=r"num_projections is 0"):
        TRAK(0).fit(case.problem, case.data)
    with pytest.raises(ValueError, match="lower num_projections, or raise ridge"):
        TRAK(6).fit(case.problem, case.data.subset(torch.zeros(7, dtype=torch.long)))
    with pytest.raises(ValueError, match="raise memory_budget"):
        TRAK(6, memory_budget=10).fit(case.problem, case.data)
    with pytest.raises(ValueError, match="no checkpoints"):
        TRAK(3, []).fit(case.problem, case.data)
    assert bool(TRAK(3).fit(case.problem, case.data).self_influence().stderr.isnan().all())
    assert TRAK(20, ridge=0.1).fit(case.problem, case.data).self_scores().isfinite().all()


def blocks(problem):
    """Names of the parameters of a layer together: those before the last dot."""
    names = {}
    for name in problem.params:
        names.setdefault(name.rpartition(".")[0], []).append(name)
    return names.values()


def columns_of(problem, names):
    flat, start = [], 0
    for name, value in problem.params.items():
        if name in names:
            flat += range(start, start + value.numel())
        start += value.numel()
    return flat


@pytest.mark.parametrize(("case", "memory_budget"), [(CASES[0], 1), (CASES[1], 2**30)])
def test_datainf_is_the_mean_of_inverses_layer_by_layer(case: Case, memory_budget: int):
    train, asked = (truth.gradients(case.problem, d) for d in (case.data, case.data.subset(QUERY)))
    expected = torch.zeros(len(asked), len(train), dtype=torch.float64)
    for names in blocks(case.problem):
        columns = columns_of(case.problem, names)
        g, q = train[:, columns], asked[:, columns]
        damping = 0.1 * g.square().mean()
        eye = damping * torch.eye(len(columns), dtype=torch.float64)
        inverse = torch.stack([torch.linalg.inv(torch.outer(r, r) + eye) for r in g]).mean(0)
        expected += q @ inverse @ g.T

    found = DataInf(memory_budget=memory_budget).fit(case.problem, case.data)

    assert_close(found.scores(case.data.subset(QUERY)), expected)
    assert_close(found.self_scores(), found.scores(case.data).diagonal())


def test_datainf_refuses_a_layer_without_gradients():
    problem = CASES[0].problem
    still = replace(problem, params={n: 0 * p for n, p in problem.params.items()})
    with pytest.raises(ValueError, match=r"0\.weight\+0\.bias give a damping of 0"):
        DataInf().fit(still, CASES[0].data)
    with pytest.raises(ValueError, match="damping is 0"):
        DataInf(0)


@every_case
def test_cosines_and_relative_influence_are_divided_dot_products(case: Case):
    query = case.data.subset(QUERY)
    train, asked = (truth.gradients(case.problem, data) for data in (case.data, query))

    cosine = GradientCosine().fit(case.problem, case.data)
    relative = RelatIF(GradientDot()).fit(case.problem, case.data)

    lengths = train.norm(dim=1)
    assert_close(cosine.scores(query), asked @ train.T / asked.norm(dim=1)[:, None] / lengths)
    assert_close(cosine.self_scores(), torch.ones_like(lengths))
    assert_close(relative.scores(query), asked @ train.T / lengths)
    assert_close(relative.self_scores(), lengths)


def test_a_sample_without_a_gradient_is_refused_where_its_length_divides():
    problem = Problem.from_module(nn.Linear(2, 1, bias=False).double(), Gaussian())
    data = Batches((torch.eye(2).double(), torch.ones(2, 1).double()), ids=["a", "b"])
    fitted = replace(problem, params={"weight": torch.tensor([[0.0, 1.0]]).double()})

    assert GradientDot().fit(fitted, data).self_scores().tolist() == [1, 0]
    with pytest.raises(ValueError, match="gradient of sample b is zero"):
        GradientCosine().fit(fitted, data).self_scores()
    with pytest.raises(ValueError, match=r"self-influence of sample b is 0\.0"):
        RelatIF(GradientDot()).fit(fitted, data)


@pytest.mark.parametrize("case", [CASES[0], make_case("mlp", "gaussian")], ids=name_of)
def test_representer_values_sum_to_the_output(case: Case):
    decay = 0.01
    found = RepresenterPoints("3.*", decay).fit(case.problem, case.data)
    query = case.data.subset(QUERY)

    hidden = case.problem.params["0.weight"], case.problem.params["0.bias"]
    x, xq = case.data.fetch(torch.arange(7)).inputs, query.fetch(torch.arange(4)).inputs
    f, fq = (
        torch.cat([(z @ hidden[0].T + hidden[1]).tanh(), torch.ones(len(z), 1)], 1) for z in (x, xq)
    )
    y = case.data.targets()
    found_outputs = (f @ found.weights.T).requires_grad_()
    (slopes,) = torch.autograd.grad(
        case.problem.likelihood.loss(found_outputs, y).sum(), found_outputs
    )
    alpha = -slopes / (2 * decay * 7)

    assert_close(found.features, f)
    assert_close(found.parts, alpha)
    assert_close(
        fq @ found.weights.T, torch.einsum("nc,nd,qd->qc", alpha, f, fq), rtol=1e-4, atol=1e-5
    )
    if y.ndim == 1:
        own = alpha[:, query.targets()].T * (fq @ f.T)
        assert_close(found.scores(query), own)
        assert_close(
            found.scores(query).sum(1),
            (fq @ found.weights.T).gather(1, query.targets()[:, None])[:, 0],
            rtol=1e-4,
            atol=1e-5,
        )
    assert_close(found.self_scores(), found.scores(case.data).diagonal())


def test_representer_points_need_one_layer():
    case = CASES[0]
    with pytest.raises(ValueError, match="expected those of one linear layer"):
        RepresenterPoints("*").fit(case.problem, case.data)
    with pytest.raises(ValueError, match="weight_decay is 0"):
        RepresenterPoints("3.*", 0).fit(case.problem, case.data)
    with pytest.raises(ValueError, match="no parameter matches"):
        RepresenterPoints("head.*").fit(case.problem, case.data)


@pytest.mark.parametrize("num_neighbors", [1, 3, 5])
def test_neighbor_values_are_shapley_values(num_neighbors: int):
    """The mean over all orders of what a sample adds to the share of its label among neighbors."""
    generator = Generator().manual_seed(2)
    x, xq = (torch.randn(n, 2, generator=generator) for n in (5, 3))
    y, yq = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([0, 1, 1])
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.eye(2)

    def value(chosen, q):
        near = sorted(chosen, key=lambda i: float((x[i] - xq[q]).norm()))[:num_neighbors]
        return sum(float(y[i] == yq[q]) for i in near) / num_neighbors

    expected = torch.zeros(3, 5)
    for order in itertools.permutations(range(5)):
        for q in range(3):
            for place, i in enumerate(order):
                expected[q, i] += value(order[: place + 1], q) - value(order[:place], q)

    found = NearestNeighborShapley(num_neighbors).fit(
        Problem.from_module(net, Categorical()), Batches((x, y))
    )

    assert_close(found.scores(Batches((xq, yq))), expected / math.factorial(5))
    assert_close(found.self_scores(), found.scores(Batches((x, y))).diagonal())


def test_neighbors_need_classes_and_enough_samples():
    case, other = CASES[0], make_case("mlp", "gaussian")
    with pytest.raises(ValueError, match="num_neighbors is 8"):
        NearestNeighborShapley(8).fit(case.problem, case.data)
    with pytest.raises(ValueError, match="class indices"):
        NearestNeighborShapley(2).fit(other.problem, other.data)


# Errors -----------------------------------------------------------------------------------------


def test_exact_scores_have_no_error_and_repeats_have_theirs():
    case = CASES[0]
    query, points = case.data.subset(QUERY), checkpoints(case.problem)
    exact = GradientDot().fit(case.problem, case.data)
    traced = TracIn(points).fit(case.problem, case.data)

    assert not bool(exact.cross_influence(query).stderr.any())
    assert exact.reliability() == 1
    each = torch.stack(
        [
            truth.gradients(at(case.problem, p), query)
            @ truth.gradients(at(case.problem, p), case.data).T
            for p in points
        ]
    )
    found = traced.cross_influence(query)
    assert_close(found.value, each.mean(0))
    assert_close(found.stderr, each.std(0) / 3**0.5)
    assert_close(traced.self_influence().value, traced.self_scores())
    assert 0 < traced.reliability() <= 1


def test_the_error_of_projections_is_that_of_their_scores():
    case = CASES[0]
    query = case.data.subset(QUERY)
    exact = GradientDot().fit(case.problem, case.data).scores(query)

    misses = []
    for seed in range(15):
        found = RandomProjection(60, seed).fit(case.problem, case.data).cross_influence(query)
        misses.append((found.value - exact) / found.stderr)

    # Student's t with 9 degrees of freedom has variance 9/7
    assert abs(float(torch.stack(misses).square().mean()) - 9 / 7) < 0.5
    one = RandomProjection(1).fit(case.problem, case.data)
    assert bool(one.self_influence().stderr.isnan().all())
    assert math.isnan(one.reliability())


# Coordinates and storage ------------------------------------------------------------------------


@pytest.mark.parametrize("change", [connectivity, linearize])
@every_case
def test_dot_products_hold_in_other_coordinates(case: Case, change):
    problem = change(case.problem)
    rows = truth.gradients(problem, case.data)
    influence = GradientDot().fit(problem, case.data)

    assert_close(influence.scores(case.data), rows @ rows.T)
    assert_close(influence.self_scores(), rows.square().sum(1))


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=name_of)
def test_stored_features_give_the_same_scores(case: Case, dtype, error, tmp_path):
    influence = TracIn(checkpoints(case.problem)).fit(case.problem, case.data)
    stored = store_features(influence, tmp_path, dtype)

    query = case.data.subset(QUERY)
    lengths = influence.self_scores().sqrt()
    miss = (stored.scores(query) - influence.scores(query)).abs()
    assert bool((miss <= error * lengths[QUERY, None] * lengths + 1e-12).all())
    assert torch.equal(load_features(influence, tmp_path).scores(query), stored.scores(query))
    assert_close(stored.self_scores(), influence.self_scores(), rtol=3 * error, atol=1e-9)


def test_stored_features_of_something_else_are_refused(tmp_path):
    case = CASES[0]
    influence = GradientDot().fit(case.problem, case.data)
    with pytest.raises(ValueError, match="holds no stored features"):
        load_features(influence, tmp_path)
    store_features(influence, tmp_path)
    other = GradientDot().fit(case.problem, case.data.subset(QUERY))
    with pytest.raises(ValueError, match="store them again"):
        load_features(other, tmp_path)
    huge = replace(case.problem, params={n: 1e3 * p for n, p in case.problem.params.items()})
    loud = GradientDot().fit(huge, Batches((1e6 * torch.ones(2, 3).double(), torch.tensor([0, 1]))))
    with pytest.raises(ValueError, match="bfloat16"):
        store_features(loud, tmp_path, torch.float16)


@pytest.mark.parametrize(
    "method",
    [
        TRAK(3),
        DataInf(),
        GradientCosine(),
        RelatIF(GradientDot()),
        RepresenterPoints("3.*"),
        NearestNeighborShapley(2),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_follow_the_protocol_and_name_a_broken_sample(method):
    case = CASES[0]
    x = torch.randn(5, 3, dtype=torch.float64, generator=Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1])
    broken = Batches((x.index_fill(0, torch.tensor([3]), torch.nan), y), ids=list("abcde"))

    assert isinstance(method, InfluenceMethod)
    assert "20" in method.reference
    influence = method.fit(case.problem, Batches((x, y)))
    with pytest.raises(ValueError, match=r"sample d .*NaN"):
        influence.scores(broken)
    with pytest.raises(ValueError, match=r"sample d .*(NaN|nan)"):
        method.fit(case.problem, broken).self_scores()
