import pytest
import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor

from afterfit.evaluate import (
    Retrainings,
    auc,
    detection,
    drawn_subsets,
    linear_datamodeling_difference,
    linear_datamodeling_interval,
    linear_datamodeling_score,
    subset_effects,
    truth_ceiling,
)


def additive(noise: float, num: int = 200) -> tuple[Tensor, Retrainings]:
    """Losses that really are sums over the samples left out, and noise of each training."""
    generator = Generator().manual_seed(0)
    scores = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    kept = drawn_subsets(30, num, generator)
    losses = (scores @ (~kept).double().T).T[:, None].expand(-1, 3, -1)
    losses = losses + noise * torch.randn(losses.shape, generator=generator)
    return scores, Retrainings(kept, losses, torch.full_like(losses, torch.nan))


def test_the_truth_itself_scores_one_and_its_negative_minus_one():
    scores, truth = additive(0.0)
    assert torch.allclose(linear_datamodeling_score(scores, truth), torch.ones(5).double())
    assert torch.allclose(linear_datamodeling_score(-scores, truth), -torch.ones(5).double())


def test_it_is_spearmans_correlation_over_the_subsets():
    _, truth = additive(2.0)
    other = torch.randn(5, 30, generator=Generator().manual_seed(1), dtype=torch.float64)
    for query, found in enumerate(linear_datamodeling_score(other, truth)):
        foretold = [float(other[query, ~row].sum()) for row in truth.kept]
        expected = spearmanr(foretold, truth.losses[:, :, query].mean(1).numpy())[0]
        assert float(found) == pytest.approx(float(expected))


def test_the_ceiling_is_what_perfect_knowledge_reaches():
    scores, truth = additive(3.0, num=1000)
    reached = float(linear_datamodeling_score(scores, truth).mean())
    ceiling = truth_ceiling(truth)
    assert reached < 0.95
    assert ceiling.highest == pytest.approx(reached, abs=0.02)
    assert ceiling.between_seeds < ceiling.reliability < ceiling.highest


def test_the_interval_holds_the_value_and_narrows_with_more_subsets():
    widths = []
    for num in (50, 800):
        scores, truth = additive(5.0, num)
        found = linear_datamodeling_interval(scores, truth, 50, Generator().manual_seed(0))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


def test_the_difference_on_the_same_resamples_sees_what_two_intervals_do_not():
    scores, truth = additive(5.0, 60)
    worse = scores + 0.5 * torch.randn(5, 30, generator=Generator().manual_seed(2)).double()
    alone = [
        linear_datamodeling_interval(s, truth, 50, Generator().manual_seed(0))
        for s in (scores, worse)
    ]
    more = linear_datamodeling_difference(scores, worse, truth, 50, Generator().manual_seed(0))
    assert more.value == pytest.approx(alone[0].value - alone[1].value)
    assert more.high - more.low < min(one.high - one.low for one in alone)
    same = linear_datamodeling_difference(scores, scores, truth, 9, Generator().manual_seed(0))
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_effects_of_samples_are_found_within_their_errors():
    scores, truth = additive(1.0, num=2000)
    effect, stderr = subset_effects(truth)
    # with half of the data drawn without replacement, the others make up for a sample's absence
    expected = scores - (scores.sum(1, keepdim=True) - scores) / 29
    assert ((effect - expected).abs() < 5 * stderr).all()
    few = Retrainings(truth.kept[:1], truth.losses[:1], truth.correct[:1])
    with pytest.raises(ValueError, match="expected at least 2 subsets with every sample"):
        subset_effects(few)


def test_wrong_shapes_and_losses_are_refused():
    scores, truth = additive(0.0)
    with pytest.raises(ValueError, match=r"scores have shape \(30, 5\), expected \(5, 30\)"):
        linear_datamodeling_score(scores.T, truth)
    unknown = scores.clone()
    unknown[0, 0] = torch.nan
    with pytest.raises(ValueError, match="scores hold 1 values that are NaN"):
        linear_datamodeling_score(unknown, truth)
    broken = truth.losses.clone()
    broken[3, 1, 2] = torch.inf
    with pytest.raises(ValueError, match="loss of query 2 after training 1 on subset 3"):
        Retrainings(truth.kept, broken, truth.correct)
    with pytest.raises(ValueError, match="expected at least one sample in each subset"):
        drawn_subsets(10, 2, Generator(), share=1.0)


def test_detection_is_one_where_proponents_are_the_relevant_samples():
    relevant = torch.tensor([True, False, True, False])
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 2.0, 1.0, 3.0]])
    found = detection(scores, relevant, auc)
    assert (found.value, found.num_probes) == (0.5, 2)
    each = detection(scores, torch.stack([relevant, ~relevant]))
    assert (each.value, each.stderr) == (1.0, 0.0)
