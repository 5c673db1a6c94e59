"""One stage of a walk against the loop that a user would write on the module itself."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from afterfit.problem import Batches, Gaussian, PerSample, Problem, TrainingStream, losses
from afterfit.sampling import Diverged, GeometricEnsemble, constant, cosine, sgd, warm_cosine
from afterfit.sampling.walk import (
    StageTraining,
    Start,
    Step,
    Stop,
    train_alone,
)
from tests import truth
from tests.cases import LIKELIHOODS, NETWORKS, make_data, make_module

EXACT = {"rtol": 1e-12, "atol": 1e-12}
STEPS = 5
RULE = StageTraining(STEPS, 0.3, warm_cosine, sgd(), clip=None)
every_network = pytest.mark.parametrize("network", list(NETWORKS))


def parts(network: str, likelihood: str = "categorical") -> tuple[nn.Module, Problem, Batches]:
    module = make_module(network, likelihood)
    problem = Problem.from_module(module, LIKELIHOODS[likelihood].likelihood)
    return module, problem, make_data(network, likelihood)


def trained(problem: Problem) -> dict[str, Tensor]:
    return {**problem.params, **problem.buffers}


def call(module: nn.Module, inputs: Any) -> Tensor:
    return module(**inputs)["logits"] if isinstance(inputs, dict) else module(inputs)


def clip_by_hand(net: nn.Module, limit: float) -> None:
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)


def by_hand(
    module: nn.Module, problem: Problem, fit: TrainingStream, seed: int, rule: StageTraining
) -> tuple[dict[str, Tensor], Tensor]:
    """Train a copy of the module; return its state, and the mean loss seen of each sample."""
    net = copy.deepcopy(module).train()
    optimizer = rule.step(list(net.parameters()), rule.learning_rate)
    seen: dict[int, list[float]] = {}
    stream = fit.batches(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for t in range(rule.steps):
            index, inputs, targets = next(stream)
            found = truth.negative_log_likelihood(problem.likelihood, call(net, inputs), targets)
            for i, loss in zip(index.tolist(), found.tolist(), strict=True):
                seen.setdefault(i, []).append(loss)
            optimizer.zero_grad()
            found.mean().backward()
            if rule.clip is not None:
                clip_by_hand(net, rule.clip)
            for group in optimizer.param_groups:
                group["lr"] = rule.learning_rate * rule.schedule(t, rule.steps)
            optimizer.step()
    nan = float("nan")
    means = [sum(seen[i]) / len(seen[i]) if i in seen else nan for i in range(fit.num_samples)]
    state = {name: value.detach() for name, value in net.state_dict().items()}
    return state, torch.tensor(means, dtype=torch.float64)


def require_stop(stop: Stop, state: dict[str, Tensor], seen: Tensor) -> None:
    for name, value in stop.params.items():  # of tied weights the state has both names
        assert_close(value, state[name], **EXACT)
        assert not value.requires_grad
    assert_close(stop.seen, seen, equal_nan=True, **EXACT)


@every_network
@pytest.mark.parametrize("clip", [None, 0.2])
def test_a_stage_is_the_loop_that_a_user_would_write(network: str, clip: float | None):
    module, problem, data = parts(network)
    fit, rule = TrainingStream(data, 3), replace(RULE, clip=clip)

    (stop,) = train_alone(problem, [Start(trained(problem), 11)], fit, rule)

    require_stop(stop, *by_hand(module, problem, fit, 11, rule))
    assert stop.params.keys() == trained(problem).keys()


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_a_stage_is_the_users_loop_for_every_likelihood(likelihood: str):
    module, problem, data = parts("batch-norm", likelihood)
    fit = TrainingStream(data, 4)

    (stop,) = train_alone(problem, [Start(trained(problem), 3)], fit, RULE)

    require_stop(stop, *by_hand(module, problem, fit, 3, RULE))


def with_adam(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(leaves, lr=learning_rate, weight_decay=0.01)


def test_the_users_optimizer_takes_the_steps():
    module, problem, data = parts("batch-norm")
    fit, rule = TrainingStream(data, 3), replace(RULE, step=with_adam, learning_rate=0.01)

    (stop,) = train_alone(problem, [Start(trained(problem), 5)], fit, rule)

    require_stop(stop, *by_hand(module, problem, fit, 5, rule))


def test_the_users_optimizer_keeps_the_rates_that_it_gives_to_its_groups():
    _, problem, data = parts("linear")

    def two_rates(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
        weight, bias = leaves
        groups = [{"params": [weight]}, {"params": [bias], "lr": 0.0}]
        return torch.optim.SGD(groups, lr=0.1 * learning_rate)

    def moved(step: Step, learning_rate: float) -> dict[str, Tensor]:
        rule = StageTraining(1, learning_rate, constant, step, clip=None)
        start = Start(trained(problem), 0)
        (stop,) = train_alone(problem, [start], TrainingStream(data, 7), rule)
        return {name: value - problem.params[name] for name, value in stop.params.items()}

    found, plain = moved(two_rates, 2.0), moved(sgd(momentum=0.0, weight_decay=0.0), 0.2)
    assert_close(found["weight"], plain["weight"], **EXACT)
    assert not bool(found["bias"].any())


def test_a_stage_does_not_touch_where_it_starts():
    _, problem, data = parts("batch-norm")
    before = {name: value.clone() for name, value in trained(problem).items()}
    starts = [Start(trained(problem), seed) for seed in (0, 1)]
    train_alone(problem, starts, TrainingStream(data, 3), RULE)
    for name, value in trained(problem).items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def displacement(problem: Problem, stop: Stop) -> float:
    moves = [stop.params[name] - value for name, value in problem.params.items()]
    return float(truth.flat(moves).norm())


def test_clipping_bounds_the_gradient_of_each_chain_by_itself():
    """One plain step at rate 1 moves by the gradient; samples differ a thousandfold in theirs."""
    x = torch.tensor([[1e3, 1e3, 1e3], [1.0, 0, 0]], dtype=torch.float64)
    data = Batches((x, 5 * torch.ones(2, 1, dtype=torch.float64)))
    problem = Problem.from_module(nn.Linear(3, 1).double(), Gaussian())
    fit = TrainingStream(data, batch_size=1)
    starts = [Start(trained(problem), seed) for seed in range(8)]
    plain = sgd(momentum=0.0, weight_decay=0.0)

    def norms(clip: float | None) -> list[float]:
        rule = StageTraining(1, 1.0, constant, plain, clip)
        return [displacement(problem, stop) for stop in train_alone(problem, starts, fit, rule)]

    free, clipped = norms(None), norms(100.0)
    assert min(free) < 100 < max(free)
    assert clipped == pytest.approx([min(norm, 100.0) for norm in free])


def test_the_momentum_begins_anew_in_each_stage():
    module, problem, data = parts("linear")
    fit = TrainingStream(data, 3)
    sampler = GeometricEnsemble(
        members=2, steps=STEPS, learning_rate=0.3, clip=None, schedule=cosine
    )
    first, second = sampler.walk(problem, fit)
    rule = sampler.stage_training(fit)

    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(first.params[name])
    state, seen = by_hand(module, problem, fit, sampler._seed_of(0, 1), rule)

    require_stop(Stop(second.params, second.seen), state, seen)


@pytest.mark.parametrize("restart", ["continue", "trained"])
def test_a_stage_starts_where_the_settings_say(restart: Any):
    _, problem, data = parts("batch-norm")
    fit = TrainingStream(data, 3)
    sampler = GeometricEnsemble(members=3, steps=3, restart=restart, learning_rate=0.3)
    members = list(sampler.walk(problem, fit))
    origins = {"continue": members[1].params, "trained": trained(problem)}

    start = Start(origins[restart], sampler._seed_of(0, 2))
    (expected,) = train_alone(problem, [start], fit, sampler.stage_training(fit))

    for name, value in expected.params.items():
        assert torch.equal(members[2].params[name], value)
    assert torch.equal(members[2].seen.nan_to_num(-1), expected.seen.nan_to_num(-1))


@pytest.mark.parametrize(("network", "agrees"), [("linear", True), ("mlp", False)])
def test_dropout_is_on_while_members_train(network: str, agrees: bool):
    _, problem, data = parts(network)
    still = StageTraining(7, 1e-300, constant, sgd(weight_decay=0.0), clip=None)
    (stop,) = train_alone(problem, [Start(trained(problem), 0)], TrainingStream(data, 1), still)
    assert torch.allclose(stop.seen, losses(problem, data)) is agrees


class Shifting(Dataset):
    """Inputs drawn anew each time they are read; the target is the position."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return torch.rand(2, dtype=torch.float64) + i, torch.tensor(float(i), dtype=torch.float64)


def test_losses_are_credited_to_the_samples_of_a_shuffling_transforming_loader():
    def position(outputs: Tensor, y: Tensor) -> Tensor:
        return y + 0 * outputs[:, 0]

    problem = Problem.from_module(nn.Linear(2, 1).double(), PerSample(position))
    fit = TrainingStream(DataLoader(Shifting(), batch_size=4, shuffle=True))
    for stop in train_alone(problem, [Start(trained(problem), s) for s in (0, 1)], fit, RULE):
        assert torch.equal(stop.seen, torch.arange(10.0, dtype=torch.float64))


def test_divergence_names_the_rate_and_the_knob():
    _, problem, data = parts("linear", "gaussian")
    wild = StageTraining(40, 1e200, constant, sgd(), clip=None)
    starts = [Start(trained(problem), seed) for seed in (0, 1)]
    said = re.escape("at learning rate 1e+200; lower learning_rate")
    with pytest.raises(Diverged, match=said):
        train_alone(problem, starts, TrainingStream(data, 3), wild)


class Scaled(nn.Module):
    """A linear network whose scale is a parameter without axes, beside one without entries."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x) + self.empty.sum()


@pytest.mark.parametrize("clip", [None, 0.2])
def test_parameters_without_axes_are_clipped_with_the_others(clip: float | None):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        module = Scaled().double()
    problem = Problem.from_module(module, Gaussian())
    fit, rule = TrainingStream(make_data("mlp", "gaussian"), 3), replace(RULE, clip=clip)

    stops = train_alone(problem, [Start(trained(problem), seed) for seed in (1, 2)], fit, rule)

    for stop, seed in zip(stops, (1, 2), strict=True):
        state, seen = by_hand(module, problem, fit, seed, rule)
        for name, value in stop.params.items():
            assert_close(value, state[name], rtol=1e-10, atol=1e-10)
        assert_close(stop.seen, seen, equal_nan=True, rtol=1e-10, atol=1e-10)


def test_schedules_begin_and_end_where_they_should():
    for steps in (1, 2, 3, 4, 7, 100):
        warm = [warm_cosine(t, steps) for t in range(steps)]
        falling = [cosine(t, steps) for t in range(steps)]
        assert max(warm) == 1 == falling[0]
        assert all(0 < share <= 1 for share in (*warm, *falling))
        assert falling == sorted(falling, reverse=True)
        rise = max(1, steps // 4)
        assert warm[:rise] == sorted(warm[:rise])
        assert warm[rise:] == sorted(warm[rise:], reverse=True)
        assert {constant(t, steps) for t in range(steps)} == {1.0}
