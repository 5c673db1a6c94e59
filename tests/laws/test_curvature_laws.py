"""What every curvature obeys: it equals its definition, adds over samples, ignores batch sizes."""

import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from afterfit.curvature import (
    diagonal,
    empirical_fisher,
    fisher,
    ggn,
    hessian,
    jacobian,
    ntk,
    squared_jacobian,
)
from afterfit.problem import connectivity, restrict
from tests import truth
from tests.cases import CASES, Case, make_case, make_data, name_of, parts_of, select

EXACT = {"rtol": 1e-9, "atol": 1e-11}
CURVED = tuple(case for case in CASES if not case.name.endswith("per-sample"))
DRAWN = tuple(case for case in CURVED if case.name.startswith(("mlp", "cnn")))
CURVATURES = {
    "ggn": ggn,
    "diagonal": diagonal,
    "hessian": hessian,
    "empirical-fisher": empirical_fisher,
}
EVERY = pytest.mark.parametrize("curvature", CURVATURES)


def sizes(case: Case, batch_size: int) -> Case:
    return Case(case.name, case.problem, make_data(*parts_of(case), batch_size))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_jacobian_equals_row_by_row_derivatives(case: Case):
    expected = truth.jacobian(case.problem, case.data).flatten(0, 1)
    assert_close(jacobian(case.problem, case.data).to_dense(), expected, **EXACT)


@pytest.mark.parametrize("case", select("gaussian"), ids=name_of)
def test_the_kernel_is_the_square_of_the_jacobian(case: Case):
    rows = truth.jacobian(case.problem, case.data).flatten(0, 1)
    kernel = ntk(case.problem, case.data)
    assert kernel.psd
    assert_close(kernel.to_dense(), rows @ rows.mT, **EXACT)
    some = case.data.subset(torch.tensor([4, 0]))
    crossed = ntk(case.problem, case.data, some)
    num_outputs = len(rows) // 7
    chosen = rows.unflatten(0, (7, num_outputs))[[4, 0]].flatten(0, 1)
    assert_close(crossed.to_dense(), rows @ chosen.mT, **EXACT)
    assert not crossed.symmetric


@pytest.mark.parametrize("case", CURVED, ids=name_of)
def test_the_ggn_equals_its_definition(case: Case):
    operator = ggn(case.problem, case.data)
    assert operator.psd
    assert_close(operator.to_dense(), truth.ggn(case.problem, case.data), **EXACT)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_hessian_equals_its_definition(case: Case):
    expected = truth.hessian(case.problem, case.data)
    assert_close(hessian(case.problem, case.data).to_dense(), expected, **EXACT)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_empirical_fisher_equals_its_definition(case: Case):
    expected = truth.empirical_fisher(case.problem, case.data)
    assert_close(empirical_fisher(case.problem, case.data).to_dense(), expected, **EXACT)


@pytest.mark.parametrize("case", DRAWN, ids=name_of)
def test_drawn_targets_give_the_ggn_on_average(case: Case):
    num = 400
    generator = Generator().manual_seed(0)
    vector = torch.randn(case.problem.num_params, dtype=torch.float64, generator=generator)
    expected = float(vector @ truth.ggn(case.problem, case.data) @ vector)
    found = [
        float(vector @ (fisher(num // 20, generator)(case.problem, case.data) @ vector))
        for _ in range(20)
    ]
    stderr = torch.tensor(found).std() / 20**0.5
    assert abs(sum(found) / 20 - expected) < 5 * float(stderr)
    assert float(stderr) < 0.3 * expected


@pytest.mark.parametrize("case", CURVED, ids=name_of)
def test_the_diagonal_is_that_of_the_ggn(case: Case):
    expected = truth.ggn(case.problem, case.data).diagonal()
    assert_close(diagonal(case.problem, case.data).entries, expected, **EXACT)


@pytest.mark.parametrize("case", select("gaussian", "per-sample"), ids=name_of)
def test_squared_jacobians_are_sums_of_squares_by_name(case: Case):
    found = squared_jacobian(case.problem, case.data)
    expected = truth.jacobian(case.problem, case.data).square().sum((0, 1))
    assert {n: v.shape for n, v in found.items()} == {
        n: v.shape for n, v in case.problem.params.items()
    }
    assert_close(truth.flat(found), expected, **EXACT)


@EVERY
@pytest.mark.parametrize("case", select("categorical"), ids=name_of)
def test_relative_coordinates_put_the_scale_on_both_sides(case: Case, curvature: str):
    make, scale = CURVATURES[curvature], truth.flat(dict(case.problem.params))
    found = make(connectivity(case.problem), case.data).to_dense()
    expected = scale[:, None] * make(case.problem, case.data).to_dense() * scale
    assert_close(found, expected, **EXACT)


@EVERY
@pytest.mark.parametrize("case", select("categorical"), ids=name_of)
def test_a_part_of_the_network_has_the_part_of_the_matrix(case: Case, curvature: str):
    make = CURVATURES[curvature]
    pattern = list(case.problem.params)[-2]
    whole = make(case.problem, case.data).to_dense()
    marks = {n: torch.full_like(p, n == pattern) for n, p in case.problem.params.items()}
    chosen = truth.flat(marks).bool()
    part = make(restrict(case.problem, pattern), case.data).to_dense()
    assert_close(part, whole[chosen][:, chosen], **EXACT)


@EVERY
@pytest.mark.parametrize("case", select("categorical"), ids=name_of)
def test_samples_read_together_or_apart_give_the_same_sum(case: Case, curvature: str):
    make = CURVATURES[curvature]
    whole = make(case.problem, case.data).to_dense()
    for size in (1, 7):
        other = sizes(case, size)
        assert_close(make(other.problem, other.data).to_dense(), whole, **EXACT)
    parts = (case.data.subset(torch.arange(2)), case.data.subset(torch.arange(2, 7)))
    first, second = (make(case.problem, part).to_dense() for part in parts)
    assert_close(first + second, whole, **EXACT)


@pytest.mark.parametrize("curvature", [ggn, diagonal])
def test_a_loss_without_curvature_is_refused(curvature):
    case = make_case("linear", "per-sample")
    with pytest.raises(TypeError, match="PerSample knows a loss and nothing else"):
        curvature(case.problem, case.data).to_dense()
