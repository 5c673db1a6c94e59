"""How wide the prior: by the evidence, centered at zero weights, or by held-out data."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from afterfit.curvature import Curvature, ggn
from afterfit.posterior.gaussian import GaussianPosterior, prior_of
from afterfit.posterior.laplace import laplace
from afterfit.posterior.link import Link
from afterfit.posterior.predict import predict_at
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
    squared = _squared_distance(posterior) / posterior.factor**2
    return posterior.log_likelihood - 0.5 * squared - 0.5 * posterior.log_det_ratio()


def _squared_distance(posterior: GaussianPosterior) -> float:
    """``‖z₀‖²`` of zero weights in whitened coordinates, without those that cannot move."""
    distance, prior = distance_to_zero(posterior.problem).double(), posterior.prior.double()
    moves = prior != 0
    return float((distance[moves] / prior[moves]).square().sum())


def by_evidence(posterior: GaussianPosterior) -> GaussianPosterior:
    """Scale the prior to the maximum of :func:`log_evidence`, which is unique.

    There ``α² d(α) = ‖z₀‖²`` with d the effective dimension; the left side grows with α, so it is
    found by bisection.

    Raises
    ------
    ValueError
        If the curvature is zero or zero weights are where training ended: nothing can be told.
    """
    squared = _squared_distance(posterior)
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
    found = predict_at(posterior, scales, validation, link)
    scores = tuple(float(one.losses(targets).mean()) for one in found)
    best = min(range(len(scores)), key=scores.__getitem__)
    return ScaleSearch(tuple(scales), scores, posterior.scaled(scales[best]))


def by_group_evidence(
    problem: Problem,
    train: Batches,
    patterns: Sequence[str],
    curvature: Curvature = ggn,
    rounds: int = 100,
    tolerance: float = 1e-3,
) -> GaussianPosterior:
    """Give each group of parameters its own prior scale, by the evidence.

    Repeats MacKay's update ``α_g² = ‖z_g‖² / d_g`` with the effective dimension d_g of the group,
    until no scale moves by more than ``tolerance`` (relative); warns where that takes longer. In
    the coordinates of ``connectivity`` the scales do not change when the network is rescaled.

    Parameters
    ----------
    patterns
        One for each group, tried in order: ``["*.bias", "*"]``. Every parameter must match one.
    """
    operator = None if curvature is ggn else curvature(problem, train)
    keep: Curvature = ggn if operator is None else lambda _problem, _train: operator
    scales = dict.fromkeys(patterns, 1.0)
    distance = distance_to_zero(problem).double().square()
    groups = _groups(problem, patterns)
    moved = math.inf
    for _ in range(rounds):
        posterior = laplace(problem, train, scales, keep)
        share = 1 - posterior.variances().double() / posterior.prior.double().square()
        found = {
            pattern: _group_scale(distance[chosen], share[chosen], pattern)
            for pattern, chosen in groups.items()
        }
        moved = max(abs(math.log(found[p] / scales[p])) for p in patterns)
        scales = found
        if moved <= tolerance:
            return laplace(problem, train, scales, keep)
    message = (
        f"the prior scales still move by {moved:.2g} (relative) after {rounds} rounds; raise rounds"
    )
    warnings.warn(message, stacklevel=2)
    return laplace(problem, train, scales, keep)


def _groups(problem: Problem, patterns: Sequence[str]) -> dict[str, Tensor]:
    """Which coordinates each pattern covers, (P,)."""
    numbers = {pattern: float(k + 1) for k, pattern in enumerate(patterns)}
    prior, _ = prior_of(problem, numbers)
    return {pattern: prior == number for pattern, number in numbers.items()}


def _group_scale(distance: Tensor, share: Tensor, pattern: str) -> float:
    dimension = float(share.clamp_min(0).sum())
    squared = float(distance.sum())
    if not (squared > 0 and dimension > 0):
        message = (
            f"the data determine nothing of the group {pattern!r}, or all of its weights are zero, "
            "so the evidence has no maximum in its scale; join it to another group"
        )
        raise ValueError(message)
    return math.sqrt(squared / dimension)


def noise_by_evidence(posterior: GaussianPosterior) -> GaussianPosterior:
    """Set the noise of a regression to the maximum of the evidence, for this prior scale.

    There ``σ² (N C - d) = Σ residuals²`` with d the effective dimension, which falls with σ; the
    curvature is proportional to σ⁻², so nothing is computed again. Alternate with
    :func:`by_evidence` to set both.

    Raises
    ------
    TypeError
        If the likelihood is not ``Gaussian``.
    ValueError
        If the residuals are zero.
    """
    likelihood = posterior.problem.likelihood
    if not isinstance(likelihood, Gaussian):
        message = (
            f"the likelihood is {type(likelihood).__name__}, expected Gaussian: others have no "
            "noise to choose"
        )
        raise TypeError(message)
    constant = posterior.num_targets * (math.log(likelihood.sigma) + 0.5 * math.log(2 * math.pi))
    squares = -2 * likelihood.sigma**2 * (posterior.log_likelihood + constant)
    if not squares > 1e-12 * posterior.num_targets * likelihood.sigma**2:
        message = "the residuals are zero, so the noise cannot be told; give Gaussian a sigma"
        raise ValueError(message)
    low, high = -10.0, 10.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        at = _with_noise(posterior, likelihood.sigma, 10.0**middle * likelihood.sigma, squares)
        sigma = at.problem.likelihood.sigma  # pyright: ignore[reportAttributeAccessIssue]
        if sigma**2 * (at.num_targets - at.effective_dimension()) < squares:
            low = middle
        else:
            high = middle
    return _with_noise(posterior, likelihood.sigma, 10.0**high * likelihood.sigma, squares)


def _with_noise(
    posterior: GaussianPosterior, before: float, sigma: float, squares: float
) -> GaussianPosterior:
    nats = math.log(sigma) + 0.5 * math.log(2 * math.pi)
    return replace(
        posterior,
        problem=replace(posterior.problem, likelihood=Gaussian(sigma)),
        values=posterior.values * (before / sigma) ** 2,
        log_likelihood=-posterior.num_targets * nats - 0.5 * squares / sigma**2,
    )
