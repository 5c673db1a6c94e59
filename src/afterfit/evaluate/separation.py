"""How clearly a sample of numbers falls into two groups."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Otsu:
    """A cut into two groups, and how much of the variance it explains.

    Attributes
    ----------
    threshold
        Midway between the two neighbors that the cut parts; the upper group lies above it.
    separability
        Variance between the groups over the total variance, 0 to 1. Without any second group it
        is 0.64 for a normal distribution, 0.75 for a uniform one, 0.68 for a half-normal one.
    fraction_above
        Share of the values in the upper group.
    """

    threshold: float
    separability: float
    fraction_above: float


def otsu(values: Float[Tensor, " N"]) -> Otsu:
    """The cut that leaves the least variance within its two groups.

    All N - 1 cuts of the sorted values are compared, without a histogram, in float64. Equal values
    are never parted; when all are equal the upper group is empty and the separability 0.

    References
    ----------
    Otsu (1979), A threshold selection method from gray-level histograms, IEEE Transactions on
    Systems, Man, and Cybernetics 9. doi:10.1109/TSMC.1979.4310076

    Examples
    --------
    >>> import torch
    >>> otsu(torch.tensor([0.0, 1.0, 10.0, 11.0]))
    Otsu(threshold=5.5, separability=0.9900990099009901, fraction_above=0.5)
    """
    points = _sorted(values)
    scaled = _onto_unit_interval(points)
    if scaled is None:
        return Otsu(threshold=float(points[-1]), separability=0.0, fraction_above=0.0)

    below = np.arange(1, len(points)) / len(points)
    centered = scaled - scaled.mean()
    between = centered.cumsum()[:-1] ** 2 / (below * (1 - below)) / len(points) ** 2
    between[points[1:] == points[:-1]] = -1.0
    cut = int(between.argmax())
    return Otsu(
        threshold=_midway(points[cut], points[cut + 1]),
        separability=min(1.0, float(between[cut] / np.mean(centered**2))),
        fraction_above=(len(points) - cut - 1) / len(points),
    )


def _sorted(values: Tensor) -> Values:
    """The values in ascending order and float64, after the checks that every measure needs."""
    points = values.detach().cpu().double().numpy()
    if points.ndim != 1 or len(points) < 2:
        msg = f"values have shape {points.shape}, expected (N,) with N >= 2: pass one number each"
        raise ValueError(msg)
    if not np.isfinite(points).all():
        wrong = ~np.isfinite(points)
        msg = (
            f"values hold NaN or infinity at {int(wrong.sum())} of {len(points)} places, first at "
            f"{int(wrong.argmax())}, expected finite numbers: leave those out or clip them"
        )
        raise ValueError(msg)
    return np.sort(points)


def _onto_unit_interval(points: Values) -> Values | None:
    """Sorted points moved onto [0, 1], or None when all are equal."""
    reach = points[-1] - points[0]
    return (points - points[0]) / reach if reach > 0 else None


def _midway(low: float, high: float) -> float:
    """A number t with low <= t < high, midway where float64 has room for it."""
    middle = float(low + (high - low) / 2)
    return middle if middle < high else float(low)
