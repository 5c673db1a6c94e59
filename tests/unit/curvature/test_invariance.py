"""Rescalings that leave the function as it is leave relative curvature as it is, and only that."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import (
    diagonal,
    ekfac,
    g_prior_scale,
    ggn,
    grouped_scale,
    hessian,
    jacobian,
    kfac,
    ntk,
    squared_jacobian,
)
from afterfit.problem import Batches, Categorical, Problem, connectivity, outputs, restrict

Params = dict[str, Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5, bias=False), nn.LeakyReLU(), nn.Linear(5, 3)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, eps=0.0),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def hyperbolic() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def drawn(size: int, generator: Generator) -> Tensor:
    """Factors up to a thousand either way."""
    return 10 ** (6 * torch.rand(size, dtype=torch.float64, generator=generator) - 3)


def rescale_units(state: Params, generator: Generator) -> Params:
    first, second = drawn(6, generator), drawn(5, generator)
    return {
        **state,
        "0.weight": first[:, None] * state["0.weight"],
        "0.bias": first * state["0.bias"],
        "2.weight": second[:, None] * state["2.weight"] / first,
        "4.weight": state["4.weight"] / second,
    }


def rescale_before_normalization(state: Params, generator: Generator) -> Params:
    first, second = drawn(4, generator), drawn(4, generator)
    inner = state["3.weight"] / second.view(2, 2).repeat_interleave(2, 0)[:, :, None, None]
    return {
        **state,
        "0.weight": first[:, None, None, None] * state["0.weight"],
        "0.bias": first * state["0.bias"],
        "1.running_mean": first * state["1.running_mean"],
        "1.running_var": first.square() * state["1.running_var"],
        "1.weight": second * state["1.weight"],
        "1.bias": second * state["1.bias"],
        "3.weight": inner,
    }


def flip_signs(state: Params, generator: Generator) -> Params:
    signs = torch.where(torch.rand(6, generator=generator) < 0.5, -1.0, 1.0).double()
    return {
        **state,
        "0.weight": signs[:, None] * state["0.weight"],
        "0.bias": signs * state["0.bias"],
        "2.weight": state["2.weight"] * signs,
    }


Move = Callable[[Params, Generator], Params]
MOVES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Move]] = {
    "units": (mlp, (4,), rescale_units),
    "normalization": (conv, (2, 5, 5), rescale_before_normalization),
    "signs": (hyperbolic, (4,), flip_signs),
}
MATRICES = {
    "jacobian": lambda p, d: jacobian(p, d).to_dense(),
    "kernel": lambda p, d: ntk(p, d).to_dense(),
    "ggn": lambda p, d: ggn(p, d).to_dense(),
    "hessian": lambda p, d: hessian(p, d).to_dense(),
    "diagonal": lambda p, d: diagonal(p, d).to_dense(),
    "kfac": lambda p, d: kfac(p, d).to_dense(),
    "ekfac": lambda p, d: ekfac(p, d).to_dense(),
}


def pair(move: str) -> tuple[Problem, Problem, Batches]:
    """A network, the same function with other parameters, and data."""
    make, shape, change = MOVES[move]
    generator = Generator().manual_seed(2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        module, other = make().double(), make().double()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, dtype=value.dtype, generator=generator)
            value.add_(noise.abs() if "running_var" in name else 0.3 * noise)
    other.load_state_dict(change(dict(module.state_dict()), generator))
    inputs = torch.randn(6, *shape, dtype=torch.float64, generator=generator)
    problems = [Problem.from_module(m, Categorical()) for m in (module, other)]
    return problems[0], problems[1], Batches((inputs, torch.arange(6) % 3), 4)


def change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("move", MOVES)
def test_the_function_stays(move: str):
    one, other, data = pair(move)
    assert_close(outputs(other, data), outputs(one, data), rtol=1e-10, atol=1e-12)
    assert any(change(one.params[n], other.params[n]) > 0.5 for n in one.params)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("move", MOVES)
def test_relative_curvature_stays_and_absolute_curvature_does_not(move: str, matrix: str):
    one, other, data = pair(move)
    compute = MATRICES[matrix]
    before, after = (compute(connectivity(problem), data) for problem in (one, other))
    assert change(before, after) < 1e-10
    moves_absolute = not (move == "signs" and matrix in ("kernel", "diagonal"))
    if moves_absolute:
        assert change(compute(one, data), compute(other, data)) > 0.01


@pytest.mark.parametrize("matrix", ["jacobian", "ggn", "kfac", "ekfac"])
@pytest.mark.parametrize("move", MOVES)
def test_so_it_is_with_the_scale_of_the_g_prior(move: str, matrix: str):
    one, other, data = pair(move)
    compute = MATRICES[matrix]
    before, after = (
        compute(connectivity(problem, g_prior_scale(problem, data)), data).abs()
        for problem in (one, other)
    )
    assert change(before, after) < 1e-10


def test_with_the_scale_of_the_g_prior_all_parameters_count_alike():
    one, _, data = pair("units")
    scale = g_prior_scale(one, data)
    for name, value in squared_jacobian(connectivity(one, scale), data).items():
        alive = (scale[name] != 0).double()  # a unit of a ReLU may be off for all samples
        assert_close(value, alive, rtol=1e-9, atol=0.0)
        assert alive.mean() > 0.5


def test_the_scale_of_the_g_prior_is_zero_where_nothing_depends():
    one, _, data = pair("units")
    with torch.no_grad():
        one.params["2.weight"][:, 1] = 0  # nothing comes from that unit any more
    scale = g_prior_scale(one, data)
    assert not scale["0.weight"][1].any()
    assert torch.isfinite(scale["0.weight"]).all()
    assert connectivity(one, scale).num_frozen >= 4


def test_the_last_layer_alone_stays_too():
    one, other, data = pair("units")
    before, after = (
        ggn(restrict(connectivity(problem), "4.*"), data).to_dense() for problem in (one, other)
    )
    assert change(before, after) < 1e-10


def test_groups_have_factors_of_their_own():
    one, _, data = pair("units")
    scale = grouped_scale(one, {"*.bias": 3, "4.*": 0.5})
    assert torch.equal(scale["0.bias"], 3 * one.params["0.bias"])
    assert torch.equal(scale["4.bias"], 3 * one.params["4.bias"])
    assert torch.equal(scale["4.weight"], 0.5 * one.params["4.weight"])
    assert torch.equal(scale["2.weight"], one.params["2.weight"])
    assert squared_jacobian(connectivity(one, scale), data)
    with pytest.raises(ValueError, match=r"'head\.\*' is the first match of no parameter"):
        grouped_scale(one, {"head.*": 2.0})
