"""Connectivity Laplace equals laplace-torch on the module whose parameters are the connectivity."""

import warnings
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from afterfit.curvature import diagonal, ggn, kfac
from afterfit.posterior import LaplaceBridge, Probit, laplace, predict
from afterfit.posterior.link import Link
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity

pytestmark = [
    pytest.mark.against,
    pytest.mark.filterwarnings("ignore"),  # theirs
]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    library = pytest.importorskip("laplace", reason="make oracles")
    from laplace.curvature import AsdlGGN, BackPackGGN, GGNInterface

ALPHA, SIGMA = 0.7, 0.4
SAME = {"rtol": 1e-9, "atol": 1e-12}


class Relative(nn.Linear):
    """A layer whose parameters c start at 1 and multiply its trained weights."""

    def __init__(self, trained: nn.Linear) -> None:
        nn.Linear.__init__(self, trained.in_features, trained.out_features)
        self.double()
        self.register_buffer("trained_weight", trained.weight.detach().clone())
        self.register_buffer("trained_bias", trained.bias.detach().clone())
        with torch.no_grad():
            self.weight.fill_(1)
            self.bias.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.trained_weight * self.weight
        return nn.functional.linear(x, weight, self.trained_bias * self.bias)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def substituted(module: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(
        *(Relative(part) if isinstance(part, nn.Linear) else nn.Tanh() for part in module)
    )


def data(generator: Generator, likelihood: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    if likelihood == "regression":
        return x, torch.randn(12, 3, generator=generator, dtype=torch.float64)
    return x, torch.arange(12) % 3


def theirs(module: nn.Module, x: Tensor, y: Tensor, **settings: Any) -> Any:
    kind = "classification" if y.ndim == 1 else "regression"
    if kind == "regression":
        settings["sigma_noise"] = SIGMA
    fitted = library.Laplace(
        module, kind, subset_of_weights="all", prior_precision=1 / ALPHA**2, **settings
    )
    fitted.fit(DataLoader(TensorDataset(x, y), batch_size=5))
    return fitted


def problem_of(module: nn.Module, likelihood: str) -> Problem:
    return Problem.from_module(
        module, Gaussian(SIGMA) if likelihood == "regression" else Categorical()
    )


def covariance(posterior: Any, batches: Batches) -> Tensor:
    return torch.cat([part for _, _, part in posterior.covariances(batches)])


STRUCTURES = {"full": ggn, "diag": diagonal}


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_connectivity_laplace_equals_theirs_on_the_substituted_module(
    structure: str, likelihood: str, generator: Generator
):
    module, (x, y) = network(), data(generator, likelihood)
    oracle = theirs(
        substituted(module), x, y,
        hessian_structure=structure, backend=GGNInterface, prior_mean=1.0,
    )  # fmt: skip
    problem = connectivity(problem_of(module, likelihood))
    posterior = laplace(problem, Batches((x, y), 5), ALPHA, STRUCTURES[structure])
    query = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    _, expected = oracle._glm_predictive_distribution(query)
    assert_close(covariance(posterior, Batches((query, y[:6]))), expected.detach(), **SAME)
    ratio = float(oracle.log_det_ratio)
    assert_close(posterior.log_det_ratio(), ratio, **SAME)


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
@pytest.mark.parametrize(("structure", "backend"), [("full", AsdlGGN), ("diag", BackPackGGN)])
def test_laplace_in_the_parameters_equals_theirs(
    structure: str, backend: Any, likelihood: str, generator: Generator
):
    module, (x, y) = network(), data(generator, likelihood)
    oracle = theirs(network(), x, y, hessian_structure=structure, backend=backend)
    posterior = laplace(
        problem_of(module, likelihood), Batches((x, y), 5), ALPHA, STRUCTURES[structure]
    )
    query = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    _, expected = oracle._glm_predictive_distribution(query)
    assert_close(covariance(posterior, Batches((query, y[:6]))), expected.detach(), **SAME)


def test_kronecker_laplace_equals_theirs(generator: Generator):
    """In the parameters: theirs has no other, with biases as blocks of their own."""
    module, (x, y) = network(), data(generator, "classification")
    for part in module:
        if isinstance(part, nn.Linear):
            part.bias = None  # they treat biases apart, we join them to the weight
    other = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    other.double().load_state_dict(module.state_dict())
    oracle = theirs(other, x, y, hessian_structure="kron", backend=AsdlGGN)
    posterior = laplace(problem_of(module, "classification"), Batches((x, y), 5), ALPHA, kfac)
    query = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    _, expected = oracle._glm_predictive_distribution(query)
    assert_close(covariance(posterior, Batches((query, y[:6]))), expected.detach(), **SAME)


@pytest.mark.parametrize(("link", "name"), [(Probit(), "probit"), (LaplaceBridge(), "bridge")])
def test_links_equal_theirs(link: Link, name: str, generator: Generator):
    module, (x, y) = network(), data(generator, "classification")
    oracle = theirs(network(), x, y, hessian_structure="full", backend=AsdlGGN)
    posterior = laplace(problem_of(module, "classification"), Batches((x, y), 5), ALPHA)
    query = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    expected = oracle(query, pred_type="glm", link_approx=name)
    found = predict(posterior, Batches((query, y[:6])), link)
    assert_close(found.mean, expected.detach(), **SAME)
