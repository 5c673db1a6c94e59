"""Means that the data moved, and mirrored draws, against dense algebra in float64."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.curvature import Curvature, diagonal, ekfac, ggn, kfac
from afterfit.posterior import (
    antithetic,
    laplace,
    low_rank,
    predict,
    predict_at,
    predict_by_members,
    randomize_then_optimize,
    with_ridge_mean,
)
from afterfit.problem import Batches, Gaussian, Problem, connectivity, linearize
from afterfit.sharpness import Scales
from afterfit.sharpness.certificate import bias_term
from tests import truth
from tests.cases import make_case

CURVATURES: Mapping[str, Curvature] = {
    "full": ggn,
    "diagonal": diagonal,
    "kfac": kfac,
    "ekfac": ekfac,
    "low rank": low_rank(5),
}
SAME: Mapping[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def dense_mean(problem: Problem, data: Batches, covariance: Tensor) -> Tensor:
    """``-Σ ∇L``, with the gradient summed over samples one by one."""
    leaves = truth.leaves(problem)
    total = sum(
        truth.negative_log_likelihood(problem.likelihood, problem.forward(leaves, x), y).sum()
        for x, y in truth.samples(data)
    )
    assert isinstance(total, Tensor)
    gradient = torch.autograd.grad(total, list(leaves.values()))
    return -covariance @ truth.flat(dict(zip(leaves, gradient, strict=True)))


def dense_covariance(problem: Problem, data: Batches, scale: float) -> Tensor:
    precision = truth.ggn(problem, data)
    return torch.linalg.inv(precision + torch.eye(len(precision)).double() / scale**2)


@pytest.mark.parametrize("coordinates", [lambda problem: problem, connectivity])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "poisson"])
def test_the_ridge_mean_is_that_of_dense_algebra(
    likelihood: str, coordinates: Callable[[Problem], Problem]
):
    case = make_case("mlp", likelihood)
    problem = coordinates(case.problem)
    posterior = with_ridge_mean(laplace(problem, case.data, 0.7), case.data)
    step = dense_mean(problem, case.data, dense_covariance(problem, case.data, 0.7))
    assert_close(posterior.mean(), truth.flat(dict(problem.params)) + step, **SAME)
    jacobian = truth.jacobian(problem, case.data)
    expected = truth.outputs(problem, case.data) + jacobian @ step
    assert_close(predict(posterior, case.data).logit_mean, expected, **SAME)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_every_structure_moves_by_its_own_covariance(curvature: str):
    case = make_case("mlp", "categorical")
    problem = connectivity(case.problem)
    at_rest = laplace(problem, case.data, 1.0, CURVATURES[curvature]).scaled(0.6)
    identity = torch.eye(problem.num_params).double()
    covariance = at_rest.prior[:, None] * at_rest.basis.apply(
        at_rest.variances_along(), at_rest.factor**2, at_rest.prior[:, None] * identity
    )
    expected = dense_mean(problem, case.data, covariance)
    found = with_ridge_mean(at_rest, case.data).mean() - at_rest.mean()
    assert_close(found, expected, **SAME)


def test_the_identities_of_the_bound():
    """Outputs ``f + r - σ² u`` with ``u = (α² C + σ² I)⁻¹ r``, and the bias ``μᵀ μ / α²``."""
    case, alpha, sigma = make_case("mlp", "gaussian"), 0.7, 0.4
    problem = connectivity(replace(case.problem, likelihood=Gaussian(sigma)))
    posterior = with_ridge_mean(laplace(problem, case.data, alpha), case.data)
    jacobian = truth.jacobian(problem, case.data).flatten(0, 1)
    found = truth.outputs(problem, case.data)
    residual = (case.data.targets().view(found.shape) - found).flatten()
    kernel = jacobian @ jacobian.mT
    values, vectors = torch.linalg.eigh(kernel)
    u = torch.linalg.solve(alpha**2 * kernel + sigma**2 * torch.eye(len(kernel)).double(), residual)
    expected = found.flatten() + residual - sigma**2 * u
    assert_close(predict(posterior, case.data).logit_mean.flatten(), expected, **SAME)
    step = posterior.mean() - truth.flat(dict(problem.params))
    bias = bias_term(values, vectors.mT @ residual, Scales(alpha, sigma))
    assert_close(float(step @ step) / alpha**2, bias, rtol=1e-9, atol=0)


def test_each_prior_scale_has_its_own_mean():
    case = make_case("mlp", "gaussian")
    posterior = with_ridge_mean(laplace(case.problem, case.data), case.data)
    together = predict_at(posterior, [0.1, 2], case.data)
    for scale, found in zip((0.1, 2), together, strict=True):
        alone = predict(posterior.scaled(scale), case.data)
        assert_close(found.logit_mean, alone.logit_mean)
    assert float((together[0].logit_mean - together[1].logit_mean).abs().max()) > 1e-3


def test_draws_lie_around_the_ridge_mean():
    case = make_case("mlp", "gaussian")
    at_rest = laplace(case.problem, case.data)
    moved = with_ridge_mean(at_rest, case.data)
    there, here = (one.draws(2, Generator().manual_seed(1)) for one in (moved, at_rest))
    assert_close(there - here, (moved.mean() - at_rest.mean()).expand(2, -1), **SAME)


def test_mirrored_draws_average_to_the_center_and_keep_their_law(random_state_is_kept: None):
    case = make_case("mlp", "categorical")
    found = randomize_then_optimize(case.problem, case.data, 3, Generator().manual_seed(0))
    members = list(antithetic(found.members, case.problem.params))
    assert len(members) == 6
    for name, center in case.problem.params.items():
        pairs = torch.stack([member.params[name] for member in members]).unflatten(0, (3, 2))
        assert_close(pairs.mean(1), center.expand_as(pairs.mean(1)))
        assert_close(pairs[:, 0], torch.stack([m.params[name] for m in found.members]))
    linear = linearize(case.problem)
    mean = predict_by_members(linear, case.data, members).logit_mean
    assert_close(mean, truth.outputs(case.problem, case.data), **SAME)
    with pytest.raises(ValueError, match="expected at least one to mirror"):
        antithetic([], case.problem.params)
