import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn
from torch.testing import assert_close

from afterfit.curvature import diagonal, ggn, kfac
from afterfit.posterior import (
    by_evidence,
    by_group_evidence,
    by_validation,
    laplace,
    log_evidence,
    noise_by_evidence,
    predict,
)
from afterfit.posterior.evidence import distance_to_zero
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity, restrict
from tests import truth
from tests.cases import make_case

CASE = make_case("mlp", "categorical")


def test_the_distance_to_zero_is_one_for_what_is_not_zero():
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.bias[0] = 0
    problem = Problem.from_module(module, Gaussian())
    assert distance_to_zero(connectivity(problem)).tolist() == [1.0] * 6 + [0.0, 1.0]
    assert torch.equal(distance_to_zero(problem), truth.flat(dict(problem.params)))
    tripled = {name: 3 * p for name, p in problem.params.items()}
    assert_close(distance_to_zero(connectivity(problem, tripled))[:6], torch.ones(6) / 3)
    assert distance_to_zero(restrict(connectivity(problem), "bias")).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("curvature", [ggn, diagonal, kfac])
@pytest.mark.parametrize("coordinates", [lambda p: p, connectivity])
def test_the_evidence_has_its_maximum_where_the_search_ends(curvature, coordinates):
    best = by_evidence(laplace(coordinates(CASE.problem), CASE.data, 1.0, curvature))
    top = log_evidence(best)
    for factor in (0.5, 0.97, 1.03, 2.0):
        assert log_evidence(best.scaled(best.factor * factor)) < top
    squared = distance_to_zero(best.problem) / best.prior
    dimension = float(squared.square().sum()) / best.factor**2
    assert_close(best.effective_dimension(), dimension, rtol=1e-6, atol=0)


def test_a_prior_around_the_trained_network_would_always_ask_for_zero():
    posterior = laplace(connectivity(CASE.problem), CASE.data)
    values = [-0.5 * posterior.scaled(10.0**k).log_det_ratio() for k in (-3, -1, 0, 1)]
    assert values == sorted(values, reverse=True)


def test_the_scale_in_connectivity_is_at_least_one():
    best = by_evidence(laplace(connectivity(CASE.problem), CASE.data))
    assert best.factor >= 1


def test_groups_end_where_the_evidence_is_flat_in_each():
    patterns = ["*.bias", "*"]
    posterior = by_group_evidence(
        connectivity(CASE.problem), CASE.data, patterns, rounds=1000, tolerance=1e-7
    )
    bias, weight = float(posterior.prior[15]), float(posterior.prior[0])
    top = log_evidence(posterior)
    for scales in ((1.05 * bias, weight), (bias / 1.05, weight), (bias, 1.05 * weight)):
        changed = dict(zip(patterns, scales, strict=True))
        assert log_evidence(laplace(connectivity(CASE.problem), CASE.data, changed)) < top
    one = by_evidence(laplace(connectivity(CASE.problem), CASE.data))
    assert top >= log_evidence(one)


def test_groups_that_have_not_settled_are_told():
    with pytest.warns(UserWarning, match="raise rounds"):
        by_group_evidence(connectivity(CASE.problem), CASE.data, ["*.bias", "*"], rounds=2)


def test_a_group_that_the_data_do_not_determine_is_named():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    with torch.no_grad():
        module[0].bias.zero_()
    problem = connectivity(Problem.from_module(module, Categorical()))
    with pytest.raises(ValueError, match=r"nothing of the group '0.bias'"):
        by_group_evidence(problem, CASE.data, ["0.bias", "*"])


def test_validation_takes_the_best_of_its_scales_and_keeps_the_scores():
    posterior = laplace(connectivity(CASE.problem), CASE.data)
    search = by_validation(posterior, CASE.data, (0.01, 0.3, 10.0))
    expected = [
        float(predict(posterior.scaled(s), CASE.data).losses(CASE.data.targets()).mean())
        for s in (0.01, 0.3, 10.0)
    ]
    assert_close(list(search.scores), expected, rtol=1e-12, atol=0)
    assert search.best.factor == search.scales[expected.index(min(expected))]
    with pytest.raises(ValueError, match="no scales to try"):
        by_validation(posterior, CASE.data, ())


def regression(sigma: float) -> tuple[Problem, Batches]:
    """A linear model fitted to data whose noise has this standard deviation."""
    generator = Generator().manual_seed(4)
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(300, generator=generator, dtype=torch.float64)
    y = x @ torch.arange(1, 6).double() + sigma * noise
    module = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.linalg.lstsq(x, y[:, None]).solution.T)
    return Problem.from_module(module, Gaussian()), Batches((x, y), 64)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_noise_of_a_regression_is_found(sigma: float):
    problem, data = regression(sigma)
    found = noise_by_evidence(laplace(problem, data, 10.0))
    likelihood = found.problem.likelihood
    assert isinstance(likelihood, Gaussian)
    assert abs(likelihood.sigma / sigma - 1) < 5 / math.sqrt(2 * 300)


def test_the_noise_is_at_the_maximum_of_the_evidence_and_fits_a_posterior_made_with_it():
    problem, data = regression(0.5)
    found = noise_by_evidence(laplace(problem, data, 3.0))
    sigma = found.problem.likelihood.sigma  # pyright: ignore[reportAttributeAccessIssue]

    def made(noise: float):
        return laplace(replace(problem, likelihood=Gaussian(noise)), data, 3.0)

    assert_close(log_evidence(made(sigma)), log_evidence(found), rtol=1e-9, atol=0)
    assert log_evidence(made(1.05 * sigma)) < log_evidence(found)
    assert log_evidence(made(sigma / 1.05)) < log_evidence(found)


def test_noise_is_for_regression_with_residuals():
    with pytest.raises(TypeError, match="expected Gaussian"):
        noise_by_evidence(laplace(CASE.problem, CASE.data))
    problem, data = regression(0.0)
    with pytest.raises(ValueError, match="residuals are zero"):
        noise_by_evidence(laplace(problem, data))


def test_evidence_needs_data_that_tell_something():
    module = nn.Linear(3, 2).double()
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    problem = Problem.from_module(module, Gaussian())
    data = make_case("linear", "gaussian").data
    with warnings.catch_warnings(), pytest.raises(ValueError, match="give prior_scale a number"):
        by_evidence(laplace(problem, data))
