import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterfit.evaluate import budget_cut, otsu, otsu_cut
from afterfit.evaluate.threshold import signed_sqrt

CUTS = [otsu_cut, partial(budget_cut, budget=3)]
every_cut = pytest.mark.parametrize("cut", CUTS, ids=["otsu", "budget"])
many_scores = st.lists(st.integers(0, 9), min_size=4, max_size=30)

unhurried = settings(deadline=None)  # the machine may be busy


def two_groups(num, generator):
    """Scores whose square roots are two overlapping Gaussians, and which are of the upper one."""
    wrong = torch.arange(num) < num // 5
    roots = torch.randn(num, generator=generator, dtype=torch.float64)
    return (torch.where(wrong, 7.5 + roots, 4 + roots)).clamp(min=0) ** 2, wrong


@settings(unhurried, max_examples=60)
@given(scores=many_scores)
@every_cut
def test_what_is_flagged_lies_above_the_threshold_and_nothing_else(cut, scores):
    values = torch.tensor(scores, dtype=torch.float64) / 3
    found = cut(values)
    assert torch.equal(found.is_issue, values > found.threshold)
    assert math.isfinite(found.threshold)
    assert 0 <= found.expected_wrong <= 1
    assert 0 <= found.separability <= 1


@every_cut
def test_equal_scores_flag_nothing(cut):
    found = cut(torch.full((10,), 0.1))
    assert not found.is_issue.any()
    assert (found.expected_wrong, found.separability) == (0.0, 0.0)


def test_equal_scores_flag_nothing_even_with_a_budget_for_all():
    assert not budget_cut(torch.ones(4), budget=4).is_issue.any()


@every_cut
def test_order_of_the_samples_does_not_matter(cut, generator):
    scores, _ = two_groups(500, generator)
    order = torch.randperm(500, generator=generator)
    assert torch.equal(cut(scores).is_issue[order], cut(scores[order]).is_issue)


@every_cut
def test_units_of_the_scores_do_not_matter(cut, generator):
    scores, _ = two_groups(500, generator)
    assert torch.equal(cut(scores).is_issue, cut(1000 * scores).is_issue)


@every_cut
def test_scores_in_single_precision_are_flagged_alike(cut, generator):
    scores = two_groups(500, generator)[0].float()
    assert torch.equal(cut(scores).is_issue, cut(scores.double()).is_issue)


@every_cut
def test_scores_without_a_number_are_refused(cut):
    with pytest.raises(ValueError, match="1 of 5 scores are not finite"):
        cut(torch.tensor([0.0, 1.0, math.nan, 4.0, 9.0]))


@every_cut
def test_scores_below_zero_are_cut_too(cut):
    found = cut(torch.tensor([-0.2, -0.1, 0.0, 0.1, 0.2, 8.0, 8.2, 8.4], dtype=torch.float64))
    assert found.is_issue.tolist() == [False] * 5 + [True] * 3


def test_otsu_cut_is_that_of_the_square_roots(generator):
    scores, _ = two_groups(1000, generator)
    found, split = otsu_cut(scores), otsu(scores.sqrt())
    assert found.separability == split.separability
    assert torch.equal(found.is_issue, scores.sqrt() > split.threshold)


def test_another_transform_moves_the_cut(generator):
    scores, _ = two_groups(1000, generator)
    plain = otsu_cut(scores, transform=lambda values: values)
    assert plain.threshold > otsu_cut(scores).threshold


def test_signed_sqrt_undoes_a_signed_square():
    values = torch.linspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(signed_sqrt(values * values.abs()), values)


@settings(unhurried, max_examples=60)
@given(many_scores, st.data())
def test_a_budget_is_spent_as_far_as_ties_allow(scores, data):
    values = torch.tensor(scores, dtype=torch.float64)
    budget = data.draw(st.integers(0, len(scores)))
    flagged = int(budget_cut(values, budget).is_issue.sum())
    sizes = [int((values >= value).sum()) for value in values]
    reachable = [size for size in sizes if size <= budget] if len(set(scores)) > 1 else []
    assert flagged == max(reachable, default=0)


@pytest.mark.parametrize("budget", [-1, 5])
def test_a_budget_that_cannot_be_spent_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}, expected between 0 and 4"):
        budget_cut(torch.arange(4.0), budget)
