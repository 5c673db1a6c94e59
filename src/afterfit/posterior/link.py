"""From Gaussian outputs to expected targets: Monte Carlo, and what has a closed form.

The outputs (logits) of a linearized network with Gaussian parameters are Gaussian. A link pushes
them through the likelihood, and says how much of what remains uncertain is the network's own.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from afterfit.posterior.target import Pushed
from afterfit.problem.likelihood import Bernoulli, Categorical, Likelihood

_CHUNK = 2**24  # numbers of draws that are held at once


@runtime_checkable
class Link(Protocol):
    """Pushes Gaussian outputs through a likelihood."""

    def push(self, likelihood: Likelihood, mean: Tensor, covariance: Tensor) -> Pushed:
        """Expected targets of outputs N(mean (B, C), covariance (B, C, C))."""
        ...


@final
@dataclass(frozen=True)
class MonteCarlo:
    """Draw outputs and average: exact up to ``stderr``, for every likelihood with a mean.

    All samples share the same draws (common random numbers), so that predictions are smooth in the
    inputs and differences between two posteriors are not noise; each draw comes with its mirror
    image, so that what is odd in it cancels exactly.

    Parameters
    ----------
    num_draws
        Number of draws, an even number.
    """

    num_draws: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_draws < 4 or self.num_draws % 2:
            message = f"num_draws is {self.num_draws}, expected an even number of at least 4"
            raise ValueError(message)

    def push(
        self, likelihood: Likelihood, mean: Float[Tensor, "B C"], covariance: Float[Tensor, "B C C"]
    ) -> Pushed:
        noise = self._noise(mean)
        root = covariance_root(covariance)
        rows = max(1, _CHUNK // (self.num_draws * mean.shape[1]))
        parts = [
            from_draws(likelihood, m + torch.einsum("bcr,sr->sbc", r, noise), paired)
            for m, r in zip(mean.split(rows), root.split(rows), strict=True)
        ]
        return _join(parts)

    def _noise(self, mean: Tensor) -> Float[Tensor, "S C"]:
        """Draws and their mirror images, the same for every sample, device and type."""
        generator = Generator().manual_seed(self.seed)
        shape = (self.num_draws // 2, mean.shape[1])
        half = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean)
        return torch.cat([half, -half])


def paired(values: Float[Tensor, "S *rest"]) -> Float[Tensor, "H *rest"]:
    """Averages of each draw with its mirror image: these are independent."""
    return values.unflatten(0, (2, len(values) // 2)).mean(0)


def single(values: Float[Tensor, "S *rest"]) -> Float[Tensor, "S *rest"]:
    """Take the draws as they are, where they are independent."""
    return values


def from_draws(likelihood: Likelihood, outputs: Float[Tensor, "S B C"], independent: Any) -> Pushed:
    """Expected targets from equally probable outputs.

    Parameters
    ----------
    independent
        :func:`paired` or :func:`single`: how independent values are made of those of the draws.
    """
    means = likelihood.mean(outputs.flatten(0, 1)).unflatten(0, outputs.shape[:2])
    values = independent(means)
    stderr = values.std(0) / math.sqrt(len(values))
    return _settle(likelihood, means, stderr)


def _settle(likelihood: Likelihood, means: Tensor, stderr: Tensor) -> Pushed:
    mean = means.mean(0)
    noise = likelihood.variance(means).mean(0)
    variance = noise + means.var(0, correction=0)
    total = likelihood.uncertainty(mean, variance)
    alone = likelihood.uncertainty(means, likelihood.variance(means)).mean(0)
    return Pushed(mean, stderr, variance, total, (total - alone).clamp_min(0))


def _join(parts: list[Pushed]) -> Pushed:
    names = ("mean", "stderr", "variance", "uncertainty", "epistemic")
    return Pushed(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def covariance_root(covariance: Float[Tensor, "B C C"]) -> Float[Tensor, "B C C"]:
    """Lower triangular root of each covariance; singular ones get a jitter relative to the trace.

    The jitter is 1e-12 of the mean variance in float64 and 1e-6 in float32, below the error of
    the covariance itself.
    """
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(0)
    eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    jitter = 1e-12 if covariance.dtype == torch.float64 else 1e-6
    safe = torch.where(scale > 0, scale, 1.0)[:, None, None]
    for _ in range(4):
        lower, failed = torch.linalg.cholesky_ex(covariance / safe + jitter * eye)
        if not bool(failed.any()):
            return lower * scale.sqrt()[:, None, None]
        jitter *= 100
    message = (
        "a covariance of the outputs is not positive semi-definite (its smallest eigenvalue is "
        f"{float(torch.linalg.eigvalsh(covariance).min()):.3g}), expected one that is up to "
        "rounding; compute in float64"
    )
    raise FloatingPointError(message)


@final
@dataclass(frozen=True)
class Probit:
    """Shrink the outputs by their variances: ``softmax(f / √(1 + π v / 8))``, or the sigmoid.

    Fast, but it forgets the covariances between outputs; where v is large it can be worse than no
    correction (compare with :class:`MonteCarlo`). ``epistemic`` is NaN: the link gives a mean only.

    References
    ----------
    MacKay 1992, "The evidence framework applied to classification networks", eq. (27), for one
    output; for several, Gibbs 1997, "Bayesian Gaussian processes for regression and
    classification".
    """

    def push(
        self, likelihood: Likelihood, mean: Float[Tensor, "B C"], covariance: Float[Tensor, "B C C"]
    ) -> Pushed:
        _require(self, likelihood, (Categorical, Bernoulli))
        variance = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        found = likelihood.mean(mean / (1 + math.pi / 8 * variance).sqrt())
        return _closed(likelihood, found, torch.full_like(found[:, 0], torch.nan))


@final
@dataclass(frozen=True)
class LaplaceBridge:
    """A Dirichlet distribution over the classes that matches the Gaussian in the soft-max basis.

    References
    ----------
    Hobbhahn, Kristiadi and Hennig 2022, "Fast predictive uncertainty for classification with
    Bayesian deep networks", UAI, eq. (7), after the outputs are projected to sum to zero.
    """

    def push(
        self, likelihood: Likelihood, mean: Float[Tensor, "B C"], covariance: Float[Tensor, "B C C"]
    ) -> Pushed:
        _require(self, likelihood, (Categorical,))
        if mean.shape[1] < 2:
            message = "LaplaceBridge: the network has 1 output, expected at least 2 classes"
            raise ValueError(message)
        row = covariance.sum(-1)
        total = row.sum(-1, keepdim=True)
        spread = covariance.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        free = total > 100 * torch.finfo(mean.dtype).eps * spread  # not yet projected
        share = torch.where(free, row / torch.where(free, total, 1.0), 1 / mean.shape[1])
        centered = mean - share * mean.sum(-1, keepdim=True)
        variance = covariance.diagonal(dim1=-2, dim2=-1) - torch.where(free, share * row, 0.0)
        num = mean.shape[1]
        exponent = centered + torch.logsumexp(-centered, -1, keepdim=True) - 2 * math.log(num)
        certain = torch.finfo(mean.dtype).tiny ** 0.5
        strength = (1 - 2 / num + exponent.exp()) / variance.clamp_min(certain)
        found = strength / strength.sum(-1, keepdim=True)
        inner = torch.digamma(strength.sum(-1) + 1) - (found * torch.digamma(strength + 1)).sum(-1)
        gone = torch.where(variance > certain, strength, 0.0).sum(-1) == 0  # nothing is uncertain
        found = torch.where(gone[:, None], likelihood.mean(mean), found)
        entropy = likelihood.uncertainty(found, found)
        epistemic = torch.where(gone, 0.0, (entropy - inner).clamp_min(0))
        return _closed(likelihood, found, epistemic)


@final
@dataclass(frozen=True)
class Moments:
    """Exact mean and variance of the target, for numbers (Gaussian) and counts (Poisson)."""

    def push(
        self, likelihood: Likelihood, mean: Float[Tensor, "B C"], covariance: Float[Tensor, "B C C"]
    ) -> Pushed:
        spread = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        found, moved = likelihood.moments(mean, spread)
        variance = likelihood.variance(found) + moved
        return Pushed(found, torch.zeros_like(found), variance, variance.sum(-1), moved.sum(-1))


def _closed(likelihood: Likelihood, mean: Tensor, epistemic: Tensor) -> Pushed:
    variance = likelihood.variance(mean)
    total = likelihood.uncertainty(mean, variance)
    return Pushed(mean, torch.zeros_like(mean), variance, total, epistemic)


def _require(link: object, likelihood: Likelihood, kinds: tuple[type, ...]) -> None:
    if not isinstance(likelihood, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        message = (
            f"{type(link).__name__}: the likelihood is {type(likelihood).__name__}, expected "
            f"{names}; use MonteCarlo(), which takes any"
        )
        raise TypeError(message)


def default_link(likelihood: Likelihood) -> Link:
    """Exact moments where the likelihood has them (numbers and counts), otherwise Monte Carlo."""
    return Moments() if likelihood.says("moments") else MonteCarlo()
