import math

import pytest
import torch
from scipy.optimize import brentq
from torch import Generator, nn

from afterfit.problem import Batches, Gaussian, PerSample, Problem, connectivity
from afterfit.sharpness.measures import (
    connectivity_curvature,
    connectivity_sharpness,
    estimate_connectivity_curvature,
    estimate_connectivity_sharpness,
    fisher_rao_norm,
    fisher_trace,
    normalized_connectivity_sharpness,
    squared_norm,
    tangent_trace,
)
from afterfit.sharpness.perturbed import (
    adaptive_average_sharpness,
    adaptive_worst_case_sharpness,
    average_sharpness,
    worst_case_sharpness,
)
from afterfit.sharpness.result import RESCALINGS, Sharpness
from tests import truth
from tests.cases import CASES, Case, make_case, name_of, select

with_curvature = [case for case in CASES if not case.name.endswith("per-sample")]
every_case = pytest.mark.parametrize("case", with_curvature, ids=name_of)
every_network = pytest.mark.parametrize("case", select("gaussian"), ids=name_of)


def weights(problem: Problem) -> torch.Tensor:
    return truth.flat(dict(problem.params))


@every_network
def test_traces_are_those_of_dense_jacobians(case: Case):
    jacobian = truth.jacobian(case.problem, case.data).flatten(0, 1)
    plain = tangent_trace(case.problem, case.data)
    assert plain.total == pytest.approx(float(jacobian.square().sum()), rel=1e-10)
    relative = connectivity_sharpness(case.problem, case.data)
    expected = float((jacobian * weights(case.problem)).square().sum())
    assert relative.total == pytest.approx(expected, rel=1e-10)
    assert relative.mean == relative.total / 7
    assert relative.stderr == 0


@every_network
def test_every_parameter_tensor_has_its_share(case: Case):
    jacobian = truth.jacobian(case.problem, case.data).flatten(0, 1) * weights(case.problem)
    parts = truth.along(case.problem, jacobian.square().sum(0))
    found = connectivity_sharpness(case.problem, case.data)
    assert found.by_parameter == pytest.approx({n: float(p.sum()) for n, p in parts.items()})
    assert sum(found.shares.values()) == pytest.approx(1)


@every_case
def test_curvatures_are_those_of_the_dense_matrix(case: Case):
    matrix = truth.ggn(case.problem, case.data)
    theta = weights(case.problem)
    assert fisher_trace(case.problem, case.data).total == pytest.approx(float(matrix.trace()))
    expected = float(theta @ (matrix.diagonal() * theta))
    assert connectivity_curvature(case.problem, case.data).total == pytest.approx(expected)
    found = fisher_rao_norm(case.problem, case.data).total
    assert found == pytest.approx(float(theta @ matrix @ theta), rel=1e-8, abs=1e-12)


@every_network
def test_the_normalized_sharpness_divides_by_the_variance_of_outputs(case: Case):
    variance = truth.outputs(case.problem, case.data).var(1, correction=0).mean()
    expected = connectivity_sharpness(case.problem, case.data).total / float(variance)
    found = normalized_connectivity_sharpness(case.problem, case.data)
    assert found.total == pytest.approx(expected)


@pytest.mark.parametrize("case", select("categorical"), ids=name_of)
def test_estimates_lie_within_their_errors_of_the_exact_values(case: Case, generator: Generator):
    for exact, estimated in (
        (connectivity_sharpness, estimate_connectivity_sharpness),
        (connectivity_curvature, estimate_connectivity_curvature),
    ):
        truly, found = (
            exact(case.problem, case.data),
            estimated(case.problem, case.data, 50, generator),
        )
        rounding = 1e-9 * truly.total  # all that is left where probes have no variance
        assert abs(found.total - truly.total) < 5 * found.stderr + rounding
        assert (found.name, found.invariant_to) == (truly.name, truly.invariant_to)
        assert found.num_probes == 50


def test_the_squared_norm_is_one():
    case = make_case("mlp", "gaussian")
    found = squared_norm(case.problem, case.data).total
    assert found == pytest.approx(float(weights(case.problem).square().sum()))


# Perturbations ------------------------------------------------------------------------------------


def quadratic() -> tuple[Problem, Batches, torch.Tensor]:
    """Linear regression: the rise of the loss is g·δ + ½ δᵀHδ exactly."""
    case = make_case("linear", "gaussian")
    return case.problem, case.data, truth.hessian(case.problem, case.data)


def test_the_average_rise_of_a_quadratic_is_half_its_trace(generator: Generator):
    problem, data, hessian = quadratic()
    found = average_sharpness(problem, data, 0.1, 2000, generator)
    expected = 0.5 * 0.01 * float(hessian.trace())
    assert abs(found.total - expected) < 5 * found.stderr
    assert found.num_probes == 2000
    theta = weights(problem)
    relative = adaptive_average_sharpness(problem, data, 0.1, 2000, generator)
    expected = 0.5 * 0.01 * float(theta @ (hessian.diagonal() * theta))
    assert abs(relative.total - expected) < 5 * relative.stderr


def test_the_error_of_the_average_falls_with_the_root_of_the_draws(generator: Generator):
    problem, data, _ = quadratic()
    few, many = (average_sharpness(problem, data, 0.1, n, generator) for n in (200, 3200))
    assert few.stderr / many.stderr == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_worst_rise_of_a_quadratic_is_found(adaptive: bool):
    problem, data, hessian = quadratic()
    scale = weights(problem) if adaptive else torch.ones(problem.num_params).double()
    slope = scale * truth.gradients(problem, data).sum(0)
    bent = scale[:, None] * hessian * scale
    values, vectors = torch.linalg.eigh(bent)

    def step(multiplier: float) -> torch.Tensor:
        """Stationary point of g·δ + ½ δᵀHδ on a sphere, whose radius falls with the multiplier."""
        return vectors @ ((vectors.T @ slope) / (multiplier - values))

    top = float(values.max())
    found = brentq(lambda m: float(step(m).norm()) - 0.3, top * (1 + 1e-9), top + 1e6)
    best = step(float(found))
    expected = float(slope @ best + 0.5 * best @ bent @ best)
    measure = adaptive_worst_case_sharpness if adaptive else worst_case_sharpness
    risen = measure(problem, data, 0.3).total
    assert 0.99 * expected < risen <= expected * (1 + 1e-9)


def test_the_worst_case_grows_with_the_radius_and_is_more_than_the_average(generator: Generator):
    case = make_case("cnn", "categorical")
    rises = [worst_case_sharpness(case.problem, case.data, radius).total for radius in (0.1, 0.3)]
    assert 0 < rises[0] < rises[1]
    std = 0.3 / math.sqrt(case.problem.num_params)
    assert rises[1] > average_sharpness(case.problem, case.data, std, 20, generator).total


# Results and refusals -----------------------------------------------------------------------------


def test_a_result_says_what_it_is_invariant_to():
    case = make_case("mlp", "gaussian")
    found = connectivity_sharpness(case.problem, case.data)
    assert found.invariant_to == RESCALINGS
    assert "invariant to affine, layer" in str(found)
    assert "invariant to permutation, sign" in str(tangent_trace(case.problem, case.data))
    assert Sharpness("x", 3.0, 2, frozenset(), 0.4, 5).estimate.stderr == 0.4
    assert "±" in str(Sharpness("x", 3.0, 2, frozenset(), 0.4, 5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, d, g: worst_case_sharpness(p, d, 0.0), "above 0"),
        (lambda p, d, g: worst_case_sharpness(p, d, 0.1, 0), "at least 1"),
        (lambda p, d, g: average_sharpness(p, d, -1.0, 5, g), "above 0"),
        (lambda p, d, g: average_sharpness(p, d, 1.0, 1, g), "at least 2"),
        (lambda p, d, g: connectivity_sharpness(connectivity(p), d), "scale is zero"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(call, words, generator: Generator):
    case = make_case("mlp", "gaussian")
    with pytest.raises(ValueError, match=words):
        call(case.problem, case.data, generator)


def test_one_output_has_no_variance_and_a_plain_loss_no_curvature():
    data = Batches((torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)))
    problem = Problem.from_module(nn.Linear(2, 1).double(), Gaussian())
    with pytest.raises(ValueError, match="use connectivity_sharpness"):
        normalized_connectivity_sharpness(problem, data)
    plain = Problem.from_module(
        nn.Linear(2, 1).double(), PerSample(lambda f, y: (f - y).abs().sum(1))
    )
    with pytest.raises(TypeError, match="PerSample"):
        connectivity_curvature(plain, data)
