import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, distributions
from torch.testing import assert_close

from afterfit.posterior.link import (
    LaplaceBridge,
    Link,
    Moments,
    MonteCarlo,
    Probit,
    covariance_root,
    default_link,
)
from afterfit.problem import Bernoulli, Categorical, Gaussian, Likelihood, PerSample, Poisson

EXACT = {"rtol": 1e-10, "atol": 1e-12}
LIKELIHOODS = (Categorical(), Bernoulli(), Gaussian(sigma=0.7), Poisson())


def gaussians(num: int, size: int, spread: float, generator: Generator) -> tuple[Tensor, Tensor]:
    draw = {"generator": generator, "dtype": torch.float64}
    root = spread * torch.randn(num, size, size, **draw)
    return torch.randn(num, size, **draw), root @ root.mT


def slow_draws(mean: Tensor, covariance: Tensor, generator: Generator) -> Tensor:
    root = torch.linalg.cholesky(covariance)
    noise = torch.randn(200_000, len(mean), 1, generator=generator, dtype=torch.float64)
    return mean + (root @ noise)[..., 0]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_monte_carlo_is_the_average_over_independent_draws(likelihood: Any, generator: Generator):
    mean, covariance = gaussians(3, 3, 0.7, generator)
    pushed = MonteCarlo(num_draws=4096, seed=1).push(likelihood, mean, covariance)
    for row in range(3):
        draws = likelihood.mean(slow_draws(mean[row], covariance[row], generator))
        slow_error = draws.std(0) / math.sqrt(len(draws))
        error = (pushed.stderr[row].square() + slow_error.square()).sqrt()
        assert bool(((pushed.mean[row] - draws.mean(0)).abs() < 5 * error).all())


def test_the_standard_error_falls_with_the_root_of_the_draws(generator: Generator):
    mean, covariance = gaussians(4, 3, 1.0, generator)
    few, many = (MonteCarlo(n).push(Categorical(), mean, covariance).stderr for n in (512, 8192))
    assert_close(few.mean() / many.mean(), torch.tensor(4.0).double(), rtol=0.2, atol=0)


def test_the_standard_error_is_the_spread_over_seeds(generator: Generator):
    mean, covariance = gaussians(1, 3, 1.0, generator)
    runs = [MonteCarlo(64, seed).push(Categorical(), mean, covariance) for seed in range(300)]
    spread = torch.stack([run.mean for run in runs]).std(0)
    told = torch.stack([run.stderr for run in runs]).square().mean(0).sqrt()
    assert_close(told, spread, rtol=0.15, atol=0)


def test_samples_share_their_draws_and_seeds_reproduce(generator: Generator):
    mean, covariance = gaussians(1, 3, 1.0, generator)
    twice = MonteCarlo(64).push(Categorical(), mean.repeat(2, 1), covariance.repeat(2, 1, 1))
    assert torch.equal(twice.mean[0], twice.mean[1])
    again = MonteCarlo(64).push(Categorical(), mean, covariance)
    other = MonteCarlo(64, seed=1).push(Categorical(), mean, covariance)
    assert_close(again.mean[0], twice.mean[0], **EXACT)
    assert not torch.equal(other.mean, again.mean)


@pytest.mark.parametrize("link", [MonteCarlo(), Probit(), LaplaceBridge()], ids=str)
def test_without_variance_every_link_gives_the_prediction_of_the_network(
    link: Link, generator: Generator
):
    mean = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    pushed = link.push(Categorical(), mean, torch.zeros(4, 3, 3, dtype=torch.float64))
    assert_close(pushed.mean, mean.softmax(-1), **EXACT)
    assert bool((pushed.epistemic.nan_to_num() < 1e-12).all())


def test_the_mutual_information_is_what_knowing_the_outputs_takes_away(generator: Generator):
    mean, covariance = gaussians(1, 3, 1.0, generator)
    pushed = MonteCarlo(8192).push(Categorical(), mean, covariance)
    p = slow_draws(mean[0], covariance[0], generator).softmax(-1)
    known = distributions.Categorical(probs=p).entropy().mean()
    total = distributions.Categorical(probs=p.mean(0)).entropy()
    assert_close(pushed.uncertainty[0], total, rtol=0.01, atol=0)
    assert_close(pushed.epistemic[0], total - known, rtol=0.03, atol=0)


def test_probit_shrinks_by_the_variance_and_equals_mackays_formula_for_one_output():
    mean, variance = torch.tensor([[1.5]]).double(), torch.tensor([[[2.0]]]).double()
    pushed = Probit().push(Bernoulli(), mean, variance)
    assert_close(pushed.mean, torch.sigmoid(mean / math.sqrt(1 + math.pi * 2 / 8)), **EXACT)
    exact = MonteCarlo(65536).push(Bernoulli(), mean, variance)
    assert_close(pushed.mean, exact.mean, rtol=0.02, atol=0)


def test_the_bridge_is_near_monte_carlo_where_outputs_vary_alike(generator: Generator):
    mean = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    covariance = 0.5 * torch.eye(3, dtype=torch.float64).repeat(8, 1, 1)
    found = LaplaceBridge().push(Categorical(), mean, covariance)
    exact = MonteCarlo(8192).push(Categorical(), mean, covariance)
    assert_close(found.mean.sum(-1), torch.ones(8).double(), **EXACT)
    assert float((found.mean - exact.mean).abs().max()) < 0.12
    assert bool((found.epistemic <= found.uncertainty).all())


def test_the_bridge_gives_back_the_dirichlet_whose_gaussian_it_is_given():
    strength = torch.tensor([[2.0, 5.0, 1.5, 3.0]]).double()
    inverse, size = 1 / strength, 4
    mean = strength.log() - strength.log().mean(-1, keepdim=True)
    pair = inverse[:, :, None] + inverse[:, None, :] - inverse.sum(-1)[:, None, None] / size
    found = LaplaceBridge().push(Categorical(), mean, torch.diag_embed(inverse) - pair / size)
    dirichlet = distributions.Dirichlet(strength)
    assert_close(found.mean, dirichlet.mean, **EXACT)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        entropies = distributions.Categorical(dirichlet.rsample((20_000,))).entropy()
    expected = found.uncertainty[0] - entropies.mean()
    assert float((found.epistemic[0] - expected).abs()) < 5 * float(entropies.std()) / 141


def test_moments_of_numbers_add_the_noise(generator: Generator):
    mean, covariance = gaussians(4, 2, 1.0, generator)
    pushed = Moments().push(Gaussian(sigma=0.5), mean, covariance)
    spread = covariance.diagonal(dim1=1, dim2=2)
    assert_close(pushed.mean, mean, **EXACT)
    assert_close(pushed.variance, spread + 0.25, **EXACT)
    assert_close(pushed.epistemic, spread.sum(-1), **EXACT)


@pytest.mark.parametrize("likelihood", [Gaussian(sigma=0.7), Poisson()], ids=str)
def test_moments_equal_monte_carlo(likelihood: Any, generator: Generator):
    mean, covariance = gaussians(2, 2, 0.4, generator)
    exact = Moments().push(likelihood, mean, covariance)
    drawn = MonteCarlo(2**17).push(likelihood, mean, covariance)
    assert bool(((exact.mean - drawn.mean).abs() < 5 * drawn.stderr + 1e-12).all())
    assert_close(drawn.variance, exact.variance, rtol=0.05, atol=0)
    assert_close(drawn.uncertainty, exact.uncertainty, rtol=0.05, atol=0)
    assert_close(drawn.epistemic, exact.epistemic, rtol=0.05, atol=0)


def test_losses_of_counts_are_those_of_a_mixture_of_poisson_with_a_gamma_rate():
    mean, variance = torch.tensor([[3.0, 2.0]]).double(), torch.tensor([[5.0, 2.0]]).double()
    y = torch.tensor([[4, 1]])
    found = Poisson().predictive_losses(mean, variance, y)
    gamma = distributions.Gamma(9 / 2.0, 3 / 2.0)  # mean 3, variance 2
    rates = torch.linspace(1e-4, 40, 400_001)
    weights = gamma.log_prob(rates).exp() * (rates[1] - rates[0])
    mixture = (distributions.Poisson(rates).log_prob(torch.tensor(4.0)).exp() * weights).sum()
    expected = -mixture.log().double() - distributions.Poisson(2.0).log_prob(torch.tensor(1.0))
    assert_close(found[0], expected.double(), rtol=1e-4, atol=0)


def test_losses_of_numbers_are_normal():
    mean, variance = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [2.0]])
    y = torch.tensor([1.5, 0.0])
    expected = -distributions.Normal(mean[:, 0], variance[:, 0].sqrt()).log_prob(y)
    assert_close(Gaussian().predictive_losses(mean, variance, y), expected)


def test_the_root_of_a_singular_covariance_gives_it_back(generator: Generator):
    column = torch.randn(2, 4, 1, generator=generator, dtype=torch.float64)
    covariance = column @ column.mT
    root = covariance_root(covariance)
    assert_close(root @ root.mT, covariance, rtol=0, atol=1e-9)
    assert torch.equal(covariance_root(0 * covariance), 0 * covariance)


def test_a_covariance_that_is_none_is_refused():
    with pytest.raises(FloatingPointError, match="positive semi-definite"):
        covariance_root(-torch.eye(3)[None])


@pytest.mark.parametrize(
    ("link", "likelihood", "names"),
    [
        (Probit(), Gaussian(), "Categorical or Bernoulli"),
        (LaplaceBridge(), Bernoulli(), "Categorical"),
        (Moments(), Categorical(), "Gaussian or Poisson"),
    ],
)
def test_a_link_says_which_likelihoods_it_takes(link: Link, likelihood: Any, names: str):
    with pytest.raises(TypeError, match=names):
        link.push(likelihood, torch.zeros(1, 2), torch.eye(2)[None])


def test_a_loss_alone_has_no_prediction():
    own = PerSample(lambda outputs, y: (outputs - y).square().sum(-1))
    with pytest.raises(TypeError, match="PerSample knows a loss"):
        MonteCarlo().push(own, torch.zeros(1, 2), torch.eye(2)[None])


@pytest.mark.parametrize("num", [3, 0, 2])
def test_an_odd_or_tiny_number_of_draws_is_refused(num: int):
    with pytest.raises(ValueError, match="even number"):
        MonteCarlo(num)


def test_the_default_link_is_exact_where_it_can_be():
    assert [type(default_link(one)) for one in LIKELIHOODS] == [
        MonteCarlo,
        MonteCarlo,
        Moments,
        Moments,
    ]


def test_the_variance_of_a_target_of_another_likelihood_is_not_guessed():
    class Own(Likelihood):
        """Exponential waiting times: a mean, and a variance that is not p (1 - p)."""

        def mean(self, outputs: Tensor) -> Tensor:
            return outputs.exp()

        def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
            return (outputs + y * (-outputs).exp()).sum(-1)

    mean = torch.full((2, 1), 3.0)
    with pytest.raises(TypeError, match="Own does not know the variance of a target"):
        Own().variance(mean)
    assert float(Categorical().variance(torch.tensor([[0.25]]))) == 0.1875
    assert float(Bernoulli().variance(torch.tensor([[0.25]]))) == 0.1875
