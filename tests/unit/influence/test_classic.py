"""The influence function against the oracles in float64, and against leave-one-out."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from afterfit.curvature import ggn, hessian
from afterfit.influence.classic import InfluenceFunction
from afterfit.linalg import Dense
from afterfit.problem import Batches, Categorical, Gaussian, PerSample, Problem
from afterfit.problem.persample import losses
from tests import truth
from tests.cases import CASES, make_case, name_of, select

DAMPING = 0.1
WITH_CURVATURE = [case for case in CASES if "per-sample" not in case.name]
DIFFERENT = [case for case in select("mlp", "categorical") if case in WITH_CURVATURE]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", WITH_CURVATURE, ids=name_of)
def test_dense_ggn_is_the_sum_of_jacobian_products(case):
    found = ggn(case.problem, case.data).to_dense()

    assert torch.allclose(found, truth.ggn(case.problem, case.data), atol=1e-10)


@pytest.mark.parametrize("case", select("mlp", "categorical", "per-sample"), ids=name_of)
def test_dense_hessian_is_the_second_derivative_of_the_summed_loss(case):
    found = hessian(case.problem, case.data).to_dense()

    assert torch.allclose(found, truth.hessian(case.problem, case.data), atol=1e-9)


@pytest.mark.parametrize("likelihood", ["categorical", "multi-label", "poisson"])
def test_ggn_equals_the_hessian_for_a_linear_network_and_a_canonical_likelihood(likelihood):
    case = make_case("linear", likelihood)

    found = ggn(case.problem, case.data).to_dense()

    assert torch.allclose(found, hessian(case.problem, case.data).to_dense(), atol=1e-10)


class Bags(nn.Module):
    """Word bags: inputs are the tokens and where each bag begins."""

    def __init__(self):
        nn.Module.__init__(self)
        self.embed = nn.EmbeddingBag(7, 3, mode="mean")
        self.head = nn.Linear(3, 2)

    def forward(self, tokens, offsets):
        return self.head(self.embed(tokens, offsets))


def bags(items):
    tokens = torch.cat([words for words, _ in items])
    offsets = torch.tensor([0, *[len(words) for words, _ in items[:-1]]]).cumsum(0)
    return (tokens, offsets), torch.tensor([label for _, label in items])


def test_networks_that_cannot_be_mapped_over_samples_have_a_ggn():
    problem = Problem.from_module(Bags().double(), Categorical())
    items = [(torch.arange(i % 3 + 1) + i % 4, i % 2) for i in range(6)]
    loader = torch.utils.data.DataLoader(items, batch_size=4, collate_fn=bags)
    data = Batches(loader)

    assert torch.allclose(ggn(problem, data).to_dense(), truth.ggn(problem, data), atol=1e-10)


@pytest.mark.parametrize("case", DIFFERENT, ids=name_of)
def test_scores_are_those_of_the_dense_formula(case):
    query = case.data.subset(torch.tensor([5, 0, 2, 2]))

    influence = InfluenceFunction(damping=DAMPING).fit(case.problem, case.data)

    expected = truth.influence(case.problem, case.data, query, DAMPING, curvature=truth.ggn)
    assert torch.allclose(influence.scores(query), expected, atol=1e-9)


def test_scores_with_the_hessian_are_those_of_the_dense_formula():
    case = make_case("mlp", "categorical")

    influence = InfluenceFunction(damping=2.0, curvature=hessian).fit(case.problem, case.data)

    expected = truth.influence(case.problem, case.data, case.data, 2.0, curvature=truth.hessian)
    assert torch.allclose(influence.scores(case.data), expected, atol=1e-9)


# Leave-one-out of ridge regression, where the truth is a closed form -----------------------------

NUM, PENALTY = 200, 10.0
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)


def regression(num, seed):
    x = draws(num, 4, seed=seed)
    return x, x @ WEIGHTS + 0.5 * draws(num, seed=seed + 1)


def ridge_problem(x, y):
    """The linear network at the minimizer of ``½ Σ (y - x w)² + ½ penalty ‖w‖²``."""
    problem = Problem.from_module(nn.Linear(4, 1, bias=False).double(), Gaussian())
    return replace(problem, params={"weight": truth.ridge(x, y, PENALTY)[None]})


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_self_influence_predicts_the_rise_of_the_own_loss_and_finds_a_gross_error():
    x, y = regression(NUM, 11)
    y[17] += 5

    influence = InfluenceFunction(damping=PENALTY / NUM).fit(ridge_problem(x, y), Batches((x, y)))

    predicted = influence.self_scores() / NUM
    exact = truth.ridge_leave_one_out(x, y, x, y, PENALTY).diagonal()
    assert correlation(predicted, exact) > 0.99
    assert int(predicted.argmax()) == 17


# What is refused ---------------------------------------------------------------------------------


def test_indefinite_curvature_is_refused_with_its_smallest_eigenvalue():
    case = make_case("mlp", "categorical")
    smallest = float(torch.linalg.eigvalsh(truth.hessian(case.problem, case.data))[0]) / 7
    assert smallest < 0

    with pytest.raises(ValueError, match=f"smallest eigenvalue {smallest:.3g}.*raise damping"):
        InfluenceFunction(damping=0.0, curvature=hessian).fit(case.problem, case.data)
    InfluenceFunction(damping=-2 * smallest, curvature=hessian).fit(case.problem, case.data)


@pytest.mark.parametrize("pivot", [-1e-18, 0.0, 1e-18])
def test_singular_curvature_is_refused_even_where_rounding_lets_it_pass(pivot):
    case = make_case("linear", "bernoulli")

    def singular(problem, train):
        matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, pivot], dtype=torch.float64))
        return Dense(7 * matrix, is_symmetric=True)

    with pytest.raises(ValueError, match="positive definite"):
        InfluenceFunction(damping=0.0, curvature=singular).fit(case.problem, case.data)
    InfluenceFunction(damping=1e-6, curvature=singular).fit(case.problem, case.data)


def test_large_networks_are_refused_with_the_memory_and_an_alternative():
    problem = Problem.from_module(nn.Linear(20_001, 1, bias=False), Gaussian())
    train = Batches((torch.zeros(2, 20_001), torch.zeros(2)))

    with pytest.raises(ValueError, match=r"20,001 parameters.*3\.2 GB.*restrict.*CG.*GEX"):
        InfluenceFunction(damping=1.0, curvature=hessian).fit(problem, train)


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_damping_is_a_finite_number_of_at_least_zero(damping):
    with pytest.raises(ValueError, match="damping is"):
        InfluenceFunction(damping=damping)


def test_a_loss_without_curvature_is_refused_by_the_ggn():
    case = make_case("mlp", "per-sample")

    with pytest.raises(TypeError, match=PerSample.__name__):
        ggn(case.problem, case.data).to_dense()


def test_a_sample_with_a_nan_gradient_is_named():
    def rooted(outputs, y):
        return (outputs[:, 0] - y).abs().sqrt()

    net = nn.Linear(1, 1, bias=False).double()
    problem = replace(
        Problem.from_module(net, rooted), params={"weight": torch.ones(1, 1, dtype=torch.float64)}
    )
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    train = Batches((x, torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)), ids=["a", "b", "c"])
    assert bool(torch.isfinite(losses(problem, train)).all())

    def identity(problem, train):
        return Dense(torch.eye(1, dtype=torch.float64), is_symmetric=True)

    influence = InfluenceFunction(damping=0.0, curvature=identity).fit(problem, train)
    with pytest.raises(ValueError, match="gradient of sample b"):
        influence.self_scores()
