"""The cut by probabilities that never fall as the score rises."""

import math

import pytest
import torch
from torch import Generator, Tensor

from afterfit.evaluate.threshold import probability_cut


def drawn(seed: int, num: int = 200) -> tuple[Tensor, Tensor]:
    """Probabilities that rise with the scores, in no order."""
    generator = Generator().manual_seed(seed)
    scores = torch.randn(num, generator=generator).double()
    return torch.sigmoid(3 * scores - 2), scores


@pytest.mark.parametrize("seed", range(3))
def test_without_a_rate_what_is_more_probably_wrong_is_flagged(seed: int):
    p, scores = drawn(seed)
    cut = probability_cut(p, scores)
    assert torch.equal(cut.is_issue, p > 0.5)
    assert torch.equal(cut.is_issue, scores > cut.threshold)
    assert cut.expected_wrong == pytest.approx(float(p.mean()))
    assert math.isnan(cut.separability)


def stated(flagged: Tensor) -> float:
    """Rate of false discoveries that the probabilities expect, with a quarter of a label more."""
    return (0.25 + float((1 - flagged).sum())) / len(flagged)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_are_flagged_as_the_rate_allows(rate: float, seed: int):
    p, scores = drawn(seed)
    cut = probability_cut(p, scores, rate)
    assert torch.equal(cut.is_issue, scores > cut.threshold)
    flagged, left = p[cut.is_issue], p[~cut.is_issue]
    if len(flagged):
        assert stated(flagged) <= rate
    for more in range(1, len(left) + 1):
        assert stated(torch.cat([flagged, left.sort(descending=True).values[:more]])) > rate


def test_the_rate_is_named_and_flags_more_as_it_rises():
    p, scores = drawn(0)
    cuts = [probability_cut(p, scores, rate) for rate in (0.05, 0.1, 0.3)]
    numbers = [int(cut.is_issue.sum()) for cut in cuts]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]
    assert "0.05" in cuts[0].name


def test_equal_probabilities_are_cut_by_the_scores():
    scores = torch.arange(8.0)
    p = torch.tensor([0.0, 0.0, 0.6, 0.6, 0.6, 0.6, 1.0, 1.0])
    assert int(probability_cut(p, scores).is_issue.sum()) == 6
    # right among the first k, and a quarter: .25, .125, .22, .26, .29, .31
    assert probability_cut(p, scores, 0.24).is_issue.nonzero()[:, 0].tolist() == [5, 6, 7]


def test_equal_scores_are_never_parted():
    scores = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    p = torch.tensor([0.0, 0.7, 0.7, 0.7, 1.0])
    assert probability_cut(p, scores).is_issue.tolist() == [False, True, True, True, True]
    scores = torch.cat([scores, torch.tensor([3.0, 4.0])])
    p = torch.tensor([0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0])
    # .25, .125, .083, then .19, .25, .29 where one, two and three of the equal ones are taken
    assert probability_cut(p, scores, 0.2).is_issue.tolist() == [False] * 4 + [True] * 3


def test_all_or_none_are_flagged_where_the_probabilities_say_so():
    scores = torch.arange(9.0)
    for rate in (None, 0.1):
        assert bool(probability_cut(torch.full((9,), 0.99), scores, rate).is_issue.all())
        assert not bool(probability_cut(torch.full((9,), 0.01), scores, rate).is_issue.any())


def test_a_few_probabilities_show_no_rate():
    sure = torch.full((2,), 1.0)
    assert not bool(probability_cut(sure, torch.arange(2.0), 0.1).is_issue.any())
    assert bool(probability_cut(sure, torch.arange(2.0)).is_issue.all())


def test_unknown_probabilities_and_rates_that_are_none_are_refused():
    p, scores = drawn(0, 5)
    p[2] = torch.nan
    for rate in (None, 0.1):
        with pytest.raises(ValueError, match="NaN"):
            probability_cut(p, scores, rate)
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            probability_cut(*drawn(0), rate)
