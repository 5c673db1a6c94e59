"""Walks that are stopped, taken up again, made longer, or that belong to another run."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from afterfit.problem import Batches, Member, MemberStore, Problem, TrainingStream
from afterfit.problem.ensemble import settings_key
from afterfit.sampling import GeometricEnsemble, cosine, reference, sgd
from afterfit.sampling.naming import named
from tests.cases import make_case

SHORT = GeometricEnsemble(members=4, steps=3, learning_rate=0.3)


def parts(network: str = "batch-norm") -> tuple[Problem, Batches, TrainingStream]:
    case = make_case(network, "categorical")
    return case.problem, case.data, TrainingStream(case.data, 3)


def require_same(first: list[Member], second: list[Member]) -> None:
    assert [(m.chain, m.stage) for m in first] == [(m.chain, m.stage) for m in second]
    for one, other in zip(first, second, strict=True):
        assert one.params.keys() == other.params.keys()
        assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
        assert torch.equal(one.seen.nan_to_num(-1), other.seen.nan_to_num(-1))


@pytest.mark.parametrize("network", ["mlp", "batch-norm", "attention"])
def test_the_same_seed_gives_the_same_members_to_the_bit(network: str):
    problem, _, fit = parts(network)
    sampler = replace(SHORT, chains=2)
    require_same(list(sampler.walk(problem, fit)), list(sampler.walk(problem, fit)))


def test_seeds_chains_and_stages_all_differ():
    problem, _, fit = parts("linear")
    members = [
        member
        for seed in (0, 1, 2)
        for member in replace(SHORT, chains=2, restart="trained", seed=seed).walk(problem, fit)
    ]
    assert len({float(member.params["weight"].norm()) for member in members}) == 12


def test_the_first_chain_does_not_know_how_many_there_are():
    problem, _, fit = parts()
    alone = list(replace(SHORT, members=2).walk(problem, fit))
    among = [m for m in replace(SHORT, members=6, chains=3).walk(problem, fit) if m.chain == 0]
    require_same(alone, among)


@pytest.mark.parametrize("seed", [-3, 2**31, 1_700_000_000_000, 2**63 - 1])
def test_any_whole_number_is_a_seed(seed: int):
    problem, _, fit = parts("mlp")
    sampler = replace(SHORT, members=2, seed=seed, batch_norm="recalibrated")
    require_same(list(sampler.walk(problem, fit)), list(sampler.walk(problem, fit)))


@pytest.mark.parametrize("made", [1, 2, 3])
@pytest.mark.parametrize(
    "sampler",
    [
        SHORT,
        replace(SHORT, chains=2),
        replace(SHORT, chains=3, restart="trained"),
        replace(SHORT, batch_norm="recalibrated"),
    ],
)
def test_a_walk_that_was_stopped_goes_on_to_the_same_members(
    sampler: GeometricEnsemble, made: int, tmp_path: Path
):
    problem, _, fit = parts()
    store = MemberStore(tmp_path, settings_key(problem, sampler.key()))
    list(islice(sampler.walk(problem, fit, store), made))
    assert len(list(tmp_path.iterdir())) == made

    resumed = list(sampler.walk(problem, fit, MemberStore(tmp_path, store.key)))

    require_same(resumed, list(sampler.walk(problem, fit)))


def test_a_stored_member_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    problem, _, fit = parts()
    store = MemberStore(tmp_path, "key")
    whole = list(SHORT.walk(problem, fit, store))

    def never(*_: object) -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("afterfit.sampling.geometric.train_alone", never)
    require_same(list(SHORT.walk(problem, fit, store)), whole)


def test_members_may_be_added_to_those_that_are_there(tmp_path: Path):
    problem, _, fit = parts()
    longer = replace(SHORT, members=6)
    assert longer.key() == SHORT.key()
    store = MemberStore(tmp_path, longer.key())
    list(SHORT.walk(problem, fit, store))
    require_same(list(longer.walk(problem, fit, store)), list(longer.walk(problem, fit)))


def scaled(step: int, steps: int, scale: float) -> float:
    return scale * cosine(step, steps)


def falling(power: int) -> Callable[[int, int], float]:
    return lambda step, steps: (1 - step / steps) ** power


def adam(leaves: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(leaves, lr=learning_rate)


OTHERS = {
    "steps": replace(SHORT, steps=4),
    "learning rate": replace(SHORT, learning_rate=0.4),
    "schedule": replace(SHORT, schedule=cosine),
    "bound schedule": replace(SHORT, schedule=partial(scaled, scale=0.5)),
    "other bound schedule": replace(SHORT, schedule=partial(scaled, scale=0.6)),
    "closure": replace(SHORT, schedule=falling(1)),
    "other closure": replace(SHORT, schedule=falling(2)),
    "lambda": replace(SHORT, schedule=lambda step, steps: step / steps),
    "other lambda": replace(SHORT, schedule=lambda step, steps: 1 - step / steps),
    "momentum": replace(SHORT, momentum=0.8),
    "weight decay": replace(SHORT, weight_decay=0.1),
    "step": replace(SHORT, step=sgd(momentum=0.5)),
    "other step": replace(SHORT, step=sgd(momentum=0.6)),
    "optimizer": replace(SHORT, step=adam),
    "clip": replace(SHORT, clip=None),
    "restart": replace(SHORT, restart="trained"),
    "batch norm": replace(SHORT, batch_norm="recalibrated"),
    "seed": replace(SHORT, seed=1),
}


def test_every_setting_that_a_member_depends_on_is_in_the_key():
    keys = {name: sampler.key() for name, sampler in OTHERS.items()}
    assert len({*keys.values(), SHORT.key()}) == len(OTHERS) + 1


def test_how_many_members_there_are_is_not_in_the_key():
    assert replace(SHORT, members=9).key() == SHORT.key()


def test_functions_have_the_same_name_in_every_process():
    functions = (partial(scaled, scale=0.5), falling(2), lambda step, steps: step / steps, adam)
    assert not any(" at 0x" in named(function) for function in functions)
    assert named(falling(2)) == named(falling(2))


def test_members_of_other_settings_data_or_network_are_refused(tmp_path: Path):
    problem, data, fit = parts()
    other, *_ = parts("linear")
    key = settings_key(problem, data.fingerprint(), SHORT.key())
    next(SHORT.walk(problem, fit, MemberStore(tmp_path, key)))
    halved = data.subset(torch.arange(3))
    for foreign in (
        settings_key(other, data.fingerprint(), SHORT.key()),
        settings_key(problem, halved.fingerprint(), SHORT.key()),
        settings_key(problem, data.fingerprint(), OTHERS["seed"].key()),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            next(SHORT.walk(problem, fit, MemberStore(tmp_path, foreign)))


@pytest.mark.parametrize("count", ["members", "chains", "steps"])
def test_counts_below_one_are_refused(count: str):
    with pytest.raises(ValueError, match=f"{count} is 0, expected at least 1"):
        replace(SHORT, **{count: 0})


def test_the_reference_has_the_settings_of_the_authors_scripts():
    sampler = reference()
    plain = sampler.stage_training(parts()[2])
    assert (sampler.members, sampler.chains, plain.steps, plain.learning_rate) == (32, 8, 800, 0.05)
    assert (sampler.momentum, sampler.weight_decay, plain.clip) == (0.9, 5e-4, None)
    assert plain.schedule is cosine
    assert (sampler.restart, sampler.batch_norm) == ("continue", "recalibrated")


def test_recalibration_runs_fifty_passes_in_training_mode_at_the_members_weights():
    problem, _, fit = parts()
    sampler = replace(SHORT, members=2)
    kept = next(sampler.walk(problem, fit))
    new = next(replace(sampler, batch_norm="recalibrated").walk(problem, fit))

    state = {name: value.clone() for name, value in kept.params.items()}
    for batch in islice(fit.batches(sampler._seed_of(0, 0) + 1), 50):
        hidden = batch.inputs @ state["0.weight"].T + state["0.bias"]
        mean, var = hidden.mean(0), hidden.var(0)
        state["1.running_mean"] += 0.1 * (mean - state["1.running_mean"])
        state["1.running_var"] += 0.1 * (var - state["1.running_var"])
        state["1.num_batches_tracked"] += 1

    for name, value in new.params.items():
        assert_close(value, state[name], rtol=1e-12, atol=1e-12)


def test_without_normalization_there_is_nothing_to_recalibrate():
    problem, _, fit = parts("mlp")
    require_same(
        list(SHORT.walk(problem, fit)),
        list(replace(SHORT, batch_norm="recalibrated").walk(problem, fit)),
    )


@pytest.mark.usefixtures("random_state_is_kept")
def test_a_walk_leaves_the_random_state_of_the_user_between_its_members():
    problem, _, fit = parts("mlp")
    walk = SHORT.walk(problem, fit)
    first = [next(walk)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(99)
        require_same([*first, *walk], list(SHORT.walk(problem, fit)))
