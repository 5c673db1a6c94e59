"""Ways to predict with uncertainty: each is fitted on training data and tuned on held-out data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from scipy.optimize import minimize_scalar

from afterfit.curvature import Curvature, diagonal, ggn, kfac
from afterfit.posterior import (
    Predictive,
    by_validation,
    dropout_outputs,
    has_dropout,
    laplace,
    noise_by_evidence,
    point_prediction,
    predict,
    predict_by_members,
    predict_by_outputs,
)
from afterfit.problem.data import Batches, TrainingStream
from afterfit.problem.ensemble import Member
from afterfit.problem.likelihood import Gaussian
from afterfit.problem.persample import outputs
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity
from afterfit.sampling import Diverged, GeometricEnsemble

_ENTRIES_OF_A_SMALL_POSTERIOR = 2**23


@final
@dataclass(frozen=True)
class Predictor:
    """A fitted way to predict, and what was chosen for it on held-out data."""

    predict: Callable[[Batches], Predictive]
    chosen: str


Candidate = Callable[[Problem, Batches, Batches], Predictor]
"""``candidate(problem, train, validation)`` fits on the first data and tunes on the second."""


def trained_network(
    problem: Problem,
    train: Batches,  # noqa: ARG001 (it was trained already)
    validation: Batches,  # noqa: ARG001 (nothing to tune)
) -> Predictor:
    """Predict with the network as it is."""
    return Predictor(
        lambda data: point_prediction(problem.likelihood, outputs(problem, data)), "as trained"
    )


def temperature_scaling(
    problem: Problem,
    train: Batches,  # noqa: ARG001
    validation: Batches,
) -> Predictor:
    """Divide the outputs by the temperature with the smallest held-out loss.

    For numbers (``Gaussian``) it is the noise that is scaled.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", ICML.
    """
    found, y = outputs(problem, validation), validation.targets().to(problem.device)
    problem.likelihood.check(found, y)

    def loss(log_temperature: float) -> float:
        likelihood, rows = problem.likelihood.tempered(found, math.exp(log_temperature))
        return float(likelihood.loss(rows, y).mean())

    fit: Any = minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded")
    temperature = math.exp(fit.x)

    def tempered(data: Batches) -> Predictive:
        likelihood, rows = problem.likelihood.tempered(outputs(problem, data), temperature)
        return point_prediction(likelihood, rows)

    return Predictor(tempered, f"temperature {temperature:.3g}")


@final
@dataclass(frozen=True)
class MonteCarloDropout:
    """Average over passes with dropout on, its rate as in training."""

    passes: int = 32
    seed: int = 0

    def __call__(
        self,
        problem: Problem,
        train: Batches,  # noqa: ARG002
        validation: Batches,  # noqa: ARG002
    ) -> Predictor:
        def averaged(data: Batches) -> Predictive:
            rows = dropout_outputs(problem, data, self.passes, self.seed)
            return predict_by_outputs(problem.likelihood, rows)

        return Predictor(averaged, f"{self.passes} passes")


@final
@dataclass(frozen=True)
class WalkedEnsemble:
    """Average over members that SGD reaches from the trained network, at the best of some rates.

    Attributes
    ----------
    rates
        Learning rates; that with the smallest held-out loss is kept. Rates that unsettle a network
        until it forgets (as influence wants them) predict badly, so these are low.
    sampler
        All other settings.
    fit
        What the network trained on, where that was augmented.
    """

    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1)
    sampler: GeometricEnsemble = GeometricEnsemble()
    fit: TrainingStream | None = None

    def __call__(self, problem: Problem, train: Batches, validation: Batches) -> Predictor:
        """Walk at every rate, and keep the members of the best.

        Raises
        ------
        ValueError
            If training diverges at every rate.
        """
        stream = TrainingStream(train) if self.fit is None else self.fit
        best: tuple[float, float, list[Member]] | None = None
        for rate in self.rates:
            try:
                members = list(replace(self.sampler, learning_rate=rate).walk(problem, stream))
            except Diverged:
                continue
            losses = predict_by_members(problem, validation, members).losses(validation.targets())
            found = float(losses.mean())
            if best is None or found < best[0]:
                best = (found, rate, members)
        if best is None:
            message = f"training diverges at all rates {list(self.rates)}; give lower ones"
            raise ValueError(message)
        _, rate, members = best
        return Predictor(
            lambda data: predict_by_members(problem, data, members),
            f"{len(members)} members, learning rate {rate:g}",
        )


@final
@dataclass(frozen=True)
class LinearizedLaplace:
    """A Gaussian posterior at the prior scale with the smallest held-out loss.

    Attributes
    ----------
    coordinates
        ``connectivity``, or a function that leaves the problem as it is.
    curvature
        None for the full one of small networks and ``kfac`` of others.
    scales
        Prior scales to try.
    """

    coordinates: Callable[[Problem], Problem]
    curvature: Curvature | None = None
    scales: Sequence[float] = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

    def __call__(self, problem: Problem, train: Batches, validation: Batches) -> Predictor:
        how = fitting_curvature(problem, train) if self.curvature is None else self.curvature
        posterior = laplace(self.coordinates(problem), train, 1.0, how)
        if isinstance(problem.likelihood, Gaussian):
            posterior = noise_by_evidence(posterior)
        search = by_validation(posterior, validation, self.scales)
        return Predictor(
            lambda data: predict(search.best, data),
            f"{posterior.structure}, prior scale {search.best.factor:g}",
        )


def as_it_is(problem: Problem) -> Problem:
    """Leave the coordinates: absolute changes of parameters."""
    return problem


def fitting_curvature(problem: Problem, train: Batches) -> Curvature:
    """Full curvature where its directions take little room, Kronecker factors elsewhere.

    Parameters that no known layer uses then get their diagonal.
    """
    num_targets = train.num_samples * outputs(problem, train.subset(torch.tensor([0]))).shape[1]
    if min(num_targets, problem.num_params) * problem.num_params <= _ENTRIES_OF_A_SMALL_POSTERIOR:
        return ggn
    return partial(kfac, others=diagonal)


def default_candidates(problem: Problem, data: Batches) -> Mapping[str, Candidate]:
    """Ways that :func:`~afterfit.workflows.calibrate` compares, by name."""
    dropout = {"MC dropout": MonteCarloDropout()} if has_dropout(problem, data) else {}
    return {
        "MAP": trained_network,
        "temperature": temperature_scaling,
        **dropout,
        "geometric ensemble": WalkedEnsemble(),
        "LL": LinearizedLaplace(as_it_is),
        "CL": LinearizedLaplace(connectivity),
    }
