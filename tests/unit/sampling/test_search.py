"""What the search for the rate does at each rate, in which order, and what it keeps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from afterfit.evaluate.separation import otsu
from afterfit.problem import (
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    Member,
    PerSample,
    Poisson,
    Problem,
    TrainingStream,
    losses,
)
from afterfit.sampling import GeometricEnsemble, RateSearch, Trial, find_learning_rate, temperature
from afterfit.sampling.temperature import GRID, first_rate, loss_cap
from afterfit.typing import Params
from tests import truth
from tests.cases import make_case
from tests.listening import heard_by

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
    with heard_by(told.append):
        found, made = find_learning_rate(case.problem, case.data, fit, SAMPLER, 3, cap=9.0)
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


# Members that know no more than a constant -----------------------------------------------------


UNBALANCED = torch.tensor([0] * 90 + [1] * 10)


def constant_problem() -> tuple[Problem, Batches]:
    """A network that is a bias: whatever it learns, it gives every sample the same outputs."""

    def forward(params: Params, inputs: Tensor) -> Tensor:
        return params["bias"].expand(len(inputs), -1)

    bias = Categorical().null_outputs(UNBALANCED)[0].clone()
    problem = Problem(forward, Categorical(), {"bias": bias}, {}, forward)
    return problem, Batches((torch.zeros(100, 1), UNBALANCED))


def test_a_constant_predictor_of_two_classes_separates_nothing_and_is_not_admissible():
    problem, data = constant_problem()
    assert otsu(losses(problem, data)).separability == pytest.approx(1.0)
    found, _ = find_learning_rate(problem, data, TrainingStream(data, 10), SAMPLER, 4)
    for trial in found.trials:
        assert trial.median < found.cap
        assert trial.separability == pytest.approx(0.0)
        assert not trial.admissible
    assert not found.found


def tabled(
    monkeypatch: pytest.MonkeyPatch,
    likelihood: Likelihood,
    targets: Tensor,
    outputs: Callable[[float], Tensor],
) -> Callable[..., RateSearch]:
    """Search over members whose outputs at each sample are a function of the rate."""

    def walk(sampler: GeometricEnsemble, problem: Problem, *_: object) -> Iterator[Member]:
        yield Member({"outputs": outputs(sampler.learning_rate)}, 0, 0)

    def forward(params: Params, inputs: Tensor) -> Tensor:
        return params["outputs"][inputs[:, 0]]

    monkeypatch.setattr(GeometricEnsemble, "walk", walk)
    problem = Problem(forward, likelihood, {"outputs": outputs(0.0)}, {}, forward)
    data = Batches((torch.arange(len(targets))[:, None], targets), 32)
    fit = TrainingStream(data, 10)
    return lambda **settings: find_learning_rate(problem, data, fit, SAMPLER, **settings)[0]


def two_columns(margin: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(margin), margin], 1)


def test_what_separates_within_the_classes_is_chosen_before_a_constant(monkeypatch):
    """Cold members part five wrong labels, with noise; hot ones are constant: they part classes."""
    true = torch.tensor([0] * 60 + [1] * 40)
    given = torch.tensor([0] * 65 + [1] * 35)
    noise = torch.rand(100, generator=Generator().manual_seed(0))
    knowing = two_columns((2.0 * true - 1) * (0.5 + 3 * noise))
    constant = Categorical().null_outputs(given)

    def outputs(rate: float) -> Tensor:
        if rate == 0.0:
            return two_columns(20.0 * (2 * given - 1))
        return knowing if rate < 1.0 else constant.clone()

    # the cap is high, as of a network that is far from memorizing its data
    found = tabled(monkeypatch, Categorical(), given, outputs)(cap=9.0)
    assert [trial.admissible for trial in found.trials] == [
        trial.learning_rate < 1.0 for trial in found.trials
    ]
    assert {trial.admissible for trial in found.trials} == {True, False}
    assert found.learning_rate < 1.0


def groups_by_hand(column: Tensor, group: list[int]) -> Tensor:
    centered = []
    for loss, own in zip(column.tolist(), group, strict=True):
        like = [x for x, g in zip(column.tolist(), group, strict=True) if g == own]
        center = like if len(like) >= 5 else column.tolist()
        centered.append(loss - sorted(center)[(len(center) - 1) // 2])
    return torch.tensor(centered, dtype=column.dtype)


def test_losses_are_centered_by_the_median_of_their_given_class():
    y = torch.tensor([0] * 11 + [1] * 8 + [2] * 4 + [4] * 5)
    column = torch.rand(len(y), generator=Generator().manual_seed(1), dtype=torch.float64) + y
    by_hand = groups_by_hand(column, y.tolist())
    found = temperature.separability(Categorical(), y, column)
    assert found == pytest.approx(otsu(by_hand).separability)
    two = (y > 0).long()
    for given in (two, two.double()[:, None]):
        found = temperature.separability(Bernoulli(), given, column)
        assert found == pytest.approx(otsu(groups_by_hand(column, two.tolist())).separability)


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson(), Bernoulli()])
def test_losses_of_numbers_are_centered_among_like_targets(likelihood: Likelihood):
    """A hundred targets without ties make ten groups of ten."""
    order = torch.randperm(100, generator=Generator().manual_seed(2))
    y = order.double() if isinstance(likelihood, Poisson) else order.double() / 99
    column = torch.rand(100, generator=Generator().manual_seed(3), dtype=torch.float64) + y.square()
    by_hand = groups_by_hand(column, [int(i) // 10 for i in order])
    found = temperature.separability(likelihood, y, column)
    assert found == pytest.approx(otsu(by_hand).separability)
    assert temperature.separability(likelihood, y[:, None], column) == found


def test_several_outputs_and_the_users_own_loss_are_taken_as_they_are():
    column = torch.rand(40, generator=Generator().manual_seed(4))
    several = (torch.arange(80).view(40, 2) % 2).float()
    own = PerSample(lambda outputs, y: outputs[:, 0])
    expected = otsu(column).separability
    for likelihood in (Bernoulli(), Gaussian(), Poisson()):
        assert temperature.separability(likelihood, several, column) == expected
    assert temperature.separability(own, several[:, 0], column) == expected


def test_rounding_is_no_separation():
    """Batches of another size may round a constant's losses otherwise."""
    column = torch.full((40,), 0.3)
    column[32:] = torch.nextafter(column[32:], torch.tensor(1.0))
    y = torch.arange(40) % 2
    assert otsu(column).separability == pytest.approx(1.0)
    assert temperature.separability(Categorical(), y, column) == 0.0


SPREAD = torch.linspace(-0.3, 0.3, 40, dtype=torch.float64)[:, None]
COUNTS = (torch.arange(40) % 7).double()[:, None]


@pytest.mark.parametrize(
    ("likelihood", "y", "exact"),
    [
        (Gaussian(), SPREAD, SPREAD),
        (Gaussian(0.01), SPREAD, SPREAD),
        (Gaussian(100.0), SPREAD, SPREAD),
        (Poisson(), COUNTS, COUNTS.clamp_min(1e-3).log()),
        (Bernoulli(), (SPREAD > 0.1).double(), 20 * (SPREAD - 0.1).sign()),
        (Categorical(), UNBALANCED, two_columns(20.0 * (2 * UNBALANCED - 1))),
    ],
)  # fmt: skip
def test_a_member_half_way_to_the_truth_knows_more_than_a_constant(
    monkeypatch, likelihood: Likelihood, y: Tensor, exact: Tensor
):
    """Also where the loss has a constant of its own, which no member can take away."""
    nothing = likelihood.null_outputs(y).expand(len(exact), -1)
    for share, admissible in ((0.0, False), (0.001, False), (0.5, True), (1.0, True)):
        member = exact if share == 1 else (nothing + share * (exact - nothing)).to(exact)

        def outputs(rate: float, member: Tensor = member) -> Tensor:
            return member.clone()

        found = tabled(monkeypatch, likelihood, y, outputs)(max_trials=1, cap=1e9)
        assert found.found is admissible, share


def test_the_users_own_loss_has_no_constant_to_be_compared_with(monkeypatch):
    own = PerSample(lambda outputs, y: (outputs[:, 0] - y).square())
    y = torch.arange(10.0)
    found = tabled(monkeypatch, own, y, lambda _: torch.zeros(10, 1))(max_trials=1, cap=99.0)
    assert found.found


def test_it_is_told_why_a_rate_is_not_admissible(monkeypatch):
    told: list[str] = []
    constant = Categorical().null_outputs(UNBALANCED)
    search = tabled(monkeypatch, Categorical(), UNBALANCED, lambda _: constant.clone())
    with heard_by(told.append):
        search(max_trials=1)
    with heard_by(told.append):
        search(max_trials=1, cap=0.01)
    assert "knows hardly more than a constant" in told[0]
    assert "median loss above the cap" in told[1]
