"""What the search for the rate does at each rate, in which order, and what it keeps."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from afterfit.evaluate.separation import otsu
from afterfit.problem import Batches, Gaussian, Problem, TrainingStream, losses
from afterfit.sampling import GeometricEnsemble, RateSearch, Trial, find_learning_rate, temperature
from afterfit.sampling.temperature import GRID, first_rate, loss_cap
from tests import truth
from tests.cases import make_case

SAMPLER = GeometricEnsemble(members=4, steps=3, chains=2)
Curve = Callable[[float], float]


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[float], RateSearch]]:
    """Search on given curves; the rates in the order in which they were tried, and the result."""

    def run(separability: Curve, hottest: float, **settings: int) -> tuple[list[float], RateSearch]:
        tried: list[float] = []

        def trial(*arguments: object) -> Trial:
            rate = arguments[3].learning_rate
            tried.append(rate)
            return Trial(rate, separability(rate), rate, admissible=rate <= hottest)

        monkeypatch.setattr(temperature, "_try", trial)
        case = make_case("linear", "categorical")
        fit = TrainingStream(case.data)
        return tried, find_learning_rate(case.problem, case.data, fit, SAMPLER, **settings)[0]

    return run


def test_it_goes_hotter_while_that_separates_better_and_stops_at_a_second_fall(order):
    tried, found = order(lambda rate: 0.9 - abs(math.log2(rate / 1.6)) / 10, hottest=100)
    assert tried == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4])
    assert found.learning_rate == pytest.approx(1.6)


def test_it_goes_up_to_the_cap_and_then_colder_where_the_coldest_is_best(order):
    tried, found = order(lambda rate: 0.65 - rate / 10, hottest=1)
    assert tried[:3] == pytest.approx([0.4, 0.8, 1.6])
    assert tried[3:] == pytest.approx([0.2, 0.1, 0.05])
    assert found.learning_rate == pytest.approx(0.05)
    assert [trial.learning_rate for trial in found.trials] == sorted(tried)


def test_a_second_fall_ends_the_way_up_only_where_something_separates(order):
    apart, _ = order(lambda rate: 0.9 if rate < 0.5 else 0.8, hottest=100)
    assert apart == pytest.approx([0.4, 0.8, 1.6, 0.2])
    together, _ = order(lambda rate: 0.6 - rate / 100, hottest=100, max_trials=9)
    assert together[:5] == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4])


@pytest.mark.parametrize("max_trials", [1, 2, 5])
def test_it_never_tries_more_than_it_may(order, max_trials: int):
    for curve, hottest in ((lambda rate: rate / 100, 100), (lambda rate: 1 / (1 + rate), 0.01)):
        tried, found = order(curve, hottest=hottest, max_trials=max_trials)
        assert len(tried) == len(found.trials) == max_trials


def test_it_stays_on_the_grid(order):
    for curve, hottest in ((lambda rate: rate / 100, 100), (lambda rate: 1 / (1 + rate), 100)):
        tried, _ = order(curve, hottest=hottest, max_trials=50)
        assert len(set(tried)) == len(tried) <= len(GRID)
        assert set(tried) <= set(GRID)


def test_the_coldest_is_taken_where_none_is_admissible(order):
    tried, found = order(lambda rate: rate, hottest=0)
    assert not found.found
    assert tried == pytest.approx([0.4, 0.2, 0.1, 0.05, 0.025, 0.0125])
    assert found.learning_rate == min(tried)


def test_a_strong_decay_begins_colder():
    assert first_rate(replace(SAMPLER, weight_decay=5e-4)) == 0.4
    assert first_rate(replace(SAMPLER, weight_decay=0.1)) == 0.1
    assert {0.4, 0.1} < set(GRID)


def test_a_trial_is_one_member_and_its_losses():
    case = make_case("batch-norm", "categorical")
    fit, told = TrainingStream(case.data, 3), []
    found, made = find_learning_rate(
        case.problem, case.data, fit, SAMPLER, 3, cap=9.0, say=told.append
    )
    assert len(told) == len(found.trials) == len(made) == 3
    for trial in found.trials:
        moved = replace(case.problem, params={**made[trial.learning_rate].params})
        column = truth.losses(moved, case.data)
        assert trial.median == pytest.approx(float(column.median()))
        assert trial.separability == pytest.approx(otsu(column).separability)
        assert trial.admissible is (trial.median < 9)


def test_the_member_of_the_chosen_rate_is_the_first_of_the_ensemble():
    case = make_case("batch-norm", "categorical")
    fit = TrainingStream(case.data, 3)
    found, made = find_learning_rate(case.problem, case.data, fit, SAMPLER, 3, cap=9.0)
    chosen = replace(SAMPLER, learning_rate=found.learning_rate, way="alone")
    first, kept = next(chosen.walk(case.problem, fit)), made[found.learning_rate]
    assert (kept.chain, kept.stage) == (0, 0)
    assert all(torch.equal(value, kept.params[name]) for name, value in first.params.items())


def test_a_rate_that_diverges_is_not_admissible_and_leaves_no_member():
    x = torch.full((8, 2), 1e100, dtype=torch.float64)
    data = Batches((x, torch.zeros(8, 1, dtype=torch.float64)))
    net = nn.Linear(2, 1).double()
    nn.init.zeros_(net.weight)
    problem = Problem.from_module(net, Gaussian())
    wild = replace(SAMPLER, clip=None, steps=8)
    found, made = find_learning_rate(problem, data, TrainingStream(data), wild, 2, cap=9.0)
    assert not made
    assert [trial.admissible for trial in found.trials] == [False, False]
    assert not found.found


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "multi-label", "gaussian"])
def test_the_cap_is_half_way_to_the_best_constant(likelihood: str):
    """The best constant is searched for by gradient descent."""
    case = make_case("mlp", likelihood)
    targets = case.data.targets()
    fitted = truth.losses(case.problem, case.data)
    constant = torch.zeros(1, case.problem.params["3.bias"].numel(), dtype=torch.float64)
    optimizer = torch.optim.LBFGS([constant.requires_grad_()], max_iter=200)

    def nothing() -> torch.Tensor:
        rows = constant.expand(len(targets), -1)
        return truth.negative_log_likelihood(case.problem.likelihood, rows, targets).mean()

    def closure() -> float:
        optimizer.zero_grad()
        value = nothing()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    expected = (float(fitted.median()) + float(nothing().detach())) / 2
    assert loss_cap(case.problem, case.data) == pytest.approx(expected, rel=1e-5)


def test_the_cap_of_a_memorized_set_is_half_the_entropy_of_its_labels():
    y = torch.tensor([0, 0, 0, 1])
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(60 * torch.eye(2))
    problem = Problem.from_module(net, make_case("linear", "categorical").problem.likelihood)
    data = Batches((nn.functional.one_hot(y).float(), y))
    assert float(losses(problem, data).max()) < 1e-9
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert loss_cap(problem, data) == pytest.approx(entropy / 2, rel=1e-5)


def test_the_users_own_loss_has_no_cap():
    case = make_case("linear", "per-sample")
    with pytest.raises(TypeError, match="PerSample knows a loss and nothing else"):
        loss_cap(case.problem, case.data)
