"""How well a number computed from trained networks orders them by another: rank correlations.

The samples here are *networks*, usually a few dozen, so each value comes with an interval.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Generator, Tensor

Weights = NDArray[np.float64]
Axes = Mapping[str, Sequence[Hashable]]
"""What was varied: for each hyper-parameter, its setting in every network."""


@final
@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its percentile interval under resampling of the networks.

    Attributes
    ----------
    value
        Of the networks themselves, -1 to 1.
    low, high
        Ends of the interval.
    level
        Share of the resamples inside it.
    num_resamples
        How many resamples stand behind it; those in which nothing could be compared are left out.
    """

    value: float
    low: float
    high: float
    level: float
    num_resamples: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@final
@dataclass(frozen=True)
class Granulated:
    """The granulated correlation, and its parts.

    Attributes
    ----------
    value
        Mean of the parts.
    by_axis
        For each hyper-parameter, the mean correlation of networks that differ in it alone. A low
        value on one axis tells which change of training the measure mistakes.
    """

    value: float
    by_axis: dict[str, float]


def kendall(measure: Float[Tensor, " K"], target: Float[Tensor, " K"]) -> float:
    """Kendall's τ-b: concordant minus discordant pairs, corrected for ties; NaN for a constant.

    References
    ----------
    Kendall (1945), The treatment of ties in ranking problems, Biometrika 33.

    Examples
    --------
    >>> kendall(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0]))
    0.3333333333333333
    """
    first, second = _signs(measure, target)
    return _kendall(first, second, np.ones(len(first)))


def granulated(measure: Float[Tensor, " K"], target: Float[Tensor, " K"], axes: Axes) -> Granulated:
    """Correlation when one hyper-parameter is changed at a time, averaged over hyper-parameters.

    Kendall's τ over all networks may come from one strong hyper-parameter. Here networks are
    compared only along lines on which all other settings are equal: a hyper-parameter's ψ is the
    mean τ of its lines (tied pairs count 0), Ψ the mean ψ.

    Raises
    ------
    ValueError
        If no two networks differ in one hyper-parameter alone.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan and Bengio (2020), Fantastic generalization measures and
    where to find them, ICLR, equations (3) and (4). arXiv:1912.02178
    """
    concordance = _concordance(measure, target)
    return _granulated(concordance, _lines(axes, len(concordance)), np.ones(len(concordance)))


def kendall_interval(
    measure: Float[Tensor, " K"],
    target: Float[Tensor, " K"],
    num_resamples: int,
    generator: Generator,
    level: float | int = 0.95,
) -> Correlation:
    """:func:`kendall` with a bootstrap interval.

    Networks are drawn with replacement. Copies of one network are not compared with each other:
    they would tie, and pull every resample towards 0.
    """
    first, second = _signs(measure, target)
    draws = [_kendall(first, second, w) for w in _resamples(len(first), num_resamples, generator)]
    return _interval(kendall(measure, target), draws, level)


def granulated_interval(
    measure: Float[Tensor, " K"],
    target: Float[Tensor, " K"],
    axes: Axes,
    num_resamples: int,
    generator: Generator,
    level: float | int = 0.95,
) -> dict[str, Correlation]:
    """:func:`granulated` and its axes with bootstrap intervals, the whole under ``"granulated"``.

    Networks are drawn as for :func:`kendall_interval`; a pair counts as often as the product of
    how often its two networks were drawn.
    """
    concordance = _concordance(measure, target)
    lines = _lines(axes, len(concordance))
    here = _granulated(concordance, lines, np.ones(len(concordance)))
    draws = [
        _granulated(concordance, lines, weights)
        for weights in _resamples(len(concordance), num_resamples, generator)
    ]
    parts = {
        name: _interval(value, [draw.by_axis[name] for draw in draws], level)
        for name, value in here.by_axis.items()
    }
    return {"granulated": _interval(here.value, [d.value for d in draws], level), **parts}


def _signs(measure: Tensor, target: Tensor) -> tuple[Weights, Weights]:
    """Order of every pair of networks by both numbers, as antisymmetric matrices of signs."""
    columns = [column.detach().double().cpu().numpy() for column in (measure, target)]
    if len(columns[0]) < 2:
        message = f"{len(columns[0])} networks, expected at least 2 to compare"
        raise ValueError(message)
    for name, column in zip(("measure", "target"), columns, strict=True):
        if np.isnan(column).any():
            message = f"{name} holds NaN at {int(np.isnan(column).argmax())}, expected numbers"
            raise ValueError(message)
    first, second = (_compare(column) for column in columns)
    return first, second


def _compare(column: Weights) -> Weights:
    return (column[:, None] > column).astype(float) - (column[:, None] < column)


def _concordance(measure: Tensor, target: Tensor) -> Weights:
    first, second = _signs(measure, target)
    return first * second


def _kendall(first: Weights, second: Weights, weights: Weights) -> float:
    pairs = np.outer(weights, weights)
    ordered = (pairs * np.abs(first)).sum() * (pairs * np.abs(second)).sum()
    return float((pairs * first * second).sum() / np.sqrt(ordered)) if ordered > 0 else np.nan


def _lines(axes: Axes, num: int) -> dict[str, list[NDArray[np.int64]]]:
    """For each axis, the groups of networks that differ in it alone."""
    for name, settings in axes.items():
        if len(settings) != num:
            message = f"axis {name!r} has {len(settings)} settings for {num} networks"
            raise ValueError(message)
    lines: dict[str, list[NDArray[np.int64]]] = {}
    for name in axes:
        groups: dict[tuple[Hashable, ...], list[int]] = {}
        for place in range(num):
            others = tuple(settings[place] for axis, settings in axes.items() if axis != name)
            groups.setdefault(others, []).append(place)
        found = [np.array(group) for group in groups.values() if _varies(axes[name], group)]
        if found:
            lines[name] = found
    if not lines:
        message = (
            f"no two networks differ in one of {list(axes)} alone, expected a grid of settings; "
            "use kendall"
        )
        raise ValueError(message)
    return lines


def _varies(settings: Sequence[Hashable], group: list[int]) -> bool:
    return len({settings[place] for place in group}) > 1


def _granulated(
    concordance: Weights, lines: dict[str, list[NDArray[np.int64]]], weights: Weights
) -> Granulated:
    by_axis = {
        name: _mean([_along(concordance, line, weights) for line in group])
        for name, group in lines.items()
    }
    return Granulated(_mean(list(by_axis.values())), by_axis)


def _along(concordance: Weights, line: NDArray[np.int64], weights: Weights) -> float:
    pairs = np.outer(weights[line], weights[line])
    np.fill_diagonal(pairs, 0.0)
    total = pairs.sum()
    return float((pairs * concordance[np.ix_(line, line)]).sum() / total) if total > 0 else np.nan


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _resamples(num: int, num_resamples: int, generator: Generator) -> list[Weights]:
    if num_resamples < 2:
        message = f"num_resamples is {num_resamples}, expected at least 2: pass 1000 or so"
        raise ValueError(message)
    places = torch.randint(
        num, (num_resamples, num), generator=generator, device=generator.device
    ).cpu()
    return [np.bincount(row, minlength=num).astype(float) for row in places.numpy()]


def _interval(value: float, draws: list[float], level: float | int) -> Correlation:
    if not 0 < level < 1:
        message = f"level is {level}, expected between 0 and 1: 0.95 for a 95 % interval"
        raise ValueError(message)
    known = [draw for draw in draws if not np.isnan(draw)]
    if not known:
        return Correlation(value, np.nan, np.nan, level, 0)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(value, float(low), float(high), level, len(known))
