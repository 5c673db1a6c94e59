"""Traces: exact ones by structure, estimates within their own error, their errors as they fall."""

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Estimate,
    FunctionOperator,
    Kind,
    Kronecker,
    LinearOperator,
    LowRank,
    estimate_trace,
    trace,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def only_products(matrix: Tensor) -> LinearOperator:
    kind = Kind((len(matrix), len(matrix)), matrix.dtype, matrix.device, symmetric=True)
    return FunctionOperator(kind, lambda v: matrix @ v)


def decaying(size: int, power: float, seed: int = 0) -> Tensor:
    basis = torch.linalg.qr(draw(size, size, seed=seed)).Q
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return (basis * values) @ basis.mT


def run(matrix: Tensor, seed: int, num_probes: int = 30) -> Estimate:
    return estimate_trace(only_products(matrix), num_probes, Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "operator",
    [
        Dense(draw(4, 4)),
        Diagonal(draw(5)),
        LowRank(draw(6, 2), draw(2)),
        Kronecker(Dense(draw(3, 3)), Diagonal(draw(2))),
        BlockDiagonal((Dense(draw(2, 2)), Diagonal(draw(3)))),
        2 * Dense(draw(3, 3)) - Diagonal(draw(3)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_structure_gives_the_exact_trace(operator: LinearOperator):
    assert_close(trace(operator), float(operator.to_dense().trace()), rtol=1e-12, atol=1e-12)


def test_what_only_has_products_has_no_exact_trace():
    with pytest.raises(TypeError, match="estimate_trace"):
        trace(only_products(draw(3, 3)))
    with pytest.raises(ValueError, match="expected a square one"):
        trace(Dense(draw(3, 2)))
    with pytest.raises(ValueError, match="expected a square one"):
        estimate_trace(Dense(draw(3, 2)), 4, Generator())


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_the_estimate_is_within_its_error(power: float):
    matrix = decaying(60, power)
    for seed in range(5):
        found = run(matrix, seed)
        assert abs(found.value - float(matrix.trace())) <= 5 * found.stderr + 1e-10


def test_the_error_that_is_told_is_the_spread_of_repetitions():
    matrix = decaying(60, 0.5)
    found = [run(matrix, seed) for seed in range(200)]
    spread = torch.tensor([one.value for one in found]).std()
    told = torch.tensor([one.stderr for one in found]).square().mean().sqrt()
    assert 0.65 < float(told / spread) < 1.35


def test_the_mean_over_repetitions_is_the_trace():
    matrix = decaying(40, 1.0)
    values = torch.tensor([run(matrix, seed).value for seed in range(300)])
    stderr = float(values.std()) / 300**0.5
    assert abs(float(values.mean()) - float(matrix.trace())) < 4 * stderr


def test_the_error_has_the_variance_of_its_formula_and_falls_with_the_root():
    matrix = decaying(50, 0.3)
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    one = (2 * off_diagonal.square().sum()).sqrt()
    for num in (100, 1600):
        found = run(matrix, 3, num)
        assert 0.8 < found.stderr * num**0.5 / float(one) < 1.25


def test_small_operators_are_no_trouble():
    found = run(decaying(3, 1.0), 0)
    assert abs(found.value - float(decaying(3, 1.0).trace())) <= 5 * found.stderr + 1e-9


def test_the_generator_decides():
    matrix = decaying(20, 0.5)
    assert run(matrix, 1) == run(matrix, 1)
    assert run(matrix, 1) != run(matrix, 2)


def test_a_single_probe_is_refused():
    with pytest.raises(ValueError, match="expected at least 2"):
        run(decaying(3, 1.0), 0, 1)
