"""Removal on a model whose trainings are exact: the mean of the targets, seen as a network."""

import pytest
import torch
from torch import Tensor, nn

from afterfit.evaluate import drawn_subsets
from afterfit.problem import Batches, Gaussian
from afterfit.workflows import brittleness, linearity, removal_curve, select, unlearning_check
from afterfit.workflows.retraining import load_retrainings, retrain_on, save_retrainings


class Means(nn.Module):
    """Says for every input the logits that it was made with."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def frequencies(data: Batches, seed: int) -> nn.Module:
    counts = torch.bincount(data.targets(), minlength=2).double() + 1
    return Means((counts / counts.sum()).log())


def votes() -> Batches:
    """Six votes for class 0 and four for class 1."""
    return Batches((torch.zeros(10, 1, dtype=torch.float64), torch.tensor([0] * 6 + [1] * 4)))


def test_a_prediction_flips_once_the_majority_is_gone():
    query = votes().subset(torch.tensor([0]))
    scores = torch.tensor([[1.0] * 6 + [-1.0] * 4])
    table = brittleness(frequencies, votes(), query, scores, counts=[1, 3, 5], seeds=[0, 1])
    assert table["flipped"].tolist() == [0.0, 1.0, 1.0]
    assert table["loss"].is_monotonic_increasing
    with pytest.raises(ValueError, match="expected numbers between 1 and 9"):
        brittleness(frequencies, votes(), query, scores, counts=[10])


def test_the_curve_falls_where_the_valuable_go_first_and_rises_where_the_harmful_do():
    query = votes().subset(torch.tensor([0, 1]))
    worth = torch.tensor([1.0] * 6 + [-1.0] * 4)
    rankings = {"valuable": worth, "harmful": -worth}
    table = removal_curve(frequencies, votes(), query, rankings, shares=[0.3], seeds=[0, 1])
    assert table["removed"].tolist() == [0, 3] * 3
    valuable, harmful = (table[table["ranking"] == name] for name in rankings)
    assert valuable["accuracy"].tolist() == [1.0, 0.0]
    assert harmful["loss"].iloc[1] < harmful["loss"].iloc[0]
    assert (table["loss_stderr"] == 0).all()
    with pytest.raises(ValueError, match="expected numbers between 0 and 1"):
        removal_curve(frequencies, votes(), query, rankings, shares=[1.5])


def test_unlearning_compares_sums_of_scores_with_training_without_the_group():
    query = votes().subset(torch.tensor([0, 9]))
    groups = [torch.tensor([0, 1]), torch.tensor([8, 9])]
    scores = 10 * torch.tensor([[0.06] * 6 + [-0.08] * 4, [-0.08] * 6 + [0.15] * 4])
    table = unlearning_check(frequencies, votes(), query, groups, scores, seeds=[0, 1])
    assert table["size"].tolist() == [2, 2]
    rise = torch.tensor([7 / 12, 5 / 12]).log() - torch.tensor([5 / 10, 5 / 10]).log()
    assert table["true"][0] == pytest.approx(float(rise.mean()), abs=1e-6)
    assert table["foretold"][0] == pytest.approx(float((scores[:, :2].sum(1) / 10).mean()))
    assert table["correlation"].tolist() == pytest.approx([1.0, 1.0])


def test_the_selected_are_the_samples_worth_most():
    scores = torch.tensor([[1.0, 5.0, -2.0, 0.0], [1.0, -1.0, -2.0, 3.0]])
    assert select(scores, 2).tolist() == [1, 3]
    with pytest.raises(ValueError, match="num is 5, expected between 1 and 4"):
        select(scores, 5)


def test_retrainings_come_back_from_their_file(tmp_path):
    kept = drawn_subsets(10, 3, torch.Generator().manual_seed(0))
    truth = retrain_on(frequencies, votes(), votes(), kept, seeds=[0])
    save_retrainings(tmp_path / "truth.safetensors", truth)
    again = load_retrainings(tmp_path / "truth.safetensors")
    assert torch.equal(again.losses, truth.losses)
    assert torch.equal(again.correct, truth.correct)
    assert torch.equal(again.kept, kept)


def test_losses_other_than_of_classes_have_no_hits():
    data = Batches((torch.zeros(4, 1), torch.ones(4, 1)))
    kept = torch.ones(1, 4, dtype=torch.bool)
    truth = retrain_on(lambda *_: nn.Linear(1, 1), data, data, kept, [0], Gaussian())
    assert truth.correct.isnan().all()
    with pytest.raises(ValueError, match="kept is for 3 samples, the data holds 4"):
        retrain_on(lambda *_: nn.Linear(1, 1), data, data, kept[:, :3], [0], Gaussian())
    with pytest.raises(ValueError, match="there are no seeds"):
        retrain_on(lambda *_: nn.Linear(1, 1), data, data, kept, [], Gaussian())


def test_the_score_that_knows_the_truth_is_closer_where_the_two_disagree():
    true = torch.arange(50.0)
    wrong = true[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    found = linearity(wrong, true, true, share=0.2)
    assert (found.nonlinear_closer, found.nonlinear) == (1.0, pytest.approx(1.0))
    assert found.interval[0] > 0.5
    assert "non-linear was closer at 100%" in str(found)
    turned = linearity(true, wrong, true, share=0.2)
    assert turned.nonlinear_closer == 0.0
    assert turned.agreement == pytest.approx(found.agreement)
    with pytest.raises(ValueError, match="nonlinear has shape"):
        linearity(true, true.where(true > 0, torch.nan), true)
