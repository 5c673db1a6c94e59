"""What planted wrong labels say about the others: a share, and a probability for every sample.

Some labels are made wrong on purpose, and the scores of those samples show how a wrong label scores
*here*. The rest is a mixture: a share of it scores like the planted ones. Estimating the share is
known as mixture proportion estimation from positive and unlabeled samples (Elkan and Noto 2008,
"Learning classifiers from only positive and unlabeled data", KDD; Blanchard, Lee and Scott 2010,
"Semi-supervised novelty detection", JMLR 11; Ivanov 2020, "DEDPUL", ICMLA).
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit
from torch import Tensor

Values = NDArray[np.float64]

_GROUPS = 2048  # scores of the data are averaged in so many groups of like size
_DROP = 1.353  # half of the 90 % quantile of chi-squared with one degree of freedom
_LEAST = logit(1e-5)
_DESCENTS = 3  # from the lowest of the starts


@final
@dataclass(frozen=True)
class PlantedFit:
    """How the density of the data compares with that of the planted samples.

    The ratio of the densities, data over planted, is modeled as ``π + (1 - π) exp(-(a + b s))``:
    the wrong labels among the data score like the planted ones, and the right ones thin out
    exponentially against them (the exponential tilt of Anderson 1979, "Multivariate logistic
    compounds", Biometrika 66, with a share that does not tilt).

    Attributes
    ----------
    share
        Maximum-likelihood share of wrong labels π, 0 to 1.
    low, high
        90 % interval of the share by profile likelihood. It knows of chance and of no other error.
    offset, slope
        a, and b > 0, of the scores after ``(score - center) / spread``.
    """

    share: float
    low: float
    high: float
    offset: float
    slope: float
    center: float
    spread: float

    def log_odds(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Log odds that each label is wrong, increasing with the score."""
        standard = (scores.detach().cpu().double() - self.center) / self.spread
        prior = float(logit(np.clip(self.share, 1e-9, 1 - 1e-9)))
        return prior + self.offset + self.slope * standard

    def probability(self, scores: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Probability that each label is wrong."""
        return torch.sigmoid(self.log_odds(scores))


def fit_planted(
    planted: Float[Tensor, " n"], data: Float[Tensor, " N"], most: float = 0.98
) -> PlantedFit:
    """Compare the scores of planted wrong labels with those of the data.

    Parameters
    ----------
    planted
        Scores of samples whose label was made wrong; large = suspicious.
    data
        Scores of the other samples, of whose labels an unknown share is wrong.
    most
        Largest share that is possible. Where planted scores hardly differ from the others, a share
        of nearly one explains them as well as any other, and what else is known must tell.

    Raises
    ------
    ValueError
        If there are fewer than 8 planted samples or 8 others, or a score is not finite.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> data = torch.randn(2000, generator=generator)
    >>> data[:200] += 4
    >>> found = fit_planted(torch.randn(100, generator=generator) + 4, data)
    >>> found.low < 0.1 < found.high
    True
    >>> bool(found.probability(torch.tensor([4.0])) > 0.9)
    True
    """
    wrong, rest = _checked(planted, "planted"), _checked(data, "other")
    center = float(np.median(rest))
    spread = float(np.concatenate([wrong, rest]).std()) or 1.0
    largest = float(logit(np.clip(most, 1e-4, 0.98)))
    likelihood = _Likelihood((wrong - center) / spread, (rest - center) / spread, largest)
    starts = [
        np.array([prior, offset, 0.5])  # far offsets lead to a plateau where all are alike
        for prior in np.minimum((-4.0, -2.0, -0.7), largest)
        for offset in (0.0, -1.0, -3.0)
    ]
    starts.sort(key=lambda start: likelihood.value(start)[0])
    tried = [likelihood.minimum(start) for start in starts[:_DESCENTS]]
    best = min(tried, key=lambda found: found[1])
    (prior, offset, log_slope), height = best
    low = _end(likelihood, best[0], height, _LEAST)
    high = _end(likelihood, best[0], height, largest)
    return PlantedFit(
        share=float(expit(prior)),
        low=low,
        high=high,
        offset=float(offset),
        slope=float(np.exp(log_slope)),
        center=center,
        spread=spread,
    )


@final
class _Likelihood:
    """Negative log-likelihood of telling planted samples from the data, in nats."""

    def __init__(self, planted: Values, data: Values, largest: float) -> None:
        self._largest = largest
        ordered = np.sort(data)
        groups = np.array_split(ordered, min(len(ordered), _GROUPS))
        self._planted = planted
        self._data = np.array([group.mean() for group in groups])
        self._weights = np.array([float(len(group)) for group in groups])
        self._log_ratio = float(np.log(len(data) / len(planted)))

    def minimum(self, start: Values, prior: float | None = None) -> tuple[Values, float]:
        """Smallest value over (logit of the share, offset, log slope), the share held if given."""
        if prior is None:
            bounds = [(_LEAST, self._largest), (-60.0, 60.0), (-4.0, 4.0)]
            found = minimize(self.value, start, jac=True, method="L-BFGS-B", bounds=bounds)
            return found.x, float(found.fun)

        def held(rest: Values) -> tuple[float, Values]:
            value, slope = self.value(np.concatenate([[prior], rest]))
            return value, slope[1:]

        bounds = [(-60.0, 60.0), (-4.0, 4.0)]
        found = minimize(held, start[1:], jac=True, method="L-BFGS-B", bounds=bounds)
        return np.concatenate([[prior], found.x]), float(found.fun)

    def value(self, at: Values) -> tuple[float, Values]:
        """Value and gradient."""
        prior, offset, log_slope = at
        share, slope = expit(prior), np.exp(log_slope)
        total, gradient = 0.5 * (log_slope / 2) ** 2, np.array([0.0, 0.0, log_slope / 4])
        for points, weights, sign in (
            (self._planted, 1.0, 1.0),
            (self._data, self._weights, -1.0),
        ):
            tilted = (1 - share) * np.exp(np.clip(-(offset + slope * points), -50, 50))
            ratio = share + tilted
            place = sign * (self._log_ratio + np.log(ratio))
            total += float(np.sum(weights * np.logaddexp(0.0, place)))
            pull = weights * sign * expit(place)
            right = tilted / ratio
            gradient[0] += np.sum(pull * ((1 - right) * (1 - share) - right * share))
            gradient[1] -= np.sum(pull * right)
            gradient[2] -= np.sum(pull * right * slope * points)
        return total, gradient


def _end(likelihood: _Likelihood, best: Values, height: float, outermost: float) -> float:
    """Share at which the profile likelihood has fallen by the drop, between best and outermost."""
    start = best

    def excess(prior: float) -> float:
        nonlocal start
        start, value = likelihood.minimum(start, prior)
        return value - height - _DROP

    if excess(outermost) <= 0:
        return 0.0 if outermost == _LEAST else float(expit(outermost))
    start = best
    return float(expit(brentq(excess, float(best[0]), outermost, xtol=1e-3)))


def _checked(scores: Tensor, name: str) -> Values:
    values = scores.detach().cpu().double().numpy()
    if values.ndim != 1 or len(values) < 8 or not np.isfinite(values).all():
        message = (
            f"the {name} scores have shape {values.shape} and {int((~np.isfinite(values)).sum())} "
            "that are not finite, expected at least 8 finite numbers: use more samples, and leave "
            "those without a score out"
        )
        raise ValueError(message)
    return values
