"""Kronecker factors against loops over samples, and what stands where in the blocks."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import (
    EigenBlock,
    Gram,
    KroneckerBlock,
    NamedBlock,
    diagonal,
    ekfac,
    expand,
    ggn,
    kfac,
    rank_one,
    reduce,
)
from afterfit.curvature.ekfac import _eigenvectors
from afterfit.linalg import BlockDiagonal, Diagonal
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity, restrict
from tests import truth
from tests.cases import Case, make_case, make_data, make_module

EXACT = {"rtol": 1e-9, "atol": 1e-12}
SHARING = {"expand": (expand, False), "reduce": (reduce, True)}
LAYERS = [
    ("mlp", "0"),
    ("mlp", "3"),
    ("cnn", "0"),
    ("cnn", "5"),
    ("batch-norm", "0"),
    ("linear", ""),
    ("token-bag", "head"),
    ("tied", "head"),
]


def block_of(found: BlockDiagonal, *names: str) -> KroneckerBlock:
    (block,) = [b for b in found.blocks if b.names == names]
    return block


def names_of(layer: str) -> tuple[str, str]:
    return (f"{layer}.weight", f"{layer}.bias") if layer else ("weight", "bias")


@pytest.mark.parametrize("sharing", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("likelihood", ["categorical", "poisson"])
@pytest.mark.parametrize(("network", "layer"), LAYERS, ids="{0}".format)
def test_the_factors_are_those_of_loops(network, layer, likelihood, sharing):
    case = make_case(network, likelihood)
    module = make_module(network, likelihood)
    share, reduced = sharing
    expected = truth.kronecker_factors(module, layer, case.problem, case.data, reduced)
    block = block_of(kfac(case.problem, case.data, share), *names_of(layer))
    assert_close(block.output_factor, expected[0], **EXACT)
    assert_close(block.input_factor, expected[1], **EXACT)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_a_tied_weight_has_the_positions_of_all_its_uses(likelihood: str):
    case, module = make_case("tied", likelihood), make_module("tied", likelihood)
    both = module.encoder.weight
    biases = [case.problem.params[f"{n}.bias"] for n in ("encoder", "decoder")]
    sums = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    curvatures = truth.output_hessian(case.problem, case.data)
    for (x, _), curvature in zip(truth.samples(case.data), curvatures, strict=True):
        first = x @ both.T + biases[0]
        hidden = first.tanh()
        second = hidden @ both.T + biases[1]
        out = module.head(second.tanh())[0]
        values, vectors = torch.linalg.eigh(curvature)
        for a in (x, hidden):
            sums[1].add_(a.T @ a / 14)
        for column in (vectors * values.clamp_min(0).sqrt()).T:
            for g in torch.autograd.grad(out @ column, (first, second), retain_graph=True):
                sums[0].add_(g.T @ g)
    block = block_of(kfac(case.problem, case.data), "encoder.weight")
    assert_close(block.output_factor, sums[0], **EXACT)
    assert_close(block.input_factor, sums[1].detach(), **EXACT)


@pytest.mark.parametrize("make", [kfac, ekfac], ids=["kfac", "ekfac"])
@pytest.mark.parametrize(
    "network", ["mlp", "cnn", "tied", "attention", "token-bag", "named-inputs"]
)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_nothing_depends_on_the_batch_size(make, network: str, relative: bool):
    case = make_case(network, "categorical")
    problem = connectivity(case.problem) if relative else case.problem
    whole = make(problem, case.data).to_dense()
    for size in (1, 2, 7):
        other = make(problem, make_data(network, "categorical", size)).to_dense()
        assert_close(other, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", ["mlp", "cnn", "batch-norm", "tied", "attention", "token-bag"])
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_the_corrected_values_are_the_diagonal_of_the_matrix_in_the_basis(network, relative):
    case = make_case(network, "categorical")
    problem = connectivity(case.problem) if relative else case.problem
    whole = truth.ggn(case.problem, case.data)
    if relative:
        scale = truth.flat(dict(case.problem.params))
        whole = scale[:, None] * whole * scale
    found, plain = ekfac(problem, case.data), kfac(problem, case.data)
    assert len(found.blocks) == len(plain.blocks)
    for block, kronecker, where in zip(found.blocks, plain.blocks, found.parts(), strict=True):
        exact = whole[where[:, None], where]
        if isinstance(block, EigenBlock):
            basis = torch.kron(block.output_vectors, block.input_vectors)
            basis = block.signs.flatten()[:, None] * basis
            assert_close((basis.T @ exact @ basis).diagonal(), block.values.flatten(), **EXACT)
            for vectors, factor in (
                (block.output_vectors, kronecker.output_factor),
                (block.input_vectors, kronecker.input_factor),
            ):
                turned = vectors.T @ factor @ vectors
                off = turned - torch.diag(turned.diagonal())
                assert off.norm() <= (1e-2 if relative else 1e-12) * turned.norm()
            errors = [torch.dist(b.to_dense(), exact) for b in (block, kronecker)]
            assert errors[0] <= errors[1] + 1e-12
        else:
            assert_close(block.to_dense(), torch.diag(exact.diagonal()), **EXACT)


def test_one_sample_of_a_network_without_sharing_is_exact():
    case = make_case("mlp", "poisson")
    one = case.data.subset(torch.tensor([2]))
    exact = truth.ggn(case.problem, one)
    for make in (kfac, ekfac):
        found = make(case.problem, one)
        for block, where in zip(found.blocks, found.parts(), strict=True):
            assert_close(block.to_dense(), exact[where[:, None], where], **EXACT)


def test_a_layer_alone_is_its_block():
    case = make_case("mlp", "categorical")
    for pattern in ("0.*", "3.*", "3.weight", "0.bias"):
        part = kfac(restrict(case.problem, pattern), case.data)
        (block,) = part.blocks
        names = tuple(restrict(case.problem, pattern).params)
        assert block.names == names
        rows = restrict(case.problem, pattern).num_params
        assert block.shape == (rows, rows)
    bias = kfac(restrict(case.problem, "0.bias"), case.data)
    assert_close(bias.to_dense(), truth.ggn(restrict(case.problem, "0.bias"), case.data), **EXACT)


def test_relative_factors_are_scaled_by_geometric_means():
    case = make_case("mlp", "categorical")
    absolute = block_of(kfac(case.problem, case.data), *names_of("0"))
    found = block_of(kfac(connectivity(case.problem), case.data), *names_of("0"))
    joint = torch.cat(
        [case.problem.params["0.weight"], case.problem.params["0.bias"][:, None]], dim=1
    )
    logs = joint.abs().log()
    rows, columns = logs.mean(1).exp(), (logs.mean(0) - logs.mean()).exp()
    assert_close(found.rows, rows, **EXACT)
    assert_close(found.columns, columns, **EXACT)
    assert_close(found.signs, joint.sign(), **EXACT)
    outer, inner = torch.diag(rows), torch.diag(columns)
    assert_close(found.output_factor, outer @ absolute.output_factor @ outer, **EXACT)
    assert_close(found.input_factor, inner @ absolute.input_factor @ inner, **EXACT)
    signs = joint.sign().flatten()
    dense = torch.kron(found.output_factor, found.input_factor) * signs * signs[:, None]
    assert_close(found.to_dense(), dense, **EXACT)
    assert (absolute.rows == 1).all()
    assert (absolute.signs == 1).all()


def test_a_scale_of_rank_one_is_found_exactly_whatever_is_missing(generator):
    rows = torch.rand(6, dtype=torch.float64, generator=generator) + 0.1
    columns = torch.rand(5, dtype=torch.float64, generator=generator) + 0.1
    scale = rows[:, None] * columns
    scale[2, 3] = scale[0, 0] = 0
    scale[4] = 0
    scale[:, 1] *= -1
    found = rank_one(scale)
    product = found[0][:, None] * found[1]
    there = scale != 0
    assert_close(product[there], scale[there].abs(), **EXACT)
    assert found[0][4] == 0
    assert not product[4].any()


def test_the_fit_of_rank_one_follows_rescaled_rows_and_columns(generator):
    scale = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    scale[1, 2] = scale[3, 3] = 0
    rows = torch.rand(6, dtype=torch.float64, generator=generator) * 100 + 0.01
    columns = torch.rand(5, dtype=torch.float64, generator=generator) * 100 + 0.01
    before, after = rank_one(scale), rank_one(rows[:, None] * scale * columns)
    expected = rows[:, None] * before[0][:, None] * before[1] * columns
    assert_close(after[0][:, None] * after[1], expected, **EXACT)


class WithHand(nn.Module):
    """A weight that is used by a function without a rule."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
        self.hand = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh() @ self.hand.exp())


def with_hand() -> Case:
    torch.manual_seed(0)
    problem = Problem.from_module(WithHand().double(), Gaussian())
    inputs = torch.randn(5, 3, dtype=torch.float64)
    return Case("hand", problem, Batches((inputs, torch.zeros(5, 2)), 2))


@pytest.mark.parametrize("make", [kfac, ekfac])
def test_an_uncovered_parameter_is_said_by_name(make):
    case = with_hand()
    with pytest.warns(UserWarning, match=r"for hand \(used by exp\).*diagonal.*restrict") as said:
        found = make(case.problem, case.data)
    assert len(said) == 1
    expected = make(case.problem, case.data, others=diagonal)
    assert_close(found.to_dense(), expected.to_dense())


@pytest.mark.parametrize("make", [kfac, ekfac])
def test_an_uncovered_parameter_gets_the_curvature_asked_for(make):
    case = with_hand()
    exact = truth.ggn(case.problem, case.data)
    for others, kind in ((diagonal, Diagonal), (ggn, Gram)):
        found = make(case.problem, case.data, others=others)
        (block,) = [b for b in found.blocks if b.names == ("hand",)]
        (where,) = [w for b, w in zip(found.blocks, found.parts(), strict=True) if b is block]
        assert isinstance(block, NamedBlock)
        assert isinstance(block.operator, kind)
        part = exact[where[:, None], where]
        expected = torch.diag(part.diagonal()) if others is diagonal else part
        assert_close(block.to_dense(), expected, **EXACT)
    curvature = partial(make, others=diagonal)
    assert curvature(case.problem, case.data).shape == exact.shape


@pytest.mark.parametrize("make", [kfac, ekfac])
def test_products_are_those_of_the_blocks(make):
    case = make_case("attention", "categorical")
    found = make(connectivity(case.problem), case.data)
    assert found.psd
    vectors = torch.randn(found.shape[0], 3, dtype=torch.float64)
    assert_close(found @ vectors, found.to_dense() @ vectors, **EXACT)


def test_the_users_module_is_untouched_and_targets_are_checked():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    before = copy.deepcopy(module.state_dict())
    problem = Problem.from_module(module, Categorical())
    inputs = torch.randn(4, 3, dtype=torch.float64)
    kfac(problem, Batches((inputs, torch.tensor([0, 1, 1, 0])), 2))
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())
    assert not module[0]._forward_hooks
    with pytest.raises(ValueError, match="labels range from 0 to 5"):
        kfac(problem, Batches((inputs, torch.tensor([0, 5, 1, 0])), 2))


def test_a_ten_thousandth_of_the_exact_diagonal_makes_a_factor_definite():
    """With as much beside the diagonal the angle is half of 45°; without, it would be 45°."""
    factor = torch.tensor([[1.0, 1e-4], [1e-4, 1.0]], dtype=torch.float64)
    found = _eigenvectors(factor, torch.tensor([2.0, 0.0], dtype=torch.float64)).abs()
    expected = torch.tensor([[0.38268343, 0.92387953], [0.92387953, 0.38268343]]).double()
    assert_close(found, expected, rtol=0, atol=1e-7)
