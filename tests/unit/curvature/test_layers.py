"""Every way of using parameters: layer by layer it gives what whole Jacobians give."""

import warnings
from functools import cache, partial

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import (
    KroneckerBlock,
    NamedBlock,
    diagonal,
    estimate_ggn_trace,
    estimate_squared_jacobian_trace,
    ggn,
    jacobian,
    kfac,
    layer_jacobians,
    squared_jacobian,
)
from afterfit.curvature.layers import Multiply
from afterfit.curvature.tracing import Tracer
from afterfit.linalg import Diagonal
from afterfit.posterior import laplace, predict, randomize_then_optimize
from afterfit.problem import (
    Batches,
    Categorical,
    Problem,
    connectivity,
    gradients,
    linearize,
    restrict,
)
from afterfit.sharpness import connectivity_sharpness
from tests import truth
from tests.unit.curvature.zoo import NUM_SAMPLES, SCALARS, ZOO, build

EXACT = {"rtol": 1e-9, "atol": 1e-11}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
]
EVERY = pytest.mark.parametrize("name", ZOO)


TIGHT = {"rtol": 1e-10, "atol": 1e-10}


@cache
def dense(name: str) -> tuple[Tensor, Tensor]:
    """Jacobian and generalized Gauss-Newton matrix of a network, by their definitions."""
    problem, data = case(name)
    return truth.jacobian(problem, data), truth.ggn(problem, data)


def case(name: str, batch_size: int = 3) -> tuple[Problem, Batches]:
    module, inputs = build(name)
    targets = torch.arange(NUM_SAMPLES) % 2
    return Problem.from_module(module, Categorical()), Batches((inputs, targets), batch_size)


@EVERY
def test_what_is_not_covered_is_known_by_name(name: str):
    problem, data = case(name)
    assert set(Tracer.of(problem, data).uncovered) == set(ZOO[name].uncovered)


@EVERY
def test_the_diagonal_is_that_of_the_definition(name: str):
    problem, data = case(name)
    _, expected = dense(name)
    assert_close(diagonal(problem, data).entries, expected.diagonal(), **EXACT)


def test_the_zoo_is_large():
    assert len(ZOO) >= 39


@EVERY
def test_the_trace_and_the_full_posterior_are_those_of_dense_jacobians(name: str):
    problem, data = case(name)
    rows, matrix = dense(name)
    scaled = rows * truth.flat(dict(problem.params))
    assert connectivity_sharpness(problem, data).total == pytest.approx(
        float(scaled.square().sum()), rel=1e-10
    )
    covariance = torch.linalg.inv(matrix + torch.eye(len(matrix)).double())
    found = laplace(problem, data, prior_scale=1.0)
    assert_close(found.variances(), covariance.diagonal(), **TIGHT)
    index, _, covariances = zip(*found.covariances(data), strict=True)
    expected = rows @ covariance @ rows.mT
    assert_close(torch.cat(covariances)[torch.cat(index).argsort()], expected, **TIGHT)


@EVERY
def test_products_with_the_matrix_exist_for_all(name: str):
    problem, data = case(name)
    columns = torch.randn(problem.num_params, 2, generator=Generator().manual_seed(2)).double()
    assert_close(ggn(problem, data) @ columns, dense(name)[1] @ columns, **EXACT)


@EVERY
def test_kronecker_curvature_has_a_rule_or_says_what_gets_the_diagonal(name: str):
    problem, data = case(name)
    uncovered = {n for n in problem.params if n in ZOO[name].uncovered}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = kfac(problem, data)
    named = {n for n in problem.params if any(f"{n} (used by" in str(w.message) for w in said)}
    assert named == uncovered
    rest = {n for b in found.blocks if isinstance(b, NamedBlock) for n in b.names}
    assert uncovered <= rest
    exact, places = dense(name)[1].diagonal(), zip(found.blocks, found.parts(), strict=True)
    for block, where in places:
        if isinstance(block, NamedBlock):
            assert_close(block.to_dense().diagonal(), exact[where], **EXACT)
    assert found.shape == (problem.num_params, problem.num_params)


@EVERY
def test_jacobians_in_factors_multiply_out_to_the_rows(name: str):
    problem, data = case(name)
    relative = connectivity(problem)
    expected = dense(name)[0] * truth.flat(dict(problem.params))
    found = torch.full_like(expected, float("nan"))
    for part in layer_jacobians(relative, data):
        assert_close(part.outputs, truth.outputs(problem, data)[part.index], **EXACT)
        for block in part.parts:
            rows = torch.full_like(expected[part.index], float("nan"))
            rows[:, :, block.positions] = block.rows()
            filled = ~rows.isnan()
            found[part.index] = torch.where(filled, rows, found[part.index])
    assert_close(found, expected, **EXACT)


@EVERY
def test_probes_of_each_sample_estimate_the_trace_within_their_error(name: str):
    problem, data = case(name)
    relative = connectivity(problem)
    exact = float(truth.flat(squared_jacobian(relative, data)).sum())
    found = estimate_squared_jacobian_trace(relative, data, 40, Generator().manual_seed(1))
    assert abs(found.value - exact) <= 5 * found.stderr + 1e-9 * exact
    assert found.stderr < 0.3 * exact
    curved = float(dense(name)[1].trace())
    estimated = estimate_ggn_trace(problem, data, 40, Generator().manual_seed(1))
    assert abs(estimated.value - curved) <= 5 * estimated.stderr + 1e-9 * curved


@pytest.mark.parametrize("name", ["conv1d", "conv2d-depth"])
def test_groups_of_a_convolution_are_blocks_of_their_own(name: str):
    problem, data = case(name)
    found = kfac(problem, data)
    body = [block for block in found.blocks if "body.weight" in block.names]
    groups = {"conv1d": 2, "conv2d-depth": 4}[name]
    assert len(body) == groups
    one = data.subset(torch.tensor([0]))
    single = kfac(restrict(problem, "body.*"), one)
    exact = truth.ggn(restrict(problem, "body.*"), one)
    assert float(torch.trace(single.to_dense())) > 0
    assert single.shape == tuple(exact.shape)


def test_parts_of_a_weight_are_blocks_where_they_are_called_apart():
    problem, data = case("cross-attention")
    found = kfac(problem, data)
    shapes = [b.shape for b in found.blocks if "body.in_proj_weight" in b.names]
    assert shapes == 3 * [(20, 20)]  # queries, keys and values
    assert found.shape == (problem.num_params, problem.num_params)


def test_a_weight_that_is_also_a_table_gets_its_diagonal():
    problem, data = case("language")
    found = {block.names: block for block in kfac(problem, data).blocks}
    assert isinstance(found["tokens.weight",].operator, Diagonal)
    assert isinstance(found["qkv.weight",], KroneckerBlock)


def test_only_parameters_of_the_problem_are_followed():
    problem, data = case("vision")
    head = restrict(problem, "head.*")
    (_, trace) = next(Tracer.of(head, data).traces(next(iter(data))))
    assert [type(call) for call in trace.calls] == [Multiply]
    assert_close(diagonal(head, data).entries, truth.ggn(head, data).diagonal(), **EXACT)


def test_a_linearized_problem_has_no_layers_but_the_same_diagonal():
    problem, data = case("conv2d")
    flat = linearize(problem)
    with pytest.raises(ValueError, match="the layers of this problem cannot be seen"):
        kfac(flat, data)
    assert_close(diagonal(flat, data).entries, diagonal(problem, data).entries, **EXACT)
    generator = Generator()
    one, other = (
        estimate_squared_jacobian_trace(p, data, 4, generator.manual_seed(0))
        for p in (flat, problem)
    )
    assert_close(one.value, other.value, **EXACT)


def test_sequences_of_other_lengths_are_seen_anew():
    problem, _ = case("language")
    inputs = torch.randint(0, 5, (2, 6))
    short = Batches((inputs[:, :3], torch.zeros(2, dtype=torch.long)), 2)
    long = Batches((inputs, torch.zeros(2, dtype=torch.long)), 2)
    tracer = Tracer.of(problem, short)
    for data, length in ((short, 3), (long, 6), (short, 3)):
        (_, trace) = next(tracer.traces(next(iter(data))))
        assert trace.probes[0].shape == (2, 1, length, 4)


def test_the_variance_of_a_probe_is_that_of_the_formula():
    problem, data = case("conv2d")
    rows = truth.jacobian(problem, data)
    kernels = rows @ rows.mT
    variance = 2 * (kernels.square().sum() - kernels.diagonal(dim1=1, dim2=2).square().sum())
    found = estimate_squared_jacobian_trace(problem, data, 2000, Generator().manual_seed(0))
    assert_close(found.stderr, float(variance / 2000) ** 0.5, rtol=0.1, atol=0.0)
    few = estimate_squared_jacobian_trace(problem, data, 125, Generator().manual_seed(0))
    assert 3 < few.stderr / found.stderr < 5.5


def test_one_probe_cannot_tell_its_error():
    problem, data = case("conv2d")
    with pytest.raises(ValueError, match="expected at least 2"):
        estimate_squared_jacobian_trace(problem, data, 1, Generator())


def test_probes_do_not_depend_on_the_batch_size():
    found = [
        estimate_ggn_trace(*case("conv2d", size), 3, Generator().manual_seed(0)).value
        for size in (1, 3, 4)
    ]
    assert_close(found[0], found[1], **EXACT)
    assert_close(found[0], found[2], **EXACT)


class Looked(nn.Module):
    """Tokens by a table with a row that is never trained, and that is read like all others."""

    def __init__(self, padding: int) -> None:
        nn.Module.__init__(self)
        self.table, self.head = nn.Embedding(5, 3, padding_idx=padding), nn.Linear(3, 2)
        with torch.no_grad():
            self.table.weight[padding] = 0.7

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


@pytest.mark.parametrize("padding", [0, 2, -1])
def test_the_row_of_the_padding_has_no_curvature(padding: int):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        problem = Problem.from_module(Looked(padding).double(), Categorical())
    tokens = torch.arange(24).reshape(6, 4) % 5
    data = Batches((tokens, torch.arange(6) % 2), 3)
    found = diagonal(problem, data).entries
    assert_close(found, truth.ggn(problem, data).diagonal(), **EXACT)
    squares = truth.flat(squared_jacobian(problem, data))
    assert_close(squares, truth.jacobian(problem, data).square().sum((0, 1)), **EXACT)
    rows = found[:15].reshape(5, 3)
    assert bool((rows[padding] == 0).all())
    assert bool((rows.sum(1) > 0).sum() == 4)


@pytest.mark.parametrize("name", SCALARS)
def test_parameters_without_axes_have_gradients_jacobians_and_posteriors(name: str):
    problem, data = case(name)
    rows = torch.cat([part for _, part in gradients(problem, data)])
    assert_close(rows, truth.gradients(problem, data), **EXACT)
    assert_close(jacobian(problem, data).matrix, truth.jacobian(problem, data).flatten(0, 1))
    full = ggn(problem, data).to_dense()
    assert_close(full, truth.ggn(problem, data), **EXACT)
    for curvature in (diagonal, partial(kfac, others=diagonal)):
        found = predict(laplace(connectivity(problem), data, 1.0, curvature), data)
        assert bool((found.logit_variance > 0).all())
    draws = randomize_then_optimize(problem, data, 2, Generator().manual_seed(0))
    assert len(draws.members) == 2
