"""Scores of planted wrong labels against those of the data: a share with its interval."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Generator, Tensor

from afterfit.evaluate import planted as module
from afterfit.evaluate.planted import fit_planted

SHARES = [0.0, 0.02, 0.1, 0.4]


def mixture(share: float, seed: int, num: int = 1000, known: int = 100) -> tuple[Tensor, Tensor]:
    """Scores of planted labels, and of data of which a share is shifted by 4 like them."""
    generator = Generator().manual_seed(seed)
    planted = torch.randn(known, generator=generator).double() + 4
    data = torch.randn(num, generator=generator).double()
    data[: round(share * num)] += 4
    return planted, data


@pytest.mark.parametrize("at", [(-3.0, -4.0, 0.5), (0.5, 1.0, -1.0), (-0.2, -0.5, 1.2)])
def test_the_gradient_is_that_of_the_likelihood(at: tuple[float, float, float]):
    planted, data = mixture(0.1, 0, num=3000)
    likelihood = module._Likelihood(planted.numpy() / 2, data.numpy() / 2, 3.9)
    point = np.array(at)
    found = likelihood.value(point)[1]
    for k, step in enumerate(np.eye(3) * 1e-6):
        slope = (likelihood.value(point + step)[0] - likelihood.value(point - step)[0]) / 2e-6
        assert found[k] == pytest.approx(slope, rel=1e-5, abs=1e-4)


def test_the_interval_covers_the_true_share_in_most_mixtures():
    covered = 0
    for share in SHARES:
        for seed in range(5):
            found = fit_planted(*mixture(share, seed))
            assert 0 <= found.low <= found.share + 1e-4
            assert found.share <= found.high <= 1
            covered += found.low <= share <= found.high
    assert covered >= 15  # of 20, where 18 are expected: fewer happen once in a hundred times


@pytest.mark.parametrize("seed", range(3))
def test_where_no_label_is_wrong_the_interval_starts_at_zero(seed: int):
    found = fit_planted(*mixture(0.0, seed))
    assert found.low == 0
    assert found.high < 0.02


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_interval_narrows_with_the_number_of_samples(share: float):
    few, many = (fit_planted(*mixture(share, 0, num=num, known=num // 10)) for num in (500, 8000))
    ratio = (few.high - few.low) / (many.high - many.low)
    assert 2 < ratio < 8  # 4, as the root of the number


def likeliest_share(planted: np.ndarray, data: np.ndarray) -> float:
    """Every sample by itself, and every point of grids that close in on the best one."""
    num, known = len(data), len(planted)
    middles, widths = np.array([0.3, -5.0, 3.0]), np.array([0.299, 5.0, 2.9])
    for _ in range(5):
        axes = [m + w * np.linspace(-1, 1, 9) for m, w in zip(middles, widths, strict=True)]
        axes[0] = axes[0].clip(1e-5, 0.98)
        axes[2] = axes[2].clip(0.05)
        best = -np.inf
        for a in axes[1]:
            for b in axes[2]:
                right = np.exp(-(a + b * planted)), np.exp(-(a + b * data))
                for share in axes[0]:
                    ratio = [share + (1 - share) * part for part in right]
                    height = np.log(known / (known + num * ratio[0])).sum()
                    height += np.log1p(-known / (known + num * ratio[1])).sum()
                    if height > best:
                        best, middles = height, np.array([share, a, b])
        widths = widths * 0.4
    return float(middles[0])


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_the_share_is_the_likeliest_of_a_dense_grid(share: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_GROUPS", 128)  # so that scores are grouped here too
    planted, data = mixture(share, 3, num=500, known=60)
    expected = likeliest_share(planted.numpy(), data.numpy())
    found = fit_planted(planted, data)
    third = 0.1 * (found.high - found.low)  # of a standard error, for the prior of the slope
    assert found.share == pytest.approx(expected, abs=third)


def test_the_log_odds_are_those_of_the_two_gaussians():
    planted, data = mixture(0.1, 0, num=20_000, known=4000)
    found = fit_planted(planted, data)
    scores = torch.linspace(1, 4, 7).double()
    expected = float(np.log(0.1 / 0.9)) + 4 * scores - 8
    torch.testing.assert_close(found.log_odds(scores), expected, atol=0.5, rtol=0)
    torch.testing.assert_close(
        found.probability(scores), torch.from_numpy(expit(found.log_odds(scores).numpy()))
    )


@pytest.mark.parametrize("share", SHARES)
def test_the_log_odds_rise_with_the_score(share: float):
    planted, data = mixture(share, 1)
    for found in (fit_planted(planted, data), fit_planted(-planted, -data)):
        odds = found.log_odds(torch.linspace(-9, 9, 50))
        assert bool((odds.diff() > 0).all())
        assert bool(odds.isfinite().all())


@pytest.mark.parametrize(("scale", "shift"), [(7.0, -3.0), (1e-6, 0.0)])
def test_units_and_origin_of_the_scores_do_not_matter(scale: float, shift: float):
    planted, data = mixture(0.1, 2)
    plain = fit_planted(planted, data)
    other = fit_planted(scale * planted + shift, scale * data + shift)
    for name in ("share", "low", "high", "offset", "slope"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-3, abs=1e-5)
    torch.testing.assert_close(
        other.log_odds(scale * data + shift), plain.log_odds(data), rtol=1e-3, atol=1e-3
    )


def test_the_order_of_the_scores_does_not_matter():
    planted, data = mixture(0.1, 2)
    assert fit_planted(planted.flip(0), data.flip(0)).share == pytest.approx(
        fit_planted(planted, data).share, rel=1e-6
    )


def test_equal_and_tied_scores_are_taken():
    found = fit_planted(torch.ones(10), torch.ones(20))
    assert 0 <= found.low <= found.high <= 1
    assert bool(found.probability(torch.ones(3)).isfinite().all())
    tied = fit_planted(torch.tensor([1.0] * 10), torch.tensor([0.0] * 90 + [1.0] * 10))
    assert tied.low < 0.1 < tied.high


def test_few_scores_and_those_that_are_not_finite_are_refused():
    planted, data = mixture(0.1, 0)
    for few, many in ((planted[:7], data), (planted, data[:7])):
        with pytest.raises(ValueError, match="at least 8 finite"):
            fit_planted(few, many)
    for bad in (float("nan"), float("inf")):
        spoiled = data.clone()
        spoiled[3] = bad
        with pytest.raises(ValueError, match="1 that are not finite"):
            fit_planted(planted, spoiled)
        with pytest.raises(ValueError, match="1 that are not finite"):
            fit_planted(spoiled, data)
    fit_planted(planted[:8], data[:8])


def test_groups_that_overlap_are_not_taken_for_one():
    """Far starts lead to a plateau on which all of the data score like the planted ones."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(4000, generator=generator)
    data[:1600] += 1.2
    found = fit_planted(torch.randn(240, generator=generator) + 1.2, data)
    assert 0.2 < found.share < 0.6
    assert float(found.probability(data).std()) > 0.1


def test_no_more_are_wrong_than_is_possible():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(600, generator=generator)
    found = fit_planted(scores[:100], scores[100:], most=0.3)
    assert found.share <= 0.3 + 1e-9
    assert found.high <= 0.3 + 1e-9
