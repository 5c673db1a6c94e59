import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from afterfit.evaluate import (
    auc,
    average_precision,
    bootstrap,
    bootstrap_interval,
    inspection_curve,
    precision_at,
    recall_at,
)

unhurried = settings(deadline=None)  # the machine may be busy


@st.composite
def scored(draw, most=12):
    """Few distinct scores, so that there are ties, and both classes."""
    num = draw(st.integers(2, most))
    scores = draw(st.lists(st.integers(0, 4), min_size=num, max_size=num))
    positives = draw(st.lists(st.booleans(), min_size=num, max_size=num))
    positives[0], positives[1] = True, False
    return torch.tensor(scores, dtype=torch.float64) / 7, torch.tensor(positives)


def overlapping(num, generator):
    positives = torch.arange(num) < num // 5
    scores = torch.randn(num, generator=generator) + positives
    return scores, positives


@settings(unhurried)
@given(scored())
def test_auc_is_the_share_of_pairs_in_the_right_order(case):
    scores, positives = case
    pairs = itertools.product(scores[positives].tolist(), scores[~positives].tolist())
    won = [1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs]
    assert auc(scores, positives) == pytest.approx(sum(won) / len(won))


@settings(unhurried)
@given(scored(most=40))
def test_auc_and_average_precision_agree_with_scikit_learn(case):
    scores, positives = case
    assert auc(scores, positives) == pytest.approx(roc_auc_score(positives, scores))
    expected = average_precision_score(positives, scores)
    assert average_precision(scores, positives) == pytest.approx(expected)


@settings(unhurried)
@given(scored())
def test_auc_of_negated_scores_is_the_rest_to_one(case):
    scores, positives = case
    assert auc(-scores, positives) == pytest.approx(1 - auc(scores, positives))


def test_constant_scores_know_nothing():
    scores, positives = torch.zeros(10), torch.arange(10) < 3
    assert auc(scores, positives) == 0.5
    assert average_precision(scores, positives) == pytest.approx(0.3)
    assert precision_at(scores, positives, 4) == pytest.approx(0.3)


@settings(unhurried, max_examples=25)
@given(scored(most=6), st.data())
def test_ties_at_the_cut_count_as_the_mean_over_all_orders(case, data):
    scores, positives = case
    budget = data.draw(st.integers(1, len(scores)))
    found = []
    for order in itertools.permutations(range(len(scores))):
        ranked = sorted(order, key=lambda place: -scores[place].item())  # a stable sort
        found.append(sum(positives[place].item() for place in ranked[:budget]))
    mean = sum(found) / len(found)
    assert precision_at(scores, positives, budget) == pytest.approx(mean / budget)
    assert recall_at(scores, positives, budget) == pytest.approx(mean / positives.sum().item())


@settings(unhurried)
@given(scored())
def test_inspection_curve_holds_the_recall_of_every_budget(case):
    scores, positives = case
    inspected, found = inspection_curve(scores, positives)
    num = len(scores)
    assert inspected.tolist() == pytest.approx([place / num for place in range(num + 1)])
    recalls = [recall_at(scores, positives, budget) for budget in range(1, num + 1)]
    assert found.tolist() == pytest.approx([0.0, *recalls])
    assert found[-1] == 1


@pytest.mark.parametrize("budget", [0, -1, 5])
def test_a_budget_outside_the_samples_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget is {budget}, expected between 1 and 4"):
        precision_at(torch.arange(4.0), torch.arange(4) < 2, budget)


@pytest.mark.parametrize("metric", [auc, average_precision, inspection_curve])
@pytest.mark.parametrize(
    ("scores", "positives", "complaint"),
    [
        ([1.0, math.nan, 3.0], [True, False, False], "NaN at 1 of 3 places, first at 1"),
        ([1.0, 2.0], [True, True], "positives mark 2 of 2 samples"),
        ([1.0, 2.0], [False, False], "positives mark 0 of 2 samples"),
    ],
)
def test_input_without_an_answer_is_refused(metric, scores, positives, complaint):
    with pytest.raises(ValueError, match=complaint):
        metric(torch.tensor(scores), torch.tensor(positives))


def test_infinite_scores_are_ranked_like_any_other():
    scores = torch.tensor([math.inf, 1.0, -math.inf])
    assert auc(scores, torch.tensor([True, False, False])) == 1


@pytest.mark.parametrize("metric", [auc, average_precision, partial(recall_at, budget=20)])
def test_bootstrap_value_is_the_metric_of_the_data(metric, generator):
    scores, positives = overlapping(100, generator)
    estimate = bootstrap(metric, scores, positives, 20, generator)
    assert estimate.value == metric(scores, positives)
    assert estimate.num_probes == 20


def test_bootstrap_error_agrees_with_hanley_and_mcneil(generator):
    scores, positives = overlapping(600, generator)
    estimate = bootstrap(auc, scores, positives, 400, generator)

    # Exact variance of the AUC from the placements of DeLong, DeLong and Clarke-Pearson (1988).
    above = (scores[positives][:, None] > scores[~positives][None, :]).double()
    variance = above.mean(1).var() / positives.sum() + above.mean(0).var() / (~positives).sum()
    assert estimate.stderr == pytest.approx(variance.sqrt().item(), rel=0.15)


def test_bootstrap_error_falls_with_the_root_of_the_number_of_samples(generator):
    errors = [
        bootstrap(auc, *overlapping(num, generator), 300, generator).stderr for num in (250, 4000)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


def test_every_resample_keeps_the_size_of_both_classes(generator):
    scores, positives = overlapping(50, generator)
    seen = []

    def spy(scores, positives):
        seen.append((len(scores), int(positives.sum())))
        return 0.0

    bootstrap(spy, scores, positives, 10, generator)
    assert set(seen) == {(50, 10)}


def test_every_resample_keeps_scores_and_truth_together(generator):
    positives = torch.rand(40, generator=generator) < 0.4
    low, high = bootstrap_interval(auc, positives.double(), positives, 50, generator)
    assert low == high == 1


def test_the_same_seed_gives_the_same_interval():
    scores, positives = overlapping(80, torch.Generator().manual_seed(3))
    intervals = {
        bootstrap_interval(auc, scores, positives, 50, torch.Generator().manual_seed(1))
        for _ in range(2)
    }
    assert len(intervals) == 1


def test_a_higher_level_gives_an_interval_around_the_lower_one():
    scores, positives = overlapping(80, torch.Generator().manual_seed(3))
    narrow, wide = (
        bootstrap_interval(
            auc, scores, positives, 200, torch.Generator().manual_seed(1), level=level
        )
        for level in (0.5, 0.99)
    )
    assert wide[0] < narrow[0] < auc(scores, positives) < narrow[1] < wide[1]


def test_a_level_in_percent_is_refused(generator):
    scores, positives = overlapping(20, generator)
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap_interval(auc, scores, positives, 10, generator, level=95.0)


def test_one_resample_has_no_spread_and_is_refused(generator):
    scores, positives = overlapping(20, generator)
    with pytest.raises(ValueError, match="num_resamples is 1"):
        bootstrap(auc, scores, positives, 1, generator)


def test_bootstrap_leaves_the_global_random_state(generator, random_state_is_kept):
    bootstrap(auc, *overlapping(30, generator), 5, generator)
