"""Networks that use other layers for other samples: what they leave unused has no part in it."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import diagonal, ekfac, ggn, kfac, layer_jacobians
from afterfit.posterior import laplace, predict
from afterfit.posterior.projection import projected_jacobians
from afterfit.problem import Batches, Categorical, Problem, restrict
from tests import truth

EXACT = {"rtol": 1e-9, "atol": 1e-11}


class Experts(nn.Module):
    """Two experts of unequal depth; each sample asks one, by the sign of its first entry."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [
            self.a(row).tanh() if row[0] > 0 else self.c(self.b(row).tanh()).tanh() for row in x
        ]
        return self.head(torch.stack(rows))


class Masked(Experts):
    """The same, each expert called on the rows of a mask, which may be none."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0] > 0
        hidden = x.new_zeros(len(x), 4)
        hidden[first] = self.a(x[first]).tanh()
        hidden[~first] = self.c(self.b(x[~first]).tanh()).tanh()
        return self.head(hidden)


def make(build: type[nn.Module]) -> tuple[Problem, Batches, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        problem = Problem.from_module(build().double(), Categorical())
        x = torch.randn(7, 3).double()
    asked = x[:, 0] > 0
    assert 2 <= int(asked.sum()) <= 5
    return problem, Batches((x, torch.arange(7) % 2), 3), asked


EVERY = pytest.mark.parametrize("build", [Experts, Masked])


@EVERY
def test_diagonals_and_jacobians_are_those_of_the_definition(build):
    problem, data, _ = make(build)
    assert_close(diagonal(problem, data).entries, truth.ggn(problem, data).diagonal(), **EXACT)
    expected = truth.jacobian(problem, data)
    found = torch.full_like(expected, float("nan"))
    for seen in layer_jacobians(problem, data):
        for part in seen.parts:
            found[seen.index[:, None], :, part.positions] = part.rows().movedim(2, 1)
    assert_close(found, expected, **EXACT)


@EVERY
def test_the_block_of_an_expert_is_that_of_the_samples_that_ask_it(build):
    problem, data, asked = make(build)
    found = {block.names: block for block in kfac(problem, data).blocks}
    assert len(found) == 4
    for name, users in (("a", asked), ("b", ~asked), ("c", ~asked)):
        alone = restrict(problem, f"{name}.*")
        expected = kfac(alone, data.subset(users.nonzero()[:, 0])).blocks[0]
        block = found[f"{name}.weight", f"{name}.bias"]
        assert_close(block.to_dense(), expected.to_dense(), **EXACT)


@EVERY
@pytest.mark.parametrize("curvature", [kfac, ekfac])
def test_predictions_are_those_of_the_dense_posterior(build, curvature):
    problem, data, _ = make(build)
    dense = curvature(problem, data).to_dense()
    covariance = torch.linalg.inv(dense + torch.eye(problem.num_params).double())
    j = truth.jacobian(problem, data)
    expected = (j @ covariance @ j.mT).diagonal(dim1=1, dim2=2)
    found = predict(laplace(problem, data, 1.0, curvature), data)
    assert_close(found.logit_variance, expected, rtol=1e-6, atol=1e-9)


@EVERY
def test_an_expert_that_no_training_sample_asked_is_as_unsure_as_the_prior(build):
    problem, data, asked = make(build)
    train = data.subset(asked.nonzero()[:, 0])
    dense = kfac(problem, train).to_dense()
    covariance = torch.linalg.inv(dense + torch.eye(problem.num_params).double())
    j = truth.jacobian(problem, data)
    expected = (j @ covariance @ j.mT).diagonal(dim1=1, dim2=2)
    found = predict(laplace(problem, train, 1.0, kfac), data)
    assert_close(found.logit_variance, expected, rtol=1e-6, atol=1e-9)


@EVERY
def test_projected_jacobians_are_those_of_the_rows(build):
    problem, data, _ = make(build)
    vectors = torch.linalg.qr(ggn(problem, data).to_dense()[:, :4]).Q
    prior = torch.linspace(0.5, 2, problem.num_params).double()
    found = torch.cat([part for _, part in projected_jacobians(problem, data, prior, vectors, 1)])
    assert_close(found, (truth.jacobian(problem, data) * prior) @ vectors, **EXACT)


class Sometimes(nn.Linear):
    """Uses its scale in a way that no rule knows, for some samples only."""

    def __init__(self) -> None:
        nn.Linear.__init__(self, 3, 2)
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        out = nn.Linear.forward(self, x)
        return out * self.scale.exp() if x[0, 0] > 0 else out


class Torn(nn.Module):
    """A weight with its bias for some samples, and without it for the others."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.layer.bias if x[0, 0] > 0 else None
        return nn.functional.linear(x, self.layer.weight, bias)


def test_what_only_later_samples_show_is_refused_and_not_lost():
    x = torch.tensor([[-1.0, 2, 3], [1.0, 2, 3], [-1.0, 0, 1]]).double()
    data = Batches((x, torch.tensor([0, 1, 0])), 3)
    problem = Problem.from_module(Sometimes().double(), Categorical())
    with pytest.raises(ValueError, match="scale is used by exp for some samples"):
        diagonal(problem, data)
    torn = Problem.from_module(Torn().double(), Categorical())
    with pytest.raises(ValueError, match=r"layer.weight is used with other parameters"):
        kfac(torn, data)
    assert_close(diagonal(torn, data).entries, truth.ggn(torn, data).diagonal(), **EXACT)
