"""Laws of Gaussian posteriors: what holds for every network, likelihood and structure."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import Generator, Tensor, distributions
from torch.testing import assert_close

from afterfit.curvature import Curvature, KroneckerBlock, diagonal, ekfac, ggn, kfac
from afterfit.linalg.structured import Dense, LowRank
from afterfit.posterior import (
    GaussianPosterior,
    Moments,
    laplace,
    log_evidence,
    predict,
    predict_by_members,
)
from afterfit.problem import Batches, Gaussian, Problem, connectivity, linearize, restrict
from tests import truth
from tests.cases import Case, make_case, name_of, select

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SCALE = 0.8
PREDICTING = [c for c in select("mlp", "linear") if not c.name.endswith("per-sample")]
every_likelihood = pytest.mark.parametrize("case", PREDICTING, ids=name_of)
SOME = [c for c in select("gaussian") if c.name != "named-inputs-gaussian"]
some_cases = pytest.mark.parametrize(
    "case", [*SOME, make_case("mlp", "categorical"), make_case("cnn", "categorical")], ids=name_of
)
every_coordinate = pytest.mark.parametrize("coordinates", [lambda p: p, connectivity])


def dense_ggn(problem: Problem, data: Batches) -> Dense:
    return Dense(truth.ggn(problem, data), is_psd=True)


def all_pairs(problem: Problem, data: Batches) -> LowRank:
    values, vectors = torch.linalg.eigh(truth.ggn(problem, data))
    return LowRank(vectors, values.clamp_min(0))


def dense_diagonal(problem: Problem, data: Batches) -> Tensor:
    return truth.ggn(problem, data).diagonal().diag()


def blocks_of(curvature: Curvature) -> Callable[[Problem, Batches], Tensor]:
    return lambda problem, data: curvature(problem, data).to_dense()


@final
@dataclass(frozen=True)
class Structure:
    """A way to hold the curvature, and the dense matrix that it stands for."""

    curvature: Curvature
    dense: Callable[[Problem, Batches], Tensor]


STRUCTURES = {
    "full": Structure(ggn, truth.ggn),
    "primal": Structure(dense_ggn, truth.ggn),
    "low-rank": Structure(all_pairs, truth.ggn),
    "diagonal": Structure(diagonal, dense_diagonal),
    "kfac": Structure(kfac, blocks_of(kfac)),
    "ekfac": Structure(ekfac, blocks_of(ekfac)),
}
every_structure = pytest.mark.parametrize("name", STRUCTURES)


def fitted(name: str, problem: Problem, data: Batches, scale: float = SCALE) -> GaussianPosterior:
    return laplace(problem, data, scale, STRUCTURES[name].curvature)


def dense_covariance(name: str, problem: Problem, data: Batches, scale: float = SCALE) -> Tensor:
    precision = STRUCTURES[name].dense(problem, data)
    return torch.linalg.inv(precision + torch.eye(len(precision)).double() / scale**2)


def geometric_scale(problem: Problem, data: Batches) -> dict[str, Tensor]:
    """Scale of each parameter, of rank one in every layer, as in `kfac`."""
    assert problem.coordinates is not None
    scale = truth.flat(dict(problem.coordinates.scale)).clone()
    operator = kfac(problem, data)
    for block, where in zip(operator.blocks, operator.parts(), strict=True):
        if isinstance(block, KroneckerBlock):
            scale[where] = (torch.outer(block.rows, block.columns) * block.signs).flatten()
    return truth.along(problem, scale)


def outputs_covariance(posterior: GaussianPosterior, data: Batches) -> Tensor:
    parts = list(posterior.covariances(data))
    assert torch.cat([index for index, _, _ in parts]).tolist() == list(range(data.num_samples))
    return torch.cat([covariance for _, _, covariance in parts])


@some_cases
@every_structure
@every_coordinate
def test_the_outputs_have_the_covariance_of_the_dense_posterior(
    case: Case, name: str, coordinates: Callable[[Problem], Problem]
):
    problem = coordinates(case.problem)
    stands_for = problem
    if name in ("kfac", "ekfac") and coordinates is connectivity:  # of rank one in each layer
        stands_for = connectivity(case.problem, geometric_scale(problem, case.data))
    jacobian = truth.jacobian(stands_for, case.data)
    expected = jacobian @ dense_covariance(name, stands_for, case.data) @ jacobian.mT
    posterior = fitted(name, problem, case.data)
    assert_close(outputs_covariance(posterior, case.data), expected, **EXACT)


@every_likelihood
def test_every_likelihood_has_a_full_posterior(case: Case):
    jacobian = truth.jacobian(case.problem, case.data)
    expected = jacobian @ dense_covariance("full", case.problem, case.data) @ jacobian.mT
    posterior = fitted("full", case.problem, case.data)
    assert_close(outputs_covariance(posterior, case.data), expected, **EXACT)
    predictive = predict(posterior, case.data)
    assert bool(torch.isfinite(predictive.losses(case.data.targets())).all())


@pytest.mark.parametrize("case", select("gaussian")[1:5], ids=name_of)
@every_structure
def test_variances_dimension_and_determinant_are_those_of_the_dense_posterior(
    case: Case, name: str
):
    posterior = fitted(name, case.problem, case.data)
    covariance = dense_covariance(name, case.problem, case.data)
    assert_close(posterior.variances(), covariance.diagonal(), **EXACT)
    ratio = -torch.linalg.slogdet(covariance / SCALE**2)[1]
    assert_close(posterior.log_det_ratio(), float(ratio), **EXACT)
    dimension = len(covariance) - covariance.trace() / SCALE**2
    assert_close(posterior.effective_dimension(), float(dimension), **EXACT)


@pytest.mark.parametrize("case", select("gaussian")[1:4], ids=name_of)
@every_structure
def test_another_prior_scale_is_what_fitting_with_it_gives(case: Case, name: str):
    again = fitted(name, case.problem, case.data, 2.5)
    found = fitted(name, case.problem, case.data).scaled(2.5)
    assert_close(
        outputs_covariance(found, case.data), outputs_covariance(again, case.data), **EXACT
    )


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "ekfac"])
def test_groups_of_scales_are_a_diagonal_prior(name: str):
    case = make_case("mlp", "gaussian")
    scales = {"0.*": 0.3, "*.bias": 2, "*": 1.1}
    posterior = laplace(case.problem, case.data, scales, STRUCTURES[name].curvature)
    stds = {"0.weight": 0.3, "0.bias": 0.3, "3.weight": 1.1, "3.bias": 2.0}
    prior = truth.flat({n: torch.full_like(p, stds[n]) for n, p in case.problem.params.items()})
    precision = STRUCTURES[name].dense(case.problem, case.data) + prior.square().reciprocal().diag()
    jacobian = truth.jacobian(case.problem, case.data)
    expected = jacobian @ torch.linalg.inv(precision) @ jacobian.mT
    assert_close(outputs_covariance(posterior, case.data), expected, **EXACT)
    assert_close(posterior.variances(), torch.linalg.inv(precision).diagonal(), **EXACT)


@every_structure
def test_draws_have_the_moments_of_the_posterior(name: str, generator: Generator):
    case = make_case("linear", "gaussian")
    posterior = fitted(name, case.problem, case.data)
    draws = posterior.draws(40_000, generator)
    covariance = dense_covariance(name, case.problem, case.data)
    centered = draws - truth.flat(dict(case.problem.params))
    stderr = covariance.diagonal().sqrt() / math.sqrt(len(draws))
    assert bool((centered.mean(0).abs() < 5 * stderr).all())
    found = centered.T @ centered / len(draws)
    variances = covariance.diagonal()
    spread = ((variances[:, None] * variances + covariance.square()) / len(draws)).sqrt()
    assert bool(((found - covariance).abs() < 5 * spread).all())


@every_structure
def test_seeds_reproduce_draws_and_leave_the_users_state(name: str, random_state_is_kept: None):
    case = make_case("mlp", "categorical")
    posterior = fitted(name, case.problem, case.data)
    first, again, other = (posterior.draws(3, Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(predict(posterior, case.data).mean, predict(posterior, case.data).mean)


@pytest.mark.parametrize("name", ["full", "diagonal"])
def test_linearized_draws_predict_as_the_closed_form_does(name: str, generator: Generator):
    case = make_case("mlp", "categorical")
    posterior = fitted(name, connectivity(case.problem), case.data)
    exact = predict(posterior, case.data)
    members = posterior.sample(2000, generator)
    drawn = predict_by_members(linearize(posterior.problem), case.data, members)
    error = (drawn.stderr.square() + exact.stderr.square()).sqrt()
    assert bool(((drawn.mean - exact.mean).abs() < 5 * error).all())
    assert_close(drawn.logit_covariance, exact.logit_covariance, rtol=0.1, atol=0.02)
    assert_close(drawn.epistemic, exact.epistemic, rtol=0.15, atol=0.005)


def test_uncertainty_grows_with_the_prior_and_falls_with_data():
    case = make_case("mlp", "gaussian")
    scales = [fitted("full", case.problem, case.data, scale) for scale in (0.1, 1.0, 10.0)]
    spreads = [outputs_covariance(one, case.data).diagonal(dim1=1, dim2=2) for one in scales]
    assert bool((spreads[0] < spreads[1]).all())
    assert bool((spreads[1] < spreads[2]).all())
    fewer = fitted("full", case.problem, case.data.subset(torch.arange(4)), 1.0)
    assert bool(
        (outputs_covariance(fewer, case.data) - outputs_covariance(scales[1], case.data))
        .diagonal(dim1=1, dim2=2)
        .ge(-1e-12)
        .all()
    )


def test_a_tiny_prior_gives_back_the_network():
    case = make_case("mlp", "categorical")
    predictive = predict(fitted("full", case.problem, case.data, 1e-6), case.data)
    expected = truth.outputs(case.problem, case.data).softmax(-1)
    assert_close(predictive.probabilities, expected, rtol=1e-6, atol=1e-8)


def ridge_problem(scale: float, sigma: float) -> tuple[Problem, Batches, Tensor, Tensor]:
    """A linear model at the minimum of its loss with the prior N(0, scale²)."""
    generator = Generator().manual_seed(3)
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(9, generator=generator, dtype=torch.float64)
    module = torch.nn.Linear(4, 1, bias=False).double()
    weight = truth.ridge(x, y, sigma**2 / scale**2)
    with torch.no_grad():
        module.weight.copy_(weight[None])
    return Problem.from_module(module, Gaussian(sigma)), Batches((x, y)), x, y


def test_the_evidence_of_a_linear_model_is_its_marginal_likelihood():
    problem, data, x, y = ridge_problem(scale=0.7, sigma=0.5)
    eye = torch.eye(9).double()
    marginal = distributions.MultivariateNormal(0 * y, 0.25 * eye + 0.49 * x @ x.T)
    found = log_evidence(laplace(problem, data, 0.7))
    assert_close(found, float(marginal.log_prob(y)), **EXACT)
    assert_close(log_evidence(laplace(problem, data, 0.7, diagonal)) != found, True)


def test_predictions_of_a_linear_model_are_those_of_bayesian_regression():
    problem, data, x, y = ridge_problem(scale=0.7, sigma=0.5)
    query = Batches((x[:3] + 1, y[:3]))
    predictive = predict(laplace(problem, data, 0.7), query, Moments())
    gram = x.T @ x / 0.25 + torch.eye(4).double() / 0.49
    spread = ((x[:3] + 1) @ torch.linalg.inv(gram) * (x[:3] + 1)).sum(1)
    assert_close(predictive.variance[:, 0], spread + 0.25, **EXACT)
    expected = -distributions.Normal(
        (x[:3] + 1) @ truth.ridge(x, y, 0.25 / 0.49), (spread + 0.25).sqrt()
    ).log_prob(y[:3])
    assert_close(predictive.losses(y[:3]), expected, **EXACT)


def test_the_last_layer_is_a_restriction():
    case = make_case("attention", "categorical")
    head = restrict(connectivity(case.problem), "head.*")
    jacobian = truth.jacobian(case.problem, case.data)[..., -15:]
    jacobian = jacobian * truth.flat(dict(case.problem.params))[-15:]
    roots = case.problem.likelihood.root(truth.outputs(case.problem, case.data))
    rows = (roots.mT @ jacobian).flatten(0, 1)
    precision = rows.T @ rows + torch.eye(15).double() / SCALE**2
    expected = jacobian @ torch.linalg.inv(precision) @ jacobian.mT
    assert_close(outputs_covariance(fitted("full", head, case.data), case.data), expected, **EXACT)
