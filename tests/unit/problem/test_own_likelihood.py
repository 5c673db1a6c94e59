"""A likelihood of the user's own: one class, and every verb that makes sense for it works."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import pytest
import torch
from torch import Generator, Tensor, distributions, nn
from torch.testing import assert_close

import afterfit as af
from afterfit.curvature import diagonal, fisher, ggn, kfac
from afterfit.influence import GradientDot, InfluenceFunction, TrainingTrace
from afterfit.influence.simple import loss_scores, margin_scores
from afterfit.influence.unlearning import Unlearning
from afterfit.posterior import Moments, MonteCarlo, Probit, laplace, predict
from afterfit.posterior.link import default_link
from afterfit.problem import Batches, Likelihood, Problem, losses
from afterfit.problem.likelihood import NAMED
from afterfit.sampling.rate_search import loss_cap, separability
from afterfit.workflows.calibrate import calibrate
from afterfit.workflows.label_scores import found_by
from afterfit.workflows.predictors import LinearizedLaplace, as_it_is, trained_network


@final
@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Overdispersed counts of mean μ = exp(f) and variance μ + μ²/size."""

    size: float = 3.0

    reported = ("rmse",)

    def _odds(self, outputs: Tensor) -> Tensor:
        return outputs - math.log(self.size)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        count = y.to(outputs.dtype).reshape(outputs.shape)
        law = distributions.NegativeBinomial(
            outputs.new_tensor(self.size), logits=self._odds(outputs), validate_args=False
        )
        return -law.log_prob(count).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.exp()

    def hessian(self, outputs: Tensor, v: Tensor) -> Tensor:
        """Expected over the targets: μ size / (size + μ)."""
        return self.size * self._odds(outputs).sigmoid() * v

    def root(self, outputs: Tensor) -> Tensor:
        return torch.diag_embed((self.size * self._odds(outputs).sigmoid()).sqrt())

    def sample(self, outputs: Tensor, generator: Generator) -> Tensor:
        shape = torch.full_like(outputs, self.size)
        rate = torch._standard_gamma(shape, generator=generator) * (outputs.exp() / self.size)
        return torch.poisson(rate, generator=generator)

    def null_outputs(self, y: Tensor) -> Tensor:
        return y.double().reshape(len(y), -1).mean(0).log().expand(len(y), -1)

    def variance(self, mean: Tensor) -> Tensor:
        return mean + mean.square() / self.size

    def predictive_losses(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        return self.loss(mean.log(), y)

    def doubts(self, mean: Tensor, y: Tensor) -> Tensor:
        residual = y.to(mean).reshape(mean.shape) - mean
        return (0.5 * residual.square() / self.variance(mean)).sum(-1, keepdim=True)

    def mistaken(self, outputs: Tensor, y: Tensor, generator: Generator) -> Tensor:
        return y[torch.randperm(len(y), generator=generator)]


@final
@dataclass(frozen=True)
class Absolute(Likelihood):
    """Nothing but a loss."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y.reshape(outputs.shape)).abs().sum(-1)


OWN = NegativeBinomial()


def counts(likelihood: Likelihood = OWN, num: int = 60) -> tuple[Problem, Batches]:
    generator = Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    module = nn.Linear(2, 1).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.5, -0.3]]))
        module.bias.fill_(1.0)
    y = OWN.sample(module(x).detach(), generator)
    return Problem.from_module(module, likelihood), Batches((x, y), batch_size=20)


def scored(method: Any) -> Callable[[Problem, Batches], Tensor]:
    return lambda problem, data: method.fit(problem, data).self_scores()


WORKING: dict[str, Callable[[Problem, Batches], Tensor]] = {
    "losses": losses,
    "loss scores": loss_scores,
    "gradients": scored(GradientDot()),
    "ggn": lambda problem, data: ggn(problem, data).to_dense(),
    "kfac": lambda problem, data: kfac(problem, data).to_dense(),
    "diagonal": lambda problem, data: diagonal(problem, data).to_dense(),
    "fisher": lambda problem, data: fisher(2, Generator().manual_seed(1))(problem, data).to_dense(),
    "influence": scored(InfluenceFunction(damping=0.1)),
    "geometric ensemble": scored(af.GEX(members=2, steps=4, learning_rate=0.01)),
    "cap of the search": lambda problem, data: torch.tensor([loss_cap(problem, data)]),
    "prediction": lambda problem, data: predict(laplace(problem, data, 1.0), data).losses(
        data.targets()
    ),
}


@pytest.mark.parametrize("verb", WORKING)
def test_a_likelihood_of_ones_own_works_where_it_makes_sense(verb: str):
    found = WORKING[verb](*counts())
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) > 0


def test_its_hessian_is_the_expected_one():
    """By the sum over counts, from the second derivative of the loss."""
    at = torch.tensor([[0.7]], dtype=torch.float64)
    total = torch.zeros(())
    for count in range(200):
        y = torch.tensor([[float(count)]])
        second = torch.autograd.functional.hessian(lambda f, y=y: OWN.loss(f, y).sum(), at)
        total = total + (-OWN.loss(at, y)).exp() * second.reshape(1)
    assert_close(OWN.hessian(at, torch.ones_like(at))[0], total)


def test_it_is_predicted_by_draws_and_reported_as_it_says():
    problem, data = counts()
    assert isinstance(default_link(OWN), MonteCarlo)
    ways = {"MAP": trained_network, "LL": LinearizedLaplace(as_it_is, scales=(0.1, 1.0))}
    table = calibrate(problem, data, data, candidates=ways).table
    assert {"nll", "rmse"} < set(table.columns)
    assert not {"crps", "ece"} & set(table.columns)


def test_labels_are_judged_by_it():
    problem, data = counts()
    evidence = Unlearning(rates=(0.001, 0.002, 0.003, 0.004), epochs=0.5).fit(problem, data)
    assert evidence.scores.value.shape == (60,)
    assert not OWN.names_classes
    found = found_by(loss_scores, problem, data, None, None)
    assert found.mean is not None
    assert_close(OWN.suggested(found.mean, data.targets(), torch.ones(60).bool())[0], found.mean)
    assert 0 <= separability(OWN, data.targets(), losses(problem, data)) <= 1


def test_training_is_traced_with_it(tmp_path):
    trace, y = TrainingTrace(3, OWN), torch.tensor([[1.0], [0.0], [4.0]])
    trace.record(torch.arange(3), torch.zeros(3, 1), y)
    assert_close(trace.mean_loss(), OWN.loss(torch.zeros(3, 1), y).double())
    trace.save(tmp_path / "trace.safetensors")
    with pytest.raises(ValueError, match="NegativeBinomial, which no file can hold; pass it"):
        TrainingTrace.load(tmp_path / "trace.safetensors")
    assert TrainingTrace.load(tmp_path / "trace.safetensors", OWN).likelihood == OWN


REFUSED: dict[str, tuple[Likelihood, Callable[[Problem, Batches], Any], str]] = {
    "labels": (OWN, margin_scores, r"NegativeBinomial has none.*define outcomes\(outputs, y\)"),
    "moments": (
        OWN,
        lambda problem, data: predict(laplace(problem, data, 1.0), data, Moments()),
        r"NegativeBinomial, expected Gaussian or Poisson.*moments\(mean, variance\)",
    ),
    "probit": (
        OWN,
        lambda problem, data: predict(laplace(problem, data, 1.0), data, Probit()),
        r"NegativeBinomial, expected Categorical or Bernoulli; use MonteCarlo\(\)",
    ),
    "curvature": (
        Absolute(),
        lambda problem, data: ggn(problem, data).to_dense(),
        r"Absolute knows a loss and nothing else, so not .*define (root|hessian)\(outputs",
    ),
    "drawn targets": (
        Absolute(),
        lambda problem, data: fisher(1, Generator())(problem, data).to_dense(),
        r"Absolute knows a loss and nothing else.*define sample\(outputs, generator\)",
    ),
    "learning rate": (Absolute(), loss_cap, r"Absolute knows.*define null_outputs\(y\)"),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_what_it_does_not_define_is_one_clear_error(verb: str):
    likelihood, ask, message = REFUSED[verb]
    with pytest.raises(TypeError, match=message):
        ask(*counts(likelihood))


def test_a_loss_alone_still_ranks_and_suggests_nothing():
    problem, data = counts(Absolute())
    found = found_by(loss_scores, problem, data, None, None)
    assert found.mean is None
    assert_close(found.scores.value, losses(problem, data))


@pytest.mark.parametrize("name", NAMED)
def test_ours_define_all_that_a_model_can_say(name: str):
    likelihood = NAMED[name]()
    for method in ("mean", "hessian", "root", "sample", "null_outputs", "variance", "doubts"):
        assert likelihood.says(method)
