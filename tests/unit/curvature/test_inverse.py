"""Every way to invert a curvature against the dense inverse in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.curvature import (
    CG,
    Direct,
    Dual,
    LiSSA,
    Primal,
    Ritz,
    diagonal,
    ekfac,
    empirical_fisher,
    fisher,
    ggn,
    hessian,
    inverse,
    kfac,
    low_rank,
    relative,
)
from afterfit.curvature.factored import FactoredInverse
from afterfit.linalg import BlockDiagonal, Dense, Diagonal, LowRank
from tests.cases import Case, make_case, name_of

DAMPING = 0.3
CASES = [
    make_case(network, likelihood)
    for network, likelihood in [
        ("linear", "categorical"),
        ("mlp", "bernoulli"),
        ("cnn", "poisson"),
        ("tied", "gaussian"),
        ("attention", "categorical"),
        ("token-bag", "multi-label"),
    ]
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=name_of)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def drawn_fisher(problem, data):
    return fisher(2, Generator().manual_seed(3))(problem, data)


CURVATURES = {
    "ggn": (ggn, Direct()),
    "ggn-primal": (ggn, Primal()),
    "ggn-dual": (ggn, Dual()),
    "ggn-cg": (ggn, CG(tolerance=1e-12)),
    "fisher": (drawn_fisher, Dual()),
    "empirical-fisher": (empirical_fisher, Primal()),
    "diagonal": (diagonal, Direct()),
    "low-rank": (low_rank(2), Direct()),
    "kfac": (kfac, Direct()),
    "ekfac": (ekfac, Direct()),
    "kfac-cg": (kfac, CG(tolerance=1e-12)),
}


@EVERY_CASE
@pytest.mark.parametrize("name", CURVATURES)
def test_it_solves_the_dense_system_and_its_half_power_is_a_root_of_it(name: str, case: Case):
    make, solver = CURVATURES[name]
    if name.endswith("fac") or "kfac" in name:
        make = partial(make, others=diagonal)
    operator, num = make(case.problem, case.data), case.data.num_samples
    columns = draw(case.problem.num_params, 3)

    found = inverse(operator, DAMPING, solver, num)

    matrix = operator.to_dense() / num + DAMPING * torch.eye(len(columns), dtype=torch.float64)
    expected = torch.linalg.solve(matrix, columns)
    solution = found.solve(columns)
    assert_close(solution.value, expected, rtol=1e-7, atol=1e-8)
    assert solution.converged
    assert solution.residual < 1e-7
    assert_close(found.solve(columns[:, 0]).value, solution.value[:, 0], rtol=1e-6, atol=1e-9)
    if isinstance(found, FactoredInverse):
        white = found.whiten(columns.mT)
        assert_close(white @ white.mT, columns.mT @ expected, rtol=1e-7, atol=1e-8)


def test_the_hessian_is_solved_with_where_the_damping_makes_it_definite():
    case = make_case("mlp", "categorical")
    matrix = hessian(case.problem, case.data).to_dense()
    damping = 1 - float(torch.linalg.eigvalsh(matrix)[0])
    columns = draw(len(matrix), 2)

    for solver in (Direct(), CG(tolerance=1e-11), LiSSA(tolerance=1e-9)):
        found = inverse(hessian(case.problem, case.data), damping, solver).solve(columns)
        damped = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
        assert_close(found.value, torch.linalg.solve(damped, columns), rtol=1e-6, atol=1e-8)


def test_ritz_pairs_invert_within_their_span():
    entries = torch.tensor([5.0, 3, 1, 0.1], dtype=torch.float64)
    found = inverse(Diagonal(entries), 0.5, Ritz(num_pairs=2, num_steps=4))

    weights = torch.tensor([1 / 5.5, 1 / 3.5, 0, 0], dtype=torch.float64)
    assert_close(found.solve(torch.eye(4, dtype=torch.float64)).value, weights.diag())
    assert found.way == "Ritz pairs (2)"


def test_the_smaller_side_is_chosen_and_said():
    case = make_case("cnn", "categorical")
    few = case.data.subset(torch.arange(2))
    assert inverse(ggn(case.problem, few), 0.1).way == "dual"
    small = make_case("linear", "categorical")
    assert inverse(ggn(small.problem, small.data), 0.1).way == "primal"
    assert inverse(ggn(small.problem, small.data), 0.1, CG()).way == "CG"
    blocks = inverse(kfac(small.problem, small.data), 0.1).way
    assert blocks == "by block: eigenbasis of Kronecker factors"


@pytest.mark.parametrize("make", [kfac, ekfac])
def test_a_relative_damping_is_a_share_of_the_mean_eigenvalue_of_each_block(make):
    case = make_case("mlp", "categorical")
    operator = make(case.problem, case.data)
    columns = draw(case.problem.num_params, 2)

    found = inverse(operator, relative(0.1), num_samples=case.data.num_samples)

    damped = torch.zeros(operator.shape, dtype=torch.float64)
    for block, where in zip(operator.blocks, operator.parts(), strict=True):
        own = block.to_dense() / case.data.num_samples
        own += 0.1 * own.trace() / len(own) * torch.eye(len(own), dtype=torch.float64)
        damped[where[:, None], where] = own
    assert_close(found.solve(columns).value, torch.linalg.solve(damped, columns))


def test_a_dual_half_power_keeps_its_digits_where_the_damping_is_small():
    case = make_case("cnn", "gaussian")
    operator = ggn(case.problem, case.data.subset(torch.arange(3)))
    rows = draw(2, case.problem.num_params)
    for damping in (1e-6, 1e6):
        one, other = (inverse(operator, damping, how).whiten(rows) for how in (Dual(), Primal()))
        assert_close(one @ one.mT, other @ other.mT, rtol=1e-6, atol=0)


def test_a_preconditioner_of_blocks_leaves_the_solution():
    case = make_case("mlp", "categorical")
    operator, columns = ggn(case.problem, case.data), draw(case.problem.num_params, 1)
    near = inverse(ekfac(case.problem, case.data), 0.01)
    plain = inverse(operator, 0.01, CG(1e-8)).solve(columns)
    helped = inverse(operator, 0.01, CG(1e-8, preconditioner=near)).solve(columns)
    assert_close(helped.value, plain.value, rtol=1e-5, atol=1e-5)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_damping_is_a_finite_number_of_at_least_zero(damping):
    with pytest.raises(ValueError, match="damping is"):
        inverse(Diagonal(torch.ones(2)), damping)


@pytest.mark.parametrize(
    "operator",
    [
        Diagonal(torch.tensor([1.0, 0.0])),
        Dense(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), is_symmetric=True),
        LowRank(torch.ones(2, 1), torch.ones(1)),
        BlockDiagonal((Diagonal(torch.zeros(1)), Diagonal(torch.ones(1)))),
    ],
)
def test_a_curvature_that_is_not_definite_is_refused_with_the_knob(operator):
    with pytest.raises(ValueError, match=r"smallest eigenvalue.*raise damping"):
        inverse(operator, 0.0)


def test_nan_is_refused_by_every_way():
    case = make_case("mlp", "categorical")
    params = {name: p * torch.nan for name, p in case.problem.params.items()}
    broken = replace(case.problem, params=params)
    for solver in (Primal(), Dual(), CG(), LiSSA(scale=1e-3)):
        with pytest.raises(ValueError, match="NaN"):
            inverse(ggn(broken, case.data), 0.1, solver).solve(draw(broken.num_params))


def test_a_series_that_diverges_is_refused_with_the_knob():
    with pytest.raises(ValueError, match=r"diverges.*lower scale"):
        inverse(Diagonal(torch.full((3,), 5.0)), 0.1, LiSSA(scale=1.0)).solve(torch.ones(3))


def test_the_dual_needs_a_root_and_a_damping():
    case = make_case("linear", "categorical")
    with pytest.raises(TypeError, match=r"no root.*Primal"):
        inverse(hessian(case.problem, case.data), 0.1, Dual())
    with pytest.raises(ValueError, match="damping is 0"):
        inverse(ggn(case.problem, case.data), 0.0, Dual())
