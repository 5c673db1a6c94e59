"""Solvers against dense solutions, and what they say when they fail."""

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import (
    CG,
    Cholesky,
    Dense,
    Diagonal,
    Eigh,
    FunctionOperator,
    Kind,
    LinearOperator,
    LowRank,
    Neumann,
    Solver,
    Woodbury,
    solve,
)

SIZE = 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def woodbury() -> LinearOperator:
    return Diagonal(draw(SIZE).square() + 0.5) + LowRank(draw(SIZE, 3), draw(3).square())


SOLVERS = {
    "cholesky": (Cholesky(), 1e-10),
    "eigh": (Eigh(), 1e-10),
    "cg": (CG(tolerance=1e-11), 1e-8),
    "cg-preconditioned": (
        CG(tolerance=1e-11, preconditioner=Diagonal(1 / (draw(SIZE).square() + 0.5))),
        1e-8,
    ),
    "neumann": (Neumann(scale=0.02, num_steps=2500, tolerance=1e-8), 1e-7),
    "woodbury": (Woodbury(), 1e-10),
}
EVERY = pytest.mark.parametrize(("how", "within"), SOLVERS.values(), ids=SOLVERS)


@EVERY
def test_the_solution_is_the_dense_one_for_one_side_and_for_several(how: Solver, within: float):
    a, b = woodbury(), draw(SIZE, 4, seed=1)
    expected = torch.linalg.solve(a.to_dense(), b)
    found = how.prepare(a)(b)
    assert found.converged
    assert_close(found.value, expected, rtol=within, atol=within)
    one = solve(a, b[:, 0], how)
    assert one.value.shape == (SIZE,)
    assert_close(one.value, expected[:, 0], rtol=within, atol=within)


@EVERY
def test_the_residual_is_that_of_the_solution(how: Solver, within: float):
    a, b = woodbury(), draw(SIZE, 3, seed=2)
    found = solve(a, b, how)
    lost = (a.to_dense() @ found.value - b).norm(dim=0) / b.norm(dim=0)
    assert_close(found.residual, float(lost.max()), rtol=1e-2, atol=1e-14)


def test_conjugate_gradients_take_as_many_products_as_there_are_eigenvalues():
    basis = torch.linalg.qr(draw(SIZE, SIZE)).Q
    values = torch.tensor([1.0, 1, 1, 1, 5, 5, 5, 5, 20, 20, 20, 20], dtype=torch.float64)
    a = Dense((basis * values) @ basis.mT, is_psd=True)
    found = solve(a, draw(SIZE), CG(tolerance=1e-9))
    assert found.steps == 3


def test_a_good_preconditioner_saves_products():
    entries = torch.logspace(0, 4, 40, dtype=torch.float64)
    off = 0.01 * draw(40, 40)
    a = Dense(torch.diag(entries) + off @ off.mT, is_psd=True)
    plain = solve(a, draw(40), CG(tolerance=1e-8))
    helped = solve(a, draw(40), CG(tolerance=1e-8, preconditioner=Diagonal(1 / entries)))
    assert helped.steps < 0.5 * plain.steps


def test_zero_sides_have_zero_solutions():
    a = woodbury()
    for how, _ in SOLVERS.values():
        found = solve(a, torch.zeros(SIZE, dtype=torch.float64), how)
        assert not found.value.any()
        assert found.residual == 0


def test_the_pseudo_inverse_leaves_out_what_is_small():
    vectors = draw(SIZE, 2)
    a = Dense(vectors @ vectors.mT, is_psd=True)
    b = a.matrix @ draw(SIZE, seed=5)
    found = solve(a, b, Eigh())
    assert_close(found.value, torch.linalg.pinv(a.matrix, hermitian=True) @ b)
    outside = solve(a, draw(SIZE, seed=6), Eigh())
    assert not outside.converged


def test_stopping_early_is_a_warning_with_the_knob():
    a = Dense(torch.diag(torch.logspace(0, 6, SIZE, dtype=torch.float64)), is_psd=True)
    with pytest.warns(UserWarning, match=r"CG stopped after 2 products .* raise max_steps"):
        found = solve(a, draw(SIZE), CG(max_steps=2))
    assert not found.converged
    with pytest.warns(UserWarning, match="raise num_steps"):
        solve(a, draw(SIZE), Neumann(scale=1e-6, num_steps=5))


def test_what_is_not_positive_definite_is_refused():
    a = Diagonal(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    b = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="not positive definite"):
        solve(a, b, Cholesky())
    with pytest.raises(ValueError, match="direction of curvature"):
        solve(a, b, CG())
    with pytest.raises(ValueError, match="not positive; add a damping"):
        solve(a + LowRank(b[:, None], b[:1]), b, Woodbury())
    with pytest.raises(ValueError, match="the Neumann series diverges"):
        solve(Diagonal(torch.full((3,), 5.0, dtype=torch.float64)), b, Neumann(scale=1.0))
    with pytest.raises(ValueError, match="not known to be symmetric"):
        solve(Dense(draw(3, 3)), b, CG())
    with pytest.raises(TypeError, match=r"expected Diagonal \+ LowRank"):
        solve(a, b, Woodbury())
    with pytest.raises(ValueError, match="tolerance above 0"):
        CG(tolerance=0)


def test_low_rank_parts_may_be_negative_or_zero():
    low = LowRank(draw(SIZE, 3), torch.tensor([0.0, -0.05, 1.0], dtype=torch.float64))
    a = low + Diagonal(torch.full((SIZE,), 2.0, dtype=torch.float64))
    b = draw(SIZE, seed=3)
    assert_close(solve(a, b, Woodbury()).value, torch.linalg.solve(a.to_dense(), b))


def test_preparing_once_is_enough_for_many_sides():
    calls = []
    matrix = woodbury().to_dense()

    def product(columns: Tensor) -> Tensor:
        calls.append(columns.shape[1])
        return matrix @ columns

    kind = Kind((SIZE, SIZE), matrix.dtype, matrix.device, symmetric=True, psd=True)
    prepared = Cholesky().prepare(FunctionOperator(kind, product))
    before = len(calls)
    for seed in range(3):
        prepared(draw(SIZE, seed=seed))
    assert calls[before:] == [1, 1, 1]  # the residual alone
