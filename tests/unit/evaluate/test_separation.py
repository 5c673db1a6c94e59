import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm

from afterfit.evaluate import dip, otsu, two_component_mixture
from afterfit.evaluate.separation import _dip_statistic

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


def dip_by_linear_programs(values):
    """Distance to the nearest unimodal distribution function: one program for each mode."""
    points, counts = np.unique(values, return_counts=True)
    upper = np.cumsum(counts) / len(values)
    lower = upper - counts / len(values)
    return min(nearest_with_mode(mode, points, lower, upper) for mode in range(len(points)))


def nearest_with_mode(mode, points, lower, upper):
    """Variables: G at points up to the mode from the left, at the mode and beyond, distance."""
    num = len(points)
    left, right = list(range(mode + 1)), list(range(mode + 1, num + 1))
    rows, bounds = [], []

    def at_most(terms, bound):
        row = np.zeros(num + 2)
        for place, factor in terms:
            row[place] += factor
        rows.append(row)
        bounds.append(bound)

    heights = [(k, side[k]) for k in left[:-1] for side in (lower, upper)]
    heights += [(mode, lower[mode]), (mode + 1, upper[mode])]
    heights += [(k + 1, side[k]) for k in range(mode + 1, num) for side in (lower, upper)]
    for place, height in heights:
        at_most([(place, 1), (num + 1, -1)], height)
        at_most([(place, -1), (num + 1, -1)], -height)
    for place in range(num):
        at_most([(place, 1), (place + 1, -1)], 0)
    for side, at, sign in ((left, points[: mode + 1], 1), (right, points[mode:], -1)):
        for k in range(1, len(side) - 1):
            before, after = sign / (at[k] - at[k - 1]), sign / (at[k + 1] - at[k])
            at_most([(side[k - 1], -before), (side[k], before + after), (side[k + 1], -after)], 0)
    cost = np.eye(num + 2)[-1]
    limits = [(0, 1)] * (num + 1) + [(0, None)]
    return linprog(cost, A_ub=np.array(rows), b_ub=bounds, bounds=limits).fun


@settings(unhurried, max_examples=40)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=10))
def test_dip_is_the_distance_to_the_nearest_unimodal_distribution(values):
    points = np.sort(np.array(values, dtype=np.float64))
    expected = max(dip_by_linear_programs(points), 0.5 / len(points))
    assert _dip_statistic(points) == pytest.approx(expected, abs=1e-6)


@settings(unhurried)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(0.5, 9))
def test_dip_stays_when_values_are_scaled_or_mirrored(values, scale):
    points = np.sort(np.round(values, 3))
    assert _dip_statistic(np.sort(-scale * points)) == pytest.approx(_dip_statistic(points))


def test_dip_of_evenly_spaced_values_is_the_least_possible():
    assert _dip_statistic(np.arange(50.0)) == pytest.approx(1 / 100)


def test_dip_of_two_atoms_is_a_quarter():
    assert _dip_statistic(np.repeat([0.0, 1.0], 40)) == pytest.approx(1 / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("num", "median", "upper"), [(10, 0.09778, 0.13961), (200, 0.02558, 0.03684)]
)
def test_dip_null_has_the_published_quantiles(num, median, upper, generator):
    # Table qDiptab of the R package diptest (Maechler), from a million simulations each.
    uniform = torch.rand(1000, num, generator=generator, dtype=torch.float64).sort(dim=1).values
    drawn = np.array([_dip_statistic(row) for row in uniform.numpy()])
    assert abs(np.mean(drawn > median) - 0.5) < 4 * math.sqrt(0.5 * 0.5 / 1000)
    assert abs(np.mean(drawn > upper) - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize("num", [100, 5000])
@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_dip_does_not_reject_one_mode(draw, num, generator):
    assert dip(draw(num, generator=generator), generator, num_draws=200).pvalue > 0.05


@pytest.mark.parametrize("num", [200, 5000])
def test_dip_rejects_two_normals_apart(num, generator):
    values = torch.randn(num, generator=generator) + 5 * (torch.arange(num) % 2)
    assert dip(values, generator, num_draws=200).pvalue == pytest.approx(1 / 201)


def test_dip_is_uniform_under_the_null(generator):
    pvalues = [
        dip(torch.rand(40, generator=generator), generator, num_draws=49).pvalue for _ in range(60)
    ]
    share = np.mean(np.array(pvalues) <= 0.2)
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 60)


def test_dip_of_equal_values_is_not_significant(generator):
    assert dip(torch.ones(20), generator, num_draws=20).pvalue == 1


def test_dip_leaves_the_global_random_state(generator, random_state_is_kept):
    dip(torch.rand(20, generator=generator), generator, num_draws=5)


def test_mixture_finds_the_two_gaussians_that_were_drawn(generator):
    wrong = torch.arange(8000) < 2000
    values = torch.randn(8000, generator=generator, dtype=torch.float64)
    values = torch.where(wrong, 5 + 0.5 * values, 1 + values)
    found = two_component_mixture(values)
    assert found.weights == pytest.approx((0.75, 0.25), abs=0.02)
    assert found.means == pytest.approx((1, 5), abs=0.05)
    assert found.stds == pytest.approx((1, 0.5), abs=0.05)


def test_mixture_log_likelihood_is_that_of_its_density(generator):
    values = 3 + 7 * torch.randn(500, generator=generator, dtype=torch.float64) ** 2
    found = two_component_mixture(values)
    parts = zip(found.weights, found.means, found.stds, strict=True)
    density = sum(weight * norm.pdf(values, mean, std) for weight, mean, std in parts)
    assert found.log_likelihood == pytest.approx(np.log(density).sum(), rel=1e-4)
    single = norm.logpdf(values, values.mean(), values.std(correction=0)).sum()
    gain = 2 * (found.log_likelihood - single) - 3 * math.log(500)
    assert found.bic_gain == pytest.approx(gain)


def test_mixture_posterior_is_the_rule_of_bayes(generator):
    values = torch.randn(300, generator=generator, dtype=torch.float64) + 4 * (
        torch.arange(300) < 90
    )
    found = two_component_mixture(values)
    lower, upper = (
        weight * norm.pdf(values, mean, std)
        for weight, mean, std in zip(found.weights, found.means, found.stds, strict=True)
    )
    assert found.posterior(values).tolist() == pytest.approx(upper / (lower + upper))


def test_one_gaussian_gains_nothing_from_a_second(generator):
    assert two_component_mixture(torch.randn(2000, generator=generator)).bic_gain < 0


def test_mixture_does_not_depend_on_the_order(generator):
    values = torch.randn(200, generator=generator).exp()
    order = torch.randperm(200, generator=generator)
    assert two_component_mixture(values) == two_component_mixture(values[order])


@pytest.mark.parametrize("values", [[0.1] * 10, [1.0, 2.0, 3.0]])
def test_mixture_refuses_what_has_no_two_groups(values):
    with pytest.raises(ValueError, match="expected at least 4 numbers that are not all equal"):
        two_component_mixture(torch.tensor(values))


@pytest.mark.parametrize("measure", [otsu, two_component_mixture])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(measure, wrong):
    with pytest.raises(ValueError, match="NaN or infinity at 1 of 5 places, first at 2"):
        measure(torch.tensor([0.0, 1.0, wrong, 2.0, 3.0]))


def test_a_single_value_is_refused():
    with pytest.raises(ValueError, match="N >= 2"):
        otsu(torch.zeros(1))
