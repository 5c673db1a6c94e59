import math

import pytest
import torch
from torch import Generator, nn
from torch.testing import assert_close

from afterfit.curvature import diagonal, ekfac, ggn, kfac
from afterfit.linalg.structured import Dense, Diagonal
from afterfit.posterior import laplace, low_rank, predict
from afterfit.problem import Batches, Categorical, Gaussian, PerSample, Problem, connectivity
from tests import truth
from tests.cases import make_case, make_data, make_module

CASE = make_case("mlp", "categorical")


def spread(posterior, data: Batches) -> torch.Tensor:
    return torch.cat([part.diagonal(dim1=1, dim2=2) for _, _, part in posterior.covariances(data)])


def test_a_full_posterior_chooses_the_smaller_side_and_says_which():
    small = make_case("linear", "gaussian")
    assert laplace(small.problem, small.data).structure == "full (primal)"
    assert laplace(CASE.problem, CASE.data).structure == "full (dual)"
    names = [laplace(CASE.problem, CASE.data, 1, how).structure for how in (kfac, ekfac, diagonal)]
    assert names == ["Kronecker", "eigenvalue-corrected Kronecker", "diagonal"]
    assert laplace(CASE.problem, CASE.data, 1, low_rank(3)).structure == "low rank (3)"


def test_a_low_rank_posterior_is_wider_and_comes_close_as_it_grows():
    exact = spread(laplace(CASE.problem, CASE.data), CASE.data)
    few, more, all_of_them = (
        spread(laplace(CASE.problem, CASE.data, 1.0, low_rank(n)), CASE.data) for n in (1, 5, 14)
    )
    assert bool((few >= more - 1e-12).all())
    assert bool((more >= exact - 1e-12).all())
    assert float((few - exact).max()) > 0.01
    assert_close(all_of_them, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", [None, "*"])
def test_a_prior_scale_that_is_none_is_refused(scale: float, name: str | None):
    with pytest.raises(ValueError, match="expected a finite standard deviation above 0"):
        laplace(CASE.problem, CASE.data, scale if name is None else {name: scale})
    with pytest.raises(ValueError, match="prior scale"):
        laplace(CASE.problem, CASE.data).scaled(scale)


def test_patterns_of_scales_must_match_and_cover_all():
    with pytest.raises(ValueError, match=r"no pattern for \['3.bias', '3.weight'\]"):
        laplace(CASE.problem, CASE.data, {"0.*": 1.0})
    with pytest.raises(ValueError, match="'head' of prior_scale matches no parameter"):
        laplace(CASE.problem, CASE.data, {"head": 1.0, "*": 1.0})


def test_ekfac_needs_one_scale_for_a_layer():
    with pytest.raises(ValueError, match="expected one for the weight and the bias"):
        laplace(CASE.problem, CASE.data, {"*.bias": 2.0, "*": 1.0}, ekfac)


def test_a_curvature_with_negative_eigenvalues_is_refused():
    matrix = -torch.eye(CASE.problem.num_params).double()
    with pytest.raises(ValueError, match="expected none below zero"):
        laplace(CASE.problem, CASE.data, 1.0, lambda _problem, _data: Dense(matrix))


def test_a_curvature_that_is_not_finite_is_refused():
    entries = torch.full((CASE.problem.num_params,), torch.nan).double()
    with pytest.raises(ValueError, match="NaN or infinite"):
        laplace(CASE.problem, CASE.data, 1.0, lambda _problem, _data: Diagonal(entries))


def test_losses_that_are_not_finite_are_refused():
    x = torch.full((3, 3), 1e400).double()
    with pytest.raises(ValueError, match="expected finite losses"):
        laplace(CASE.problem, Batches((x, torch.tensor([0, 1, 2]))))


def test_labels_out_of_range_are_refused():
    x = torch.zeros(2, 3).double()
    with pytest.raises(ValueError, match="labels range from 1 to 5"):
        laplace(CASE.problem, Batches((x, torch.tensor([1, 5]))))


def test_a_loss_alone_has_no_posterior():
    own = PerSample(lambda outputs, y: (outputs - y[:, None]).square().sum(-1))
    problem = Problem.from_module(nn.Linear(3, 1), own)
    with pytest.raises(TypeError, match="PerSample knows a loss"):
        laplace(problem, Batches((torch.zeros(2, 3), torch.zeros(2))))


def test_a_full_posterior_that_does_not_fit_says_what_to_use():
    problem = Problem.from_module(nn.Linear(40_000, 10), Gaussian())
    data = Batches((torch.zeros(3000, 1).expand(-1, 40_000), torch.zeros(3000, 10)), 100)
    with pytest.raises(ValueError, match="use curvature=kfac, ekfac, diagonal or low_rank"):
        laplace(problem, data)


def test_a_layer_that_is_not_covered_is_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.layer, self.power = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * torch.cos(self.power)

    problem = Problem.from_module(Odd(), Categorical())
    data = Batches((torch.randn(4, 3, generator=Generator()), torch.tensor([0, 1, 2, 0])))
    with pytest.warns(UserWarning, match=r"power.*exact diagonal"):
        found = laplace(problem, data, 1.0, kfac)
    assert found.structure == "Kronecker"
    assert laplace(problem, data, 1.0, diagonal).structure == "diagonal"


def test_dropout_of_a_module_in_train_mode_plays_no_part():
    module = make_module("mlp", "categorical")
    assert module.training
    data = make_data("mlp", "categorical")
    one, other = (
        predict(laplace(Problem.from_module(m, Categorical()), data), data).mean
        for m in (module, make_module("mlp", "categorical").eval())
    )
    assert torch.equal(one, other)


def test_predictions_do_not_depend_on_the_memory_budget():
    for curvature in (ggn, diagonal, kfac, ekfac):
        posterior = laplace(connectivity(CASE.problem), CASE.data, 1.0, curvature)
        whole, rows = predict(posterior, CASE.data), predict(posterior, CASE.data, None, 800)
        assert_close(rows.mean, whole.mean, rtol=1e-10, atol=1e-12)
        assert whole.logit_covariance is not None
        tiny = predict(posterior, CASE.data, None, 8)
        assert tiny.logit_covariance is None
        assert_close(tiny.logit_variance, whole.logit_variance, rtol=1e-10, atol=1e-12)


def test_float32_is_kept_and_near_float64():
    module = make_module("mlp", "categorical")
    data = make_data("mlp", "categorical")
    x, y = next(iter(Batches(data, 7)))[1:]
    single = Problem.from_module(module.float(), Categorical())
    for curvature in (ggn, diagonal, kfac, ekfac):
        posterior = laplace(single, Batches((x.float(), y), 3), 1.0, curvature)
        found = predict(posterior, Batches((x.float(), y), 3))
        assert found.mean.dtype == torch.float32
        exact = predict(laplace(CASE.problem, CASE.data, 1.0, curvature), CASE.data)
        assert_close(found.mean.double(), exact.mean, rtol=1e-3, atol=1e-4)


def test_the_loss_of_the_posterior_is_that_of_the_network():
    expected = -truth.losses(CASE.problem, CASE.data).sum()
    posterior = laplace(CASE.problem, CASE.data)
    assert_close(posterior.log_likelihood, float(expected), rtol=1e-12, atol=0)
    assert posterior.num_targets == 21
    assert math.isclose(posterior.scaled(3).factor, 3.0)


@pytest.mark.parametrize("num", [0, -2])
def test_no_draws_are_refused(num: int):
    with pytest.raises(ValueError, match="at least 1 draw"):
        laplace(CASE.problem, CASE.data).sample(num, Generator())
