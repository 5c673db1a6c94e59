"""Predictions with their uncertainty, from a Gaussian posterior or from many members."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.posterior.gaussian import GaussianPosterior
from afterfit.posterior.link import Link, default_link, from_draws, single
from afterfit.posterior.target import Pushed
from afterfit.problem.data import Batches
from afterfit.problem.ensemble import Member
from afterfit.problem.likelihood import Likelihood
from afterfit.problem.persample import GIBIBYTE, outputs
from afterfit.problem.problem import Problem


@final
@dataclass(frozen=True)
class Predictive:
    """What is predicted for N samples.

    Attributes
    ----------
    likelihood
        What the targets are.
    mean
        Expected target (N, C): probabilities of classes or switches, mean of numbers, rate of
        counts.
    stderr
        Its Monte Carlo standard error; 0 where a closed form was used.
    variance
        Variance of each target (N, C), the noise included.
    logit_mean
        Mean of the outputs of the network (N, C).
    logit_variance
        Their variances (N, C).
    logit_covariance
        Their covariances (N, C, C); None where they would take more than the memory budget.
    uncertainty
        Entropy of each sample's target in nats, or the sum of its variances, (N,).
    epistemic
        The part of it that more data would take away, in the same unit (N,): the mutual information
        of target and parameters, or the variance of the mean. NaN where the link does not say.
    """

    likelihood: Likelihood
    mean: Float[Tensor, "N C"]
    stderr: Float[Tensor, "N C"]
    variance: Float[Tensor, "N C"]
    logit_mean: Float[Tensor, "N C"]
    logit_variance: Float[Tensor, "N C"]
    logit_covariance: Float[Tensor, "N C C"] | None
    uncertainty: Float[Tensor, " N"]
    epistemic: Float[Tensor, " N"]

    @property
    def probabilities(self) -> Float[Tensor, "N C"]:
        """Expected targets by the name that they have in classification."""
        return self.mean

    @property
    def epistemic_share(self) -> Float[Tensor, " N"]:
        """Share of the uncertainty that more data would take away, 0 to 1."""
        tiny = torch.finfo(self.mean.dtype).tiny
        return self.epistemic / self.uncertainty.clamp_min(tiny)

    def losses(self, y: Tensor) -> Float[Tensor, " N"]:
        """Negative log-probability of each sample's target in nats.

        Raises
        ------
        ValueError
            If targets do not fit the outputs.
        """
        self.likelihood.check(self.mean, y)
        return self.likelihood.predictive_losses(self.mean, self.variance, y.to(self.mean.device))


def predict(
    posterior: GaussianPosterior,
    data: Batches,
    link: Link | None = None,
    memory_budget: int = GIBIBYTE,
) -> Predictive:
    """Predict with the linearized network, whose outputs are Gaussian.

    Parameters
    ----------
    link
        How Gaussian outputs become targets: :class:`~afterfit.posterior.MonteCarlo` (default for
        classes and switches), ``Probit``, ``LaplaceBridge``, or ``Moments`` (default for numbers
        and counts).
    memory_budget
        Bytes that a chunk of Jacobians may take, and that the covariances may take in all.

    References
    ----------
    Immer, Korzepa, Bauer 2021, "Improving predictions of Bayesian neural nets via local
    linearization", AISTATS: the Laplace posterior of a network is that of its linearization, so it
    is the linearization that must predict.
    """
    return predict_at(posterior, [posterior.factor], data, link, memory_budget)[0]


def predict_at(
    posterior: GaussianPosterior,
    factors: Sequence[float | int],
    data: Batches,
    link: Link | None = None,
    memory_budget: int = GIBIBYTE,
) -> list[Predictive]:
    """Predict as :func:`predict` with several scales of the prior, in one pass over the data."""
    likelihood = posterior.problem.likelihood
    how = default_link(likelihood) if link is None else link
    room = memory_budget // (len(factors) * data.num_samples)
    pieces: list[list[_Piece]] = [[] for _ in factors]
    for _, means, covariances in posterior.covariances_at(factors, data, memory_budget):
        for own, mean, covariance in zip(pieces, means, covariances, strict=True):
            own.append(_piece(mean, covariance, how.push(likelihood, mean, covariance), room))
    return [_gather(likelihood, own) for own in pieces]


def predict_by_members(
    problem: Problem, data: Batches, members: Iterable[Member], memory_budget: int = GIBIBYTE
) -> Predictive:
    """Average the predictions of members: Monte Carlo over parameters.

    With ``linearize(problem)`` it is what :func:`predict` computes in closed form, with the problem
    itself the non-linear predictive. Members are draws of a posterior or of
    randomize-then-optimize, or those of any ensemble; at least two are needed.
    """
    rows = torch.stack([outputs(problem, data, member.params) for member in members])
    return predict_by_outputs(problem.likelihood, rows, memory_budget)


def predict_by_outputs(
    likelihood: Likelihood, rows: Float[Tensor, "M N C"], memory_budget: int = GIBIBYTE
) -> Predictive:
    """Average over equally probable outputs (M, N, C) of M members.

    Raises
    ------
    ValueError
        If there are fewer than two members.
    """
    if len(rows) < 2:
        message = f"{len(rows)} members, expected at least 2 to average over"
        raise ValueError(message)
    num, room = rows.shape[2], memory_budget // rows.shape[1]
    per_chunk = max(1, memory_budget // (8 * num * (num + 4 * len(rows))))
    pieces = []
    for chunk in rows.split(per_chunk, dim=1):
        centered = chunk - chunk.mean(0)
        covariance = torch.einsum("mbc,mbd->bcd", centered, centered) / (len(rows) - 1)
        pushed = from_draws(likelihood, chunk, single)
        pieces.append(_piece(chunk.mean(0), covariance, pushed, room))
    return _gather(likelihood, pieces)


def point_prediction(likelihood: Likelihood, rows: Float[Tensor, "N C"]) -> Predictive:
    """Prediction of one network: no uncertainty but that of the likelihood."""
    certain = predict_by_outputs(likelihood, rows.expand(2, -1, -1), memory_budget=GIBIBYTE)
    nothing = torch.zeros_like
    return Predictive(
        likelihood,
        certain.mean,
        nothing(certain.stderr),
        certain.variance,
        rows,
        nothing(certain.logit_variance),
        None,
        certain.uncertainty,
        nothing(certain.epistemic),
    )


@final
@dataclass(frozen=True)
class _Piece:
    """Prediction of some samples."""

    mean: Float[Tensor, "B C"]
    variance: Float[Tensor, "B C"]
    covariance: Float[Tensor, "B C C"] | None
    pushed: Pushed


def _piece(mean: Tensor, covariance: Tensor, pushed: Pushed, room: int) -> _Piece:
    """Keep the covariances of the outputs where a sample's takes at most ``room`` bytes."""
    kept = covariance if covariance[0].nbytes <= room else None
    return _Piece(mean, covariance.diagonal(dim1=-2, dim2=-1).clone(), kept, pushed)


def _gather(likelihood: Likelihood, pieces: Sequence[_Piece]) -> Predictive:
    def joined(pick: Callable[[_Piece], Tensor]) -> Tensor:
        return torch.cat([pick(piece) for piece in pieces])

    covariances = [piece.covariance for piece in pieces if piece.covariance is not None]
    return Predictive(
        likelihood,
        joined(lambda piece: piece.pushed.mean),
        joined(lambda piece: piece.pushed.stderr),
        joined(lambda piece: piece.pushed.variance),
        joined(lambda piece: piece.mean),
        joined(lambda piece: piece.variance),
        torch.cat(covariances) if covariances else None,
        joined(lambda piece: piece.pushed.uncertainty),
        joined(lambda piece: piece.pushed.epistemic),
    )
