"""One mode or two: the dip test, and two Gaussians against one. Tests: pytest experiments/gex."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import norm
from sklearn.mixture import GaussianMixture
from torch import Generator, Tensor

from afterfit.evaluate import otsu
from afterfit.evaluate.separation import Values, _onto_unit_interval, _sorted

LARGEST_NULL_SAMPLE = 1000
"""Uniform samples behind the p-value of `dip` hold at most so many numbers."""


@dataclass(frozen=True)
class Dip:
    """Distance to the nearest unimodal distribution, and how unusual it is.

    Attributes
    ----------
    statistic
        Largest difference between the distribution function of the values and that of the nearest
        unimodal distribution; at least 1 / (2 N).
    pvalue
        Chance of a statistic as large under the uniform distribution, the hardest unimodal case.
    """

    statistic: float
    pvalue: float


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians, the lower one first.

    Attributes
    ----------
    weights, means, stds
        Of the lower and of the upper component.
    log_likelihood
        Of all values together, in nats.
    bic_gain
        By how much the Bayesian information criterion prefers two Gaussians to one, in nats
        times two; negative when one is enough.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    stds: tuple[float, float]
    log_likelihood: float
    bic_gain: float

    def posterior(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Probability that each value comes from the upper component."""
        points = values.detach().double()
        lower, upper = (
            math.log(weight) - math.log(std) - ((points - mean) / std) ** 2 / 2
            for weight, mean, std in zip(self.weights, self.means, self.stds, strict=True)
        )
        return torch.sigmoid(upper - lower)


def dip(values: Float[Tensor, " N"], generator: Generator, num_draws: int = 1000) -> Dip:
    """The dip test: small p-values speak against a single mode.

    The statistic is exact; equal values count as an atom, which a unimodal distribution may have
    at its mode only. The p-value compares sqrt(N) times the statistic with uniform samples of
    min(N, 1000) numbers, because that product hardly changes with N beyond a few hundred.

    References
    ----------
    Hartigan and Hartigan (1985), The dip test of unimodality, Annals of Statistics 13.
    doi:10.1214/aos/1176346577

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> two_groups = torch.randn(200, generator=generator) + 8 * (torch.arange(200) % 2)
    >>> dip(two_groups, generator).pvalue < 0.01
    True
    """
    if num_draws < 1:
        msg = f"num_draws is {num_draws}, expected at least 1: pass 1000 for p-values down to 0.001"
        raise ValueError(msg)
    points = _sorted(values)
    statistic = _dip_statistic(points)

    size = min(len(points), LARGEST_NULL_SAMPLE)
    uniform = torch.rand(
        num_draws, size, generator=generator, device=generator.device, dtype=torch.float64
    )
    null = np.array([_dip_statistic(row) for row in uniform.sort(dim=1).values.cpu().numpy()])
    exceeded = np.sum(math.sqrt(size) * null >= math.sqrt(len(points)) * statistic - 1e-12)
    return Dip(statistic, float((1 + exceeded) / (1 + num_draws)))


def two_component_mixture(values: Float[Tensor, " N"]) -> Mixture:
    """Two Gaussians fitted by expectation maximization, from the cut of Otsu on.

    The start is fixed, so the fit needs no random numbers.

    References
    ----------
    Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM
    algorithm, Journal of the Royal Statistical Society B 39.
    Schwarz (1978), Estimating the dimension of a model, Annals of Statistics 6.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> values = torch.randn(1000, generator=generator) + 6.0 * (torch.arange(1000) < 200)
    >>> fitted = two_component_mixture(values)
    >>> [round(weight, 1) for weight in fitted.weights], fitted.bic_gain > 0
    ([0.8, 0.2], True)
    """
    points = _sorted(values)
    spread = float(points.std())
    if points[0] == points[-1] or len(points) < 4:
        msg = (
            f"values hold {len(points)} numbers of which {len(np.unique(points))} differ, "
            "expected at least 4 numbers that are not all equal: there is nothing to part"
        )
        raise ValueError(msg)
    center = float(points.mean())
    standard = (points - center) / spread
    weights, means, variances, mean_log_likelihood = _fitted_mixture(standard)
    scale = len(points) * math.log(spread)
    log_likelihood = mean_log_likelihood * len(points) - scale
    single = norm.logpdf(standard).sum() - scale
    return Mixture(
        weights=_pair(weights),
        means=_pair(center + spread * means),
        stds=_pair(spread * np.sqrt(variances)),
        log_likelihood=float(log_likelihood),
        bic_gain=float(2 * (log_likelihood - single) - 3 * math.log(len(points))),
    )


def _fitted_mixture(standard: Values) -> tuple[Values, Values, Values, float]:
    """Weights, means, variances and mean log-likelihood, from the two groups of Otsu on."""
    upper = standard > otsu(torch.from_numpy(standard)).threshold
    groups = standard[~upper], standard[upper]
    start = GaussianMixture(
        n_components=2,
        covariance_type="spherical",
        tol=1e-6,
        max_iter=2000,
        weights_init=[len(group) / len(standard) for group in groups],
        means_init=[[group.mean()] for group in groups],
        precisions_init=[1 / max(group.var(), 1e-4) for group in groups],
    )
    fitted = start.fit(standard[:, None])
    means = np.asarray(fitted.means_).ravel()
    order = means.argsort()
    return (
        np.asarray(fitted.weights_)[order],
        means[order],
        np.asarray(fitted.covariances_)[order],
        float(fitted.score(standard[:, None])),
    )


def _dip_statistic(points: Values) -> float:
    """The dip of sorted values, by the algorithm of Hartigan and Hartigan."""
    num = len(points)
    place = _distinct_places(points)
    upper, lower = np.arange(1, num + 1) / num, np.arange(num) / num
    first, last, twice = 0, num - 1, 1 / num
    while place is not None:
        span = slice(first, last + 1)
        minorant = first + _touching(place[span], lower[span])
        majorant = first + _touching(place[span], -upper[span])
        convex = np.interp(place, place[minorant], lower[minorant])
        concave = np.interp(place, place[majorant], upper[majorant])

        gap, start, end = _modal_interval(concave - convex, minorant, majorant)
        if gap <= twice + 1e-12:
            break
        left = (upper - convex)[first : start + 1].max()
        right = (concave - lower)[end : last + 1].max()
        twice = max(twice, left, right)
        if (start, end) == (first, last):
            break
        first, last = start, end
    return float(twice / 2)


def _distinct_places(points: Values) -> Values | None:
    """The points on [0, 1] with equal ones spread over a negligible width; None if all are equal.

    Spreading an atom lets the fit be steep there only if there is its mode, which is the rule.
    """
    scaled = _onto_unit_interval(points)
    if scaled is None:
        return None
    gaps = np.maximum(np.diff(scaled), 1e-8 / len(points))
    return np.concatenate([[0.0], gaps.cumsum()])


def _touching(place: Values, heights: Values) -> NDArray[np.intp]:
    """Where the greatest convex minorant touches the points.

    Its slopes are the isotonic regression of the slopes between neighbors.
    """
    if len(place) < 2:
        return np.arange(len(place))
    widths = np.diff(place)
    return isotonic_regression(np.diff(heights) / widths, weights=widths).blocks


def _modal_interval(
    gap: Values, minorant: NDArray[np.intp], majorant: NDArray[np.intp]
) -> tuple[float, int, int]:
    """Widest gap at a point of contact, and the contacts of both hulls that enclose it."""
    if gap[minorant].max() >= gap[majorant].max():
        start = minorant[gap[minorant].argmax()]
        end = majorant[majorant.searchsorted(start)]
    else:
        end = majorant[gap[majorant].argmax()]
        start = minorant[minorant.searchsorted(end, side="right") - 1]
    return float(max(gap[minorant].max(), gap[majorant].max())), int(start), int(end)


def _pair(numbers: NDArray) -> tuple[float, float]:
    first, second = numbers.tolist()
    return first, second
