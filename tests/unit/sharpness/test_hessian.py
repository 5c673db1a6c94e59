import pytest
import torch
from torch import Generator

from afterfit.problem import restrict
from afterfit.sharpness.hessian import (
    estimate_hessian_trace,
    estimate_relative_flatness,
    relative_flatness,
)
from tests import truth
from tests.cases import Case, make_case, name_of, select

HEADS = {"linear": "weight", "mlp": "3.weight", "cnn": "5.weight", "attention": "head.weight"}
cases = [case for name in HEADS for case in select("categorical") if case.name.startswith(name)]
every_case = pytest.mark.parametrize("case", cases, ids=name_of)


def head(case: Case) -> str:
    return HEADS[case.name.rpartition("-")[0]]


@every_case
def test_relative_flatness_is_the_loop_over_pairs_of_rows(case: Case):
    weight = case.problem.params[head(case)]
    rows, inputs = weight.shape
    dense = truth.hessian(restrict(case.problem, head(case)), case.data)
    blocks = dense.view(rows, inputs, rows, inputs)
    expected = sum(
        float(weight[s] @ weight[t]) * float(blocks[s, :, t].trace())
        for s in range(rows)
        for t in range(rows)
    )
    found = relative_flatness(case.problem, case.data, head(case))
    assert found.total == pytest.approx(expected, rel=1e-9)


@every_case
def test_estimates_lie_within_their_errors(case: Case, generator: Generator):
    exact = relative_flatness(case.problem, case.data, head(case)).total
    found = estimate_relative_flatness(case.problem, case.data, head(case), 400, generator)
    assert abs(found.total - exact) < 5 * found.stderr
    trace = float(truth.hessian(case.problem, case.data).trace())
    estimate = estimate_hessian_trace(case.problem, case.data, 400, generator)
    assert abs(estimate.total - trace) < 5 * estimate.stderr + 1e-9 * abs(trace)


def test_bad_input_is_refused_with_what_to_do(generator: Generator):
    case = make_case("mlp", "categorical")
    with pytest.raises(ValueError, match="no such parameter"):
        relative_flatness(case.problem, case.data, "head.weight")
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        relative_flatness(case.problem, case.data, "0.bias")
    with pytest.raises(ValueError, match="at least 2"):
        estimate_relative_flatness(case.problem, case.data, "3.weight", 1, generator)


def test_wide_layers_are_sent_to_the_estimate(monkeypatch):
    monkeypatch.setattr("afterfit.sharpness.hessian.MOST_INPUTS", 4)
    case = make_case("mlp", "categorical")
    with pytest.raises(ValueError, match="25 products; use estimate_relative_flatness"):
        relative_flatness(case.problem, case.data, "3.weight")
    assert torch.isfinite(case.problem.params["3.weight"]).all()
