"""The walk that heats stage by stage, and training on targets that stand in for the data's."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from afterfit.problem import Batches, Member, MemberStore, Problem, TrainingStream
from afterfit.sampling import heated
from afterfit.sampling.heated import RATES, HeatedWalk
from afterfit.sampling.walk import Diverged, train_alone
from tests.cases import make_case

SHORT = HeatedWalk((0.01, 0.02, 0.04, 0.05))


def parts(network: str = "batch-norm") -> tuple[Problem, Batches, TrainingStream]:
    case = make_case(network, "categorical")
    return case.problem, case.data, TrainingStream(case.data, 3)


def require_same(first: list[Member], second: list[Member]) -> None:
    assert [(m.chain, m.stage) for m in first] == [(m.chain, m.stage) for m in second]
    for one, other in zip(first, second, strict=True):
        assert one.params.keys() == other.params.keys()
        assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
        assert torch.equal(one.seen.nan_to_num(-1), other.seen.nan_to_num(-1))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every stage was started with: where, under which rule, and where it stopped."""
    seen: list[Any] = []

    def watched(problem: Problem, starts: Any, fit: TrainingStream, rule: Any) -> Any:
        stops = train_alone(problem, starts, fit, rule)
        seen.append((starts[0], rule, stops[0]))
        return stops

    monkeypatch.setattr(heated, "train_alone", watched)
    return seen


@pytest.mark.parametrize("network", ["mlp", "batch-norm", "attention"])
def test_each_stage_starts_where_the_last_ended_at_the_next_rate(network: str, stages: list[Any]):
    problem, _, fit = parts(network)
    members = list(SHORT.walk(problem, fit))
    assert [(m.chain, m.stage) for m in members] == [(0, k) for k in range(4)]
    assert [rule.learning_rate for _, rule, _ in stages] == list(SHORT.rates)
    assert all(rule.steps == SHORT.steps(fit) for _, rule, _ in stages)
    assert len({start.seed for start, _, _ in stages}) == 4
    before: Any = {**problem.params, **problem.buffers}
    for (start, _, stop), member in zip(stages, members, strict=True):
        assert start.params.keys() == before.keys()
        assert all(torch.equal(start.params[name], before[name]) for name in before)
        assert any(not torch.equal(stop.params[name], before[name]) for name in before)
        assert all(torch.equal(stop.params[name], member.params[name]) for name in before)
        before = member.params


def test_hotter_stages_go_further():
    problem, _, fit = parts("mlp")
    before: Any = problem.params
    moved = []
    for member in HeatedWalk((0.0001, 0.001, 0.01), decay=0.0).walk(problem, fit):
        moved.append(max(float((member.params[n] - before[n]).abs().max()) for n in before))
        before = member.params
    assert moved[0] < moved[1] < moved[2]
    assert moved[0] <= 18 * 0.0001 * 1.01  # the steps of Adam are no longer than the rate


def test_more_decay_shrinks_the_weights_more():
    problem, _, fit = parts("mlp")
    norms = [
        sum(float(v.square().sum()) for v in list(walk.walk(problem, fit))[-1].params.values())
        for walk in (HeatedWalk((0.02, 0.04), decay=d) for d in (0.0, 1.0, 10.0))
    ]
    assert norms[0] > norms[1] > norms[2]


def test_the_same_seed_gives_the_same_bits_and_another_seed_or_chain_others():
    problem, _, fit = parts()
    first = list(SHORT.walk(problem, fit))
    require_same(first, list(SHORT.walk(problem, fit)))
    for other in (HeatedWalk(SHORT.rates, seed=1), HeatedWalk(SHORT.rates, chain=1)):
        member = next(other.walk(problem, fit))
        assert any(
            not torch.equal(member.params[name], first[0].params[name]) for name in problem.params
        )


@pytest.mark.parametrize("lost", [(0,), (3,), (1, 3), (0, 1, 2, 3)])
def test_a_store_goes_on_to_the_same_bits(lost: tuple[int, ...], tmp_path: Path):
    problem, _, fit = parts()
    expected = list(SHORT.walk(problem, fit))
    store = MemberStore(tmp_path, "key")
    require_same(list(SHORT.walk(problem, fit, store)), expected)
    for stage in lost:
        store.path(0, stage).unlink()
    require_same(list(SHORT.walk(problem, fit, store)), expected)
    assert all(store.holds(0, stage) for stage in range(4))


def test_what_a_store_holds_is_not_made_again(tmp_path: Path, stages: list[Any]):
    problem, _, fit = parts()
    store = MemberStore(tmp_path, "key")
    list(islice(SHORT.walk(problem, fit, store), 2))
    assert len(stages) == 2
    list(SHORT.walk(problem, fit, store))
    assert [rule.learning_rate for _, rule, _ in stages] == list(SHORT.rates)


@pytest.mark.parametrize("network", ["batch-norm", "attention"])
def test_the_network_and_the_random_state_of_the_user_stay(
    network: str, random_state_is_kept: None
):
    problem, _, fit = parts(network)
    state = {**problem.params, **problem.buffers}
    before = {name: value.clone() for name, value in state.items()}
    members = list(SHORT.walk(problem, fit))
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert not any(v.requires_grad for m in members for v in m.params.values())


def test_a_stage_has_its_epochs_but_eighteen_steps_at_least():
    _, data, fit = parts()
    assert fit.num_samples == 7
    assert HeatedWalk(epochs=0.001).steps(fit) == 18
    assert HeatedWalk(epochs=2.0).steps(fit) == 18
    assert HeatedWalk(epochs=30.0).steps(fit) == 70  # 7 samples, 3 a step
    assert HeatedWalk(epochs=30.0).steps(TrainingStream(data, 7)) == 30
    assert len(RATES) == 6
    assert RATES[0] == 0.0032
    assert RATES[-1] == pytest.approx(0.1, rel=0.05)


def test_the_losses_on_the_way_are_those_of_the_targets_taught():
    problem, data, _ = parts("linear")
    y = data.targets()
    seen = [
        next(HeatedWalk((1e-9,)).walk(problem, TrainingStream(data, 7, targets=t))).seen
        for t in (None, (y + 1) % 3)
    ]
    outputs = problem.forward(problem.params, data.fetch(torch.arange(7)).inputs)
    for found, target in zip(seen, (y, (y + 1) % 3), strict=True):
        expected = problem.likelihood.loss(outputs, target)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rates_and_lengths_that_make_no_walk_are_refused():
    for rates in ((), (0.1, 0.0), (-0.1,)):
        with pytest.raises(ValueError, match="rates"):
            HeatedWalk(rates)
    for epochs in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="epochs"):
            HeatedWalk(epochs=epochs)


def test_losses_that_are_not_finite_end_the_walk():
    problem, _, fit = parts("mlp")
    with pytest.raises(Diverged):
        list(HeatedWalk((1e200,)).walk(problem, fit))


def loaders() -> list[Callable[[Tensor, Tensor], Any]]:
    def loader(x: Tensor, y: Tensor, **options: Any) -> DataLoader[Any]:
        return DataLoader(TensorDataset(x, y), batch_size=4, **options)

    return [
        lambda x, y: Batches((x, y)),
        lambda x, y: Batches((x, y)).subset(torch.arange(len(x) - 1, -1, -1)),
        lambda x, y: loader(x, y),
        lambda x, y: loader(x, y, shuffle=True),
        lambda x, y: loader(x, y, shuffle=True, drop_last=True),
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("width", [None, 2])
def test_targets_override_those_of_the_data_by_position(number: int, width: int | None):
    x = torch.arange(10.0)[:, None]
    y = torch.arange(10)
    data = loaders()[number](x, y)
    row = data.fetch(torch.arange(10)).inputs[:, 0].long() if isinstance(data, Batches) else y
    targets = row + 100 if width is None else torch.stack([row + 100, -row], 1)
    plain = TrainingStream(data, 4)
    taught = TrainingStream(data, 4, targets=targets)
    for one, other in zip(islice(plain.batches(3), 7), islice(taught.batches(3), 7), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.targets, one.inputs[:, 0].long())
        first = other.targets if width is None else other.targets[:, 0]
        assert torch.equal(first, other.inputs[:, 0].long() + 100)
