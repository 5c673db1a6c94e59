"""Which uncertainty to trust: several ways compared on held-out data, and the best kept."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import pandas as pd
from torch import Tensor

from afterfit.evaluate import (
    accuracy,
    brier_score,
    crps,
    expected_calibration_error,
    interval_coverage,
)
from afterfit.posterior import Predictive
from afterfit.problem.data import Batches
from afterfit.problem.problem import Problem
from afterfit.workflows.predictors import Candidate, Predictor, default_candidates


@final
@dataclass(frozen=True)
class Calibration:
    """Ways to predict, how each did on held-out data, and the best of them.

    Attributes
    ----------
    table
        A row for each way, the best first: mean loss in nats (``nll``) with its standard error,
        what fits the likelihood (Brier score, calibration error, accuracy; CRPS and coverage of the
        90 % interval), seconds it took, and what was chosen for it. Columns that begin with
        ``test_`` are of data that nothing was tuned on.
    predictors
        All ways, by name.
    best
        The name with the smallest held-out loss.
    """

    table: pd.DataFrame
    predictors: Mapping[str, Predictor]
    best: str

    def predict(self, data: Batches) -> Predictive:
        """Predict in the best way."""
        return self.predictors[self.best].predict(data)


def calibrate(
    problem: Problem,
    train: Batches,
    validation: Batches,
    test: Batches | None = None,
    candidates: Mapping[str, Candidate] | None = None,
) -> Calibration:
    """Compare ways to predict with uncertainty, and keep the one with the smallest held-out loss.

    By default the network as it is, temperature scaling, MC dropout where there is dropout, an
    ensemble of members that SGD reaches, linearized Laplace (LL) and connectivity Laplace (CL).

    Parameters
    ----------
    train
        What the network was trained on.
    validation
        Held-out data: temperature, prior scales and rates are tuned on it, and the best way is
        chosen by it. Its columns are optimistic by that much.
    test
        Data for honest columns, used for nothing else.
    candidates
        Functions ``(problem, train, validation) -> Predictor`` by their names.

    Raises
    ------
    ValueError
        If there are no candidates.
    """
    ways = default_candidates(problem, validation) if candidates is None else candidates
    if not ways:
        message = "there are no candidates, expected at least one way to predict"
        raise ValueError(message)
    predictors: dict[str, Predictor] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, candidate in ways.items():
        started = time.perf_counter()
        predictors[name] = candidate(problem, train, validation)
        row = scores(predictors[name].predict(validation), validation.targets())
        row["seconds"] = time.perf_counter() - started
        if test is not None:
            held = scores(predictors[name].predict(test), test.targets())
            row.update({f"test_{key}": value for key, value in held.items()})
        rows[name] = {**row, "chosen": predictors[name].chosen}
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("nll", kind="stable")
    return Calibration(table, predictors, str(table.index[0]))


def scores(predictive: Predictive, y: Tensor) -> dict[str, Any]:
    """Mean loss of held-out samples in nats, its standard error, and what fits the likelihood."""
    losses = predictive.losses(y).double()
    found = {"nll": float(losses.mean()), "nll_stderr": float(losses.std() / len(losses) ** 0.5)}
    there = y.to(predictive.mean.device)
    return found | {
        name: _SCORES[name](predictive, there) for name in predictive.likelihood.reported
    }


def _flat(predictive: Predictive, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, standard deviations and targets of numbers."""
    mean, std = predictive.mean, predictive.variance.sqrt()
    return mean.flatten(), std.flatten(), y.to(mean).reshape(mean.shape).flatten()


def _rmse(predictive: Predictive, y: Tensor) -> float:
    mean, _, target = _flat(predictive, y)
    return float((mean - target).square().mean().sqrt())


_SCORES: Mapping[str, Callable[[Predictive, Tensor], float]] = {
    "brier": lambda found, y: brier_score(found.probabilities, y),
    "ece": lambda found, y: expected_calibration_error(found.probabilities, y),
    "accuracy": lambda found, y: accuracy(found.probabilities, y),
    "rmse": _rmse,
    "crps": lambda found, y: crps(*_flat(found, y)),
    "coverage90": lambda found, y: interval_coverage(*_flat(found, y), 0.9),
}
"""Scores that a likelihood names in ``reported``, of a prediction and the targets."""
