"""Iterative solvers against dense solutions, and what they say when they fail."""

from functools import partial

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import Dense, Diagonal, LinearOperator, LowRank
from afterfit.linalg.solvers import conjugate_gradients, neumann

SIZE = 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def matrix() -> LinearOperator:
    return Diagonal(draw(SIZE).square() + 0.5) + LowRank(draw(SIZE, 3), draw(3).square())


def near(columns: Tensor) -> Tensor:
    return columns / (draw(SIZE).square() + 0.5)[:, None]


SOLVERS = {
    "cg": (partial(conjugate_gradients, tolerance=1e-11), 1e-8),
    "cg-preconditioned": (partial(conjugate_gradients, tolerance=1e-11, near_inverse=near), 1e-8),
    "neumann": (partial(neumann, scale=0.02, num_steps=2500, tolerance=1e-8), 1e-7),
}
EVERY = pytest.mark.parametrize(("solve", "within"), SOLVERS.values(), ids=SOLVERS)


@EVERY
def test_the_solution_is_the_dense_one_for_one_side_and_for_several(solve, within):
    a, b = matrix(), draw(SIZE, 4, seed=1)
    expected = torch.linalg.solve(a.to_dense(), b)
    found = solve(a, b)
    assert found.converged
    assert_close(found.value, expected, rtol=within, atol=within)
    lost = (a.to_dense() @ found.value - b).norm(dim=0) / b.norm(dim=0)
    assert_close(found.residual, float(lost.max()), rtol=1e-2, atol=1e-14)
    zero = solve(a, torch.zeros(SIZE, dtype=torch.float64))
    assert not zero.value.any()
    assert zero.residual == 0


@pytest.mark.parametrize("solve", [conjugate_gradients, partial(neumann, scale=0.02)])
def test_one_side_is_a_vector(solve):
    a, b = matrix(), draw(SIZE, seed=1)
    found = solve(a, b)
    assert found.value.shape == (SIZE,)
    assert_close(found.value, torch.linalg.solve(a.to_dense(), b), rtol=1e-2, atol=1e-2)


def test_conjugate_gradients_take_as_many_products_as_there_are_eigenvalues():
    basis = torch.linalg.qr(draw(SIZE, SIZE)).Q
    values = torch.tensor([1.0, 1, 1, 1, 5, 5, 5, 5, 20, 20, 20, 20], dtype=torch.float64)
    a = Dense((basis * values) @ basis.mT, is_psd=True)
    assert conjugate_gradients(a, draw(SIZE), tolerance=1e-9).steps == 3


def test_a_good_preconditioner_saves_products():
    entries = torch.logspace(0, 4, 40, dtype=torch.float64)
    off = 0.01 * draw(40, 40)
    a = Dense(torch.diag(entries) + off @ off.mT, is_psd=True)
    plain = conjugate_gradients(a, draw(40, 1), tolerance=1e-8)
    helped = conjugate_gradients(
        a, draw(40, 1), tolerance=1e-8, near_inverse=lambda r: r / entries[:, None]
    )
    assert helped.steps < 0.5 * plain.steps


def test_sums_are_in_double_precision_whatever_the_operator_is():
    a = Dense(matrix().to_dense().float(), is_psd=True)
    found = conjugate_gradients(a, draw(SIZE, 2))
    assert found.value.dtype == torch.float64
    assert_close(
        found.value, torch.linalg.solve(a.matrix.double(), draw(SIZE, 2)), rtol=1e-4, atol=1e-5
    )
    assert conjugate_gradients(a, draw(SIZE, 2).float()).value.dtype == torch.float32


def test_stopping_early_is_a_warning_with_the_knob():
    a = Dense(torch.diag(torch.logspace(0, 6, SIZE, dtype=torch.float64)), is_psd=True)
    with pytest.warns(UserWarning, match=r"CG stopped after 2 products .* raise max_steps"):
        found = conjugate_gradients(a, draw(SIZE), max_steps=2)
    assert not found.converged
    with pytest.warns(UserWarning, match="raise num_steps"):
        neumann(a, draw(SIZE), scale=1e-6, num_steps=5)


def test_what_cannot_be_solved_is_refused_with_the_knob():
    a = Diagonal(torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64))
    b = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"direction of curvature.*raise the damping"):
        conjugate_gradients(a, b)
    with pytest.raises(ValueError, match=r"diverges with scale 1 .*lower scale"):
        neumann(Diagonal(torch.full((3,), 5.0, dtype=torch.float64)), b, scale=1.0)
    with pytest.raises(ValueError, match=r"diverges .*raise the damping"):
        neumann(a, b, scale=0.5)
    with pytest.raises(ValueError, match="not known to be symmetric"):
        conjugate_gradients(Dense(draw(3, 3)), b)
    with pytest.raises(ValueError, match="NaN"):
        conjugate_gradients(Diagonal(torch.full((3,), torch.nan, dtype=torch.float64)), b)
    with pytest.raises(ValueError, match="tolerance above 0"):
        conjugate_gradients(a, b, tolerance=0)
