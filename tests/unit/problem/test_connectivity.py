"""Relative coordinates: where they stand, how they move, and what they refuse."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from afterfit.problem import Gaussian, Problem, connectivity, linearize, outputs, restrict
from tests import truth
from tests.cases import Case, make_case, name_of, select

EXACT = {"rtol": 1e-12, "atol": 1e-12}
SMOOTH = select("gaussian")


def spread(problem: Problem, scale: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    return truth.flat(dict(problem.params) if scale is None else scale)


def shifted(problem: Problem, by: float) -> dict[str, torch.Tensor]:
    return {name: value + by for name, value in problem.params.items()}


@pytest.mark.parametrize("case", SMOOTH, ids=name_of)
def test_it_stands_at_zero_and_computes_the_trained_function(case: Case):
    relative = connectivity(case.problem)
    assert all(not value.any() for value in relative.params.values())
    assert list(relative.params) == list(case.problem.params)
    assert torch.equal(outputs(relative, case.data), outputs(case.problem, case.data))


@pytest.mark.parametrize("case", SMOOTH, ids=name_of)
def test_a_relative_step_multiplies_the_parameters(case: Case):
    step = shifted(connectivity(case.problem), 0.25)
    expected = {name: 1.25 * value for name, value in case.problem.params.items()}
    found = outputs(connectivity(case.problem), case.data, step)
    assert_close(found, outputs(case.problem, case.data, expected), **EXACT)


@pytest.mark.parametrize("case", SMOOTH, ids=name_of)
def test_the_jacobian_is_that_of_the_parameters_times_the_parameters(case: Case):
    found = truth.jacobian(connectivity(case.problem), case.data)
    expected = truth.jacobian(case.problem, case.data) * spread(case.problem)
    assert_close(found, expected, **EXACT)


def test_the_jacobian_with_a_scale_is_that_of_the_parameters_times_the_scale(generator):
    case = make_case("mlp", "categorical")
    scale = {
        name: torch.rand(value.shape, dtype=value.dtype, generator=generator)
        for name, value in case.problem.params.items()
    }
    found = truth.jacobian(connectivity(case.problem, scale), case.data)
    expected = truth.jacobian(case.problem, case.data) * spread(case.problem, scale)
    assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("network", ["mlp", "tied", "batch-norm"])
def test_restricting_before_and_after_agree(network: str):
    case = make_case(network, "gaussian")
    pattern = next(iter(case.problem.params)) + "|*.bias"
    before = connectivity(restrict(case.problem, pattern))
    after = restrict(connectivity(case.problem), pattern)
    assert list(before.params) == list(after.params)
    at = shifted(before, 0.5)
    assert torch.equal(outputs(before, case.data, at), outputs(after, case.data, at))
    assert_close(
        truth.jacobian(before, case.data), truth.jacobian(after, case.data), rtol=0.0, atol=0.0
    )


def test_training_uses_the_same_coordinates():
    case = make_case("linear", "gaussian")
    relative = connectivity(case.problem)
    inputs = case.data.fetch(torch.arange(7)).inputs
    step = shifted(relative, 1.0)
    assert torch.equal(relative.train_forward(step, inputs), relative.forward(step, inputs))


def test_buffers_of_a_member_pass_through():
    case = make_case("batch-norm", "gaussian")
    buffers = {name: 2 * value + 1 for name, value in case.problem.buffers.items()}
    relative = connectivity(case.problem)
    found = outputs(relative, case.data, {**relative.params, **buffers})
    expected = outputs(case.problem, case.data, {**case.problem.params, **buffers})
    assert torch.equal(found, expected)
    assert not torch.equal(found, outputs(case.problem, case.data))


def test_the_coordinates_tell_how_to_reach_the_layers():
    case = make_case("mlp", "gaussian")
    inputs = case.data.fetch(torch.arange(7)).inputs
    for problem in (
        case.problem,
        connectivity(case.problem),
        restrict(connectivity(case.problem), "*.weight"),
        connectivity(restrict(case.problem, "*.weight")),
    ):
        assert problem.coordinates is not None
        at = shifted(problem, 0.5)
        weights = problem.coordinates.weights(at)
        assert set(problem.params) <= set(weights)
        found = problem.coordinates.network(weights, inputs)
        assert torch.equal(found, problem.forward(at, inputs))
    scale = connectivity(case.problem).coordinates.scale
    assert all(torch.equal(scale[n], p) for n, p in case.problem.params.items())
    assert linearize(case.problem).coordinates is None


def test_scales_multiply_when_coordinates_are_changed_twice():
    case = make_case("linear", "gaussian")
    twos = {name: torch.full_like(p, 2.0) for name, p in case.problem.params.items()}
    twice = connectivity(connectivity(case.problem), twos)
    expected = 2 * truth.jacobian(case.problem, case.data) * spread(case.problem)
    assert_close(truth.jacobian(twice, case.data), expected, **EXACT)
    assert all(
        torch.equal(twice.coordinates.scale[n], 2 * p) for n, p in case.problem.params.items()
    )


def test_zero_parameters_are_counted_and_do_not_move():
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    nn.init.zeros_(module[0].bias)
    with torch.no_grad():
        module[2].weight[0, 1] = 0.0
    problem = Problem.from_module(module, Gaussian())
    assert problem.num_frozen == 0
    assert connectivity(problem).num_frozen == 4
    assert restrict(connectivity(problem), "2.*").num_frozen == 1
    assert connectivity(restrict(problem, "0.bias|2.bias")).num_frozen == 3
    inputs = torch.randn(5, 2, dtype=torch.float64)
    at = shifted(connectivity(problem), 3.0)
    weights = connectivity(problem).coordinates.weights(at)
    assert not weights["0.bias"].any()
    assert torch.isfinite(connectivity(problem).forward(at, inputs)).all()


def test_what_cannot_move_is_refused():
    case = make_case("linear", "gaussian")
    with pytest.raises(ValueError, match="scale is zero for all 8 parameters"):
        connectivity(connectivity(case.problem))
    with pytest.raises(ValueError, match=r"differ in the names \['bias'\]"):
        connectivity(case.problem, {"weight": case.problem.params["weight"]})
    wrong = {**case.problem.params, "bias": torch.ones(3)}
    with pytest.raises(ValueError, match=r"scale of bias has shape \(3,\), expected \(2,\)"):
        connectivity(case.problem, wrong)
    broken = {**case.problem.params, "bias": torch.full((2,), float("nan"))}
    with pytest.raises(ValueError, match="scale of bias holds NaN"):
        connectivity(case.problem, broken)
