"""How well scores find the samples that they should find."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Generator, Tensor

from afterfit.linalg import Estimate

Counts = NDArray[np.float64]
Metric = Callable[[Float[Tensor, " N"], Bool[Tensor, " N"]], float]


def auc(scores: Float[Tensor, " N"], positives: Bool[Tensor, " N"]) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative.

    Ties count one half, so constant scores give 0.5.

    References
    ----------
    Hanley and McNeil (1982), The meaning and use of the area under a receiver operating
    characteristic curve, Radiology 143. doi:10.1148/radiology.143.1.7063747

    Examples
    --------
    >>> scores, wrong = torch.tensor([0.9, 0.2, 0.2, 0.1]), torch.tensor([True, True, False, False])
    >>> auc(scores, wrong)
    0.875
    """
    found, passed = _tally(scores, positives)
    outranked = passed.sum() - passed.cumsum() + passed / 2
    return float(found @ outranked / (found.sum() * passed.sum()))


def average_precision(scores: Float[Tensor, " N"], positives: Bool[Tensor, " N"]) -> float:
    """Precision averaged over the positives, each at the cut where it is found.

    Tied scores are cut together; constant scores give the share of positives.

    Examples
    --------
    >>> scores = torch.tensor([0.9, 0.2, 0.1, 0.05])
    >>> average_precision(scores, torch.tensor([True, False, True, False]))
    0.8333333333333333
    """
    found, passed = _tally(scores, positives)
    precision = found.cumsum() / (found + passed).cumsum()
    return float(found @ precision / found.sum())


def precision_at(scores: Float[Tensor, " N"], positives: Bool[Tensor, " N"], budget: int) -> float:
    """Share of positives among the `budget` samples with the largest scores.

    Scores that tie at the cut share the places that are left: the value is the expectation
    over a random order of the tied samples.
    """
    return _found_within(scores, positives, budget) / budget


def recall_at(scores: Float[Tensor, " N"], positives: Bool[Tensor, " N"], budget: int) -> float:
    """Share of all positives that is found by inspecting the `budget` largest scores.

    Scores that tie at the cut share the places that are left: the value is the expectation
    over a random order of the tied samples.
    """
    return _found_within(scores, positives, budget) / int(positives.sum())


def inspection_curve(
    scores: Float[Tensor, " N"], positives: Bool[Tensor, " N"]
) -> tuple[Float[Tensor, " N+1"], Float[Tensor, " N+1"]]:
    """Fraction inspected and expected fraction found, from the largest score downwards.

    Returns
    -------
    inspected, found
        Both start at 0 and end at 1; inside a group of tied scores the curve is a straight line.
    """
    found = _expected_found(scores, positives)
    inspected = torch.linspace(0, 1, len(found), dtype=torch.float64)
    return inspected, torch.from_numpy(found / found[-1])


def bootstrap(
    metric: Metric,
    scores: Float[Tensor, " N"],
    positives: Bool[Tensor, " N"],
    num_resamples: int,
    generator: Generator,
) -> Estimate:
    """A metric with its standard error under resampling of the samples.

    Positives and negatives are resampled apart, so that each resample holds as many of both as
    the data do. The value is the metric of the data themselves.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> scores, wrong = torch.randn(200, generator=generator), torch.arange(200) < 20
    >>> estimate = bootstrap(auc, scores + wrong, wrong, num_resamples=50, generator=generator)
    >>> 0 < estimate.stderr < 0.1
    True
    """
    draws = _resampled(metric, scores, positives, num_resamples, generator)
    return Estimate(metric(scores, positives), float(draws.std(ddof=1)), num_resamples)


def bootstrap_interval(
    metric: Metric,
    scores: Float[Tensor, " N"],
    positives: Bool[Tensor, " N"],
    num_resamples: int,
    generator: Generator,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a metric under the resampling of `bootstrap`.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    if not 0 < level < 1:
        msg = f"level is {level}, expected a number between 0 and 1: pass 0.95 for a 95 % interval"
        raise ValueError(msg)
    draws = _resampled(metric, scores, positives, num_resamples, generator)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    metric: Metric, scores: Tensor, positives: Tensor, num_resamples: int, generator: Generator
) -> Counts:
    """The metric of `num_resamples` stratified resamples."""
    _checked(scores, positives)
    if num_resamples < 2:
        msg = f"num_resamples is {num_resamples}, expected at least 2: pass 1000 or so"
        raise ValueError(msg)

    # In order of score, so that the sorts inside the metrics have nothing left to do.
    order = scores.detach().cpu().argsort()
    ranked = scores.detach().cpu().double()[order].numpy()
    wrong = positives.cpu().bool()[order].numpy()
    strata = wrong.nonzero()[0], (~wrong).nonzero()[0]
    times = np.empty(len(ranked), dtype=np.int64)
    draws = []
    for _ in range(num_resamples):
        for stratum in strata:
            times[stratum] = _multiplicities(len(stratum), generator)
        picked = np.arange(len(ranked)).repeat(times)
        draws.append(metric(torch.from_numpy(ranked[picked]), torch.from_numpy(wrong[picked])))
    return np.asarray(draws, dtype=np.float64)


def _multiplicities(num: int, generator: Generator) -> NDArray[np.int64]:
    """How often each of `num` samples is drawn when `num` are drawn with replacement."""
    places = torch.randint(num, (num,), generator=generator, device=generator.device)
    return places.bincount(minlength=num).cpu().numpy()


def _found_within(scores: Tensor, positives: Tensor, budget: int) -> float:
    """Expected number of positives among the `budget` largest scores."""
    found = _expected_found(scores, positives)
    if not 1 <= budget < len(found):
        msg = (
            f"budget is {budget}, expected between 1 and {len(found) - 1}, the number of samples: "
            "pass how many samples are inspected"
        )
        raise ValueError(msg)
    return float(found[budget])


def _expected_found(scores: Tensor, positives: Tensor) -> Counts:
    """Expected number of positives found after 0, 1, ..., N inspections."""
    found, passed = _tally(scores, positives)

    # Exact where a group of ties ends; within a group each inspection finds its average.
    ends = np.concatenate([[0.0], (found + passed).cumsum()])
    return np.interp(np.arange(ends[-1] + 1), ends, np.concatenate([[0.0], found.cumsum()]))


def _tally(scores: Tensor, positives: Tensor) -> tuple[Counts, Counts]:
    """How many positives and negatives hold each distinct score, from the largest downwards."""
    values, wrong = _checked(scores, positives)
    order = values.argsort(kind="stable")[::-1]
    values, wrong = values[order], wrong[order].astype(np.float64)
    starts = np.concatenate([[True], values[1:] != values[:-1]]).nonzero()[0]
    found = np.add.reduceat(wrong, starts)
    return found, np.diff(starts, append=len(values)) - found


def _checked(scores: Tensor, positives: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Both as arrays, after the checks that every metric needs."""
    if scores.ndim != 1 or scores.shape != positives.shape:
        msg = (
            f"scores have shape {tuple(scores.shape)} and positives {tuple(positives.shape)}, "
            "expected (N,) and (N,): pass one score and one truth value per sample"
        )
        raise ValueError(msg)
    values = scores.detach().cpu().double().numpy()
    wrong = positives.detach().cpu().bool().numpy()
    if np.isnan(values).any():
        msg = (
            f"scores hold NaN at {int(np.isnan(values).sum())} of {len(values)} places, first at "
            f"{int(np.isnan(values).argmax())}, expected numbers: leave those samples out or "
            "find out why they have no score"
        )
        raise ValueError(msg)
    if wrong.all() or not wrong.any():
        msg = (
            f"positives mark {int(wrong.sum())} of {len(wrong)} samples, expected at least one "
            "positive and one negative: pass a mask that tells the samples to find from the rest"
        )
        raise ValueError(msg)
    return values, wrong
