import math
import warnings

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.posterior.rto import (
    ConjugateGradients,
    Descent,
    LeastSquares,
    Optimizer,
    Randomized,
    full_noise,
    one_hot_noise,
    randomize_then_optimize,
)
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity
from tests import truth
from tests.cases import make_case

TIGHT = ConjugateGradients(tolerance=1e-10)


def flat_members(found: Randomized) -> Tensor:
    return torch.stack(
        [torch.cat([v.flatten() for v in member.params.values()]) for member in found.members]
    )


def dense(problem: Problem, data: Batches, scale: float) -> Tensor:
    precision = truth.ggn(problem, data)
    return torch.linalg.inv(precision + torch.eye(len(precision)).double() / scale**2)


def require_moments(draws: Tensor, covariance: Tensor) -> None:
    """Mean zero and this covariance, within five standard errors of every entry."""
    variances = covariance.diagonal()
    assert bool((draws.mean(0).abs() < 5 * (variances / len(draws)).sqrt()).all())
    found = draws.T @ draws / len(draws)
    spread = ((variances[:, None] * variances + covariance.square()) / len(draws)).sqrt()
    assert bool(((found - covariance).abs() < 5 * spread + 1e-12).all())


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "poisson"])
def test_draws_have_the_law_of_the_posterior(likelihood: str, generator: Generator):
    case = make_case("linear", likelihood)
    found = randomize_then_optimize(case.problem, case.data, 500, generator, 0.8, TIGHT)
    draws = flat_members(found) - truth.flat(dict(case.problem.params))
    require_moments(draws, dense(case.problem, case.data, 0.8))
    assert float(found.residuals.max()) < 1e-9


def test_draws_of_a_network_in_connectivity_have_the_law_too(generator: Generator):
    case = make_case("mlp", "categorical")
    problem = connectivity(case.problem)
    found = randomize_then_optimize(problem, case.data, 300, generator, 1.0, TIGHT)
    require_moments(flat_members(found), dense(problem, case.data, 1.0))


@pytest.mark.parametrize("how", [TIGHT, LeastSquares(1e-12)], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "poisson"])
def test_draws_solve_the_dense_equations_of_their_noise(likelihood: str, how: Optimizer):
    case, scale, generator = make_case("mlp", likelihood), 0.8, Generator().manual_seed(3)
    found = randomize_then_optimize(
        case.problem, case.data, 2, Generator().manual_seed(3), scale, how
    )
    jacobian = truth.jacobian(case.problem, case.data)
    outputs = torch.cat(
        [case.problem.forward(case.problem.params, x) for x, _ in truth.samples(case.data)]
    )
    rows = (case.problem.likelihood.root(outputs).mT @ jacobian).flatten(0, 1) * scale
    start = torch.randn(2, rows.shape[1], generator=generator, dtype=torch.float64)
    noise = torch.randn(2, len(rows), generator=generator, dtype=torch.float64)
    precision = rows.mT @ rows + torch.eye(rows.shape[1]).double()
    expected = scale * torch.linalg.solve(precision, start.mT + rows.mT @ noise.mT).mT
    moved = flat_members(found) - truth.flat(dict(case.problem.params))
    assert_close(moved, expected, rtol=1e-9, atol=1e-9)


def one_hot_case() -> tuple[Problem, Batches]:
    generator = Generator().manual_seed(2)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.eye(3).double()[torch.randint(0, 3, (12,), generator=generator)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = torch.nn.Linear(3, 3).double()
    return Problem.from_module(module, Gaussian(0.5)), Batches((x, y), 5)


def test_one_hot_noise_gives_the_covariance_of_its_formula_and_is_too_narrow(generator: Generator):
    problem, data = one_hot_case()
    found = randomize_then_optimize(problem, data, 600, generator, 1.0, TIGHT, one_hot_noise)
    posterior, jacobian = dense(problem, data, 1.0), truth.jacobian(problem, data)
    mask = data.targets()[:, :, None]
    pulled = (jacobian * mask).flatten(0, 1)
    middle = torch.eye(len(posterior)).double() + pulled.T @ pulled / 0.5**2
    expected = posterior @ middle @ posterior
    require_moments(flat_members(found) - truth.flat(dict(problem.params)), expected)
    spread = (jacobian @ expected @ jacobian.mT).diagonal(dim1=1, dim2=2)
    exact = (jacobian @ posterior @ jacobian.mT).diagonal(dim1=1, dim2=2)
    assert bool((spread < exact).all())


def test_one_hot_noise_is_for_the_squared_loss():
    with pytest.raises(TypeError, match="expected Gaussian with one-hot targets"):
        one_hot_noise(Categorical(), torch.tensor([0, 1]), torch.zeros(1, 2, 3))


def test_draws_do_not_depend_on_the_batch_size_and_seeds_reproduce(random_state_is_kept: None):
    case = make_case("mlp", "categorical")

    def draws(batch_size: int, seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        data = Batches(case.data, batch_size)
        return flat_members(randomize_then_optimize(case.problem, data, 2, generator, 1.0, TIGHT))

    assert_close(draws(3, 0), draws(7, 0), rtol=1e-7, atol=1e-9)
    assert float((draws(3, 0) - draws(3, 1)).abs().max()) > 0.1


def test_descent_comes_close_to_the_exact_draws():
    case = make_case("mlp", "categorical")
    optimizers = (TIGHT, Descent(steps=400, batch_size=4), Descent(steps=30, batch_size=4))
    exact, near, far = (
        randomize_then_optimize(case.problem, case.data, 3, Generator().manual_seed(1), 1.0, how)
        for how in optimizers
    )
    assert float(near.residuals.max()) < 0.2
    assert float(far.residuals.min()) > 2 * float(near.residuals.max())
    distance = (flat_members(near) - flat_members(exact)).norm(dim=1)
    size = (flat_members(exact) - truth.flat(dict(case.problem.params))).norm(dim=1)
    assert bool((distance < 0.2 * size).all())


def test_too_few_steps_are_told():
    case = make_case("mlp", "categorical")
    with pytest.warns(UserWarning, match="raise max_steps"):
        randomize_then_optimize(
            case.problem, case.data, 2, Generator(), 10, ConjugateGradients(1e-8, 2)
        )


def test_full_noise_has_the_covariance_of_the_likelihood(generator: Generator):
    outputs = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    draws = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    noise = full_noise(Categorical(), torch.zeros(20_000), draws[None])
    rows = noise[0] @ Categorical().root(outputs)[0].mT
    p = outputs[0].softmax(-1)
    expected = p.diag() - torch.outer(p, p)
    assert_close(rows.T @ rows / 20_000, expected, rtol=0, atol=5 / math.sqrt(20_000))


@pytest.mark.parametrize("num", [0, -1])
def test_no_draws_are_refused(num: int):
    case = make_case("linear", "gaussian")
    with pytest.raises(ValueError, match="at least 1 draw"):
        randomize_then_optimize(case.problem, case.data, num, Generator())


def test_a_prior_scale_must_be_above_zero():
    case = make_case("linear", "gaussian")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="prior scale is 0"):
        randomize_then_optimize(case.problem, case.data, 1, Generator(), 0)
