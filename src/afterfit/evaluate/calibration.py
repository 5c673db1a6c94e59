"""Whether stated probabilities and intervals keep what they promise: tensors in, numbers out.

Two curves of :mod:`afterfit.evaluate.attribution` belong here too: for out-of-distribution
detection, :func:`~afterfit.evaluate.auc` and :func:`false_positive_rate` take one confidence a
sample and a mask of the samples that are in distribution, and
:func:`~afterfit.evaluate.bootstrap` gives either its standard error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor

from afterfit.linalg import Estimate

Binning = Callable[[Float[Tensor, " N"]], Float[Tensor, " edges"]]
"""Edges of the bins for these confidences, from 0 to 1; every bin is closed on its right."""

RowMetric = Callable[[Tensor, Tensor], float]

_SUM_TOLERANCE = 1e-3


# Classification -------------------------------------------------------------------------------


def negative_log_likelihood(probabilities: Float[Tensor, "N C"], y: Shaped[Tensor, " N"]) -> float:
    """Mean of ``-log p(y)`` in nats; infinite where a true class was given no chance at all."""
    given, target = _checked(probabilities, y)
    return float(-given.gather(1, target[:, None]).log().mean())


def brier_score(probabilities: Float[Tensor, "N C"], y: Shaped[Tensor, " N"]) -> float:
    """Mean of ``Σ_k (p_k - [y = k])²``, from 0 to 2.

    References
    ----------
    Brier (1950), Verification of forecasts expressed in terms of probability, Monthly Weather
    Review 78. Some libraries divide by the number of classes, or halve it for two classes.
    """
    given, target = _checked(probabilities, y)
    truth = torch.nn.functional.one_hot(target, given.shape[1]).to(given)
    return float((given - truth).square().sum(1).mean())


def accuracy(probabilities: Float[Tensor, "N C"], y: Shaped[Tensor, " N"]) -> float:
    """Share of the samples whose most probable class is the true one."""
    given, target = _checked(probabilities, y)
    return float((given.argmax(1) == target).double().mean())


@final
@dataclass(frozen=True)
class EqualWidth:
    """Bins of equal width between 0 and 1; those without a sample count nothing."""

    num_bins: int = 15

    def __post_init__(self) -> None:
        _require_bins(self.num_bins)

    def __call__(self, confidence: Float[Tensor, " N"]) -> Float[Tensor, " edges"]:
        return torch.linspace(0, 1, self.num_bins + 1, dtype=torch.float64).to(confidence.device)


@final
@dataclass(frozen=True)
class EqualMass:
    """Bins with equal numbers of samples; equal confidences are never parted.

    References
    ----------
    Nixon, Dusenberry, Zhang, Jerfel and Tran (2019), Measuring calibration in deep learning,
    CVPR workshops. arXiv:1904.01685
    """

    num_bins: int = 15

    def __post_init__(self) -> None:
        _require_bins(self.num_bins)

    def __call__(self, confidence: Float[Tensor, " N"]) -> Float[Tensor, " edges"]:
        ranked, num = confidence.double().sort().values, len(confidence)
        last = [-(-k * num // self.num_bins) - 1 for k in range(1, self.num_bins)]
        ends = ranked.new_tensor([0.0, 1.0])
        return torch.cat([ends[:1], ranked[last], ends[1:]])


@final
@dataclass(frozen=True)
class Reliability:
    """The data of a reliability diagram.

    Attributes
    ----------
    edges
        Of the bins, one more than there are; bin k holds confidences in
        ``(edges[k], edges[k+1]]``, and 0 falls into the first one.
    counts
        Samples of each bin (K,).
    confidence, accuracy
        Means of each bin (K,); NaN where it is empty.
    """

    edges: Float[Tensor, " edges"]
    counts: Int[Tensor, " K"]
    confidence: Float[Tensor, " K"]
    accuracy: Float[Tensor, " K"]

    @property
    def gaps(self) -> Float[Tensor, " K"]:
        """Confidence minus accuracy of each bin: positive where predictions are too sure."""
        return self.confidence - self.accuracy

    @property
    def expected_error(self) -> float:
        """Mean of the absolute gaps, weighted by the counts."""
        filled = self.counts > 0
        return float(self.counts[filled].double() @ self.gaps[filled].abs() / self.counts.sum())

    @property
    def maximum_error(self) -> float:
        """Largest absolute gap of a bin that holds a sample."""
        return float(self.gaps[self.counts > 0].abs().max())


def reliability(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], binning: Binning | None = None
) -> Reliability:
    """Compare how sure predictions were with how often they were right, bin by bin.

    Parameters
    ----------
    confidence
        Probability that was given to the prediction of each sample.
    correct
        Whether it was right.
    binning
        ``EqualWidth(15)`` by default, or ``EqualMass(15)``.
    """
    sure = confidence.detach().double()
    if not bool(((sure >= 0) & (sure <= 1 + _SUM_TOLERANCE)).all()):
        message = (
            f"confidences range from {float(sure.min())} to {float(sure.max())}, expected 0 to 1; "
            "pass probabilities, not logits"
        )
        raise ValueError(message)
    edges = (EqualWidth() if binning is None else binning)(sure)
    place = torch.bucketize(sure, edges[1:-1], right=False)  # the right edge belongs to the bin
    num = len(edges) - 1
    counts = torch.bincount(place, minlength=num)
    right = correct.to(sure.device)
    means = [
        torch.bincount(place, weights=column, minlength=num) / counts
        for column in (sure, right.double())
    ]
    return Reliability(edges, counts, *means)


def expected_calibration_error(
    probabilities: Float[Tensor, "N C"], y: Shaped[Tensor, " N"], binning: Binning | None = None
) -> float:
    """Mean absolute gap between confidence and accuracy of the predicted class.

    It depends on the binning, by which figures of different papers differ, and is biased upwards
    where bins hold few samples: compare at equal N and equal bins.

    References
    ----------
    Naeini, Cooper and Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian
    binning, AAAI. Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural
    networks, ICML, equation (3).

    Examples
    --------
    >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.4, 0.6], [0.4, 0.6]])
    >>> f"{expected_calibration_error(sure, torch.tensor([0, 1, 1, 1])):.3f}"  # ½·½ + ½·0.4
    '0.450'
    """
    return reliability(*_top(probabilities, y), binning).expected_error


def maximum_calibration_error(
    probabilities: Float[Tensor, "N C"], y: Shaped[Tensor, " N"], binning: Binning | None = None
) -> float:
    """Largest gap between confidence and accuracy of any bin that holds a sample."""
    return reliability(*_top(probabilities, y), binning).maximum_error


def _top(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence in the predicted class, and whether it was right."""
    given, target = _checked(probabilities, y)
    confidence, predicted = given.max(1)
    return confidence, predicted == target


# Out of distribution --------------------------------------------------------------------------


def false_positive_rate(
    scores: Float[Tensor, " N"], positives: Bool[Tensor, " N"], recall: float | int = 0.95
) -> float:
    """Share of the negatives that pass a threshold low enough for this share of positives.

    FPR95 of out-of-distribution detection: scores are confidences, positives the samples that are
    in distribution.

    References
    ----------
    Liang, Li and Srikant (2018), Enhancing the reliability of out-of-distribution image detection
    in neural networks, ICLR, section 4.

    Examples
    --------
    >>> confidence = torch.tensor([0.9, 0.8, 0.7, 0.75, 0.1])
    >>> false_positive_rate(confidence, torch.tensor([True, True, True, False, False]))
    0.5
    """
    if not 0 < recall <= 1:
        message = f"recall is {recall}, expected above 0 and at most 1: 0.95 for FPR95"
        raise ValueError(message)
    if bool(scores.isnan().any()):
        message = "scores hold NaN, expected numbers: leave those samples out"
        raise ValueError(message)
    found, passed = scores[positives].double(), scores[~positives].double()
    if not len(found) or not len(passed):
        message = f"{len(found)} positives and {len(passed)} negatives, expected at least one each"
        raise ValueError(message)
    needed = math.ceil(recall * len(found) - 1e-9)  # 0.95 of 20 is 19, whatever the rounding
    threshold = found.sort(descending=True).values[needed - 1]
    return float((passed >= threshold).double().mean())


# Regression -----------------------------------------------------------------------------------


def gaussian_negative_log_likelihood(
    mean: Float[Tensor, "*N"], std: Float[Tensor, "*N"], y: Float[Tensor, "*N"]
) -> float:
    """Mean of ``-log N(y; mean, std²)`` in nats, over all entries."""
    z = _standardized(mean, std, y)
    constant = 0.5 * math.log(2 * math.pi)
    return float((0.5 * z.square() + std.double().log() + constant).mean())


def crps(mean: Float[Tensor, "*N"], std: Float[Tensor, "*N"], y: Float[Tensor, "*N"]) -> float:
    """Mean continuous ranked probability score of Gaussian predictions, in the units of ``y``.

    ``∫ (Φ((t - mean) / std) - [t ≥ y])² dt = std (z (2Φ(z) - 1) + 2φ(z) - 1/√π)``.

    References
    ----------
    Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation, Journal
    of the American Statistical Association 102, equation (21).
    """
    z = _standardized(mean, std, y)
    cumulative = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    score = z * (2 * cumulative - 1) + 2 * density - 1 / math.sqrt(math.pi)
    return float((std.double() * score).mean())


def interval_coverage(
    mean: Float[Tensor, "*N"],
    std: Float[Tensor, "*N"],
    y: Float[Tensor, "*N"],
    level: float | int = 0.95,
) -> float:
    """Share of the targets inside the central Gaussian intervals that promise ``level``."""
    if not 0 < level < 1:
        message = f"level is {level}, expected between 0 and 1: 0.95 for 95 % intervals"
        raise ValueError(message)
    half_width = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    return float((_standardized(mean, std, y).abs() <= half_width).double().mean())


def _standardized(mean: Tensor, std: Tensor, y: Tensor) -> Tensor:
    if not bool((std > 0).all()):
        message = f"the smallest standard deviation is {float(std.min())}, expected above 0"
        raise ValueError(message)
    return (y.double() - mean.double()) / std.double()


# Errors of all of these -----------------------------------------------------------------------


def bootstrap_rows(
    metric: RowMetric,
    predictions: Shaped[Tensor, "N *C"],
    y: Shaped[Tensor, " N"],
    num_resamples: int,
    generator: Generator,
) -> Estimate:
    """A metric of predictions and targets with its standard error under resampling of samples.

    Bind further arguments first: ``partial(expected_calibration_error, binning=EqualMass(10))``.
    """
    if num_resamples < 2:
        message = f"num_resamples is {num_resamples}, expected at least 2: pass 1000 or so"
        raise ValueError(message)
    draws = []
    for _ in range(num_resamples):
        rows = torch.randint(len(y), (len(y),), generator=generator, device=generator.device)
        draws.append(float(metric(predictions[rows.to(predictions.device)], y[rows.to(y.device)])))
    return Estimate(float(metric(predictions, y)), float(np.std(draws, ddof=1)), num_resamples)


def _checked(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities in float64 and class indices beside them, after the checks all metrics need."""
    given, target = probabilities.detach().double(), y.detach().to(probabilities.device).long()
    off = (given.sum(1) - 1).abs()
    if bool((given < 0).any()) or not bool((off <= _SUM_TOLERANCE).all()):
        message = (
            f"rows sum to {float(given.sum(1).min()):.4g} … {float(given.sum(1).max()):.4g} with "
            f"least entry {float(given.min()):.4g}, expected probabilities; take softmax of logits"
        )
        raise ValueError(message)
    if bool((target < 0).any()) or bool((target >= given.shape[1]).any()):
        message = (
            f"labels range from {int(target.min())} to {int(target.max())}, expected 0 to "
            f"{given.shape[1] - 1}: there are {given.shape[1]} probabilities a sample"
        )
        raise ValueError(message)
    return given, target


def _require_bins(num_bins: int) -> None:
    if num_bins < 1:
        message = f"num_bins is {num_bins}, expected at least 1: 15 is usual"
        raise ValueError(message)
