"""EK-FAC and KFAC influence against the dense inverse of their blocks, in float64."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from afterfit.curvature import diagonal, ekfac, ggn, kfac, reduce, relative
from afterfit.influence import EKFACInfluence, InfluenceFunction
from afterfit.problem import Batches, Categorical, Problem, connectivity
from tests import truth
from tests.cases import Case, make_case, name_of

CASES = [
    make_case(network, likelihood)
    for network, likelihood in [
        ("linear", "categorical"),
        ("mlp", "bernoulli"),
        ("cnn", "poisson"),
        ("batch-norm", "categorical"),
        ("tied", "gaussian"),
        ("attention", "categorical"),
        ("token-bag", "multi-label"),
    ]
]
CURVATURES = {
    "kfac": partial(kfac, others=diagonal),
    "ekfac": partial(ekfac, others=diagonal),
    "ekfac-reduce": partial(ekfac, others=diagonal, sharing=reduce),
}


def dense_scores(operator, share, case: Case, query):
    """Scores by the dense inverse of every block."""
    size, num = case.problem.num_params, case.data.num_samples
    inverse = torch.zeros(size, size, dtype=torch.float64)
    for block, where in zip(operator.blocks, operator.parts(), strict=True):
        own = block.to_dense() / num
        own += share * own.trace() / len(own) * torch.eye(len(own), dtype=torch.float64)
        inverse[where[:, None], where] = torch.linalg.inv(own)
    return (
        truth.gradients(case.problem, query) @ inverse @ truth.gradients(case.problem, case.data).T
    )


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("name", CURVATURES)
@pytest.mark.parametrize("budget", [2**30, 1])
def test_scores_are_those_of_the_dense_blocks(name, case, budget):
    query = case.data.subset(torch.tensor([5, 0, 2, 2]))
    method = EKFACInfluence(relative(0.1), CURVATURES[name], memory_budget=budget)

    found = method.fit(case.problem, case.data)

    expected = dense_scores(CURVATURES[name](case.problem, case.data), 0.1, case, query)
    assert_close(found.scores(query), expected, rtol=1e-7, atol=1e-9)
    own = dense_scores(CURVATURES[name](case.problem, case.data), 0.1, case, case.data)
    assert_close(found.self_scores(), own.diagonal(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_it_is_the_influence_function_of_its_curvature_in_relative_coordinates_too(network):
    case = make_case(network, "categorical")
    for problem in (case.problem, connectivity(case.problem)):
        found = EKFACInfluence(0.3).fit(problem, case.data)
        same = InfluenceFunction(0.3, curvature=ekfac).fit(problem, case.data)
        assert_close(found.scores(case.data), same.scores(case.data))
        assert_close(found.self_scores(), same.self_scores())


def test_groups_of_a_convolution_have_blocks_of_their_own():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(16, 2))
        x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    problem = Problem.from_module(net.double(), Categorical())
    case = Case("groups", problem, Batches((x, torch.arange(6) % 2), batch_size=4))
    found = EKFACInfluence(relative(0.1)).fit(case.problem, case.data)
    expected = dense_scores(ekfac(case.problem, case.data), 0.1, case, case.data)
    assert_close(found.scores(case.data), expected)


def test_a_curvature_without_blocks_is_refused():
    case = make_case("mlp", "categorical")
    with pytest.raises(TypeError, match=r"expected the blocks of ekfac.*InfluenceFunction"):
        EKFACInfluence(0.1, curvature=ggn).fit(case.problem, case.data)
