"""Laws are code too: some are run on objects that are broken on purpose, and must fail."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from afterfit.curvature import ggn
from afterfit.linalg.structured import Dense
from afterfit.posterior import GaussianPosterior, Predictive, predict
from afterfit.problem import Batches, Problem
from tests.cases import make_case
from tests.laws import test_posterior_invariance as invariance
from tests.laws import test_posterior_laws as laws


def fails(law: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises(AssertionError):
        law(*arguments)


def doubled(problem: Problem, data: Batches) -> Dense:
    return Dense(2 * ggn(problem, data).to_dense(), is_psd=True)


def test_the_law_of_covariances_sees_a_curvature_that_is_twice_as_large(monkeypatch):
    broken = {**laws.STRUCTURES, "full": laws.Structure(doubled, laws.truth.ggn)}
    monkeypatch.setattr(laws, "STRUCTURES", broken)
    law = laws.test_the_outputs_have_the_covariance_of_the_dense_posterior
    fails(law, make_case("mlp", "gaussian"), "full", lambda problem: problem)


def test_the_law_of_moments_sees_draws_that_are_too_wide(monkeypatch):
    draws = GaussianPosterior.draws

    def wide(self: GaussianPosterior, num: int, generator: torch.Generator) -> torch.Tensor:
        return draws(self.scaled(1.2 * self.factor), num, generator)

    monkeypatch.setattr(GaussianPosterior, "draws", wide)
    law = laws.test_draws_have_the_moments_of_the_posterior
    fails(law, "full", torch.Generator().manual_seed(0))


def test_the_law_of_linearized_draws_sees_a_prediction_that_is_too_wide(monkeypatch):
    def wide(posterior: GaussianPosterior, data: Batches) -> Predictive:
        return predict(posterior.scaled(1.5 * posterior.factor), data)

    monkeypatch.setattr(laws, "predict", wide)
    law = laws.test_linearized_draws_predict_as_the_closed_form_does
    fails(law, "full", torch.Generator().manual_seed(0))


def test_the_law_of_invariance_sees_a_posterior_in_the_parameters(monkeypatch):
    monkeypatch.setattr(invariance, "connectivity", lambda problem: problem)
    law = invariance.test_connectivity_posteriors_predict_the_same_for_a_rescaled_network
    for curvature in invariance.CURVATURES:
        fails(law, "perceptron", curvature)
    fails(invariance.test_randomized_draws_of_one_seed_are_the_same_functions, "perceptron")
