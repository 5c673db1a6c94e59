import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterfit.evaluate import otsu

unhurried = settings(deadline=None)  # the machine may be busy


def brute_force_otsu(values):
    """Largest between-class variance over total variance, over all cuts, by definition."""
    best = 0.0
    for cut in sorted(set(values))[:-1]:
        low = [value for value in values if value <= cut]
        high = [value for value in values if value > cut]
        share = len(low) / len(values)
        between = share * (1 - share) * (np.mean(low) - np.mean(high)) ** 2
        best = max(best, between / np.var(values))
    return best


few_values = st.lists(st.integers(0, 20), min_size=2, max_size=15)
two_groups = torch.tensor([0.0] * 5 + [1.0] * 3)


@settings(unhurried)
@given(few_values)
def test_otsu_is_the_best_of_all_cuts(values):
    found = otsu(torch.tensor(values, dtype=torch.float64))
    assert found.separability == pytest.approx(brute_force_otsu(values))


@settings(unhurried)
@given(few_values)
def test_otsu_share_above_is_that_of_its_threshold(values):
    points = torch.tensor(values, dtype=torch.float64)
    found = otsu(points)
    assert found.fraction_above == (points > found.threshold).double().mean()


@settings(unhurried)
@given(few_values, st.floats(0.1, 100), st.floats(-100, 100))
def test_otsu_moves_with_scale_and_shift(values, scale, shift):
    points = torch.tensor(values, dtype=torch.float64)
    plain, moved = otsu(points), otsu(scale * points + shift)
    assert moved.separability == pytest.approx(plain.separability, abs=1e-9)


@pytest.mark.parametrize(
    ("draw", "separability"),
    [
        (lambda u: torch.special.ndtri(u), 0.636),
        (lambda u: torch.special.ndtri(u).abs(), 0.677),
        (lambda u: torch.special.ndtri(u) ** 2, 0.651),
        (lambda u: -u.log(), 0.647),
        (lambda u: u, 0.751),
        (lambda u: torch.special.ndtri(u).exp(), 0.549),
    ],
    ids=["normal", "half-normal", "chi-square", "exponential", "uniform", "lognormal"],
)
def test_otsu_of_one_group_is_that_of_its_distribution(draw, separability, generator):
    uniform = torch.rand(400_000, generator=generator, dtype=torch.float64)
    assert otsu(draw(uniform)).separability == pytest.approx(separability, abs=0.01)


def test_otsu_of_a_normal_is_two_over_pi(generator):
    values = torch.randn(400_000, generator=generator, dtype=torch.float64)
    assert otsu(values).separability == pytest.approx(2 / math.pi, abs=0.005)


def test_otsu_parts_two_points_wholly():
    found = otsu(two_groups)
    assert (found.threshold, found.separability, found.fraction_above) == (0.5, 1.0, 3 / 8)


def test_otsu_of_equal_values_leaves_the_upper_group_empty():
    found = otsu(torch.full((6,), 0.1))
    assert (found.separability, found.fraction_above) == (0.0, 0.0)


@pytest.mark.parametrize("low", [1.0, math.nextafter(1, 2)])  # midway rounds down, then up
def test_otsu_threshold_fits_between_neighboring_floats(low):
    values = torch.tensor([low, math.nextafter(low, 2)], dtype=torch.float64)
    assert otsu(values).fraction_above == (values > otsu(values).threshold).double().mean() == 0.5


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="NaN or infinity at 1 of 5 places, first at 2"):
        otsu(torch.tensor([0.0, 1.0, wrong, 2.0, 3.0]))


def test_a_single_value_is_refused():
    with pytest.raises(ValueError, match="N >= 2"):
        otsu(torch.zeros(1))
