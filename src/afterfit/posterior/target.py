"""What is said of a target: its mean, its variance, and how uncertain it is, by likelihood."""

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from afterfit.problem.likelihood import Bernoulli, Categorical, Gaussian, Poisson


@final
@dataclass(frozen=True)
class Pushed:
    """What a link says of the targets of B samples.

    Attributes
    ----------
    mean
        Expected target (B, C): probabilities, mean or rate.
    stderr
        Monte Carlo standard error of ``mean``; 0 for a closed form.
    variance
        Variance of each target (B, C), the network's uncertainty included.
    uncertainty
        Of a sample: entropy of its target in nats (classes, switches), or the sum of its variances
        (numbers, counts), (B,).
    epistemic
        The part of it that more data would take away: the mutual information of target and
        parameters, or the variance of the mean, (B,). NaN where the link does not say.
    """

    mean: Float[Tensor, "B C"]
    stderr: Float[Tensor, "B C"]
    variance: Float[Tensor, "B C"]
    uncertainty: Float[Tensor, " B"]
    epistemic: Float[Tensor, " B"]


@singledispatch
def target_variance(likelihood: Any, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:  # noqa: ARG001
    """Variance of the target where its mean is known: ``p (1 - p)`` for classes and switches.

    Raises
    ------
    TypeError
        If it is not known for the likelihood; register it for one of your own.
    """
    message = (
        f"the variance of a target is not known for {type(likelihood).__name__}, expected "
        "Categorical, Bernoulli, Gaussian or Poisson; register one with "
        "afterfit.posterior.target.target_variance.register"
    )
    raise TypeError(message)


@target_variance.register(Categorical)
@target_variance.register(Bernoulli)
def _(likelihood: Any, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:  # noqa: ARG001
    return mean * (1 - mean)


@target_variance.register
def _(likelihood: Gaussian, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:
    return torch.full_like(mean, likelihood.sigma**2)


@target_variance.register
def _(likelihood: Poisson, mean: Float[Tensor, "*S C"]) -> Float[Tensor, "*S C"]:  # noqa: ARG001
    return mean


@singledispatch
def uncertainty(
    likelihood: Any,  # noqa: ARG001
    mean: Float[Tensor, "*S C"],  # noqa: ARG001
    variance: Float[Tensor, "*S C"],
) -> Float[Tensor, "*S"]:
    """Uncertainty of a sample's target: the sum of its variances."""
    return variance.sum(-1)


@uncertainty.register
def _(
    likelihood: Categorical,  # noqa: ARG001
    mean: Float[Tensor, "*S C"],
    variance: Float[Tensor, "*S C"],  # noqa: ARG001
) -> Float[Tensor, "*S"]:
    """Entropy in nats."""
    return torch.special.entr(mean).sum(-1)


@uncertainty.register
def _(
    likelihood: Bernoulli,  # noqa: ARG001
    mean: Float[Tensor, "*S C"],
    variance: Float[Tensor, "*S C"],  # noqa: ARG001
) -> Float[Tensor, "*S"]:
    """Sum of the entropies of the outputs in nats."""
    return (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum(-1)


@singledispatch
def predictive_losses(
    likelihood: Any,
    mean: Float[Tensor, "N C"],  # noqa: ARG001
    variance: Float[Tensor, "N C"],  # noqa: ARG001
    y: Tensor,  # noqa: ARG001
) -> Float[Tensor, " N"]:
    """Negative log-probability of the targets in nats, with the predicted mean and variance.

    Numbers are taken as normal and counts as negative binomial with these moments, the outputs of
    one sample as independent.
    """
    message = f"no predictive distribution is known for {type(likelihood).__name__}"
    raise TypeError(message)


@predictive_losses.register
def _(likelihood: Categorical, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    tiny = torch.finfo(mean.dtype).tiny
    return -mean.gather(1, y.long()[:, None])[:, 0].clamp_min(tiny).log()


@predictive_losses.register
def _(likelihood: Bernoulli, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    target = y.to(mean.dtype).reshape(mean.shape)
    return functional.binary_cross_entropy(mean.clamp(0, 1), target, reduction="none").sum(-1)


@predictive_losses.register
def _(likelihood: Gaussian, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    residual = (y.to(mean.dtype).reshape(mean.shape) - mean).square() / variance
    return 0.5 * (residual + (2 * math.pi * variance).log()).sum(-1)


@predictive_losses.register
def _(likelihood: Poisson, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001
    count, rate = y.double().reshape(mean.shape), mean.double()
    excess = (variance.double() - rate).clamp_min(1e-7 * rate)
    size = rate.square() / excess  # Poisson where the rate is certain: size grows without bound
    chosen = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)
    losses = size * (rate / size).log1p() - count * (rate / (size + rate)).log() - chosen
    return losses.sum(-1).to(mean.dtype)
