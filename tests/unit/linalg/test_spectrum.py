"""Largest eigenpairs and Krylov spaces of general operators, against dense decompositions."""

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import Dense, Diagonal, FunctionOperator, Kind, spectrum


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def with_values(values: Tensor) -> Dense:
    basis = torch.linalg.qr(draw(len(values), len(values))).Q
    return Dense((basis * values) @ basis.mT, is_symmetric=True)


def test_the_largest_pairs_are_those_of_the_matrix():
    values = torch.cat([torch.linspace(0, 1, 90), torch.tensor([-9.0, 4.0, 7.0, -3.0])]).double()
    a = with_values(values)
    found = spectrum(a, 4, Generator().manual_seed(0))
    assert_close(found.values, torch.tensor([-9.0, 7, 4, -3], dtype=torch.float64))
    assert_close(a @ found.vectors, found.vectors * found.values, rtol=0.0, atol=1e-4)
    errors = (a @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert_close(errors, found.residuals, rtol=1e-2, atol=1e-9)


def test_it_stops_when_the_pairs_have_converged():
    matrix = with_values(torch.logspace(0, -8, 200, dtype=torch.float64)).matrix
    products = []

    def product(columns: Tensor) -> Tensor:
        products.append(columns.shape[1])
        return matrix @ columns

    a = FunctionOperator(Kind((200, 200), matrix.dtype, matrix.device, symmetric=True), product)
    found = spectrum(a, 3, Generator().manual_seed(0), tolerance=1e-4)
    assert (found.residuals <= 1e-4).all()
    rough = len(products)
    spectrum(a, 3, Generator().manual_seed(0), tolerance=1e-10)
    assert rough < len(products) - rough < 80


def test_small_operators_give_what_they_have():
    found = spectrum(Diagonal(torch.tensor([3.0, 1.0], dtype=torch.float64)), 5, Generator())
    assert_close(found.values, torch.tensor([3.0, 1.0], dtype=torch.float64))


def test_too_few_products_are_a_warning():
    a = with_values(torch.linspace(1, 2, 100, dtype=torch.float64))
    with pytest.warns(UserWarning, match=r"have not converged after 6 products .*raise max_steps"):
        spectrum(a, 5, Generator().manual_seed(0), max_steps=6)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="not known to be symmetric"):
        spectrum(Dense(draw(3, 3)), 1, Generator())
    with pytest.raises(ValueError, match="num is 0"):
        spectrum(Diagonal(torch.ones(3)), 0, Generator())
