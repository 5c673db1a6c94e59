"""Ritz pairs of the Hessian against its dense eigenvectors."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from afterfit.curvature import hessian
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.classic import InfluenceFunction
from afterfit.problem import Batches, Categorical, Gaussian, Problem
from afterfit.problem.persample import gradients, unflatten


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def case(num=12):
    """An untrained network, whose Hessian has eigenvalues of both signs."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    problem = Problem.from_module(net, Categorical())
    problem = replace(problem, params=unflatten(draws(problem.num_params, seed=1), problem.params))
    train = Batches((draws(num, 3, seed=2), torch.arange(num) % 3), batch_size=8)
    return problem, train


def full(problem, **settings):
    size = problem.num_params
    return ArnoldiInfluence(num_iterations=size, num_pairs=size, **settings)


def all_gradients(problem, data):
    return torch.cat([rows for _, rows in gradients(problem, data)])


def positive_part(problem, data, damping=0.0, num_pairs=None):
    """Inverse of the mean Hessian on its positive eigenspace, and how many directions that is."""
    values, vectors = torch.linalg.eigh(hessian(problem, data).to_dense() / data.num_samples)
    order = values.abs().argsort(descending=True)[:num_pairs]
    keep = order[values[order] > 1e-10]
    return (vectors[:, keep] / (values[keep] + damping)) @ vectors[:, keep].mT, len(keep)


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_full_krylov_space_is_the_influence_function_on_the_positive_eigenspace(damping):
    problem, train = case()

    influence = full(problem, damping=damping).fit(problem, train)

    inverse, num_positive = positive_part(problem, train, damping)
    rows = all_gradients(problem, train)
    assert len(influence.inverse.pairs.values) == num_positive
    assert influence.inverse.num_dropped > 0
    assert torch.allclose(influence.scores(train), rows @ inverse @ rows.mT, rtol=1e-5, atol=1e-6)


def test_full_krylov_space_of_a_convex_problem_is_the_influence_function():
    problem = Problem.from_module(nn.Linear(4, 1, bias=False).double(), Gaussian())
    train = Batches((draws(20, 4), draws(20, seed=1)), batch_size=6)

    influence = full(problem).fit(problem, train)

    exact = InfluenceFunction(damping=0.0).fit(problem, train)
    assert torch.allclose(influence.scores(train), exact.scores(train), atol=1e-8)


def test_an_eigenvalue_that_occurs_twice_is_found_once():
    problem = Problem.from_module(nn.Linear(4, 2, bias=False).double(), Gaussian())
    train = Batches((draws(20, 4), draws(20, 2, seed=1)), batch_size=6)

    influence = full(problem).fit(problem, train)

    distinct = torch.linalg.eigvalsh(hessian(problem, train).to_dense() / 20)[::2].flip(0)
    torch.testing.assert_close(influence.inverse.pairs.values, distinct)
    exact = InfluenceFunction(damping=0.0).fit(problem, train)
    assert bool((influence.self_scores() < exact.self_scores()).all())


def test_pairs_are_those_of_largest_absolute_value():
    problem, train = case()

    influence = ArnoldiInfluence(num_iterations=problem.num_params, num_pairs=9).fit(problem, train)

    inverse, num_positive = positive_part(problem, train, num_pairs=9)
    rows = all_gradients(problem, train)
    assert len(influence.inverse.pairs.values) == num_positive
    assert influence.inverse.num_dropped == 9 - num_positive > 0
    assert torch.allclose(influence.scores(train), rows @ inverse @ rows.mT, rtol=1e-5, atol=1e-8)


def test_curvature_is_of_one_fixed_subset():
    problem, train = case()
    seen = []

    def forward(params, inputs):
        seen.append(inputs)
        return problem.forward(params, inputs)

    watched = replace(problem, forward=forward)
    method = ArnoldiInfluence(num_iterations=9, num_pairs=1, curvature_samples=4)
    one, two = method.fit(watched, train), method.fit(problem, train)

    assert {len(inputs) for inputs in seen} == {4}
    assert all(torch.equal(inputs, seen[0]) for inputs in seen)
    assert torch.equal(one.inverse.pairs.values, two.inverse.pairs.values)


def test_float32_drops_rounding_errors_with_the_negative_values():
    problem, train = case()
    single = replace(problem, params={n: p.float() for n, p in problem.params.items()})
    data = Batches((draws(12, 3, seed=2).float(), torch.arange(12) % 3))

    influence = full(problem).fit(single, data)

    expected = full(problem).fit(problem, train)
    assert influence.scores(data).dtype == torch.float32
    assert torch.allclose(
        influence.inverse.pairs.values[:3], expected.inverse.pairs.values[:3], rtol=1e-4
    )
    assert float(influence.inverse.pairs.values.min()) > 1e-6 * float(
        influence.inverse.pairs.values.max()
    )


def test_pairs_that_have_not_converged_are_warned_of():
    generator = Generator().manual_seed(0)
    scales = torch.linspace(1, 2, 60, dtype=torch.float64)
    x = scales * torch.randn(200, 60, generator=generator, dtype=torch.float64)
    problem = Problem.from_module(nn.Linear(60, 1, bias=False).double(), Gaussian())

    with pytest.warns(UserWarning, match="have not converged.*raise num_steps"):
        ArnoldiInfluence(num_iterations=5, num_pairs=5).fit(problem, Batches((x, x[:, 0])))


def test_curvature_without_a_positive_value_is_refused():
    problem = Problem.from_module(nn.Linear(2, 1).double(), lambda f, _: -f[:, 0].square())
    train = Batches((draws(5, 2), torch.zeros(5)))

    with pytest.raises(ValueError, match=r"none of \d Ritz values is positive"):
        ArnoldiInfluence().fit(problem, train)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_pairs": 0},
        {"num_pairs": 51},
        {"damping": -1.0},
        {"damping": float("nan")},
        {"curvature_samples": 0},
    ],
)
def test_unusable_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        ArnoldiInfluence(**settings)
