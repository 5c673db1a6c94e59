"""Langevin draws: their law where the loss is quadratic, and the influence that comes of it."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Generator, nn

from afterfit.influence import LossCovariance, covariance, tangents
from afterfit.problem import Batches, Gaussian, Problem
from afterfit.problem.data import TrainingStream
from afterfit.problem.persample import flatten
from afterfit.sampling import Checkpoints, Diverged, Langevin
from tests import truth

NUM = 12
X = torch.randn(NUM, 2, dtype=torch.float64, generator=Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -1]).double() + 1
DATA = Batches((X, Y[:, None]))
PROBLEM = Problem.from_module(nn.Linear(2, 1, bias=False).double(), Gaussian())
PROBLEM = replace(PROBLEM, params={"weight": truth.ridge(X, Y, 0.0)[None]})
SGLD = Langevin(
    0.02, inverse_temperature=NUM, localization=3.0, draws=40, chains=6, burn_in=20, thinning=2
)


@cache
def walked():
    return list(SGLD.walk(PROBLEM, TrainingStream(DATA)))


def test_draws_have_the_covariance_of_the_local_posterior():
    found = torch.stack([flatten(m.params) for m in walked()])

    curvature = X.T @ X + 3.0 * torch.eye(2, dtype=torch.float64)
    step = torch.eye(2, dtype=torch.float64) - SGLD.step / 4 * curvature
    expected = torch.linalg.inv(curvature @ step)  # of the walk itself, with its finite step
    assert found.shape == (240, 2)
    chains = found.view(6, 40, 2) - flatten(PROBLEM.params)
    each = torch.einsum("cdi,cdj->cij", chains, chains) / 40
    error = each.std(0) / 6**0.5
    assert bool(((each.mean(0) - expected).abs() < 5 * error).all())


def test_covariance_of_tangent_moves_is_the_damped_influence_function():
    influence = LossCovariance(
        Checkpoints([m.params for m in walked()]), observe=tangents, cross_moment=covariance
    ).fit(PROBLEM, DATA)
    curvature = X.T @ X + 3.0 * torch.eye(2, dtype=torch.float64)
    step = torch.eye(2, dtype=torch.float64) - SGLD.step / 4 * curvature
    rows = truth.gradients(PROBLEM, DATA)
    expected = rows @ torch.linalg.inv(curvature @ step) @ rows.T
    found = influence.scores(DATA)
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_a_step_that_is_too_long_is_said_to_be():
    wild = replace(SGLD, step=1e3)
    with pytest.raises(Diverged, match="lower step"):
        list(wild.walk(PROBLEM, TrainingStream(DATA)))
    with pytest.raises(ValueError, match="draws is 0"):
        replace(SGLD, draws=0)
    with pytest.raises(ValueError, match="step is 0"):
        replace(SGLD, step=0.0)
