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
    Hutchinson,
    HutchPlusPlus,
    Kind,
    Kronecker,
    LinearOperator,
    LowRank,
    TraceEstimator,
    XTrace,
    estimate_trace,
    trace,
)

ESTIMATORS = {
    "hutchinson": Hutchinson(30),
    "hutch++": HutchPlusPlus(30),
    "xtrace": XTrace(30),
}
EVERY = pytest.mark.parametrize("how", ESTIMATORS.values(), ids=ESTIMATORS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def only_products(matrix: Tensor) -> LinearOperator:
    kind = Kind((len(matrix), len(matrix)), matrix.dtype, matrix.device, symmetric=True)
    return FunctionOperator(kind, lambda v: matrix @ v)


def decaying(size: int, power: float, seed: int = 0) -> Tensor:
    basis = torch.linalg.qr(draw(size, size, seed=seed)).Q
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    return (basis * values) @ basis.mT


def run(matrix: Tensor, how: TraceEstimator, seed: int) -> Estimate:
    return estimate_trace(only_products(matrix), how, Generator().manual_seed(seed))


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
        estimate_trace(Dense(draw(3, 2)), Hutchinson(4), Generator())


@EVERY
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_the_estimate_is_within_its_error(how: TraceEstimator, power: float):
    matrix = decaying(60, power)
    for seed in range(5):
        found = run(matrix, how, seed)
        assert abs(found.value - float(matrix.trace())) <= 5 * found.stderr + 1e-10


@EVERY
def test_the_error_that_is_told_is_the_spread_of_repetitions(how: TraceEstimator):
    matrix = decaying(60, 0.5)
    found = [run(matrix, how, seed) for seed in range(200)]
    spread = torch.tensor([one.value for one in found]).std()
    told = torch.tensor([one.stderr for one in found]).square().mean().sqrt()
    assert 0.65 < float(told / spread) < 1.35


@EVERY
def test_the_mean_over_repetitions_is_the_trace(how: TraceEstimator):
    matrix = decaying(40, 1.0)
    values = torch.tensor([run(matrix, how, seed).value for seed in range(300)])
    stderr = float(values.std()) / 300**0.5
    assert abs(float(values.mean()) - float(matrix.trace())) < 4 * stderr


def test_the_error_of_hutchinson_has_the_variance_of_its_formula_and_falls_with_the_root():
    matrix = decaying(50, 0.3)
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    one = (2 * off_diagonal.square().sum()).sqrt()
    for num in (100, 1600):
        found = run(matrix, Hutchinson(num), 3)
        assert 0.8 < found.stderr * num**0.5 / float(one) < 1.25


@pytest.mark.parametrize("how", [HutchPlusPlus(30), XTrace(30)], ids=["hutch++", "xtrace"])
def test_a_sketch_makes_low_rank_exact_and_a_falling_spectrum_better(how: TraceEstimator):
    vectors = draw(40, 3)
    low = vectors @ vectors.mT
    found = run(low, how, 0)
    assert_close(found.value, float(low.trace()), rtol=1e-9, atol=0.0)
    assert found.stderr < 1e-9
    falling = decaying(60, 2.0)
    assert run(falling, how, 0).stderr < 0.3 * run(falling, Hutchinson(30), 0).stderr


def test_small_operators_are_no_trouble():
    for how in ESTIMATORS.values():
        found = run(decaying(3, 1.0), how, 0)
        assert abs(found.value - float(decaying(3, 1.0).trace())) <= 5 * found.stderr + 1e-9


def test_the_generator_decides():
    matrix = decaying(20, 0.5)
    for how in ESTIMATORS.values():
        assert run(matrix, how, 1) == run(matrix, how, 1)
        assert run(matrix, how, 1) != run(matrix, how, 2)


def test_too_few_products_are_refused():
    for make, least in ((Hutchinson, 2), (HutchPlusPlus, 6), (XTrace, 4)):
        with pytest.raises(ValueError, match=f"expected at least {least}"):
            make(least - 1)
