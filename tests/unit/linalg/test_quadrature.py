"""Sums over a spectrum against eigenvalues."""

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import SLQ, Dense, Diagonal, estimate_logdet, estimate_spectral_sum

GENERATOR = Generator()


def positive(size: int = 60, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)


def test_the_log_determinant_is_within_its_error():
    matrix = positive()
    exact = float(torch.linalg.slogdet(matrix).logabsdet)
    for seed in range(5):
        how = SLQ(num_probes=20, num_steps=40)
        found = estimate_logdet(Dense(matrix, is_psd=True), how, GENERATOR.manual_seed(seed))
        assert abs(found.value - exact) < 5 * found.stderr
        assert found.stderr < 0.2 * abs(exact)


def test_any_function_of_the_eigenvalues_is_summed():
    matrix = positive()
    exact = float(torch.log1p(3 * torch.linalg.eigvalsh(matrix)).sum())
    found = estimate_spectral_sum(
        Dense(matrix, is_psd=True), lambda x: torch.log1p(3 * x), SLQ(40, 30), GENERATOR
    )
    assert abs(found.value - exact) < 5 * found.stderr


def test_signs_leave_no_error_on_a_diagonal():
    entries = torch.linspace(0.5, 3, 12, dtype=torch.float64)
    found = estimate_logdet(Diagonal(entries), SLQ(3, 12), GENERATOR)
    assert_close(found.value, float(entries.log().sum()), rtol=1e-9, atol=0.0)
    assert found.stderr < 1e-8


def test_the_error_falls_with_the_root_of_the_probes():
    matrix = Dense(positive(), is_psd=True)
    few = estimate_logdet(matrix, SLQ(30, 30), GENERATOR.manual_seed(0))
    many = estimate_logdet(matrix, SLQ(480, 30), GENERATOR.manual_seed(0))
    assert 2.8 < few.stderr / many.stderr < 5.7


def test_rounding_below_zero_is_no_trouble_for_a_semidefinite_operator():
    vectors = torch.randn(30, 2, dtype=torch.float64, generator=Generator().manual_seed(0))
    low = Dense(vectors @ vectors.mT, is_psd=True)
    found = estimate_spectral_sum(low, lambda x: x.sqrt(), SLQ(200, 10), GENERATOR)
    exact = float(torch.linalg.eigvalsh(low.matrix).clamp_min(0).sqrt().sum())
    assert abs(found.value - exact) < 5 * found.stderr


def test_what_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="not known to be symmetric"):
        estimate_logdet(Dense(positive()), SLQ(), GENERATOR)
    with pytest.raises(FloatingPointError, match="not finite at a Ritz value"):
        estimate_logdet(Diagonal(torch.tensor([1.0, -1.0])), SLQ(), GENERATOR)
    with pytest.raises(ValueError, match="expected at least 2 probes"):
        SLQ(num_probes=1)
