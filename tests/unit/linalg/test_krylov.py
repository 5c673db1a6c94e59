"""Lanczos and Ritz pairs against dense eigenvalues in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from afterfit.linalg.krylov import lanczos, ritz_pairs


def symmetric(values, seed=0):
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    generator = Generator().manual_seed(seed)
    size = len(values)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(drawn).Q
    return (vectors * torch.as_tensor(values, dtype=torch.float64)) @ vectors.mT, vectors


def direction(size, seed=1, dtype=torch.float64):
    return torch.randn(size, generator=Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 12), steps=st.integers(1, 15), seed=st.integers(0, 1000))
def test_basis_is_orthonormal_and_brings_the_operator_to_tridiagonal_form(size, steps, seed):
    matrix, _ = symmetric(torch.linspace(-3, 5, size), seed)

    krylov = lanczos(lambda v: matrix @ v, direction(size, seed + 1), steps)

    basis = krylov.basis
    assert basis.shape[1] <= min(steps, size)
    identity = torch.eye(basis.shape[1], dtype=torch.float64)
    assert torch.allclose(basis.mT @ basis, identity, atol=1e-12)
    assert torch.allclose(basis.mT @ matrix @ basis, krylov.tridiagonal, atol=1e-9)


def test_full_dimension_gives_the_whole_spectrum_in_order_of_size():
    values = torch.tensor([-7.0, 0.5, 3.0, 4.0, -1.0, 6.0], dtype=torch.float64)
    matrix, _ = symmetric(values)

    pairs = ritz_pairs(lanczos(lambda v: matrix @ v, direction(6), 6), 6)

    expected = torch.tensor([-7.0, 6.0, 4.0, 3.0, -1.0, 0.5], dtype=torch.float64)
    assert torch.allclose(pairs.values, expected, atol=1e-10)
    assert torch.allclose(matrix @ pairs.vectors, pairs.vectors * pairs.values, atol=1e-9)


def test_iteration_stops_when_the_space_is_exhausted():
    matrix, vectors = symmetric([5.0, 2.0, 2.0, 2.0, 0.0, 0.0])

    three_values = lanczos(lambda v: matrix @ v, direction(6), 6)
    one_value = lanczos(lambda v: matrix @ v, vectors[:, 0].clone(), 6)
    zero = lanczos(torch.zeros_like, direction(6), 6)

    assert three_values.tridiagonal.shape == (3, 3)
    assert torch.allclose(
        ritz_pairs(three_values, 3).values,
        torch.tensor([5.0, 2.0, 0.0], dtype=torch.float64),
        atol=1e-12,
    )
    assert one_value.tridiagonal.shape == (1, 1)
    assert zero.tridiagonal.tolist() == [[0.0]]
    assert three_values.residual == one_value.residual == zero.residual == 0


def test_clustered_spectrum_gives_no_copies_of_the_top_eigenvalue_in_float32():
    values = torch.cat([torch.tensor([1000.0]), torch.linspace(0, 1, 199)])
    matrix = symmetric(values)[0].float()

    krylov = lanczos(lambda v: matrix @ v, direction(200, dtype=torch.float32), 60)

    found = ritz_pairs(krylov, 60).values
    assert int((found > 500).sum()) == 1
    overlap = krylov.basis.mT @ krylov.basis - torch.eye(krylov.basis.shape[1])
    assert float(overlap.abs().max()) < 1e-5


def test_residuals_are_the_distance_from_an_eigenpair():
    matrix, _ = symmetric(torch.linspace(-1, 10, 40))

    pairs = ritz_pairs(lanczos(lambda v: matrix @ v, direction(40), 8), 4)

    true = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert torch.allclose(pairs.residuals, true, rtol=1e-6, atol=1e-10)


def test_types_are_kept_and_coefficients_are_float64():
    krylov = lanczos(lambda v: 2 * v, direction(5, dtype=torch.float32), 3)

    assert krylov.basis.dtype == torch.float32
    assert krylov.tridiagonal.dtype == torch.float64
    assert ritz_pairs(krylov, 1).vectors.dtype == torch.float32


def test_unusable_input_is_refused():
    with pytest.raises(ValueError, match="start vector has norm 0"):
        lanczos(lambda v: v, torch.zeros(3), 2)
    with pytest.raises(ValueError, match="start vector has norm nan"):
        lanczos(lambda v: v, torch.full((3,), torch.nan), 2)
    with pytest.raises(ValueError, match="num_steps is 0"):
        lanczos(lambda v: v, torch.ones(3), 0)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        lanczos(lambda v: v * torch.nan, torch.ones(3), 2)
    with pytest.raises(ValueError, match="expected the same shape"):
        lanczos(lambda v: v[:2], torch.ones(3), 2)
