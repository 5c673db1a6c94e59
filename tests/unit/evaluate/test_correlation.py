import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from torch import Generator

from afterfit.evaluate import granulated, granulated_interval, kendall, kendall_interval

unhurried = settings(deadline=None, max_examples=60)
columns = st.lists(st.integers(0, 6), min_size=3, max_size=12)


def grid(width=(4, 8), rate=(0.1, 0.2, 0.4), decay=(0.0, 1.0)):
    rows = list(itertools.product(width, rate, decay))
    return {name: [row[i] for row in rows] for i, name in enumerate(("width", "rate", "decay"))}


@unhurried
@given(st.data())
def test_kendall_agrees_with_scipy(data):
    first = data.draw(columns)
    second = data.draw(st.lists(st.integers(0, 6), min_size=len(first), max_size=len(first)))
    expected = kendalltau(first, second).statistic
    found = kendall(*(torch.tensor(c, dtype=torch.float64) for c in (first, second)))
    assert found == pytest.approx(expected, nan_ok=True)


def granulated_by_loops(measure, target, axes):
    """Equations (3) and (4) of Jiang et al. 2020, one pair at a time."""
    psi = {}
    for name in axes:
        lines = {}
        for i in range(len(measure)):
            key = tuple(axes[other][i] for other in axes if other != name)
            lines.setdefault(key, []).append(i)
        taus = []
        for line in lines.values():
            signs = [
                np.sign(measure[i] - measure[j]) * np.sign(target[i] - target[j])
                for i, j in itertools.permutations(line, 2)
            ]
            taus.append(np.mean(signs))
        psi[name] = np.mean(taus)
    return np.mean(list(psi.values())), psi


@unhurried
@given(st.integers(0, 10_000))
def test_granulated_is_the_loop_over_lines_and_pairs(seed):
    generator = np.random.default_rng(seed)
    axes = grid()
    measure, target = generator.integers(0, 6, (2, 12)).astype(float)
    value, psi = granulated_by_loops(measure, target, axes)
    found = granulated(torch.from_numpy(measure), torch.from_numpy(target), axes)
    assert found.value == pytest.approx(value)
    assert found.by_axis == pytest.approx(psi)


def test_granulated_sees_what_kendall_misses():
    """The measure follows the width, as the target does, but is wrong about weight decay."""
    axes = grid()
    width, decay = (torch.tensor(axes[name], dtype=torch.float64) for name in ("width", "decay"))
    rate = torch.tensor(axes["rate"], dtype=torch.float64)
    target = 10 * width + decay + rate
    measure = 10 * width - decay + rate
    assert kendall(measure, target) > 0.4
    found = granulated(measure, target, axes)
    assert found.by_axis["width"] == 1
    assert found.by_axis["decay"] == -1
    assert granulated(target.exp2(), target, axes).value == 1


def test_an_incomplete_grid_compares_what_it_can_and_a_constant_axis_is_left_out():
    axes = {"rate": [1, 1, 2], "decay": [0, 1, 0], "width": [4, 4, 4]}
    found = granulated(torch.tensor([1.0, 2, 0]), torch.tensor([1.0, 2, 3]), axes)
    assert found.by_axis == {"rate": -1, "decay": 1}
    with pytest.raises(ValueError, match="use kendall"):
        granulated(torch.rand(2), torch.rand(2), {"a": [0, 1], "b": [0, 1]})


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of two normal columns with correlation ρ, τ is 2/π arcsin ρ."""
    generator, truth, held = Generator().manual_seed(1), 2 / np.pi * np.arcsin(0.6), 0
    for _ in range(100):
        first = torch.randn(40, generator=generator, dtype=torch.float64)
        noise = torch.randn(40, generator=generator, dtype=torch.float64)
        found = kendall_interval(first, 0.6 * first + 0.8 * noise, 200, generator, level=0.9)
        held += found.low <= truth <= found.high
    assert 80 <= held <= 98


def test_the_bootstrap_of_kendall_does_not_compare_copies(generator):
    """A perfect order stays perfect in every resample; ties among copies would lower it."""
    found = kendall_interval(torch.arange(10.0), torch.arange(10.0), 200, generator)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_granulated_intervals_are_wide_for_few_networks_and_reproduce():
    axes = grid()
    noise = torch.randn(2, 12, generator=Generator().manual_seed(5), dtype=torch.float64)
    first, second = (
        granulated_interval(*noise, axes, 300, Generator().manual_seed(s)) for s in (2, 2)
    )
    assert first == second
    assert set(first) == {"granulated", "width", "rate", "decay"}
    whole = first["granulated"]
    assert whole.value == granulated(*noise, axes).value
    assert whole.low < whole.value < whole.high
    assert whole.high - whole.low > 0.3
    assert "[" in str(whole)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, g: kendall(x[:1], x[:1]), "at least 2"),
        (lambda x, g: kendall(x * torch.nan, x), "measure holds NaN"),
        (lambda x, g: kendall_interval(x, x, 1, g), "at least 2"),
        (lambda x, g: kendall_interval(x, x, 20, g, level=95), "between 0 and 1"),
        (lambda x, g: granulated(x, x, {"a": [1, 2]}), "2 settings for 5"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(call, words, generator):
    with pytest.raises(ValueError, match=words):
        call(torch.rand(5, generator=generator), generator)
