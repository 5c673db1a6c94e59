import pytest
import torch
from torch import nn
from torch.testing import assert_close

from afterfit.problem import Gaussian, Problem, linearize, outputs, restrict
from tests.cases import make_case

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def kept(names: str) -> list[str]:
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    return list(restrict(Problem.from_module(module, Gaussian()), names).params)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("2.*", ["2.weight", "2.bias"]),
        ("*.bias", ["0.bias", "2.bias"]),
        ("0.weight", ["0.weight"]),
        ("0.* | 2.bias", ["0.weight", "0.bias", "2.bias"]),
        ("2.bias|0.bias", ["0.bias", "2.bias"]),
        ("?.bias", ["0.bias", "2.bias"]),
        ("[02].bias", ["0.bias", "2.bias"]),
        ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ],
)
def test_patterns_choose_parameters_in_the_order_of_the_network(names: str, expected: list[str]):
    assert kept(names) == expected


@pytest.mark.parametrize("names", ["head.*", "BIAS", "", "bias"])
def test_a_pattern_that_matches_nothing_is_refused_and_shows_the_names(names: str):
    with pytest.raises(ValueError, match=r"no parameter matches .*the names are \['0\.weight'"):
        kept(names)


def test_the_parameters_that_are_not_kept_stay_where_they_are():
    case = make_case("mlp", "gaussian")
    head = restrict(case.problem, "3.*")
    doubled = {name: 2 * value for name, value in head.params.items()}
    expected = outputs(case.problem, case.data, {**case.problem.params, **doubled})
    assert torch.equal(outputs(head, case.data, doubled), expected)
    assert not torch.equal(expected, outputs(case.problem, case.data))


def test_a_restricted_problem_takes_a_whole_member():
    case = make_case("batch-norm", "gaussian")
    whole = {name: value + 0.5 for name, value in case.problem.params.items()}
    member = {**whole, **case.problem.buffers}
    expected = outputs(case.problem, case.data, member)
    assert torch.equal(outputs(restrict(case.problem, "0.*"), case.data, member), expected)


def test_restricting_keeps_the_network_in_training_too():
    case = make_case("linear", "gaussian")
    bias = restrict(case.problem, "bias")
    inputs = case.data.fetch(torch.arange(7)).inputs
    moved = {"bias": bias.params["bias"] + 1}
    expected = case.problem.forward(case.problem.params, inputs) + 1
    assert_close(bias.train_forward(moved, inputs), expected, **EXACT)


def test_a_linearized_problem_is_the_same_in_training():
    case = make_case("mlp", "gaussian")
    linear, inputs = linearize(case.problem), case.data.fetch(torch.arange(7)).inputs
    assert torch.equal(
        linear.train_forward(linear.params, inputs), linear.forward(linear.params, inputs)
    )


def test_a_linearized_problem_holds_what_the_caller_leaves_out():
    case = make_case("mlp", "gaussian")
    linear = linearize(case.problem)
    part = {"3.bias": case.problem.params["3.bias"] + 1}
    assert_close(outputs(linear, case.data, part), outputs(case.problem, case.data) + 1, **EXACT)
    assert_close(outputs(linear, case.data, {}), outputs(case.problem, case.data), **EXACT)


def test_a_linear_network_is_its_own_linearization(generator):
    case = make_case("linear", "gaussian")
    moved = {
        name: torch.randn(value.shape, dtype=value.dtype, generator=generator)
        for name, value in case.problem.params.items()
    }
    assert_close(
        outputs(linearize(case.problem), case.data, moved),
        outputs(case.problem, case.data, moved),
        **EXACT,
    )
