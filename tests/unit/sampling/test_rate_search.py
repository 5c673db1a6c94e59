"""The search for the rate, on curves that are given."""

import math

import pytest
import torch
from torch import nn

from afterfit.influence import GEX
from afterfit.problem import Batches, Categorical, PerSample, Problem, TrainingStream
from afterfit.sampling import (
    GeometricEnsemble,
    Trial,
    adamw,
    find_learning_rate,
    rate_search,
    sgd,
)


def problem_and_data() -> tuple[Problem, Batches]:
    y = torch.arange(12) % 3
    net = nn.Linear(3, 3)
    return Problem.from_module(net, Categorical()), Batches((nn.functional.one_hot(y).float(), y))


def search(monkeypatch, curve, hottest: float, **settings):
    """Search where separability is ``curve(rate)`` and rates above ``hottest`` know nothing."""

    def trial(problem, train, fit, sampler, cap, made):
        rate = sampler.learning_rate
        return Trial(rate, curve(rate), 0.0, admissible=rate <= hottest)

    monkeypatch.setattr(rate_search, "_try", trial)
    problem, data = problem_and_data()
    return find_learning_rate(problem, data, TrainingStream(data), GeometricEnsemble(), **settings)[
        0
    ]


def test_it_climbs_to_a_hot_peak(monkeypatch):
    found = search(monkeypatch, lambda rate: 0.9 - abs(rate - 1.6) / 10, hottest=10)
    assert found.learning_rate == pytest.approx(1.6)
    assert len(found.trials) == 5  # one fall is forgiven, a second is not


def test_it_goes_colder_where_that_is_better(monkeypatch):
    found = search(monkeypatch, lambda rate: 0.9 - abs(math.log2(rate / 0.1)) / 20, hottest=10)
    assert found.learning_rate == pytest.approx(0.1)


def test_it_goes_on_to_the_cap_while_nothing_separates(monkeypatch):
    found = search(monkeypatch, lambda rate: 0.8 if rate > 1 else 0.5 - rate / 10, hottest=2)
    assert found.learning_rate == pytest.approx(1.6)


def test_one_fall_on_the_way_to_hotter_rates_is_forgiven(monkeypatch):
    curve = {0.4: 0.74, 0.8: 0.7, 1.6: 0.82, 3.2: 0.6, 6.4: 0.5}
    found = search(monkeypatch, lambda rate: curve[round(rate, 1)], hottest=10)
    assert found.learning_rate == pytest.approx(1.6)


def test_of_rates_that_separate_alike_it_takes_the_coldest(monkeypatch):
    curve = {0.2: 0.75, 0.4: 0.78, 0.8: 0.815, 1.6: 0.82, 3.2: 0.6, 6.4: 0.5}
    found = search(monkeypatch, lambda rate: curve[round(rate, 1)], hottest=10)
    assert found.learning_rate == pytest.approx(0.8)
    curve[0.8] = 0.8
    found = search(monkeypatch, lambda rate: curve[round(rate, 1)], hottest=10)
    assert found.learning_rate == pytest.approx(1.6)


def test_it_never_tries_more_than_it_may(monkeypatch):
    found = search(monkeypatch, lambda rate: rate / 100, hottest=100, max_trials=3)
    assert len(found.trials) == 3


def test_without_an_admissible_rate_it_takes_the_coldest_and_gex_warns(monkeypatch):
    found = search(monkeypatch, lambda _: 0.9, hottest=0)
    assert not found.found
    assert found.learning_rate == min(trial.learning_rate for trial in found.trials)
    problem, data = problem_and_data()
    with pytest.warns(UserWarning, match="no learning rate keeps"):
        GEX(members=1, steps=2).fit(problem, data)


def test_the_cap_lies_half_way_to_knowing_nothing():
    problem, data = problem_and_data()
    perfect = Problem.from_module(nn.Linear(3, 3), Categorical())
    perfect.params["weight"].copy_(100 * torch.eye(3))
    assert rate_search.loss_cap(perfect, data) == pytest.approx(
        torch.tensor(3.0).log().item() / 2, abs=1e-3
    )
    alone = Problem(
        problem.forward, PerSample(lambda f, y: (f.argmax(1) - y).float()), problem.params,
        problem.buffers, problem.train_forward,
    )  # fmt: skip
    with pytest.raises(TypeError, match="PerSample"):
        rate_search.loss_cap(alone, data)


def test_networks_without_normalization_are_pulled_harder():
    problem, _ = problem_and_data()
    normalized = Problem.from_module(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), Categorical())
    assert rate_search.default_weight_decay(problem) > rate_search.default_weight_decay(normalized)


def test_embeddings_without_normalization_are_walked_by_adam():
    bag = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3))
    normalized = nn.Sequential(nn.EmbeddingBag(9, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    words = Problem.from_module(bag, Categorical())
    plain = GeometricEnsemble()
    chosen = rate_search.with_forgetting_decay(words, plain).step
    assert chosen is not None
    leaf = torch.zeros(2, requires_grad=True)
    assert isinstance(chosen([leaf], 0.1), torch.optim.AdamW)
    for other in (problem_and_data()[0], Problem.from_module(normalized, Categorical())):
        assert rate_search.with_forgetting_decay(other, plain).step is None
    own = GeometricEnsemble(step=sgd(0.5))
    assert rate_search.with_forgetting_decay(words, own).step is own.step
    assert rate_search.first_rate(rate_search.with_forgetting_decay(words, plain)) == 0.1


def test_a_search_stays_below_its_hottest_rate(monkeypatch):
    found = search(monkeypatch, lambda rate: rate / 10, hottest=10.0, limit=0.8)
    assert found.learning_rate == 0.8
    assert max(trial.learning_rate for trial in found.trials) == 0.8


def test_adam_moves_a_rare_word_as_far_as_a_common_one():
    table = torch.zeros(2, 3, requires_grad=True)
    optimizer = adamw(weight_decay=0.0)([table], 0.01)
    table.grad = torch.tensor([[1.0, 1.0, 1.0], [1e-4, 1e-4, 1e-4]])
    optimizer.step()
    torch.testing.assert_close(table[0], table[1], rtol=1e-3, atol=0.0)
