"""Scores of labels by any method, and what else the method knows of them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.influence.covariance import Scores
from afterfit.influence.evidence import LabelEvidence
from afterfit.influence.gex import GEX
from afterfit.influence.loss_covariance import CovarianceInfluence
from afterfit.influence.simple import margin_scores
from afterfit.influence.trace import TrainingTrace
from afterfit.influence.unlearning import Unlearning
from afterfit.problem.data import Batches
from afterfit.problem.persample import losses, outputs
from afterfit.problem.problem import Problem
from afterfit.workflows.suggest import mean_prediction

_log = logging.getLogger(__name__)

ScoreFunction = Callable[[Problem, Batches], Float[Tensor, " N"]]


@final
@dataclass(frozen=True)
class Found:
    """Scores of a method, and what else it knows.

    Attributes
    ----------
    influence
        What was fitted; None for a plain function.
    mean
        Expected target of each sample, (N, C); None where the likelihood has none.
    evidence
        What walks that unlearn found, None for other methods.
    """

    scores: Scores
    influence: Influence | None
    mean: Tensor | None
    evidence: LabelEvidence | None = None

    @property
    def ensemble(self) -> CovarianceInfluence | None:
        """What was fitted, where it holds losses over members."""
        return self.influence if isinstance(self.influence, CovarianceInfluence) else None

    @property
    def p_wrong(self) -> Tensor:
        """Probabilities, NaN where the method has none."""
        if self.evidence is None:
            return torch.full_like(self.scores.value, torch.nan)
        return self.evidence.p_wrong


@singledispatch
def found_by(
    method: Any, problem: Problem, train: Batches, fit: Any, folder: Path | str | None
) -> Found:
    """Self-influence by a method with ``fit``, or the values of a plain function."""
    if fit is not None or folder is not None:
        message = (
            f"fit and folder are for Unlearning and GEX, and {method} uses neither; leave them "
            "out, or bind what the method needs into the method itself"
        )
        raise ValueError(message)
    if isinstance(method, InfluenceMethod):
        _log.info(f"{type(method).__name__} is fitted")
        return _of(method.fit(problem, train), problem, train)
    return Found(_without_error(method(problem, train)), None, _expected(problem, train))


@found_by.register
def _(method: GEX, problem: Problem, train: Batches, fit: Any, folder: Path | str | None) -> Found:
    return _of(method.fit(problem, train, fit, folder), problem, train)


@found_by.register
def _(
    method: Unlearning, problem: Problem, train: Batches, fit: Any, folder: Path | str | None
) -> Found:
    evidence = method.fit(problem, train, fit, folder)
    mean = _expected(problem, train) if evidence.mean is None else evidence.mean
    return Found(evidence.scores, evidence.influence, mean, evidence)


def _of(influence: Influence, problem: Problem, train: Batches) -> Found:
    if not isinstance(influence, CovarianceInfluence):
        scores = _without_error(influence.self_scores())
        return Found(scores, influence, _expected(problem, train))
    mean = None
    if problem.likelihood.says("mean"):
        mean = mean_prediction(problem, train, influence.ensemble)
    return Found(influence.self_influence(), influence, mean)


def _without_error(value: Float[Tensor, " N"]) -> Scores:
    return Scores(value, torch.full_like(value, torch.nan))


def _expected(problem: Problem, train: Batches) -> Tensor | None:
    """What the trained network itself expects."""
    if not problem.likelihood.says("mean"):
        return None
    return problem.likelihood.mean(outputs(problem, train))


def recorded_scores(trace: TrainingTrace, problem: Problem, train: Batches) -> Tensor:  # noqa: ARG001
    """Mean loss of each sample over its training.

    Raises
    ------
    ValueError
        If the trace holds another number of samples.
    """
    if trace.num_samples != train.num_samples:
        message = (
            f"the trace holds {trace.num_samples} samples and the data {train.num_samples}, "
            "expected as many, in the same order"
        )
        raise ValueError(message)
    return trace.mean_loss()


def free_scores(problem: Problem, train: Batches, trace: TrainingTrace | None) -> dict[str, Tensor]:
    """Scores that cost a pass over the data at most."""
    free = {"loss": losses(problem, train).cpu()}
    if problem.likelihood.names_classes:
        free["margin"] = margin_scores(problem, train).cpu()
    if trace is not None:
        free["mean_loss"] = recorded_scores(trace, problem, train).cpu()
    return free
