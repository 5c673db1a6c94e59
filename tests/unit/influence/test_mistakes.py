"""Wrong targets that could have been given, and doubts about the given ones, by obvious loops."""

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from afterfit import Bernoulli, Categorical, Gaussian, PerSample, Poisson

PER_SAMPLE = PerSample(lambda outputs, y: (outputs[:, 0] - y).abs())


def test_a_mistaken_class_is_never_the_given_one(generator: Generator):
    outputs = 3 * torch.randn(500, 4, generator=generator)
    y = torch.randint(4, (500,), generator=generator)
    wrong = Categorical().mistaken(outputs, y, generator)
    assert wrong.dtype == y.dtype
    assert wrong.shape == y.shape
    assert not bool((wrong == y).any())
    assert int(wrong.min()) >= 0
    assert int(wrong.max()) <= 3


def test_a_network_that_is_sure_of_the_given_class_still_gets_another(generator: Generator):
    outputs = torch.tensor([[1e4, 0.0, 1.0], [0.0, 1e4, -1e4]])
    wrong = Categorical().mistaken(outputs, torch.tensor([0, 1]), generator)
    assert int(wrong[0]) in (1, 2)
    assert int(wrong[1]) == 0


def test_mistaken_classes_follow_the_network_without_the_given_class(generator: Generator):
    num, row, given = 20_000, torch.tensor([0.5, 2.0, -1.0, 1.0]), 1
    y = torch.full((num,), given)
    wrong = Categorical().mistaken(row.expand(num, 4), y, generator)
    total = sum(math.exp(row[c]) for c in range(4) if c != given)
    for c in (0, 2, 3):
        p = math.exp(row[c]) / total
        frequency = float((wrong == c).double().mean())
        assert abs(frequency - p) < 5 * math.sqrt(p * (1 - p) / num)


@pytest.mark.parametrize("width", [1, 3])
def test_one_yes_or_no_is_turned_around_each_as_often(width: int, generator: Generator):
    num = 3000
    y = torch.randint(2, (num, width), generator=generator).float()
    before = y.clone()
    wrong = Bernoulli().mistaken(torch.zeros(num, width), y, generator)
    assert torch.equal(y, before)
    assert wrong.dtype == y.dtype
    assert bool(((wrong == 0) | (wrong == 1)).all())
    turned = (wrong != y).double()
    assert bool((turned.sum(1) == 1).all())
    error = math.sqrt(1 / width * (1 - 1 / width) / num)
    assert bool(((turned.mean(0) - 1 / width).abs() <= 5 * error).all())


def test_a_single_yes_or_no_without_an_axis_keeps_its_shape(generator: Generator):
    y = torch.tensor([0, 1, 1, 0])
    wrong = Bernoulli().mistaken(torch.zeros(4, 1), y, generator)
    assert wrong.shape == (4,)
    assert wrong.dtype == y.dtype
    assert torch.equal(wrong, 1 - y)


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson()])
def test_mistaken_numbers_are_targets_of_the_data(likelihood: Any, generator: Generator):
    y = torch.randint(1000, (200, 2), generator=generator).float()
    wrong = likelihood.mistaken(torch.zeros(200, 2), y, generator)
    assert wrong.shape == y.shape
    rows = {tuple(row) for row in y.tolist()}
    assert all(tuple(row) in rows for row in wrong.tolist())
    assert float((wrong != y).any(1).double().mean()) > 0.9


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian()])
def test_the_same_seed_makes_the_same_mistakes(likelihood: Any):
    outputs = torch.randn(50, 3, generator=Generator().manual_seed(5))
    y = torch.arange(50) % 3
    y = y if isinstance(likelihood, Categorical) else (outputs > 0).float()
    draws = [likelihood.mistaken(outputs, y, Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_loss_of_the_user_says_neither_mistakes_nor_doubts(generator: Generator):
    with pytest.raises(TypeError, match="PerSample"):
        PER_SAMPLE.mistaken(torch.zeros(3, 1), torch.zeros(3), generator)
    with pytest.raises(TypeError, match="PerSample"):
        PER_SAMPLE.doubts(torch.zeros(3, 1), torch.zeros(3))


def test_the_doubt_about_a_class_is_the_best_other_one_against_it(generator: Generator):
    mean = torch.randn(40, 4, generator=generator).double().softmax(-1)
    y = torch.randint(4, (40,), generator=generator)
    found = Categorical().doubts(mean, y)
    assert found.shape == (40, 1)
    for p, label, doubt in zip(mean.tolist(), y.tolist(), found[:, 0].tolist(), strict=True):
        other = max(p[c] for c in range(4) if c != label)
        assert doubt == pytest.approx(math.log(other / p[label]))
    assert torch.equal(found[:, 0] > 0, mean.argmax(1) != y)


@pytest.mark.parametrize("width", [1, 3])
def test_each_yes_or_no_is_doubted_by_itself(width: int, generator: Generator):
    mean = torch.rand(30, width, generator=generator).double()
    y = torch.randint(2, (30, width), generator=generator).float()
    found = Bernoulli().doubts(mean, y)
    for i in range(30):
        for j in range(width):
            p = float(mean[i, j]) if y[i, j] else 1 - float(mean[i, j])
            assert float(found[i, j]) == pytest.approx(math.log((1 - p) / p))
    assert torch.equal(found > 0, (mean > 0.5).double() != y.double())
    if width == 1:
        assert torch.equal(Bernoulli().doubts(mean, y[:, 0]), found)


def test_numbers_are_doubted_by_half_of_the_squared_residual(generator: Generator):
    mean = torch.randn(20, 2, generator=generator).double()
    y = torch.randn(20, 2, generator=generator)
    for sigma in (1.0, 3.0):
        found = Gaussian(sigma).doubts(mean, y)
        for i in range(20):
            total = sum((float(y[i, j]) - float(mean[i, j])) ** 2 for j in range(2))
            assert float(found[i, 0]) == pytest.approx(0.5 * total / sigma**2)


def test_counts_are_doubted_by_half_of_the_squared_residual_over_the_rate(generator: Generator):
    mean = torch.rand(20, 2, generator=generator).double() + 0.1
    y = torch.randint(5, (20, 2), generator=generator).float()
    found = Poisson().doubts(mean, y)
    for i in range(20):
        parts = [(float(y[i, j] - mean[i, j])) ** 2 / float(mean[i, j]) for j in range(2)]
        assert float(found[i, 0]) == pytest.approx(0.5 * sum(parts))


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_certainty_leaves_doubts_finite(likelihood: Any):
    mean = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
    y = torch.tensor([0, 1])
    y = y if isinstance(likelihood, Categorical) else torch.eye(2)[y]
    found = likelihood.doubts(mean, y)
    assert bool(found.isfinite().all())
    assert bool((found[0] < 0).all())
    assert bool((found[1] > 0).all())


def test_which_likelihoods_name_classes_and_sum_labels():
    names = [one.names_classes for one in (Categorical(), Bernoulli(), Gaussian(), Poisson())]
    assert names == [True, True, False, False]

    def several(likelihood: Any, mean: Tensor) -> bool:
        return likelihood.sums_labels(mean)

    assert several(Bernoulli(), torch.zeros(4, 2))
    assert not several(Bernoulli(), torch.zeros(4, 1))
    assert not several(Categorical(), torch.zeros(4, 2))
