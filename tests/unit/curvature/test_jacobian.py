"""Jacobians and kernels in chunks of any size, and what is refused."""

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from afterfit.curvature import jacobian, jacobian_rows, ntk
from afterfit.problem import Batches, Gaussian, Problem
from tests import truth
from tests.cases import make_case, make_data

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def wide(num_samples: int, batch_size: int) -> tuple[Problem, Batches]:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    inputs = torch.randn(num_samples, 5, dtype=torch.float64, generator=generator)
    data = Batches((inputs, torch.zeros(num_samples, 10)), batch_size)
    return Problem.from_module(module, Gaussian()), data


@pytest.mark.parametrize("batch_size", [1, 7, 20, 64])
def test_the_kernel_is_symmetric_whatever_the_chunks(batch_size: int):
    problem, data = wide(20, batch_size)
    rows = truth.jacobian(problem, data).flatten(0, 1)
    kernel = ntk(problem, data).to_dense()
    assert torch.equal(kernel, kernel.mT)
    assert_close(kernel, rows @ rows.mT, **EXACT)


def test_a_small_budget_gives_the_same_rows_in_more_chunks():
    problem, data = wide(20, 20)
    row_bytes = 8 * problem.num_params * 10
    whole = jacobian(problem, data).to_dense()
    chunks = list(jacobian_rows(problem, data, memory_budget=12 * row_bytes))
    assert [len(index) for index, _ in chunks] == [4] * 5
    assert_close(torch.cat([rows for _, rows in chunks]).flatten(0, 1), whole, **EXACT)


def test_inputs_without_an_axis_of_samples_are_read_one_by_one():
    case = make_case("named-inputs", "gaussian")
    rows = jacobian(case.problem, case.data).to_dense()
    others = jacobian(case.problem, make_data("named-inputs", "gaussian", 1)).to_dense()
    assert_close(rows, others, **EXACT)


def test_outputs_that_are_no_rows_are_refused():
    problem = Problem.from_module(
        nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))), Gaussian()
    )
    data = Batches((torch.randn(2, 3), torch.zeros(2, 2, 2)), 2)
    with pytest.raises(ValueError, match=r"outputs of shape \(1, 2, 2\) for one sample"):
        jacobian(problem, data)


def test_matrices_without_room_are_refused(monkeypatch):
    problem, data = wide(20, 20)
    monkeypatch.setattr(sys.modules[jacobian.__module__], "MAX_DENSE_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"the Jacobian of shape \(200, 266\) takes .*restrict"):
        jacobian(problem, data)
    with pytest.raises(ValueError, match=r"the kernel of shape \(200, 200\)"):
        ntk(problem, data)
