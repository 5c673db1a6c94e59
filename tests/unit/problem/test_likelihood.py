import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn import functional
from torch.testing import assert_close

from afterfit.problem import Bernoulli, Categorical, Gaussian, Likelihood, PerSample, Poisson
from tests import truth
from tests.elsewhere import ELSEWHERE, Elsewhere

EXACT = {"rtol": 1e-12, "atol": 1e-12}
MODELS = (Categorical(), Bernoulli(), Gaussian(), Gaussian(sigma=0.3), Poisson())
every_model = pytest.mark.parametrize("likelihood", MODELS, ids=str)
every_numeric_model = pytest.mark.parametrize("likelihood", MODELS[1:], ids=str)
drawn = settings(max_examples=15, deadline=None, derandomize=True)
sizes, seeds = st.integers(1, 4), st.integers(0, 10_000)


def draw(likelihood: Likelihood, num: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Outputs, and targets drawn from the model at other outputs."""
    generator = Generator().manual_seed(seed)
    outputs, others = (
        2 * torch.randn(num, width, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    return outputs, likelihood.sample(others, generator)


def output_hessian(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    blocks = [
        torch.autograd.functional.hessian(
            lambda f, i=i: truth.negative_log_likelihood(likelihood, f[None], y[i : i + 1]).sum(),
            outputs[i],
        )
        for i in range(len(outputs))
    ]
    return torch.stack(blocks)


@every_model
@drawn
@given(num=sizes, width=sizes, seed=seeds)
def test_the_loss_is_the_negative_log_probability(likelihood, num, width, seed):
    outputs, y = draw(likelihood, num, width, seed)
    expected = truth.negative_log_likelihood(likelihood, outputs, y)
    assert_close(likelihood.loss(outputs, y), expected, **EXACT)


@every_model
@drawn
@given(num=sizes, width=sizes, seed=seeds)
def test_the_hessian_is_that_of_the_loss(likelihood, num, width, seed):
    outputs, y = draw(likelihood, num, width, seed)
    v = torch.randn(num, width, dtype=torch.float64, generator=Generator().manual_seed(seed))
    expected = torch.einsum("bij,bj->bi", output_hessian(likelihood, outputs, y), v)
    assert_close(likelihood.hessian(outputs, v), expected, rtol=1e-10, atol=1e-12)


@every_model
@drawn
@given(num=sizes, width=sizes, seed=seeds)
def test_the_root_times_its_transpose_is_the_hessian(likelihood, num, width, seed):
    outputs, y = draw(likelihood, num, width, seed)
    root = likelihood.root(outputs)
    expected = output_hessian(likelihood, outputs, y)
    assert_close(root @ root.mT, expected, rtol=1e-10, atol=1e-12)


@every_numeric_model
def test_the_mean_is_the_target_at_which_the_loss_has_no_slope(likelihood):
    outputs, _ = draw(likelihood, 3, 1, seed=1)
    at = outputs.clone().requires_grad_()
    likelihood.loss(at, likelihood.mean(outputs)).sum().backward()
    assert_close(at.grad, torch.zeros_like(outputs), **EXACT)


@every_model
def test_sampled_targets_have_the_mean_and_the_variance(likelihood, generator: Generator):
    outputs, num = torch.tensor([[0.3, -1.0, 1.2]], dtype=torch.float64), 20_000
    y = likelihood.sample(outputs.expand(num, -1), generator)
    values = functional.one_hot(y, 3).double() if isinstance(likelihood, Categorical) else y
    mean, variance = likelihood.mean(outputs)[0], model_variance(likelihood, outputs)
    assert ((values.mean(0) - mean).abs() / (variance / num).sqrt()).max() < 5
    squares = (values - mean).square()
    assert ((squares.mean(0) - variance).abs() / (squares.std(0) / math.sqrt(num))).max() < 5


def model_variance(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Diagonal of the Hessian where the outputs are the natural parameters of the family."""
    if isinstance(likelihood, Gaussian):
        return torch.full((3,), likelihood.sigma**2, dtype=torch.float64)
    (root,) = likelihood.root(outputs)
    return (root @ root.T).diagonal()


@every_model
@pytest.mark.usefixtures("random_state_is_kept")
def test_sampled_targets_depend_on_the_generator_alone_and_pass_the_check(likelihood):
    outputs, _ = draw(likelihood, 9, 3, seed=2)
    first, again, other = (
        likelihood.sample(outputs, Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    likelihood.check(outputs, first)


@every_model
def test_targets_are_drawn_on_the_device_of_the_generator(likelihood):
    outputs, _ = draw(likelihood, 9, 3, seed=2)
    there = outputs.as_subclass(Elsewhere)
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.bernoulli(there.sigmoid(), generator=Generator())
    found = likelihood.sample(there, Generator().manual_seed(4))
    assert found.device == ELSEWHERE
    assert found.shape == likelihood.sample(outputs, Generator()).shape


@every_model
@pytest.mark.parametrize("width", [1, 3])
def test_null_outputs_are_the_best_constant(likelihood, width, generator: Generator):
    _, y = draw(likelihood, 60, width, seed=3)
    null = likelihood.null_outputs(y).double()
    (constant,) = null.unique(dim=0)
    assert null.shape == (60, width)
    for _ in range(20):
        other = constant + 0.1 * torch.randn(width, dtype=torch.float64, generator=generator)
        changed = likelihood.loss(other.expand(60, -1), y).sum()
        assert likelihood.loss(null, y).sum() <= changed + 1e-6
    at = constant.clone().requires_grad_()
    likelihood.loss(at.expand(60, -1), y).mean().backward()
    assert at.grad.abs().max() < 1e-5


@every_numeric_model
def test_null_outputs_have_the_precision_of_real_targets(likelihood):
    _, y = draw(likelihood, 20, 2, seed=3)
    assert likelihood.null_outputs(y).dtype == torch.float64
    assert likelihood.null_outputs(y.float()).dtype == torch.float32


def test_null_outputs_of_targets_that_never_vary_are_finite():
    for likelihood in (Bernoulli(), Poisson()):
        y = torch.zeros(5, 2)
        null = likelihood.null_outputs(y)
        assert bool(torch.isfinite(null).all())
        assert likelihood.loss(null, y).max() < 1e-3


def test_categorical_null_outputs_give_a_finite_loss_where_a_class_is_absent():
    y = torch.tensor([0, 2, 2])
    losses = Categorical().loss(Categorical().null_outputs(y), y)
    assert_close(losses, -torch.tensor([1 / 3, 2 / 3, 2 / 3]).log())


def test_a_network_that_knows_nothing_pays_log_c_nats():
    losses = Categorical().loss(torch.zeros(2, 10), torch.tensor([0, 9]))
    assert_close(losses, torch.full((2,), math.log(10)))


@every_model
def test_losses_stay_finite_at_extreme_outputs(likelihood):
    outputs = torch.tensor([[60.0, -60.0]], dtype=torch.float64)
    y = torch.tensor([1]) if isinstance(likelihood, Categorical) else torch.tensor([[0, 1]])
    assert bool(torch.isfinite(likelihood.loss(outputs, y)).all())
    assert bool(torch.isfinite(likelihood.root(outputs)).all())


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), Poisson()], ids=str)
def test_one_output_takes_flat_targets(likelihood):
    outputs, y = draw(likelihood, 4, 1, seed=0)
    likelihood.check(outputs, y[:, 0])
    assert torch.equal(likelihood.loss(outputs, y[:, 0]), likelihood.loss(outputs, y))
    assert torch.equal(likelihood.null_outputs(y[:, 0]), likelihood.null_outputs(y))


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (Categorical(), torch.tensor([0, 2], dtype=torch.uint8)),
        (Categorical(), torch.tensor([0.0, 2.0])),
        (Bernoulli(), torch.tensor([[True, False, True]] * 2)),
        (Bernoulli(), torch.full((2, 3), 0.25)),
        (Gaussian(), torch.ones(2, 3, dtype=torch.int64)),
        (Poisson(), torch.ones(2, 3, dtype=torch.int32)),
    ],
)
def test_targets_of_any_fitting_type_are_taken(likelihood, y):
    outputs = torch.zeros(2, 3)
    likelihood.check(outputs, y)
    assert likelihood.loss(outputs, y).shape == (2,)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y", "said"),
    [
        (Categorical(), (2, 3), [0, 3], r"labels range from 0 to 3, expected 0 to 2"),
        (Categorical(), (2, 3), [-1, 2], r"labels range from -1 to 2, expected 0 to 2"),
        (Categorical(), (2, 3), [[0, 1, 0], [1, 0, 0]], r"use y\.argmax\(-1\)"),
        (Categorical(), (2, 3), [[0], [1]], r"y has shape \(2, 1\), expected \(2,\).*y\[:, 0\]"),
        (Categorical(), (2, 1), [[0], [0]], r"use y\[:, 0\]"),
        (Categorical(), (2, 3), [0.5, 1], r"expected integer class indices"),
        (Categorical(), (2, 3), [math.nan, 1], r"expected integer class indices"),
        (Categorical(), (2, 3, 4), [0, 1], r"shape \(2, 3, 4\), expected \(batch, outputs\)"),
        (Categorical(), (2,), [0, 1], r"expected \(batch, outputs\)"),
        (Bernoulli(), (2, 1), [-1, 1], r"range from -1\.0 to 1\.0, expected 0 to 1.*-1/\+1"),
        (Bernoulli(), (2, 1), [1, 2], r"range from 1\.0 to 2\.0"),
        (Bernoulli(), (2, 1), [math.nan, 1], r"NaN"),
        (Bernoulli(), (2, 3), [0, 1], r"y has shape \(2,\), expected \(2, 3\)"),
        (Bernoulli(), (2,), [0, 1], r"expected \(batch, outputs\)"),
        (Gaussian(), (2, 1), [math.nan, 1], r"NaN"),
        (Gaussian(), (2, 1), [math.inf, 1], r"infinite"),
        (Gaussian(), (2, 2), [0, 1], r"y has shape \(2,\), expected \(2, 2\)"),
        (Gaussian(), (2,), [0, 1], r"expected \(batch, outputs\)"),
        (Poisson(), (2, 1), [0.5, 1], r"values such as 0\.5, expected counts"),
        (Poisson(), (2, 1), [1, -1], r"values such as -1\.0, expected counts"),
        (Poisson(), (2, 1), [math.nan, 1], r"NaN"),
        (Poisson(), (2, 1), [math.inf, 1], r"infinite"),
        (Poisson(), (2, 2), [0, 1], r"y has shape \(2,\), expected \(2, 2\)"),
        (PerSample(functional.mse_loss), (2, 1), [1.0, 2, 3], r"2 outputs for 3 targets"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, outputs, y, said):
    with pytest.raises(ValueError, match=said):
        likelihood.check(torch.zeros(outputs), torch.tensor(y))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_a_standard_deviation_must_be_positive(sigma):
    with pytest.raises(ValueError, match="expected a standard deviation above 0"):
        Gaussian(sigma)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num", [1, 5])
def test_a_reduced_loss_is_refused(reduction, num):
    loss = PerSample(lambda f, y: functional.cross_entropy(f, y, reduction=reduction))
    with pytest.raises(ValueError, match=r"the loss has shape \(\), expected"):
        loss.loss(torch.zeros(num, 3), torch.zeros(num, dtype=torch.int64))


def test_a_loss_for_every_output_is_refused():
    loss = PerSample(lambda f, y: (f - y).square())
    with pytest.raises(ValueError, match=r"the loss has shape \(4, 3\), expected \(4,\)"):
        loss.loss(torch.zeros(4, 3), torch.zeros(4, 3))


def test_a_bare_loss_says_which_likelihoods_know_more(generator: Generator):
    f, likelihood = torch.zeros(2, 3), PerSample(functional.mse_loss)
    asked = (
        lambda: likelihood.mean(f),
        lambda: likelihood.hessian(f, f),
        lambda: likelihood.root(f),
        lambda: likelihood.sample(f, generator),
        lambda: likelihood.null_outputs(f),
    )
    for ask in asked:
        with pytest.raises(TypeError, match="use Categorical, Bernoulli, Gaussian or Poisson"):
            ask()


@every_model
def test_likelihoods_follow_the_protocol(likelihood):
    assert isinstance(likelihood, Likelihood)
    assert isinstance(PerSample(functional.mse_loss), Likelihood)
