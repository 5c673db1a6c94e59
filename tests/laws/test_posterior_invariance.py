"""Connectivity posteriors do not see how a network is scaled; Euclidean ones do."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import Curvature, diagonal, ekfac, ggn, kfac
from afterfit.posterior import (
    ConjugateGradients,
    GaussianPosterior,
    by_evidence,
    by_group_evidence,
    laplace,
    log_evidence,
    predict,
    predict_by_members,
    randomize_then_optimize,
)
from afterfit.problem import (
    Batches,
    Categorical,
    Problem,
    connectivity,
    linearize,
    outputs,
    restrict,
)

SAME = {"rtol": 1e-10, "atol": 1e-12}
LARGEST = 1e3


def factors(num: int, generator: Generator) -> Tensor:
    """Draw factors of up to a thousand, and down to a thousandth."""
    draw = torch.rand(num, generator=generator, dtype=torch.float64)
    return (math.log(LARGEST) * (2 * draw - 1)).exp()


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@torch.no_grad()
def by_unit(module: Any, generator: Generator) -> None:
    """Every hidden unit of ReLU layers times a number, and what it feeds divided by it."""
    layers = [part for part in module if isinstance(part, nn.Linear)]
    for layer, following in pairwise(layers):
        a = factors(layer.out_features, generator)
        layer.weight.mul_(a[:, None])
        layer.bias.mul_(a)
        following.weight.div_(a)


def convolutional() -> nn.Module:
    norm = nn.BatchNorm2d(4, eps=0.0)
    nn.init.normal_(norm.running_mean)  # pyright: ignore[reportArgumentType]
    nn.init.uniform_(norm.running_var, 0.5, 2.0)  # pyright: ignore[reportArgumentType]
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(27, 3),
    )  # fmt: skip


@torch.no_grad()
def before_and_after_normalization(module: Any, generator: Generator) -> None:
    """Weights before BatchNorm with its statistics; then its affine part with what follows."""
    first, norm, _, second, _, _, head = module
    a, b, c = factors(4, generator), factors(4, generator), factors(3, generator)
    first.weight.mul_(a[:, None, None, None])
    first.bias.mul_(a)
    norm.running_mean.mul_(a)
    norm.running_var.mul_(a.square())
    norm.weight.mul_(b)
    norm.bias.mul_(b)
    second.weight.div_(b[:, None, None])
    second.weight.mul_(c[:, None, None, None])
    second.bias.mul_(c)
    head.weight.div_(c.repeat_interleave(9))


@final
class Transformer(nn.Module):
    """A block of attention with separate projections, between normalizations."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.norm, self.last = nn.LayerNorm(4), nn.LayerNorm(4)
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        scores = (self.query(seen) @ self.key(seen).mT / 2).softmax(-1)
        return self.head(self.last(x + self.out(scores @ self.value(seen))).mean(1))


@torch.no_grad()
def attention_and_affine(module: Any, generator: Generator) -> None:
    """Query against key, value against output, the affine part of LayerNorm against the head."""
    a, b, c = (factors(4, generator) for _ in range(3))
    for layer, factor in ((module.query, a), (module.key, 1 / a), (module.value, b)):
        layer.weight.mul_(factor[:, None])
        layer.bias.mul_(factor)
    module.out.weight.div_(b)
    module.last.weight.mul_(c)
    module.last.bias.mul_(c)
    module.head.weight.div_(c)


def odd_perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


@torch.no_grad()
def signs(module: Any, generator: Generator) -> None:
    """Every second odd unit turned around."""
    sign = torch.tensor([1.0, -1, 1, -1, 1, -1]).double()
    module[0].weight.mul_(sign[:, None])
    module[0].bias.mul_(sign)
    module[2].weight.mul_(sign)


@final
@dataclass(frozen=True)
class Network:
    """How a network is made, what it reads, and how it is rescaled."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rescale: Callable[[Any, Generator], None]


NETWORKS = {
    "perceptron": Network(perceptron, (4,), by_unit),
    "convolutional": Network(convolutional, (2, 4, 4), before_and_after_normalization),
    "transformer": Network(Transformer, (5, 4), attention_and_affine),
    "signs": Network(odd_perceptron, (4,), signs),
}
rescaled_networks = pytest.mark.parametrize("name", [n for n in NETWORKS if n != "signs"])
CURVATURES: Mapping[str, Curvature] = {
    "full": ggn,
    "diagonal": diagonal,
    "kfac": kfac,
    "ekfac": ekfac,
}


def pair(name: str, seed: int = 0) -> tuple[Problem, Problem, Batches]:
    """A network, the same function with other weights, and data."""
    network, generator = NETWORKS[name], Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = network.build().double()
    other = copy.deepcopy(module)
    network.rescale(other, generator)
    inputs = torch.randn(8, *network.shape, generator=generator, dtype=torch.float64)
    data = Batches((inputs, torch.arange(8) % 3), 3)
    before, after = (Problem.from_module(one, Categorical()) for one in (module, other))
    assert_close(outputs(after, data), outputs(before, data), **SAME)
    return before, after, data


def covariance(posterior: GaussianPosterior, data: Batches) -> Tensor:
    return torch.cat([part for _, _, part in posterior.covariances(data)])


def require_same_predictions(one: GaussianPosterior, other: GaussianPosterior, data: Batches):
    scale = covariance(one, data).diagonal(dim1=1, dim2=2).max()
    assert_close(covariance(other, data), covariance(one, data), rtol=1e-10, atol=1e-11 * scale)
    assert_close(predict(other, data).mean, predict(one, data).mean, **SAME)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_connectivity_posteriors_predict_the_same_for_a_rescaled_network(name: str, curvature: str):
    before, after, data = pair(name)
    one, other = (
        laplace(connectivity(problem), data, 1.0, CURVATURES[curvature])
        for problem in (before, after)
    )
    require_same_predictions(one, other, data)
    assert_close(log_evidence(other), log_evidence(one), **SAME)
    assert_close(other.effective_dimension(), one.effective_dimension(), **SAME)
    assert_close(by_evidence(other).factor, by_evidence(one).factor, rtol=1e-10, atol=0)


@pytest.mark.parametrize("curvature", CURVATURES)
@rescaled_networks
def test_euclidean_posteriors_do_not(name: str, curvature: str):
    before, after, data = pair(name)
    one, other = (laplace(p, data, 1.0, CURVATURES[curvature]) for p in (before, after))
    changed = (covariance(other, data) / covariance(one, data) - 1).abs()
    assert float(changed.median()) > 0.01
    assert abs(log_evidence(other) / log_evidence(one) - 1) > 0.01


@rescaled_networks
def test_the_last_layer_in_connectivity_ignores_rescalings(name: str):
    before, after, data = pair(name)
    heads = {"perceptron": "4.*", "convolutional": "6.*", "transformer": "head.*"}
    one, other = (
        laplace(restrict(connectivity(problem), heads[name]), data) for problem in (before, after)
    )
    require_same_predictions(one, other, data)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_draws_of_one_seed_are_the_same_functions(name: str, curvature: str):
    before, after, data = pair(name)
    found = []
    for problem in (before, after):
        coordinates = connectivity(problem)
        posterior = laplace(coordinates, data, 0.3, CURVATURES[curvature])
        members = list(posterior.sample(3, Generator().manual_seed(5)))
        for model in (coordinates, linearize(coordinates)):
            found.append(predict_by_members(model, data, members).logit_mean)
    assert_close(found[2], found[0], **SAME)
    assert_close(found[3], found[1], **SAME)


@rescaled_networks
def test_randomized_draws_of_one_seed_are_the_same_functions(name: str):
    before, after, data = pair(name)
    exact = ConjugateGradients(tolerance=1e-12)
    found = []
    for problem in (before, after):
        coordinates, generator = connectivity(problem), Generator().manual_seed(5)
        draws = randomize_then_optimize(coordinates, data, 2, generator, 0.3, exact)
        found.append(predict_by_members(linearize(coordinates), data, draws.members).logit_mean)
    assert_close(found[1], found[0], **SAME)


def test_scales_of_groups_ignore_rescalings():
    before, after, data = pair("perceptron")
    patterns = ["*.bias", "*"]
    one, other = (by_group_evidence(connectivity(p), data, patterns) for p in (before, after))
    assert_close(other.prior, one.prior, rtol=1e-10, atol=0)
    assert float((one.prior[0] / one.prior[24 + 1] - 1).abs()) > 0.01


def test_zeros_leave_the_posterior_finite_and_alone():
    module = perceptron().double()
    with torch.no_grad():
        module[0].weight[2, 1] = 0  # pyright: ignore[reportIndexIssue]
        module[2].bias.zero_()  # pyright: ignore[reportCallIssue, reportIndexIssue]
    _, _, data = pair("perceptron")
    problem = connectivity(Problem.from_module(module, Categorical()))
    for curvature in CURVATURES.values():
        posterior = laplace(problem, data, 0.7, curvature)
        assert bool(torch.isfinite(covariance(posterior, data)).all())
        assert math.isfinite(log_evidence(posterior))
        members = posterior.sample(2, Generator())
        assert bool(torch.isfinite(predict_by_members(problem, data, members).mean).all())
