"""Costs that are told beforehand, and budgets that are kept."""

from dataclasses import replace

import pytest
from torch.utils.data import DataLoader

from afterfit.problem import Batches, TrainingStream
from afterfit.sampling import GeometricEnsemble, forecast
from afterfit.sampling.forecast import epochs_of, within_budget
from tests.cases import make_case

SAMPLER = GeometricEnsemble(members=8, steps=40)


def stream(batch_size: int = 3) -> TrainingStream:
    return TrainingStream(make_case("mlp", "categorical").data, batch_size)


def test_epochs_are_those_of_training_and_a_third_for_the_losses():
    for members, trials, made in ((8, 0, 8), (8, 1, 8), (8, 6, 13)):
        sampler = replace(SAMPLER, members=members)
        assert epochs_of(sampler, stream(), trials) == pytest.approx(made * (40 * 3 / 7 + 1 / 3))


def test_two_epochs_a_member_is_what_none_means():
    assert replace(SAMPLER, steps=None).stage_training(stream(3)).steps == 4
    assert replace(SAMPLER, steps=None).stage_training(stream(7)).steps == 2
    assert replace(SAMPLER, steps=None).stage_training(stream(500)).steps == 2


def test_a_forecast_is_positive_and_roughly_linear_in_the_members():
    case = make_case("mlp", "categorical")
    costs = [
        forecast(case.problem, case.data, stream(), replace(SAMPLER, members=m), 0, folder=True)
        for m in (4, 400)
    ]
    small, large = costs
    assert small.seconds > 0
    assert 10 < large.seconds / small.seconds < 1000
    assert large.epochs == pytest.approx(100 * small.epochs)
    assert large.disk == 100 * small.disk > 0
    assert large.memory == small.memory > 0  # members and their losses lie on disk


def test_memory_holds_the_members_only_where_there_is_no_folder():
    case = make_case("mlp", "categorical")
    there, here = (
        forecast(case.problem, case.data, stream(), SAMPLER, 3, folder=folder)
        for folder in (True, False)
    )
    state, column = 8 * case.problem.num_params, 12 * 7
    assert here.disk == 0
    assert here.memory - there.memory == 8 * state + 7 * column
    assert there.disk == 8 * state + 3 * 8 * column


def test_a_forecast_is_one_line():
    case = make_case("mlp", "categorical")
    told = str(forecast(case.problem, case.data, stream(), SAMPLER, 3, folder=True))
    assert told.startswith("about 175 epochs of training, ")
    assert "\n" not in told


@pytest.mark.parametrize("trials", [0, 1, 2, 6])
@pytest.mark.parametrize("budget", [9, 20, 60, 150, 200, 1e6])
def test_a_budget_is_kept_and_members_go_first(budget: float, trials: int):
    fit = stream()
    sampler, kept = within_budget(SAMPLER, fit, trials, budget)
    assert epochs_of(sampler, fit, kept) <= budget
    assert 4 <= sampler.members <= 8
    assert kept >= min(trials, 2)
    assert sampler.stage_training(fit).steps >= 2  # an epoch
    if kept < trials or sampler.stage_training(fit).steps < 40:
        assert sampler.members == 4
    if budget == 1e6:
        assert (sampler, kept) == (SAMPLER, trials)


@pytest.mark.parametrize("trials", [0, 6])
@pytest.mark.parametrize("budget", [4.0, 0.0, -1.0])
def test_a_budget_below_four_members_is_refused(budget: float, trials: int):
    with pytest.raises(ValueError, match=f"budget of {budget:g} epochs is too small"):
        within_budget(SAMPLER, stream(), trials, budget)


def test_a_loader_whose_batch_is_larger_than_the_data_has_a_budget_too():
    data = make_case("mlp", "categorical").data
    items = [(data.fetch(i[None]).inputs[0], 0) for i in data.targets().new_tensor(range(7))]
    fit = TrainingStream(DataLoader(items, batch_size=64, shuffle=True))
    with pytest.raises(ValueError, match="too small"):
        within_budget(SAMPLER, fit, 0, 1.0)
    sampler, _ = within_budget(SAMPLER, fit, 0, 100.0)
    assert epochs_of(sampler, fit, 0) <= 100
    assert isinstance(data, Batches)
