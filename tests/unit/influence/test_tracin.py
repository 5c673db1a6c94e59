"""Inner products of gradients against loops of autograd in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from afterfit.influence.tracin import GradientDot, TracIn, at_checkpoint, gradient_norms
from afterfit.problem import Batches, Categorical, Problem, restrict
from afterfit.problem.persample import outputs
from tests import truth
from tests.cases import CASES, Case, name_of


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def convolutional(seed=0):
    """A network with convolution and batch normalization, its statistics not the initial ones."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    state = {
        name: draws(*value.shape, seed=seed + i)
        for i, (name, value) in enumerate(net.state_dict().items())
        if value.is_floating_point()
    }
    state["1.running_var"] = state["1.running_var"].abs() + 0.5
    net.load_state_dict(state, strict=False)
    return net.eval()


def samples(num=10, batch_size=4, seed=3):
    return Batches((draws(num, 1, 4, 4, seed=seed), torch.arange(num) % 3), batch_size=batch_size)


def loop_gradients(net, data):
    """One backward pass a sample, through the module itself."""
    rows = []
    for i in range(data.num_samples):
        _, x, y = data.fetch(torch.tensor([i]))
        loss = nn.functional.cross_entropy(net(x), y)
        parts = torch.autograd.grad(loss, list(net.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def test_gradient_dot_is_a_loop_over_pairs_of_gradients():
    net, train, query = convolutional(), samples(), samples(num=5, seed=9)
    problem = Problem.from_module(net, Categorical())

    influence = GradientDot().fit(problem, train)

    expected = loop_gradients(net, query) @ loop_gradients(net, train).mT
    assert torch.allclose(influence.scores(query), expected, atol=1e-10)
    assert torch.allclose(influence.self_scores(), gradient_norms(problem, train), atol=1e-10)
    assert torch.allclose(
        gradient_norms(problem, train), loop_gradients(net, train).square().sum(1), atol=1e-10
    )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_gradient_dot_is_exact_for_every_kind_of_network_and_loss(case: Case):
    influence = GradientDot().fit(case.problem, case.data)

    rows = truth.gradients(case.problem, case.data)
    assert torch.allclose(influence.scores(case.data), rows @ rows.mT, atol=1e-9)
    assert torch.allclose(influence.self_scores(), rows.square().sum(1), atol=1e-9)


def test_tracin_is_a_loop_over_checkpoints_with_their_buffers():
    networks, rates = [convolutional(seed) for seed in (0, 20, 40)], [0.1, 0.0, 0.3]
    train, query = samples(), samples(num=5, seed=9)
    problem = Problem.from_module(convolutional(60), Categorical())

    influence = TracIn([net.state_dict() for net in networks], rates).fit(problem, train)

    pairs = [(loop_gradients(net, query), loop_gradients(net, train)) for net in networks]
    expected = sum(rate * (q @ n.mT) for rate, (q, n) in zip(rates, pairs, strict=True))
    assert torch.allclose(influence.scores(query), expected, atol=1e-10)
    assert torch.allclose(influence.self_scores(), influence.scores(train).diagonal(), atol=1e-10)


def test_without_learning_rates_checkpoints_weigh_alike_and_sum_to_one():
    net, train = convolutional(), samples()
    problem = Problem.from_module(net, Categorical())

    thrice = TracIn([net.state_dict()] * 3).fit(problem, train)

    assert torch.allclose(
        thrice.scores(train), GradientDot().fit(problem, train).scores(train), atol=1e-10
    )


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize("memory_budget", [1, 5000])
def test_scores_depend_on_neither_batch_size_nor_memory_budget(batch_size, memory_budget):
    checkpoints = [convolutional(seed).state_dict() for seed in (0, 20)]
    problem = Problem.from_module(convolutional(), Categorical())
    expected = TracIn(checkpoints).fit(problem, samples())

    found = TracIn(checkpoints, memory_budget=memory_budget).fit(
        problem, samples(batch_size=batch_size)
    )

    query = samples(num=7, batch_size=batch_size, seed=9)
    assert torch.allclose(found.scores(query), expected.scores(query), atol=1e-10)
    assert torch.allclose(found.self_scores(), expected.self_scores(), atol=1e-10)


def test_a_restricted_problem_takes_the_other_parameters_from_the_checkpoint():
    trained, checkpoint = convolutional(0), convolutional(20)
    head = restrict(Problem.from_module(trained, Categorical()), "4.*")

    moved = at_checkpoint(head, checkpoint.state_dict())

    data = samples()
    assert set(moved.params) == {"4.weight", "4.bias"}
    assert torch.allclose(outputs(moved, data), checkpoint(data.fetch(torch.arange(10)).inputs))
    last_layer = loop_gradients(checkpoint, data)[:, -27:]
    assert torch.allclose(
        gradient_norms(head, data, checkpoint.state_dict()), last_layer.square().sum(1)
    )


def test_training_at_a_checkpoint_leaves_the_checkpoint_as_it_was():
    net = convolutional()
    state = net.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    moved = at_checkpoint(Problem.from_module(convolutional(20), Categorical()), state)

    buffers = {name: value.clone() for name, value in moved.buffers.items()}
    moved.train_forward({**moved.params, **buffers}, draws(6, 1, 4, 4))
    moved.train_forward(moved.params, draws(6, 1, 4, 4))

    assert not torch.equal(buffers["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert torch.equal(moved.buffers["1.running_mean"], before["1.running_mean"])


def test_a_checkpoint_of_another_network_is_refused():
    problem = Problem.from_module(convolutional(), Categorical())
    prefixed = {f"module.{name}": value for name, value in convolutional().state_dict().items()}
    reshaped = {**convolutional().state_dict(), "4.bias": torch.zeros(4)}

    with pytest.raises(ValueError, match=r"'0\.weight' is missing.*without a prefix"):
        TracIn([prefixed]).fit(problem, samples())
    with pytest.raises(ValueError, match=r"'4\.bias' is \(4,\), expected shape \(3,\)"):
        TracIn([reshaped]).fit(problem, samples())


def test_unusable_settings_are_refused():
    problem, state = (
        Problem.from_module(convolutional(), Categorical()),
        convolutional().state_dict(),
    )

    with pytest.raises(ValueError, match="no checkpoints"):
        TracIn([]).fit(problem, samples())
    with pytest.raises(ValueError, match="2 learning rates for 1 checkpoints"):
        TracIn([state], [0.1, 0.2]).fit(problem, samples())
    for rate in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="learning rates are"):
            TracIn([state], [rate]).fit(problem, samples())


def test_a_sample_with_a_nan_gradient_is_named():
    problem = Problem.from_module(nn.Linear(2, 2).double(), Categorical())
    x = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [3.0, 4.0]], dtype=torch.float64)
    data = Batches((x, torch.zeros(3, dtype=torch.long)), ids=["a", "b", "c"])

    with pytest.raises(ValueError, match="gradient of sample b"):
        gradient_norms(problem, data)
    with pytest.raises(ValueError, match="gradient of sample b"):
        GradientDot().fit(problem, data).scores(data)


def test_parameters_keep_their_precision():
    net = convolutional().float()
    problem = Problem.from_module(net, Categorical())
    data = Batches((draws(6, 1, 4, 4).float(), torch.arange(6) % 3))

    influence = TracIn([convolutional().state_dict()]).fit(problem, data)

    assert influence.scores(data).dtype == torch.float32
    same = replace(problem, params=problem.params)
    assert torch.allclose(influence.self_scores(), gradient_norms(same, data), rtol=1e-4)
