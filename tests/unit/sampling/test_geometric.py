"""The geometric ensemble against loops written out by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from afterfit.problem import (
    Batches,
    Categorical,
    MemberStore,
    Problem,
    TrainingStream,
    gradients,
    losses,
)
from afterfit.problem.ensemble import settings_key
from afterfit.sampling import (
    Checkpoints,
    Diverged,
    GaussianDraws,
    GeometricEnsemble,
    constant,
    cosine,
    warm_cosine,
)
from afterfit.sampling.forecast import epochs_of, forecast, within_budget


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )  # fmt: skip


def case(net: nn.Module | None = None, num: int = 48) -> tuple[nn.Module, Problem, Batches]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = (conv_net() if net is None else net).double().eval()
    generator = Generator().manual_seed(1)
    x = torch.randn(num, 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (num,), generator=generator)
    return module, Problem.from_module(module, Categorical()), Batches((x, y), 7)


def test_schedules_follow_their_formulas():
    assert cosine(0, 10) == 1
    assert cosine(5, 10) == pytest.approx(0.5)
    assert constant(3, 10) == 1
    assert [warm_cosine(t, 8) for t in range(3)] == pytest.approx([0.5, 1.0, cosine(0, 6)])


@pytest.mark.parametrize("clip", [None, 0.1])
def test_one_stage_is_sgd_on_the_module_in_training_mode(clip):
    module, problem, data = case()
    fit = TrainingStream(data, 16)
    sampler = GeometricEnsemble(members=1, steps=5, learning_rate=0.1, schedule=cosine, clip=clip)
    member = next(sampler.walk(problem, fit))

    net = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    stream = fit.batches(sampler._seed_of(0, 0))
    total, count = torch.zeros(48).double(), torch.zeros(48).double()
    for t in range(5):
        index, x, y = next(stream)
        loss = nn.functional.cross_entropy(net(x), y, reduction="none")
        total.index_add_(0, index, loss.detach())
        count.index_add_(0, index, torch.ones(len(index)).double())
        optimizer.zero_grad()
        loss.mean().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.param_groups[0]["lr"] = 0.1 * cosine(t, 5)
        optimizer.step()
    near = 1e-9 if clip is None else 1e-5  # torch's clipping adds 1e-6 to the norm
    for name, value in net.state_dict().items():
        torch.testing.assert_close(member.params[name], value, rtol=near, atol=near)
    seen = total / count
    torch.testing.assert_close(member.seen, seen, rtol=near, atol=near, equal_nan=True)


def test_seed_decides_and_chains_differ():
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    sampler = GeometricEnsemble(members=2, chains=2, steps=3)
    first, again = list(sampler.walk(problem, fit)), list(sampler.walk(problem, fit))
    other = list(replace(sampler, seed=1).walk(problem, fit))
    name = next(iter(problem.params))
    assert torch.equal(first[0].params[name], again[0].params[name])
    assert not torch.equal(first[0].params[name], other[0].params[name])
    assert not torch.equal(first[0].params[name], first[1].params[name])


def test_a_walk_that_was_stopped_goes_on_to_the_same_members(tmp_path):
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    sampler = GeometricEnsemble(members=4, steps=3)
    whole = list(sampler.walk(problem, fit))
    store = MemberStore(tmp_path, settings_key(problem, sampler.key()))
    stopped = sampler.walk(problem, fit, store)
    next(stopped)
    next(stopped)
    del stopped
    resumed = list(sampler.walk(problem, fit, store))
    for left, right in zip(whole, resumed, strict=True):
        assert all(torch.equal(left.params[n], right.params[n]) for n in left.params)
    longer = list(replace(sampler, members=5).walk(problem, fit, store))
    assert len(longer) == 5


def test_members_of_another_run_are_refused(tmp_path):
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    sampler = GeometricEnsemble(members=1, steps=2)
    list(sampler.walk(problem, fit, MemberStore(tmp_path, "one")))
    with pytest.raises(ValueError, match="belongs to another run"):
        list(sampler.walk(problem, fit, MemberStore(tmp_path, "two")))


def test_restarting_from_the_trained_network_forgets_the_chain():
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    sampler = GeometricEnsemble(members=2, steps=3, restart="trained")
    second = list(sampler.walk(problem, fit))[1]
    chain = list(replace(sampler, restart="continue").walk(problem, fit))[1]
    name = next(iter(problem.params))
    assert not torch.equal(second.params[name], chain.params[name])


def test_recalibrated_statistics_are_those_of_training_passes():
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    kept = next(GeometricEnsemble(members=1, steps=2).walk(problem, fit))
    new = next(GeometricEnsemble(members=1, steps=2, batch_norm="recalibrated").walk(problem, fit))
    assert torch.equal(kept.params["0.weight"], new.params["0.weight"])
    state = {n: v.clone() for n, v in kept.params.items()}
    stream = fit.batches(GeometricEnsemble()._seed_of(0, 0) + 1)
    for _ in range(50):
        problem.train_forward(state, next(stream).inputs)
    torch.testing.assert_close(new.params["1.running_mean"], state["1.running_mean"])


def test_divergence_names_the_rate():
    _, problem, data = case(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    wild = GeometricEnsemble(members=1, steps=64, learning_rate=1e300, clip=None)
    with pytest.raises(Diverged, match="1e\\+300"):
        next(wild.walk(problem, TrainingStream(data, 16)))


@pytest.mark.parametrize("settings", [{"members": 0}, {"chains": 0}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        GeometricEnsemble(**settings)


def test_the_users_optimizer_takes_the_steps():
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    adam = GeometricEnsemble(
        members=1, steps=3, step=lambda leaves, rate: torch.optim.Adam(leaves, lr=rate)
    )
    plain = next(GeometricEnsemble(members=1, steps=3).walk(problem, fit))
    assert not torch.equal(
        next(adam.walk(problem, fit)).params["0.weight"], plain.params["0.weight"]
    )


def test_forecast_grows_with_members_and_a_budget_takes_them_away():
    _, problem, data = case()
    fit = TrainingStream(data, 16)
    small, large = GeometricEnsemble(members=4), GeometricEnsemble(members=8)
    assert epochs_of(large, fit, 0) == pytest.approx(2 * epochs_of(small, fit, 0))
    assert forecast(problem, data, fit, large, 0, folder=True).disk > 0
    fitted, trials = within_budget(large, fit, 6, 16)
    assert epochs_of(fitted, fit, trials) <= 16
    with pytest.raises(ValueError, match="too small"):
        within_budget(large, fit, 6, 1)


def test_gaussian_draws_have_the_covariance_of_their_root():
    _, problem, data = case(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    root = torch.zeros(problem.num_params, 1, dtype=torch.float64)
    root[0] = 2.0
    drawn = list(GaussianDraws(root, 4000).walk(problem, TrainingStream(data)))
    moved = (
        torch.stack([m.params["1.weight"][0, 0] for m in drawn]) - problem.params["1.weight"][0, 0]
    )
    assert abs(moved.std() - 2) < 5 * 2 / (2 * 4000) ** 0.5
    assert abs(moved.mean()) < 5 * 2 / 4000**0.5


def test_checkpoints_of_another_network_are_refused():
    module, problem, data = case()
    state = dict(module.state_dict())
    assert len(list(Checkpoints([state]).walk(problem, TrainingStream(data)))) == 1
    state["0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="another network"):
        list(Checkpoints([state]).walk(problem, TrainingStream(data)))


def test_nothing_of_the_user_is_changed(random_state_is_kept):
    with torch.random.fork_rng(devices=[]):
        module, problem, data = case(nn.Sequential(conv_net(), nn.Dropout(0.5)))
    before = {n: v.clone() for n, v in module.state_dict().items()}
    member = next(GeometricEnsemble(members=1, steps=3).walk(problem, TrainingStream(data, 16)))
    losses(problem, data, member.params)
    list(gradients(problem, data))
    assert not module.training
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())
