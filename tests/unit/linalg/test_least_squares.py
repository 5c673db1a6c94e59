import pytest
import torch
from scipy.sparse.linalg import lsmr as reference
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import Dense, lsmr
from afterfit.linalg.solvers import conjugate_gradients


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def ill_conditioned(rows: int, columns: int, condition: float) -> Tensor:
    left, _, right = torch.linalg.svd(draw(rows, columns), full_matrices=False)
    values = torch.logspace(0, -torch.tensor(condition).log10(), min(rows, columns)).double()
    return left * values @ right


def dense(matrix: Tensor, b: Tensor, damping: float) -> Tensor:
    """Least squares of the stacked matrix, from a factorization."""
    below = damping * torch.eye(matrix.shape[1]).double()
    rest = b.new_zeros(matrix.shape[1], *b.shape[1:])
    stacked, target = torch.cat([matrix, below]), torch.cat([b, rest])
    return torch.linalg.lstsq(stacked, target, driver="gelsd").solution


@pytest.mark.parametrize("damping", [0.0, 0.3, 2])
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_it_finds_the_dense_solution_of_least_norm(shape: tuple[int, int], damping: float | int):
    matrix, b = draw(*shape), draw(shape[0], 3, seed=1)
    found = lsmr(Dense(matrix), b, damping, 1e-13)
    assert_close(found.value, dense(matrix, b, float(damping)), rtol=1e-9, atol=1e-10)
    assert found.converged
    assert found.residual < 1e-12


def test_one_column_or_several_and_zeros():
    matrix, b = draw(9, 4), draw(9, 2, seed=1)
    together = lsmr(Dense(matrix), b, 0.5, 1e-12)
    assert_close(lsmr(Dense(matrix), b[:, 1], 0.5, 1e-12).value, together.value[:, 1])
    nothing = lsmr(Dense(matrix), torch.zeros_like(b), 0.5)
    assert float(nothing.value.abs().max()) == nothing.residual == 0


def test_a_column_that_has_converged_stays_while_another_goes_on():
    matrix = ill_conditioned(20, 10, 1e3)
    easy, hard = matrix @ torch.linalg.svd(matrix)[2][0], draw(20, seed=1)
    found = lsmr(Dense(matrix), torch.stack([easy, hard], 1), 0.0, 1e-11)
    assert_close(found.value[:, 0], torch.linalg.svd(matrix)[2][0], rtol=1e-8, atol=1e-8)
    assert found.steps > 5


def test_it_takes_the_steps_of_scipy():
    matrix, b = ill_conditioned(40, 15, 1e2), draw(40, seed=1)
    for steps in (1, 2, 4, 6):  # later roundings grow, in both
        with pytest.warns(UserWarning, match="raise max_steps"):
            found = lsmr(Dense(matrix), b, 0.1, 1e-14, steps)
        expected = reference(matrix.numpy(), b.numpy(), damp=0.1, maxiter=steps, atol=0, btol=0)[0]
        assert_close(found.value, torch.tensor(expected), rtol=1e-9, atol=1e-11)


def test_it_keeps_digits_that_the_normal_equations_lose():
    matrix, x = ill_conditioned(30, 8, 1e6), draw(8)
    b = matrix @ x
    found = lsmr(Dense(matrix), b, 0.0, 1e-15, 200)
    normal = conjugate_gradients(Dense(matrix.mT @ matrix, True, True), matrix.mT @ b, 1e-15, 200)
    ours, theirs = (float((one.value - x).norm() / x.norm()) for one in (found, normal))
    assert ours < 1e-8
    assert theirs > 100 * ours


@pytest.mark.parametrize(("damping", "tolerance", "max_steps"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_settings_that_make_no_sense_are_refused(damping: int, tolerance: int, max_steps: int):
    with pytest.raises(ValueError, match="expected a damping of at least 0"):
        lsmr(Dense(draw(3, 2)), draw(3), damping, tolerance, max_steps)
