"""How wide the prior: by the evidence, centered at zero weights, or by held-out data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.posterior.gaussian import GaussianPosterior, prior_of
from afterfit.posterior.link import Link
from afterfit.posterior.predict import predict
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Gaussian
from afterfit.problem.persample import flatten
from afterfit.problem.problem import Problem

GRID = tuple(10.0**k for k in (-3, -2.5, -2, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1))
"""Prior scales that are tried on held-out data."""


@final
@dataclass(frozen=True)
class ScaleSearch:
    """Prior scales that were tried, in order, what each was worth, and the best posterior.

    ``scores`` are nats: mean loss of a held-out sample, the lower the better.
    """

    scales: tuple[float, ...]
    scores: tuple[float, ...]
    best: GaussianPosterior


def distance_to_zero(problem: Problem) -> Float[Tensor, " P"]:
    """How far zero weights are from where training ended, in the coordinates of the problem.

    With ``connectivity(problem)`` it is 1 for every parameter that is not zero, in the parameters
    themselves it is θ̂. Coordinates that move nothing count 0.
    """
    if problem.coordinates is None:
        return flatten(problem.params)
    weights = problem.coordinates.weights(problem.params)
    parts = {}
    for name, value in problem.params.items():
        scale = problem.coordinates.scale.get(name, torch.ones_like(value))
        moves = scale != 0
        parts[name] = torch.where(moves, weights[name] / torch.where(moves, scale, 1.0), 0.0)
    return flatten(parts)


def log_evidence(posterior: GaussianPosterior) -> float:
    """Laplace approximation of log p(training targets), in nats, for a prior around zero weights.

    ``log p(y | θ̂) - ½ ‖z₀‖² / α² - ½ log det(I + α² G)``, with z₀ the whitened distance to zero
    weights. A prior that is centered at the trained network has no second term, and its evidence
    always asks for α → 0; this one has the same posterior covariance and a maximum. It is the same
    for a network that was rescaled, if the coordinates are those of ``connectivity``.

    References
    ----------
    MacKay 1992, "A practical Bayesian framework for backpropagation networks"; Immer, Bauer,
    Fortuin, Rätsch, Khan 2021, "Scalable marginal likelihood estimation for model selection in deep
    learning", ICML.
    """
    whitened = distance_to_zero(posterior.problem).double() / posterior.prior.double()
    squared = float(whitened.square().sum()) / posterior.factor**2
    return posterior.log_likelihood - 0.5 * squared - 0.5 * posterior.log_det_ratio()


def by_evidence(posterior: GaussianPosterior) -> GaussianPosterior:
    """Scale the prior to the maximum of :func:`log_evidence`, which is unique.

    There ``α² d(α) = ‖z₀‖²`` with d the effective dimension; the left side grows with α, so it is
    found by bisection.

    Raises
    ------
    ValueError
        If the curvature is zero or zero weights are where training ended: nothing can be told.
    """
    whitened = distance_to_zero(posterior.problem).double() / posterior.prior.double()
    squared = float(whitened.square().sum())
    if not squared > 0 or not bool((posterior.values > 0).any()):
        message = (
            "the data determine no direction, or all weights are zero, so the evidence has no "
            "maximum in the prior scale; give prior_scale a number"
        )
        raise ValueError(message)
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        at = posterior.scaled(10.0**middle)
        if at.factor**2 * at.effective_dimension() < squared:
            low = middle
        else:
            high = middle
    return posterior.scaled(10.0 ** (0.5 * (low + high)))


def by_validation(
    posterior: GaussianPosterior,
    validation: Batches,
    scales: Sequence[float] = GRID,
    link: Link | None = None,
) -> ScaleSearch:
    """Scale the prior to the smallest mean loss of held-out samples, over a grid.

    The samples must not have been trained on, and a bound that needs data unseen by the prior
    must use others.
    """
    if not scales:
        message = "there are no scales to try, expected at least one"
        raise ValueError(message)
    targets = validation.targets()
    scores = tuple(
        float(predict(posterior.scaled(scale), validation, link).losses(targets).mean())
        for scale in scales
    )
    best = min(range(len(scores)), key=scores.__getitem__)
    return ScaleSearch(tuple(scales), scores, posterior.scaled(scales[best]))


def grouped_scales(
    posterior: GaussianPosterior, patterns: Sequence[str], rounds: int = 50
) -> Mapping[str, float]:
    """Improve one prior scale for each group of parameters by the evidence, for ``laplace``.

    One step of MacKay's update ``α_g² = ‖θ_g‖² / d_g`` uses this posterior's variances; groups
    interact through them, so make the posterior again with the result and repeat until it stays:
    :func:`fit_grouped` does.
    """
    raise NotImplementedError(rounds, patterns, posterior)


def with_noise_by_evidence(posterior: GaussianPosterior, residual_squares: float) -> float:
    raise NotImplementedError(
        residual_squares, posterior, Gaussian, math, replace, fnmatchcase, prior_of
    )
