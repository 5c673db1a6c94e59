"""Runs of GEX: what is refused before anything is trained, what it costs, and how it goes on."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from afterfit.influence import (
    GEX,
    CovarianceInfluence,
    covariance,
    level,
    mean_move,
    published,
    secant,
    second_moment,
)
from afterfit.problem import Batches, Categorical, Problem, TrainingStream
from afterfit.sampling import GeometricEnsemble, cosine, reference
from tests.cases import make_case, make_module
from tests.listening import heard_by

QUICK = GEX(members=3, steps=3, learning_rate=0.3, batch_size=3)
SEARCHING = replace(QUICK, learning_rate="auto", max_trials=2, cap=9.0)


def parts(network: str = "batch-norm", likelihood: str = "categorical") -> tuple[Problem, Batches]:
    case = make_case(network, likelihood)
    return case.problem, case.data


def require_same(first: CovarianceInfluence, second: CovarianceInfluence) -> None:
    assert torch.equal(first.table.columns, second.table.columns)
    assert torch.equal(first.table.trained, second.table.trained)
    assert first.search == second.search
    assert first.method.sampler == second.method.sampler


def dying_at(beginning: str) -> Callable[[str], None]:
    """Listen until a line begins so, then die as a killed run does."""

    def say(line: str) -> None:
        if line.startswith(beginning):
            raise KeyboardInterrupt

    return say


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def count(self, word: str) -> int:
        return sum(word in line for line in self.lines)


# Runs that are killed --------------------------------------------------------------


@pytest.mark.parametrize("method", [QUICK, SEARCHING, replace(SEARCHING, chains=2)])
@pytest.mark.parametrize("where", ["3 members", "learning rate", "member 1", "member 2"])
def test_a_run_that_was_killed_goes_on_to_the_same_result(method: GEX, where: str, tmp_path: Path):
    problem, data = parts()
    sampler = replace(method.sampler, way="alone")
    method = replace(method, sampler=sampler)
    whole = method.fit(problem, data)
    if where != "learning rate" or method.learning_rate == "auto":
        with pytest.raises(KeyboardInterrupt), heard_by(dying_at(where)):
            method.fit(problem, data, folder=tmp_path)
    require_same(method.fit(problem, data, folder=tmp_path), whole)
    require_same(method.fit(problem, data, folder=tmp_path), whole)


def test_what_was_found_is_not_searched_for_again(tmp_path: Path):
    problem, data = parts()
    first, second = Listener(), Listener()
    with heard_by(first):
        found = SEARCHING.fit(problem, data, folder=tmp_path)
    with heard_by(second):
        again = SEARCHING.fit(problem, data, folder=str(tmp_path))
    assert first.count("separability") == 2
    assert second.count("separability") == 0
    require_same(found, again)
    written = json.loads((tmp_path / "search.json").read_text())
    assert found.search is not None
    assert written == {**asdict(found.search), "trials": [asdict(t) for t in found.search.trials]}


def test_the_folder_holds_members_and_search_and_nothing_half_written(tmp_path: Path):
    SEARCHING.fit(*parts(), folder=tmp_path / "deep" / "run")
    names = {str(p.relative_to(tmp_path / "deep" / "run")) for p in tmp_path.rglob("*.*")}
    members = {f"members/000-{stage:03d}.safetensors" for stage in range(3)}
    assert names == {"search.json", *members}


def test_members_may_be_added_to_a_run(tmp_path: Path):
    problem, data = parts()
    QUICK.fit(problem, data, folder=tmp_path)
    longer = replace(QUICK, members=5)
    require_same(longer.fit(problem, data, folder=tmp_path), longer.fit(problem, data))


def shifted(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)


def scaled(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs * torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"steps": 4},
        {"learning_rate": 0.2},
        {"weight_decay": 0.3},
        {"batch_size": 2},
        {"augment": scaled},
        {"sampler": GeometricEnsemble(schedule=cosine)},
    ],
)
def test_a_folder_of_other_settings_is_refused(changed: dict[str, Any], tmp_path: Path):
    problem, data = parts()
    method = replace(QUICK, augment=shifted)
    method.fit(problem, data, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        replace(method, **changed).fit(problem, data, folder=tmp_path)


def test_a_folder_of_other_data_or_another_network_is_refused(tmp_path: Path):
    problem, data = parts()
    QUICK.fit(problem, data, folder=tmp_path)
    others = [
        (problem, data.subset(torch.tensor([1, 0, 2, 3, 4, 5, 6]))),
        (parts("linear")[0], data),
    ]
    for other in others:
        with pytest.raises(ValueError, match="belongs to another run"):
            QUICK.fit(*other, folder=tmp_path)


# What is refused at once --------------------------------------------------------------


def require_refused_at_once(said: str, problem: Problem, data: Batches, **settings: Any) -> None:
    heard = Listener()
    with pytest.raises(ValueError, match=said), heard_by(heard):
        SEARCHING.fit(problem, data, **settings)
    assert not heard.lines


def test_inputs_that_are_not_finite_are_named_and_not_blamed_on_the_rate():
    problem, data = parts("linear")
    _, inputs, targets = data.fetch(torch.arange(7))
    inputs[5] = float("nan")
    broken = Batches((inputs, targets), ids=[f"file-{i}" for i in range(7)])
    require_refused_at_once("the loss of sample file-5 is nan", problem, broken)


def test_labels_that_the_network_has_no_output_for_are_refused():
    problem, data = parts("linear")
    _, inputs, targets = data.fetch(torch.arange(7))
    require_refused_at_once("labels range from 1 to 3", problem, Batches((inputs, targets + 1)))


def test_a_stream_of_other_samples_is_refused_before_it_is_trained_on():
    problem, data = parts("linear")
    other = TrainingStream(data.subset(torch.arange(5)), 3)
    require_refused_at_once("train on 5 samples, expected 7", problem, data, fit=other)
    alone = replace(QUICK, losses="members")
    assert alone.fit(problem, data, fit=other).self_scores().shape == (7,)


def test_a_budget_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="budget of 2 epochs is too small"):
        replace(QUICK, budget=2).fit(*parts())


def test_a_loss_without_a_model_needs_a_rate_or_a_cap():
    problem, data = parts("linear", "per-sample")
    for method in (QUICK, SEARCHING):
        assert method.fit(problem, data).self_scores().shape == (7,)
    with pytest.raises(TypeError, match="give learning_rate a number, or cap"):
        replace(SEARCHING, cap=None).fit(problem, data)


# What is trained --------------------------------------------------------------


class Counting:
    """Counts the samples that pass through training."""

    def __init__(self, problem: Problem) -> None:
        self.samples, self.forward = 0, problem.train_forward

    def __call__(self, params: Any, inputs: Any) -> Tensor:
        self.samples += len(inputs)
        return self.forward(params, inputs)


@pytest.mark.parametrize("method", [replace(QUICK, steps=None), replace(SEARCHING, steps=None)])
@pytest.mark.parametrize("budget", [None, 12, 9])
def test_training_costs_no_more_than_forecast_and_budget(method: GEX, budget: float | None):
    problem, data = parts("linear")
    counting = Counting(problem)
    found = replace(method, members=6, budget=budget).fit(
        replace(problem, train_forward=counting), data
    )
    epochs = (counting.samples - 6 * 3) / 7  # six steps are timed
    assert found.cost is not None
    assert epochs <= found.cost.epochs + 1e-9
    if budget is not None:
        assert epochs <= budget
        assert len(found.ensemble) < 6


def test_the_forecast_is_told_before_anything_else():
    heard = Listener()
    with heard_by(heard):
        found = SEARCHING.fit(*parts())
    assert "3 members, 1 chain(s), 3 steps" in heard.lines[0]
    assert str(found.cost) in heard.lines[0]
    assert len(heard.lines) == 1 + 2 + 3


def test_members_train_on_the_users_shuffling_loader():
    problem, data = parts("linear")
    _, inputs, targets = data.fetch(torch.arange(7))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=4, shuffle=True)
    direct = QUICK.fit(problem, data, fit=TrainingStream(loader))
    require_same(QUICK.fit(problem, data, fit=loader), direct)
    assert not torch.equal(direct.table.columns, QUICK.fit(problem, data).table.columns)


def test_augmentation_is_for_members_only():
    problem, data = parts("linear")
    plain, augmented = (replace(QUICK, augment=a).fit(problem, data) for a in (None, shifted))
    assert torch.equal(plain.table.trained, augmented.table.trained)
    assert not torch.equal(plain.table.columns, augmented.table.columns)
    through = QUICK.fit(problem, data, fit=TrainingStream(data, 3, shifted))
    assert torch.equal(augmented.table.columns, through.table.columns)


def test_settings_of_the_sampler_are_kept():
    settings = {"schedule": cosine, "momentum": 0.5, "clip": None, "restart": "trained"}
    method = replace(QUICK, sampler=GeometricEnsemble(**settings), chains=2, seed=7)
    found = method.fit(*parts()).method.sampler
    expected = {**settings, "members": 3, "steps": 3, "learning_rate": 0.3, "chains": 2, "seed": 7}
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(("network", "decay"), [("batch-norm", 5e-4), ("linear", 0.1)])
def test_the_decay_depends_on_normalization_unless_it_is_given(network: str, decay: float):
    problem, data = parts(network)
    assert QUICK.fit(problem, data).method.sampler.weight_decay == decay
    given = replace(QUICK, weight_decay=0.02).fit(problem, data)
    assert given.method.sampler.weight_decay == 0.02


def test_the_members_are_made_at_the_rate_that_was_found():
    found = SEARCHING.fit(*parts())
    assert found.search is not None
    assert found.method.sampler.learning_rate == found.search.learning_rate
    fixed = replace(QUICK, learning_rate=found.search.learning_rate)
    assert torch.equal(fixed.fit(*parts()).table.columns, found.table.columns)


def test_a_search_without_an_admissible_rate_warns():
    with pytest.warns(UserWarning, match="no learning rate keeps .* under 1e-09 nats"):
        found = replace(SEARCHING, cap=1e-9).fit(*parts())
    assert found.search is not None
    assert found.search.learning_rate == min(t.learning_rate for t in found.search.trials)


def test_the_published_settings_are_the_authors():
    method = published(members=32, seed=3)
    assert (method.losses, method.moment, method.cross_moment) == (
        "members",
        second_moment,
        covariance,
    )
    assert method._template(method.weight_decay) == replace(reference(seed=3), members=32)
    assert method.learning_rate == 0.05
    assert method.batch_size == 128  # 1,024 over eight devices


def test_by_default_it_takes_the_squared_mean_loss():
    assert (GEX().move, GEX().moment) == (level, mean_move)
    assert (GEX().cross_move, GEX().cross_moment) == (secant, covariance)
    found = QUICK.fit(*parts())
    assert torch.allclose(found.self_scores(), found.table.columns.mean(1).square())


def test_single_precision_works():
    problem, data = parts("mlp")
    _, inputs, targets = data.fetch(torch.arange(7))
    module: nn.Module = make_module("mlp", "categorical").float()
    single = Problem.from_module(module, Categorical())
    found = QUICK.fit(single, Batches((inputs.float(), targets)))
    assert found.self_scores().dtype == torch.float32
    assert found.scores(Batches((inputs.float(), targets))).dtype == torch.float32
    assert problem.dtype == torch.float64


def test_a_sampler_that_contradicts_gex_is_refused():
    with pytest.raises(ValueError, match=r"sampler has members=3 and GEX has members=8"):
        GEX(sampler=GeometricEnsemble(members=3))
    assert GEX(members=3, sampler=GeometricEnsemble(members=3)).members == 3


def test_two_runs_of_several_chains_agree_to_the_bit():
    method = replace(QUICK, members=4, chains=2, steps=16)
    assert method.sampler.way == "alone"
    require_same(method.fit(*parts("mlp")), method.fit(*parts("mlp")))


def test_a_search_whose_members_know_no_more_than_a_constant_warns_and_is_resumed(tmp_path):
    """The network is a bias, whose losses are two values: Otsu alone finds them perfectly apart."""

    def forward(params: Any, inputs: Tensor) -> Tensor:
        return params["bias"].expand(len(inputs), -1)

    y = torch.tensor([0] * 90 + [1] * 10)
    bias = Categorical().null_outputs(y)[0].clone()
    problem = Problem(forward, Categorical(), {"bias": bias}, {}, forward)
    data = Batches((torch.zeros(100, 1), y))
    method = replace(SEARCHING, cap=None, batch_size=100)
    with pytest.warns(UserWarning, match=r"no learning rate keeps .* of a constant prediction"):
        found = method.fit(problem, data, folder=tmp_path)
    again = method.fit(problem, data, folder=tmp_path)
    assert found.search is not None
    assert not found.search.found
    require_same(found, again)


def test_a_damaged_search_is_named(tmp_path):
    problem, data = parts()
    SEARCHING.fit(problem, data, folder=tmp_path)
    (tmp_path / "search.json").write_text('{"trials": [')
    with pytest.raises(ValueError, match=r"search\.json cannot be read .* remove this file"):
        SEARCHING.fit(problem, data, folder=tmp_path)
