"""The covariance engine: closed forms, moments, standard errors, reliability."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.evaluate import auc
from afterfit.influence import (
    LossTable,
    covariance,
    loss_there,
    product_of_means,
    there_minus_floored_here,
    there_minus_here,
    uncentered_moment,
)
from afterfit.influence.covariance import (
    cross_influence,
    cross_influence_with_stderr,
    inner,
    reliability,
    self_influence,
    self_influence_with_stderr,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
MOMENTS = (uncentered_moment, covariance, product_of_means)
every_moment = pytest.mark.parametrize("moment", MOMENTS)
every_move = pytest.mark.parametrize(
    "move", [there_minus_here, loss_there, there_minus_floored_here(0.05)]
)


def table(num: int, size: int = 5, seed: int = 0) -> LossTable:
    """Independent columns with a mean that is not zero, and heavy-tailed moves."""
    generator = Generator().manual_seed(seed)
    trained = torch.rand(size, generator=generator, dtype=torch.float64)
    noise = torch.randn(size, num, generator=generator, dtype=torch.float64)
    return LossTable(trained, trained[:, None] + (noise + 0.5).abs(), torch.arange(num))


def halves_by_hand(columns: Tensor) -> Tensor:
    return columns.square().mean(1)


# Closed forms of squared loss under Gaussian parameters ------------------------------------------

RESIDUALS = torch.tensor([0.7, -1.1, 0.0], dtype=torch.float64)
INPUTS = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.4, 0.4]], dtype=torch.float64)


def exact_nodes() -> Tensor:
    """Points of equal weight that integrate polynomials of degree 4 in two normal variables.

    Half of them at the origin, half on a circle of radius 2: E r² = 2 and E r⁴ = 8.
    """
    angles = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    circle = 2 * torch.stack([angles.cos(), angles.sin()])
    return torch.cat([circle, torch.zeros_like(circle)], 1)


def squared_losses(scale: float = 1.0) -> tuple[LossTable, Tensor]:
    """Losses ½ (r - x·δ)² where δ has the covariance Σ, and the matrix of x'Σx."""
    root = scale * torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    shifts = INPUTS @ root @ exact_nodes()
    columns = 0.5 * (RESIDUALS[:, None] - shifts).square()
    between = INPUTS @ root @ root.T @ INPUTS.T
    return LossTable(0.5 * RESIDUALS.square(), columns, torch.arange(columns.shape[1])), between


def test_second_moment_of_squared_losses_has_its_closed_form():
    found, c = squared_losses()
    s, r = c.diagonal(), RESIDUALS
    expected = r[:, None] * r * c + (s[:, None] * s + 2 * c.square()) / 4
    assert_close(
        cross_influence(found, found, there_minus_here, uncentered_moment), expected, **EXACT
    )


def test_self_influence_of_squared_losses_has_its_closed_form():
    found, c = squared_losses()
    s = c.diagonal()
    expected = RESIDUALS.square() * s + 0.75 * s.square()
    assert_close(self_influence(found, there_minus_here, uncentered_moment), expected, **EXACT)


def test_covariance_of_squared_losses_has_its_closed_form():
    found, c = squared_losses()
    num = found.columns.shape[1]
    expected = RESIDUALS[:, None] * RESIDUALS * c + c.square() / 2
    kernel = cross_influence(found, found, there_minus_here, covariance)
    assert_close(kernel * (num - 1) / num, expected, **EXACT)


def test_mean_move_of_squared_losses_has_its_closed_form():
    found, c = squared_losses()
    s = c.diagonal()
    expected = s[:, None] * s / 4
    assert_close(
        cross_influence(found, found, there_minus_here, product_of_means), expected, **EXACT
    )


def test_at_low_temperature_influence_is_the_bilinear_form():
    """The error over τ falls with τ; a sample without a gradient keeps ¾ τ² s²."""
    errors = []
    for tau in (1e-2, 1e-4):
        found, c = squared_losses(tau**0.5)
        kernel = cross_influence(found, found, there_minus_here, uncentered_moment)
        bilinear = RESIDUALS[:, None] * RESIDUALS * c
        errors.append(float((kernel - bilinear).abs().max() / tau))
        assert float(kernel[2, 2]) == pytest.approx(0.75 * float(c[2, 2]) ** 2)
    assert errors[1] == pytest.approx(errors[0] / 100, rel=1e-6)


# Moments -----------------------------------------------------------------------------------------


@every_move
def test_the_second_moment_is_covariance_plus_the_product_of_means(move: Callable):
    found = table(6)
    parts = [cross_influence(found, found, move, moment) for moment in MOMENTS]
    assert_close(parts[0], parts[1] * 5 / 6 + parts[2], **EXACT)


def test_moments_are_those_of_torch():
    found = table(7)
    moves = found.columns - found.trained[:, None]
    assert_close(
        cross_influence(found, found, there_minus_here, covariance), torch.cov(moves), **EXACT
    )
    means = moves.mean(1)
    kernel = cross_influence(found, found, there_minus_here, product_of_means)
    assert_close(kernel, torch.outer(means, means), **EXACT)
    loops = torch.stack([torch.stack([(a * b).mean() for b in moves]) for a in moves])
    assert_close(cross_influence(found, found, there_minus_here, uncentered_moment), loops, **EXACT)


def test_covariance_does_not_see_a_drift_that_all_members_share():
    found = table(6)
    drifted = replace(found, columns=found.columns + torch.arange(5.0).double()[:, None])
    for move in (there_minus_here, loss_there):
        assert_close(
            cross_influence(drifted, drifted, move, covariance),
            cross_influence(found, found, there_minus_here, covariance),
            **EXACT,
        )


def test_covariance_of_one_member_is_refused():
    with pytest.raises(ValueError, match="at least 2 members, got 1; raise members"):
        covariance(torch.ones(3, 1))


def test_moves_start_where_they_say():
    one = LossTable(
        torch.tensor([0.01, 0.2]), torch.tensor([[0.5, 1.0], [0.2, 0.1]]), torch.arange(2)
    )
    assert_close(there_minus_here(one), torch.tensor([[0.49, 0.99], [0.0, -0.1]]))
    assert_close(there_minus_floored_here(0.05)(one), torch.tensor([[0.45, 0.95], [0.0, -0.1]]))
    assert torch.equal(there_minus_floored_here(0.0)(one), there_minus_here(one))
    assert torch.equal(loss_there(one), one.columns)


def test_the_floor_turns_the_ranking_of_memorized_members_around():
    """Members as memorized as the network: the floor of 0.05 scores the surest samples highest."""
    generator = Generator().manual_seed(0)
    wrong = torch.arange(500) < 50
    trained = torch.where(wrong, 0.02, 0.002) * torch.rand(500, generator=generator)
    rise = 1 + torch.rand(500, 8, generator=generator)
    found = LossTable(trained, trained[:, None] * rise, torch.arange(8))
    assert auc(self_influence(found, there_minus_here, uncentered_moment), wrong) > 0.9
    assert (
        auc(self_influence(found, there_minus_floored_here(0.05), uncentered_moment), wrong) < 0.2
    )


# Standard errors ---------------------------------------------------------------------------------


def test_the_error_of_a_second_moment_is_that_of_a_mean():
    found = table(9)
    scores = self_influence_with_stderr(found, there_minus_here, uncentered_moment)
    squares = there_minus_here(found).square()
    assert_close(scores.value, squares.mean(1), **EXACT)
    assert_close(scores.stderr, squares.std(1) / 3, **EXACT)


@every_moment
@pytest.mark.parametrize("units", [torch.arange(8), torch.arange(8) % 4, torch.arange(8) // 3])
def test_the_jackknife_leaves_out_one_unit_at_a_time(moment: Callable, units: Tensor):
    found = replace(table(8), units=units)
    scores = self_influence_with_stderr(found, there_minus_here, moment)
    labels = units.unique().tolist()
    rows = []
    for unit in labels:
        kept = torch.tensor([u != unit for u in units.tolist()])
        rows.append(moment(there_minus_here(found)[:, kept]).square().mean(1))
    left_out, num = torch.stack(rows), len(labels)
    variance = (num - 1) / num * (left_out - left_out.mean(0)).square().sum(0)
    assert_close(scores.stderr, variance.sqrt(), **EXACT)


@every_moment
def test_the_jackknife_error_is_the_spread_over_repetitions(moment: Callable):
    scores = [
        self_influence_with_stderr(table(40, seed=s), there_minus_here, moment) for s in range(200)
    ]
    values = torch.stack([score.value for score in scores])
    told = torch.stack([score.stderr for score in scores]).square().mean(0).sqrt()
    ratio = told / values.std(0)
    assert ratio.min() > 0.75
    assert ratio.max() < 1.4


@pytest.mark.parametrize("score", ["self", "cross"])
@every_moment
def test_errors_fall_with_the_root_of_the_members(score: str, moment: Callable):
    def error(num: int) -> float:
        found = table(num)
        if score == "self":
            return float(self_influence_with_stderr(found, there_minus_here, moment).stderr.mean())
        return float(
            cross_influence_with_stderr(found, found, there_minus_here, moment).stderr.mean()
        )

    if (score, moment) == ("cross", product_of_means):
        assert math.isnan(error(100))  # one column has no spread
    else:
        assert 6 < error(50) / error(50 * 64) < 11


def test_the_error_of_a_cross_moment_is_that_of_a_mean_of_products():
    found, query = table(9), table(9, size=3, seed=1)
    scores = cross_influence_with_stderr(query, found, there_minus_here, uncentered_moment)
    products = there_minus_here(query)[:, None] * there_minus_here(found)
    assert_close(scores.value, products.mean(2), **EXACT)
    assert_close(scores.stderr, products.std(2) / 3, **EXACT)


def test_errors_of_two_units_are_not_known():
    found = table(2)
    assert bool(
        self_influence_with_stderr(found, there_minus_here, uncentered_moment).stderr.isnan().all()
    )
    cross = cross_influence_with_stderr(found, found, there_minus_here, uncentered_moment)
    assert bool(cross.stderr.isnan().all())
    assert not bool((cross.value.abs() > 2 * cross.stderr).any())


# Reliability -------------------------------------------------------------------------------------


def noise(size: int, num: int, seed: int = 0) -> Tensor:
    return torch.randn(size, num, dtype=torch.float64, generator=Generator().manual_seed(seed))


def zero_table(columns: Tensor, units: Tensor) -> LossTable:
    return LossTable(torch.zeros(len(columns)).double(), columns, units)


def test_reliability_is_one_for_equal_halves():
    columns = torch.arange(300.0).double()[:, None].expand(300, 6)
    found = zero_table(columns, torch.arange(6))
    assert reliability(found, there_minus_here, uncentered_moment) == pytest.approx(1)


def test_reliability_is_nothing_for_noise():
    found = zero_table(noise(2000, 8), torch.arange(8))
    error = 2 / 2000**0.5  # of a rank correlation of zero, stepped up
    assert abs(reliability(found, there_minus_here, uncentered_moment)) < 5 * error


@pytest.mark.parametrize("num", [5, 8])
def test_reliability_never_has_one_unit_in_both_halves(num: int):
    """Two columns of each member, as with losses='both', do not make noise agree."""
    columns = noise(2000, num)
    found = zero_table(torch.cat([columns, columns], 1), torch.arange(num).repeat(2))
    assert abs(reliability(found, there_minus_here, uncentered_moment)) < 10 / 2000**0.5


def test_reliability_is_that_of_the_whole_as_spearman_and_brown_say():
    """Twice as many members: the stepped-up half agrees with what two wholes show."""
    strength = noise(3000, 1, seed=7).exp()
    first, second = (strength * noise(3000, 8, seed) for seed in (1, 2))
    told = reliability(zero_table(first, torch.arange(8)), there_minus_here, uncentered_moment)
    ranks = [halves_by_hand(c).argsort().argsort().double() for c in (first, second)]
    seen = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    assert told == pytest.approx(seen, abs=0.03)


def test_reliability_needs_four_units_and_bears_opposite_halves():
    few = zero_table(noise(10, 6), torch.arange(6) // 2)
    assert math.isnan(reliability(few, there_minus_here, uncentered_moment))
    opposite = torch.tensor([[1.0, 2, 1, 2], [2, 1, 2, 1]]).double()
    found = reliability(zero_table(opposite, torch.arange(4)), there_minus_here, uncentered_moment)
    assert found == pytest.approx(-1)


# Tables ------------------------------------------------------------------------------------------


def test_rows_of_a_table_are_those_of_the_kernel():
    found, index = table(6), torch.tensor([4, 0])
    kernel = cross_influence(found, found, there_minus_here, covariance)
    part = cross_influence(found.rows(index), found, there_minus_here, covariance)
    assert_close(part, kernel[index], **EXACT)


def test_leaving_out_a_unit_takes_all_its_columns():
    found = replace(table(6), units=torch.tensor([0, 0, 1, 1, 2, 2]))
    left = found.without(1)
    assert torch.equal(left.columns, found.columns[:, [0, 1, 4, 5]])
    assert left.units.tolist() == [0, 0, 2, 2]


def test_the_inner_product_is_a_mean_over_columns():
    left, right = noise(3, 4), noise(5, 4, seed=1)
    assert_close(inner(left, right), (left[:, None] * right).mean(2), **EXACT)
