from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss, roc_curve
from torch import Generator, distributions

from afterfit.evaluate import (
    EqualMass,
    EqualWidth,
    accuracy,
    auc,
    bootstrap,
    bootstrap_rows,
    brier_score,
    crps,
    expected_calibration_error,
    false_positive_rate,
    gaussian_negative_log_likelihood,
    interval_coverage,
    maximum_calibration_error,
    negative_log_likelihood,
    reliability,
)

unhurried = settings(deadline=None, max_examples=40)


def drawn(seed, num=60, classes=4):
    generator = Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, classes, dtype=torch.float64, generator=generator)
    return logits.softmax(1), torch.randint(classes, (num,), generator=generator)


def ece_by_loops(probabilities, y, edges):
    """The definition, one sample and one bin at a time."""
    total, worst = 0.0, 0.0
    for low, high in pairwise(edges):
        inside = []
        for row, label in zip(probabilities.tolist(), y.tolist(), strict=True):
            top = max(row)
            if low < top <= high or (low == 0 and top == 0):
                inside.append((top, float(row.index(top) == label)))
        if inside:
            sure, right = np.array(inside).mean(0)
            total += len(inside) * abs(sure - right)
            worst = max(worst, abs(sure - right))
    return total / len(y), worst


@unhurried
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_calibration_errors_are_those_of_the_definition(seed, num_bins):
    probabilities, y = drawn(seed)
    edges = [i / num_bins for i in range(num_bins + 1)]
    expected, worst = ece_by_loops(probabilities, y, edges)
    binning = EqualWidth(num_bins)
    assert expected_calibration_error(probabilities, y, binning) == pytest.approx(expected)
    assert maximum_calibration_error(probabilities, y, binning) == pytest.approx(worst)


@unhurried
@given(st.integers(0, 10_000))
def test_scores_agree_with_scikit_learn(seed):
    probabilities, y = drawn(seed)
    names = list(range(4))
    expected = log_loss(y.numpy(), probabilities.numpy(), labels=names)
    assert negative_log_likelihood(probabilities, y) == pytest.approx(expected)
    by_class = [brier_score_loss((y == k).numpy(), probabilities[:, k].numpy()) for k in names]
    assert brier_score(probabilities, y) == pytest.approx(sum(by_class))
    right = (probabilities.argmax(1) == y).double().mean()
    assert accuracy(probabilities, y) == pytest.approx(float(right))


def test_a_confidence_of_one_belongs_to_the_last_bin_and_an_edge_to_the_bin_below():
    confidence = torch.tensor([0.0, 0.5, 0.500001, 1.0])
    found = reliability(confidence, torch.tensor([False, True, True, True]), EqualWidth(2))
    assert found.counts.tolist() == [2, 2]
    assert found.accuracy.tolist() == [0.5, 1.0]
    sure = torch.eye(3)
    assert expected_calibration_error(sure, torch.arange(3)) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 2, 0])) == 1


def test_bins_of_equal_mass_hold_as_many_samples_and_part_no_ties():
    confidence = torch.rand(100, generator=Generator().manual_seed(0), dtype=torch.float64)
    right = torch.ones(100, dtype=torch.bool)
    assert reliability(confidence, right, EqualMass(10)).counts.tolist() == [10] * 10
    tied = torch.cat([torch.full((70,), 0.6), torch.full((30,), 0.9)])
    found = reliability(tied, right, EqualMass(4))
    assert sorted(found.counts.tolist()) == [0, 0, 30, 70]
    assert found.confidence[found.counts == 70] == pytest.approx(0.6)


def test_predictions_that_keep_their_promise_have_a_small_error_and_too_sure_ones_a_gap(generator):
    confidence = 0.5 + 0.5 * torch.rand(50_000, generator=generator, dtype=torch.float64)
    kept = torch.rand(50_000, generator=generator, dtype=torch.float64) < confidence
    assert reliability(confidence, kept).expected_error < 0.02
    broken = torch.rand(50_000, generator=generator, dtype=torch.float64) < confidence - 0.2
    found = reliability(confidence, broken, EqualMass(10))
    assert found.expected_error == pytest.approx(0.2, abs=0.02)
    assert bool((found.gaps > 0.1).all())


def test_empty_bins_count_nothing():
    found = reliability(torch.tensor([0.95, 0.99]), torch.tensor([True, False]), EqualWidth(10))
    assert found.counts.tolist() == [0] * 9 + [2]
    assert found.confidence[:9].isnan().all()
    assert found.expected_error == pytest.approx(abs(0.97 - 0.5), abs=1e-6)


@unhurried
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_the_false_positive_rate_is_read_off_the_roc_curve(seed, recall):
    generator = Generator().manual_seed(seed)
    positives = torch.arange(40) < 15
    scores = torch.randint(8, (40,), generator=generator).double() + positives
    passed, found, _ = roc_curve(positives, scores, drop_intermediate=False)
    expected = passed[found >= recall - 1e-9].min()
    assert false_positive_rate(scores, positives, recall) == pytest.approx(expected)


def test_the_false_positive_rate_of_separated_scores_is_zero_and_of_reversed_ones_one():
    scores, positives = torch.arange(40.0), torch.arange(40) >= 20
    assert false_positive_rate(scores, positives) == 0
    assert false_positive_rate(-scores, positives) == 1


@unhurried
@given(st.floats(-3, 3), st.floats(0.1, 3), st.floats(-5, 5))
def test_crps_is_the_integral_of_its_definition(mean, std, y):
    def squared(t):
        return (norm.cdf(t, mean, std) - (t >= y)) ** 2

    low = quad(squared, mean - 40, y)[0]
    high = quad(squared, y, mean + 40)[0]
    rows = [torch.tensor([value], dtype=torch.float64) for value in (mean, std, y)]
    assert crps(*rows) == pytest.approx(low + high, abs=1e-5)


def test_gaussian_scores_follow_their_distributions(generator):
    mean = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    std = 0.5 + torch.rand(20_000, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    y = mean + std * noise
    expected = -distributions.Normal(mean, std).log_prob(y).mean()
    assert gaussian_negative_log_likelihood(mean, std, y) == pytest.approx(float(expected))
    for level in (0.5, 0.95):
        error = 5 * (level * (1 - level) / 40_000) ** 0.5
        assert interval_coverage(mean, std, y, level) == pytest.approx(level, abs=error)
    assert interval_coverage(mean, std / 2, y) < 0.75
    assert crps(mean, std, y) < crps(mean, 3 * std, y)


def test_the_bootstrap_of_rows_has_the_error_of_a_mean(generator):
    probabilities, y = drawn(3, num=400)
    estimate = bootstrap_rows(negative_log_likelihood, probabilities, y, 400, generator)
    column = -probabilities.gather(1, y[:, None]).log()
    expected = float(column.std() / 20)
    assert estimate.value == pytest.approx(float(column.mean()))
    assert estimate.stderr == pytest.approx(expected, rel=0.15)
    bound = partial(expected_calibration_error, binning=EqualMass(5))
    assert bootstrap_rows(bound, probabilities, y, 50, generator).stderr > 0


def test_detection_takes_the_bootstrap_of_attribution(generator):
    familiar = torch.arange(200) < 100
    confidence = torch.randn(200, generator=generator) + familiar
    for metric in (auc, false_positive_rate):
        estimate = bootstrap(metric, confidence, familiar, 50, generator)
        assert estimate.value == metric(confidence, familiar)
        assert 0 < estimate.stderr < 0.2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, y: negative_log_likelihood(3 * p, y), "softmax"),
        (lambda p, y: brier_score(p.log(), y), "softmax"),
        (lambda p, y: expected_calibration_error(p, y + 2), "there are 4 probabilities"),
        (lambda p, y: reliability(p.log()[:, 0], y == 0), "not logits"),
        (lambda p, y: EqualMass(0), "at least 1"),
        (lambda p, y: EqualWidth(-3), "at least 1"),
        (lambda p, y: interval_coverage(p, p, p, 95), "between 0 and 1"),
        (lambda p, y: crps(p, -p, p), "above 0"),
        (lambda p, y: false_positive_rate(p[:, 0], y >= 0), "at least one each"),
        (lambda p, y: false_positive_rate(p[:, 0], y == 0, 95), "at most 1"),
        (lambda p, y: false_positive_rate(p[:, 0] * torch.nan, y == 0), "NaN"),
        (lambda p, y: bootstrap_rows(accuracy, p, y, 1, Generator()), "at least 2"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call(*drawn(0))
