"""Baselines against values computed by hand."""

import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Generator, nn

from afterfit.influence import simple
from afterfit.problem import Batches, Bernoulli, Categorical, Gaussian, PerSample, Poisson, Problem

REFUSED = (ValueError, TypeCheckError)  # shapes are caught earlier where annotations are checked


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), atol=1e-6, rtol=0)
    return True


def reading(logits, targets, likelihood, batch_size=2):
    """A problem whose outputs are its inputs, with these outputs as data."""
    net = nn.Linear(logits.shape[1], logits.shape[1], bias=False).double()
    net.load_state_dict({"weight": torch.eye(logits.shape[1], dtype=torch.float64)})
    data = Batches((logits.double(), targets), batch_size=batch_size)
    return Problem.from_module(net, likelihood), data


# Probabilities (½, ¼, ¼), (1/10, 8/10, 1/10) and (⅓, ⅓, ⅓) with labels 0, 2 and 1
CLASSES = reading(
    torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]).log(),
    torch.tensor([0, 2, 1]),
    Categorical(),
)
# Success probabilities (0.9, 0.5) and (0.2, 0.75) with targets (1, 0) and (1, 1)
SWITCHES = reading(
    torch.logit(torch.tensor([[0.9, 0.5], [0.2, 0.75]])),
    torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
    Bernoulli(),
)


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


def test_categorical_values_are_those_computed_by_hand():
    assert close(simple.loss_scores(*CLASSES), [math.log(2), math.log(10), math.log(3)])
    assert close(simple.margin_scores(*CLASSES), [-math.log(2), math.log(8), 0.0])
    assert close(simple.self_confidence_scores(*CLASSES), [0.5, 0.9, 2 / 3])
    assert close(
        simple.entropy_scores(*CLASSES),
        [entropy(0.5, 0.25, 0.25), entropy(0.1, 0.8, 0.1), math.log(3)],
    )
    norms = [math.sqrt(0.375), math.sqrt(0.01 + 0.64 + 0.81), math.sqrt(2 / 3)]
    assert close(simple.el2n_scores(*CLASSES), norms)


def test_bernoulli_values_are_those_computed_by_hand():
    odds = [max(-math.log(9), 0.0), max(math.log(4), -math.log(3))]
    assert close(simple.margin_scores(*SWITCHES), odds)
    assert close(simple.self_confidence_scores(*SWITCHES), [0.5, 0.8])
    expected = [entropy(0.9, 0.1, 0.5, 0.5), entropy(0.2, 0.8, 0.25, 0.75)]
    assert close(simple.entropy_scores(*SWITCHES), expected)
    norms = [math.sqrt(0.01 + 0.25), math.sqrt(0.64 + 0.0625)]
    assert close(simple.el2n_scores(*SWITCHES), norms)
    losses = [-math.log(0.9) - math.log(0.5), -math.log(0.2) - math.log(0.75)]
    assert close(simple.loss_scores(*SWITCHES), losses)


def test_one_bernoulli_output_takes_flat_targets():
    problem, data = reading(torch.logit(torch.tensor([[0.9], [0.2]])), torch.ones(2), Bernoulli())

    assert close(simple.self_confidence_scores(problem, data), [0.1, 0.8])
    assert close(simple.el2n_scores(problem, data), [0.1, 0.8])


def test_confident_logits_keep_their_order():
    logits = torch.tensor([[130.0, 0.0], [110.0, 0.0], [120.0, 0.0]])
    wide, data = reading(logits, torch.tensor([0, 0, 0]), Categorical())
    problem = replace(wide, params={n: p.float() for n, p in wide.params.items()})
    data = Batches((logits, data.targets()))

    for score in (
        simple.self_confidence_scores,
        simple.margin_scores,
        simple.entropy_scores,
        simple.el2n_scores,
    ):
        found = score(problem, data)
        assert found.argsort(descending=True).tolist() == [1, 2, 0]
        assert len(found.unique()) == 3


@pytest.mark.parametrize(
    "score",
    [
        simple.loss_scores,
        simple.margin_scores,
        simple.entropy_scores,
        simple.self_confidence_scores,
        simple.el2n_scores,
        simple.gradient_norm_scores,
    ],
)
def test_scores_are_finite_aligned_and_independent_of_the_batch_size(score):
    problem, data = CLASSES

    found = score(problem, data)

    assert found.shape == (3,)
    for batch_size in (1, 3):
        assert torch.allclose(score(problem, Batches(data, batch_size=batch_size)), found)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(score(problem, data.subset(order)), found[order])


@pytest.mark.parametrize("likelihood", [Gaussian(), Poisson(), PerSample(Gaussian().loss)])
@pytest.mark.parametrize(
    "score",
    [
        simple.margin_scores,
        simple.entropy_scores,
        simple.self_confidence_scores,
        simple.el2n_scores,
    ],
)
def test_likelihoods_without_label_probabilities_are_refused(score, likelihood):
    problem, data = reading(torch.ones(3, 1), torch.ones(3), likelihood)

    with pytest.raises(TypeError, match=f"{type(likelihood).__name__} has none.*loss_scores"):
        score(problem, data)
    assert simple.loss_scores(problem, data).shape == (3,)


def test_several_networks_are_averaged():
    one, data = CLASSES
    other = reading(torch.zeros(3, 3), torch.zeros(3), Categorical())[0]
    doubled = replace(other, forward=lambda params, x: 2 * other.forward(params, x))

    for score in (simple.el2n_scores, simple.gradient_norm_scores):
        mean = (score(one, data) + score(doubled, data)) / 2
        assert torch.allclose(score([one, doubled], data), mean)
        with pytest.raises(ValueError, match="no networks"):
            score([], data)


def test_gradient_norm_is_that_of_the_outer_product_of_residual_and_input():
    problem, data = CLASSES

    inputs = data.fetch(torch.arange(3)).inputs
    expected = simple.el2n_scores(problem, data) * inputs.norm(dim=1)

    assert torch.allclose(simple.gradient_norm_scores(problem, data), expected)


def test_nan_outputs_are_refused():
    problem, data = reading(torch.tensor([[0.0, torch.nan]]), torch.tensor([0]), Categorical())

    for score in (simple.margin_scores, simple.entropy_scores, simple.loss_scores):
        with pytest.raises(ValueError, match="nan"):
            score(problem, data)


# Tables ------------------------------------------------------------------------------------------


def test_mean_loss_is_over_what_was_seen():
    table = torch.tensor([[1.0, 3.0], [torch.nan, 5.0]])

    assert close(simple.mean_loss_scores(table), [2.0, 5.0])
    with pytest.raises(ValueError, match="train until all samples are seen"):
        simple.mean_loss_scores(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="inf"):
        simple.mean_loss_scores(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(REFUSED):
        simple.mean_loss_scores(torch.ones(3))


def test_area_under_the_margin_is_negated():
    trace = torch.tensor([[1.0, -2.0], [3.0, 0.0]])

    assert close(simple.aum_scores(trace), [-2.0, 1.0])
    with pytest.raises(ValueError, match="nan"):
        simple.aum_scores(torch.tensor([[torch.nan]]))
    with pytest.raises(REFUSED):
        simple.aum_scores(torch.ones(0, 4))


def test_forgetting_counts_falls_and_puts_the_never_learned_first():
    trace = torch.tensor(
        [
            [1, 0, 0, 1],
            [0, 0, 1, 1],
            [1, 0, 1, 1],
            [0, 0, 1, 1],
        ]
    ).bool()

    assert close(simple.forgetting_scores(trace), [2.0, 3.0, 0.0, 0.0])
    assert close(simple.forgetting_scores(trace[:1]), [0.0, 1.0, 1.0, 0.0])
    with pytest.raises(REFUSED):
        simple.forgetting_scores(trace.float())
    with pytest.raises(REFUSED):
        simple.forgetting_scores(trace[0])


def test_neighbors_leave_the_sample_itself_out():
    features = torch.tensor([[0.0], [0.1], [0.2], [10.0], [10.1], [10.2]])
    labels = torch.tensor([0, 0, 1, 1, 1, 1])

    assert close(simple.knn_scores(features, labels, 2), [0.5, 0.5, 1.0, 0.0, 0.0, 0.0])
    duplicated = torch.zeros(4, 2)
    alone = torch.tensor([0, 1, 1, 1])
    assert float(simple.knn_scores(duplicated, alone, 3)[0]) == 1


def test_unusable_neighbors_are_refused():
    features, labels = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)

    for num_neighbors in (0, 4):
        with pytest.raises(ValueError, match=f"num_neighbors is {num_neighbors}"):
            simple.knn_scores(features, labels, num_neighbors)
    with pytest.raises(ValueError, match="nan"):
        simple.knn_scores(features * torch.nan, labels, 1)
    for wrong in (labels[:3], labels.float(), labels[:, None]):
        with pytest.raises(REFUSED):
            simple.knn_scores(features, wrong, 1)


# Confident learning ------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]])
LABELS = torch.tensor([0, 1, 1])


def test_confident_learning_is_margin_and_self_confidence_of_held_out_probabilities():
    margins = simple.confident_learning_scores(PROBABILITIES, LABELS)
    confidence = simple.held_out_confidence_scores(PROBABILITIES, LABELS)

    assert close(margins, [0.25, 0.85, 0.55])
    assert close(confidence, [0.3, 0.9, 0.7])


@pytest.mark.against
def test_confident_learning_agrees_with_cleanlab():
    rank = pytest.importorskip("cleanlab.rank")
    generator = Generator().manual_seed(0)
    probabilities = torch.randn(50, 4, generator=generator, dtype=torch.float64).softmax(-1)
    labels = torch.arange(50) % 4

    pair = labels.numpy(), probabilities.numpy()
    margin = rank.get_normalized_margin_for_each_label(*pair)
    confidence = rank.get_self_confidence_for_each_label(*pair)

    assert close(1 - simple.confident_learning_scores(probabilities, labels), margin)
    assert close(1 - simple.held_out_confidence_scores(probabilities, labels), confidence)


def test_what_is_no_probability_is_refused():
    for wrong in (PROBABILITIES.log(), 2 * PROBABILITIES, PROBABILITIES * torch.nan):
        with pytest.raises(ValueError, match="expected probabilities"):
            simple.confident_learning_scores(wrong, LABELS)
    with pytest.raises(ValueError, match="labels range from 0 to 3, expected 0 to 2"):
        simple.confident_learning_scores(PROBABILITIES, torch.tensor([0, 1, 3]))
    with pytest.raises(REFUSED):
        simple.confident_learning_scores(PROBABILITIES, LABELS[:2])


def folds_seen(num_folds, seed=0, num=11):
    """Training parts and probabilities of a network that tells how much data it was given."""
    parts = []

    def train_network(data):
        parts.append(data)
        number = torch.tensor(float(data.num_samples))
        net = nn.Linear(1, 2)
        problem = Problem.from_module(net, Categorical())

        def forward(params, inputs):
            return torch.stack([inputs[:, 0] / 100, number.expand(len(inputs)).log()], dim=1)

        return Problem(forward, problem.likelihood, problem.params, problem.buffers, forward)

    data = Batches((torch.arange(num)[:, None].float(), torch.arange(num) // 8), batch_size=3)
    generator = Generator().manual_seed(seed)
    found = simple.cross_validated_probabilities(train_network, data, num_folds, generator)
    return parts, found


@pytest.mark.parametrize("num_folds", [2, 3, 11])
def test_every_sample_is_predicted_once_by_a_network_that_has_not_seen_it(num_folds):
    parts, found = folds_seen(num_folds)

    assert len(parts) == num_folds
    left_out = [set(range(11)) - set(part.ids) for part in parts]
    assert sorted(i for fold in left_out for i in fold) == list(range(11))
    odds = (found[:, 0] / found[:, 1]).log()
    for part, fold in zip(parts, left_out, strict=True):
        for i in fold:
            assert float(odds[i]) == pytest.approx(i / 100 - math.log(part.num_samples), abs=1e-4)


def test_folds_hold_alike_many_of_each_class_and_follow_the_generator():
    parts, found = folds_seen(3)

    assert [int((part.targets() == 1).sum()) for part in parts] == [2, 2, 2]
    assert torch.equal(found, folds_seen(3)[1])
    assert [part.ids for part in parts] != [part.ids for part in folds_seen(3, seed=1)[0]]


def test_unusable_folds_are_refused():
    for num_folds in (1, 12):
        with pytest.raises(ValueError, match=f"num_folds is {num_folds}"):
            folds_seen(num_folds)
    problem, data = reading(torch.ones(4, 1), torch.ones(4), Gaussian())
    with pytest.raises(TypeError, match="Gaussian has none"):
        simple.cross_validated_probabilities(lambda _: problem, data, 2, Generator())
