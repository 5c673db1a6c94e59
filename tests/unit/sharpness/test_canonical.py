import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import diagonal, ggn
from afterfit.posterior import laplace, log_evidence, predict
from afterfit.problem import Batches, Categorical, Problem, connectivity
from afterfit.sharpness import Architecture, canonical_scale, explore
from afterfit.sharpness.rescaling import scale_units
from tests.rescalable import NETWORKS

SCALINGS = ("node", "normalization", "affine", "query-key")


def rescaled(architecture: Architecture, largest: float) -> Architecture:
    """The same freedoms at another point of the orbit."""
    generator, network = Generator().manual_seed(3), architecture.network
    for freedom in architecture.freedoms:
        if freedom.kind in SCALINGS:
            draw = torch.rand(freedom.symmetry.size, dtype=torch.float64, generator=generator)
            factors = (math.log(largest) * (2 * draw - 1)).exp()
            network = scale_units(network, freedom.symmetry, factors)
    return replace(architecture, network=network)


def scale_of(module: nn.Module, data: Batches) -> dict[str, Tensor]:
    return canonical_scale(explore(module, data))


def test_one_hidden_layer_is_balanced_as_a_plain_minimization_finds():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        first, last = nn.Linear(5, 4), nn.Linear(4, 3)
    module = nn.Sequential(first, nn.ReLU(), last).double()
    x = torch.randn(40, 5, generator=Generator().manual_seed(0)).double()
    found = scale_of(module, Batches((x, torch.arange(40) % 3)))
    inward = torch.cat([first.weight, first.bias[:, None]], 1).detach()
    outward = last.weight.detach()
    for unit in range(4):

        def loss(log_factor: float, unit: int = unit) -> float:
            a = math.exp(log_factor)
            balanced = torch.cat([inward[unit] * a, outward[:, unit] / a])
            return 0.5 * float(balanced.square().sum()) - 6 * log_factor + 3 * log_factor

        fit: Any = minimize_scalar(loss, (-1, 1), tol=1e-10)
        best = math.exp(float(fit.x))
        assert_close(
            found["0.weight"][unit].abs(), torch.full((5,), 1 / best).double(), rtol=1e-6, atol=0
        )
        assert_close(
            found["2.weight"][:, unit].abs(), torch.full((3,), best).double(), rtol=1e-6, atol=0
        )
    assert_close(found["2.bias"].abs(), torch.ones(3).double())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "tanh"])
def test_it_is_rescaled_with_the_parameters_and_makes_posteriors_invariant(name: str):
    case = NETWORKS[name]
    data, architecture = case.data(), explore(case.module(), case.data())
    both = architecture, rescaled(architecture, 1e3)
    modules, scales = [one.network for one in both], [canonical_scale(one) for one in both]
    for (key, before), after in zip(
        modules[0].named_parameters(), modules[1].parameters(), strict=True
    ):
        expected = scales[0][key] * after / before
        assert_close(scales[1][key], expected.detach(), rtol=1e-8, atol=0)
    for curvature in (ggn, diagonal):
        one, other = (
            laplace(
                connectivity(Problem.from_module(module, Categorical()), scale),
                data,
                1.0,
                curvature,
            )
            for module, scale in zip(modules, scales, strict=True)
        )
        assert_close(predict(other, data).mean, predict(one, data).mean, rtol=1e-8, atol=1e-10)
        assert log_evidence(other) == pytest.approx(log_evidence(one), rel=1e-8)


def test_a_single_zero_moves():
    module = NETWORKS["mlp"].module()
    with torch.no_grad():
        module[0].weight[1, 2] = 0
    scale = scale_of(module, NETWORKS["mlp"].data())
    assert float(scale["0.weight"][1, 2]) > 0


def test_a_unit_without_inputs_is_balanced_by_its_outputs():
    module = NETWORKS["mlp"].module()
    with torch.no_grad():
        module[0].weight[1] = 0
        module[0].bias[1] = 0
    scale = scale_of(module, NETWORKS["mlp"].data())
    balanced = module.state_dict()["2.weight"] / scale["2.weight"]
    assert float(balanced[:, 1].square().mean()) == pytest.approx(1, rel=1e-9)


def test_a_network_without_rescalings_is_refused():
    tanh = NETWORKS["tanh"]
    with pytest.raises(ValueError, match="no rescaling of the network was found"):
        scale_of(tanh.module(), tanh.data())
