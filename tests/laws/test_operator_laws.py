"""What every linear operator obeys, whatever its structure."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    FunctionOperator,
    Kind,
    Kronecker,
    LinearOperator,
    LowRank,
    Product,
)

Draw = Callable[..., Tensor]
Pair = tuple[LinearOperator, Tensor]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def _psd(draw: Draw, size: int) -> Tensor:
    root = draw(size, size)
    return root @ root.mT


def _dense(draw: Draw, n: int, m: int) -> Pair:
    matrix = draw(n, m)
    return Dense(matrix), matrix


def _dense_psd(draw: Draw, n: int, m: int) -> Pair:
    matrix = _psd(draw, n)
    return Dense(matrix, is_psd=True), matrix


def _diagonal(draw: Draw, n: int, m: int) -> Pair:
    entries = draw(n)
    return Diagonal(entries), torch.diag(entries)


def _low_rank(draw: Draw, n: int, m: int) -> Pair:
    vectors, values = draw(n, m), draw(m).square()
    return LowRank(vectors, values), vectors @ torch.diag(values) @ vectors.mT


def _kronecker(draw: Draw, n: int, m: int) -> Pair:
    left, right = draw(n, m), draw(m, n)
    return Kronecker(Dense(left), Dense(right)), torch.kron(left, right)


def _kronecker_psd(draw: Draw, n: int, m: int) -> Pair:
    left, right = _psd(draw, n), _psd(draw, m)
    factors = Dense(left, is_psd=True), Dense(right, is_psd=True)
    return Kronecker(*factors), torch.kron(left, right)


def _blocks(draw: Draw, n: int, m: int) -> Pair:
    left, right = draw(n, n), draw(m, m)
    return BlockDiagonal((Dense(left), Dense(right))), torch.block_diag(left, right)


def _scattered_blocks(draw: Draw, n: int, m: int) -> Pair:
    entries, right = draw(n), _psd(draw, m)
    order = torch.randperm(n + m, generator=Generator().manual_seed(n))
    whole = torch.block_diag(torch.diag(entries), right)
    matrix = torch.zeros_like(whole)
    matrix[order[:, None], order] = whole
    blocks = (Diagonal(entries), Dense(right, is_symmetric=True))
    return BlockDiagonal(blocks, (order[:n], order[n:])), matrix


def _function(draw: Draw, n: int, m: int) -> Pair:
    matrix = draw(n, m)
    kind = Kind((n, m), matrix.dtype, matrix.device)
    return FunctionOperator(kind, lambda v: matrix @ v, lambda v: matrix.mT @ v), matrix


def _sum(draw: Draw, n: int, m: int) -> Pair:
    (left, a), (right, b) = _dense(draw, n, m), _function(draw, n, m)
    return 2 * left - right * 0.5 + (-left), a - 0.5 * b


def _sum_psd(draw: Draw, n: int, m: int) -> Pair:
    (left, a), (right, b) = _dense_psd(draw, n, n), _low_rank(draw, n, m)
    return left + 3 * right, a + 3 * b


def _product(draw: Draw, n: int, m: int) -> Pair:
    (left, a), (right, b) = _dense(draw, n, m), _dense(draw, m, n + 1)
    return left @ right, a @ b


FAMILIES = {
    make.__name__.strip("_"): make
    for make in (
        _dense,
        _dense_psd,
        _diagonal,
        _low_rank,
        _kronecker,
        _kronecker_psd,
        _blocks,
        _scattered_blocks,
        _function,
        _sum,
        _sum_psd,
        _product,
    )
}


def build(family: str, n: int, m: int, seed: int) -> Pair:
    generator = Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return FAMILIES[family](draw, n, m)


def every_family(test: Callable[..., None]) -> Callable[..., None]:
    drawn = given(n=st.integers(1, 4), m=st.integers(1, 5), seed=st.integers(0, 999))
    return pytest.mark.parametrize("family", FAMILIES)(
        settings(max_examples=8, deadline=None)(drawn(test))
    )


def vectors(size: int, num: int, seed: int) -> Tensor:
    return torch.randn(size, num, dtype=torch.float64, generator=Generator().manual_seed(seed + 1))


@every_family
def test_the_entries_are_those_of_the_definition(family: str, n: int, m: int, seed: int):
    operator, matrix = build(family, n, m, seed)
    assert operator.shape == tuple(matrix.shape)
    assert_close(operator.to_dense(), matrix, **EXACT)


@every_family
def test_products_are_those_of_the_matrix(family: str, n: int, m: int, seed: int):
    operator, matrix = build(family, n, m, seed)
    columns = vectors(matrix.shape[1], 3, seed)
    assert_close(operator @ columns, matrix @ columns, **EXACT)
    assert_close(operator @ columns[:, 0], matrix @ columns[:, 0], **EXACT)


@every_family
def test_columns_are_multiplied_one_by_one(family: str, n: int, m: int, seed: int):
    operator, _ = build(family, n, m, seed)
    columns = vectors(operator.shape[1], 4, seed)
    one_by_one = torch.stack([operator @ column for column in columns.mT], dim=1)
    assert_close(operator @ columns, one_by_one, **EXACT)


@every_family
def test_the_transpose_is_the_adjoint(family: str, n: int, m: int, seed: int):
    operator, _ = build(family, n, m, seed)
    x = vectors(operator.shape[1], 1, seed)[:, 0]
    y = vectors(operator.shape[0], 1, seed + 1)[:, 0]
    assert_close((operator @ x) @ y, x @ (operator.T @ y), **EXACT)
    assert_close(operator.T.to_dense(), operator.to_dense().mT, **EXACT)
    assert_close(operator.T.T.to_dense(), operator.to_dense(), **EXACT)


@every_family
def test_tags_are_true(family: str, n: int, m: int, seed: int):
    operator, matrix = build(family, n, m, seed)
    if operator.symmetric:
        assert_close(matrix, matrix.mT, **EXACT)
    if operator.psd:
        assert operator.symmetric
        assert torch.linalg.eigvalsh(matrix).min() > -1e-10 * matrix.abs().max()


@every_family
def test_scipy_sees_the_same_map(family: str, n: int, m: int, seed: int):
    operator, matrix = build(family, n, m, seed)
    columns = vectors(matrix.shape[1], 2, seed).numpy()
    scipy = operator.to_scipy()
    assert scipy.shape == operator.shape
    assert scipy.dtype == np.float64
    np.testing.assert_allclose(scipy @ columns, matrix.numpy() @ columns, rtol=1e-11, atol=1e-11)
    rows = vectors(matrix.shape[0], 1, seed).numpy()[:, 0]
    np.testing.assert_allclose(scipy.T @ rows, matrix.numpy().T @ rows, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_precision_stays_single(family: str):
    generator = Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    operator, _ = FAMILIES[family](draw, 3, 2)
    assert operator.dtype == torch.float32
    assert (operator @ torch.ones(operator.shape[1])).dtype == torch.float32


@pytest.mark.parametrize("tagged", ["dense_psd", "kronecker_psd", "sum_psd"])
def test_what_is_built_from_psd_parts_is_known_to_be_psd(tagged: str):
    assert build(tagged, 3, 2, 0)[0].psd


def test_signs_and_products_lose_tags():
    psd, _ = build("dense_psd", 3, 3, 0)
    assert (-psd).symmetric
    assert not (-psd).psd
    assert not (psd - psd).psd
    assert not Product(psd, psd).symmetric
    assert not Diagonal(torch.tensor([1.0, -1.0])).psd
    assert not LowRank(torch.ones(2, 1), torch.tensor([-1.0])).psd


def test_vectors_that_do_not_fit_are_refused():
    operator = Diagonal(torch.ones(3))
    with pytest.raises(ValueError, match=r"shape \(3, 3\) meets vectors of shape \(4,\)"):
        operator @ torch.ones(4)
    with pytest.raises(ValueError, match=r"float32 on cpu meets vectors of torch\.float64"):
        operator @ torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"\(3, 1, 1\)"):
        operator @ torch.ones(3, 1, 1)


def test_operators_that_do_not_fit_are_refused():
    three, two = Diagonal(torch.ones(3)), Diagonal(torch.ones(2))
    with pytest.raises(ValueError, match=r"\(3, 3\) \+ \(2, 2\)"):
        three + two
    with pytest.raises(ValueError, match=r"\(3, 3\) @ \(2, 2\)"):
        three @ two
    with pytest.raises(ValueError, match=r"torch\.float64"):
        three + Diagonal(torch.ones(3, dtype=torch.float64))


def test_false_tags_and_gaps_are_refused():
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="called symmetric"):
        Kind((2, 3), torch.float32, cpu, symmetric=True)
    with pytest.raises(ValueError, match="not symmetric"):
        Kind((2, 2), torch.float32, cpu, psd=True)
    blocks = (Diagonal(torch.ones(2)), Diagonal(torch.ones(1)))
    with pytest.raises(ValueError, match="overlap or leave gaps"):
        BlockDiagonal(blocks, (torch.tensor([0, 1]), torch.tensor([1])))
    with pytest.raises(ValueError, match="all square"):
        BlockDiagonal((Dense(torch.ones(2, 3)),))
    one_way = FunctionOperator(Kind((2, 3), torch.float32, cpu), lambda v: v[:2])
    with pytest.raises(TypeError, match="pass adjoint="):
        _ = one_way.T
