import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm

from experiments.gex.modality import _dip_statistic, dip, two_component_mixture

unhurried = settings(deadline=None)  # the machine may be busy


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


def test_dip_of_equal_values_is_not_significant(generator):
    assert dip(torch.ones(20), generator, num_draws=20).pvalue == 1


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
